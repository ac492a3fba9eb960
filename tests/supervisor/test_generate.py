"""`generate`: a run, its adapter's folder, or a model; asked in a real child."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from backpropagate import Trainer, TrainingRun


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainingRun:
    folder = tmp_path_factory.mktemp("generate")
    (folder / "d.jsonl").write_text("".join(f'{{"text": "row number {i}"}}\n' for i in range(8)))
    return Trainer("any", backend="toy", output_dir=folder / "output", progress=False).train(
        folder / "d.jsonl", steps=20
    )


def generate(run: TrainingRun, *arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "backpropagate", "generate", *arguments],
        cwd=run.output_path.parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_run_answers_each_prompt_on_the_backend_it_was_trained_on(run: TrainingRun) -> None:
    code, out, err = generate(run, run.run_id[:6], "one", "two", "--json")
    document = json.loads(out)

    assert (code, err) == (0, "")
    assert document["prompts"] == ["one", "two"]
    assert len(document["answers"]) == 2
    assert document["adapter"] == str(run.adapter_path)


def test_without_json_the_answer_is_all_there_is(run: TrainingRun) -> None:
    code, out, err = generate(run, "latest", "one")

    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 1


def test_the_base_is_asked_without_the_adapter(run: TrainingRun) -> None:
    _, tuned, _ = generate(run, "latest", "one", "--json")
    code, base, _ = generate(run, "latest", "one", "--base", "--json")

    assert code == 0
    assert json.loads(base)["adapter"] is None
    assert json.loads(base)["answers"] != json.loads(tuned)["answers"]


def test_a_run_without_a_result_says_how_to_get_one(run: TrainingRun) -> None:
    folder = run.output_path.parent / "ffffffff-0000-4000-8000-000000000000"
    folder.mkdir()
    (folder / "spec.json").write_bytes((run.output_path / "spec.json").read_bytes())
    code, _, err = generate(run, "ffffffff", "one")
    (folder / "spec.json").unlink()
    folder.rmdir()

    assert code == 1
    assert "has no finished adapter" in err
    assert "backprop resume ffffffff" in err


def test_an_interpreter_that_is_none_is_named(run: TrainingRun, tmp_path: Path) -> None:
    """A program that can be run, but does not greet."""
    program = tmp_path / ("not-python.bat" if sys.platform == "win32" else "not-python")
    program.write_text("exit 3\n" if sys.platform == "win32" else "#!/bin/sh\nexit 3\n")
    program.chmod(0o755)
    code, _, err = generate(run, "latest", "one", "--runner-python", str(program))

    assert code == 1
    assert err.startswith(f"[DEP_RUNNER_MISSING]: {program} did not start a runner")
