"""`export` and `train --export` from end to end on the bundled model: what is printed, where things lie, what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from backpropagate.keep import history
from tests.house.source import ROOT


def backprop(folder: Path, *arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "backpropagate", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=280,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a run of the bundled model was trained and, in the same run, exported as f16."""
    folder = tmp_path_factory.mktemp("export")
    data = str(ROOT / "fixtures" / "quickstart.jsonl")
    flags = ["-d", data, "-m", "tiny", "--steps", "2", "--lora-r", "4", "--backend", "cpu", "--name", "first"]
    code, out, err = backprop(folder, "train", *flags, "--export", "F16")
    assert code == 0, err
    (folder / "said.txt").write_text(out, encoding="utf-8")
    return folder


def newest(folder: Path) -> str:
    return history.list_rows(folder / "output")[0].run_id


@pytest.mark.slow
def test_a_training_that_exports_says_where_the_result_is_and_how_to_talk_to_it(trained: Path) -> None:
    lines = dict(line.split(None, 1) for line in (trained / "said.txt").read_text(encoding="utf-8").splitlines())
    (result,) = (trained / "output" / "exports").rglob("*.gguf")

    assert lines["status"] == "completed"
    assert result.name == "first-F16.gguf"
    assert lines["export"].startswith(f"{result} (")
    assert lines["proof"].startswith("passed, ")
    assert lines["chat"] == f"backprop chat {result}"
    assert json.loads(result.with_name(result.name + ".export.json").read_text())["proof"]["passed"]


@pytest.mark.slow
def test_an_export_is_a_run_of_its_own_and_one_json_document(trained: Path) -> None:
    code, out, err = backprop(trained, "export", "latest", "-q", "q8_0", "-o", "a folder", "--name", "mine", "--json")
    document = json.loads(out)

    assert (code, err) == (0, "")
    assert document["exported"]["path"] == str(trained / "a folder" / "mine-Q8_0.gguf")
    assert document["exported"]["bytes"] == (trained / "a folder" / "mine-Q8_0.gguf").stat().st_size
    assert document["exported"]["proof"]["passed"]
    assert document["exported"]["run_id"] == document["run_id"]
    listed = json.loads(backprop(trained, "list-runs", "--json")[1])["runs"]
    assert document["run_id"] in [row["run_id"] for row in listed if row["session_kind"] == "export"]


@pytest.mark.slow
def test_latest_is_the_newest_training_whatever_was_exported_since(trained: Path) -> None:
    code, _, err = backprop(trained, "export", "latest", "-o", "lora copy")
    assert code == 0, err
    code, out, _ = backprop(trained, "generate", "latest", "Hello!", "--json")

    assert code == 0
    assert "/runs/" in json.loads(out)["adapter"].replace("\\", "/")
    assert (trained / "lora copy" / "first-lora" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the fault is a signal")
def test_a_killed_stage_is_done_again_and_a_failed_one_says_the_command_that_continues(trained: Path) -> None:
    code, out, err = backprop(trained, "export", "latest", "-f", "merged", "-o", "again", "--fault", "sigkill@2@merge")
    assert code == 0, err
    assert "recovered from 1" in out

    code, _, err = backprop(trained, "export", "latest", "-q", "f16", "-o", "more", "--fault", "sigkill@2:0@convert")
    assert code != 0
    assert f"backprop resume {newest(trained)[:8]}" in err


@pytest.mark.slow
def test_an_upload_is_rehearsed_without_a_run(trained: Path) -> None:
    before = len(json.loads(backprop(trained, "list-runs", "--json", "--all")[1])["runs"])
    code, out, err = backprop(trained, "push", "latest", "--repo", "me/mine", "--dry-run", "--json")
    document = json.loads(out)

    assert (code, err) == (0, "")
    assert {"adapter_model.safetensors", "README.md"} <= {file["name"] for file in document["files"]}
    assert "Final loss" in document["card"]
    assert len(json.loads(backprop(trained, "list-runs", "--json", "--all")[1])["runs"]) == before


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["export", "nothing"], "INPUT_MODEL_NOT_FOUND"),
        (["export", "latest"], "INPUT_RUN_NOT_FOUND"),
        (["export", "tiny", "-f", "merged"], "INPUT_VALIDATION_FAILED"),
        (["export", "tiny", "-f", "nonsense"], "INPUT_VALIDATION_FAILED"),
        (["export", "tiny", "-q", "q1"], "CONFIG_INVALID_SETTING"),
        (["export", "tiny", "--ollama-name", "a b"], "CONFIG_INVALID_SETTING"),
        (["export", "tiny", "-o", "file"], "CONFIG_OUTPUT_UNWRITABLE"),
        (["export", "tiny", "--fault", "sigkill@3@nowhere"], "INPUT_VALIDATION_FAILED"),
        (["export", "tiny", "--push-to-hub", "me/mine"], "INPUT_VALIDATION_FAILED"),
        (["export", "tiny", "--memory", "0"], "CONFIG_INVALID_SETTING"),
        (["push", "tiny", "--repo", "me/mine"], "INPUT_RUN_NOT_FOUND"),
        (["push", "file", "--repo", "nobody"], "HUB_PUSH_INVALID_REPO"),
        (["push", "file", "--repo", "me/mine", "--token", "hf_secret"], "CONFIG_INVALID_SETTING"),
        (["train", "-d", "file", "-m", "tiny", "--export", "q1"], "CONFIG_INVALID_SETTING"),
        (["train", "-d", "file", "-m", "tiny", "--export", "lora", "--ollama-name", "mine"], "CONFIG_INVALID_SETTING"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_a_wrong_wish_is_an_error_with_its_code_and_creates_nothing(
    tmp_path: Path, arguments: list[str], code: str
) -> None:
    (tmp_path / "file").write_text('{"text": "hello"}\n')
    status, out, err = backprop(tmp_path, *arguments)

    assert (status, out) == (1, "")
    assert err.startswith(f"[{code}]: ")
    assert "hf_secret" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
