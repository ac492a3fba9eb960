"""`merge`: a campaign's runs by any rule, afterwards; the real merge on adapters that the toy backend trained."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from backpropagate import Campaign, Trainer
from backpropagate.keep import locks
from backpropagate_protocol.rundir import OutputDir


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    folder = tmp_path_factory.mktemp("merge")
    (folder / "d.jsonl").write_text("".join(f'{{"text": "row number {i}"}}\n' for i in range(60)))
    trainer = Trainer("any", backend="toy", output_dir=folder / "output", lora_r=2, progress=False)
    return trainer.multi_run(folder / "d.jsonl", num_runs=3, steps_per_run=4)


@pytest.fixture
def campaign(made: Campaign, tmp_path: Path) -> tuple[Path, str]:
    """A folder of one's own with the finished campaign in `output`, and its id."""
    shutil.copytree(made.output_path.parents[1], tmp_path / "output", dirs_exist_ok=True)
    for journal in (tmp_path / "output" / "runs").glob("*/*.json*"):
        text = journal.read_text(encoding="utf-8")
        journal.write_text(text.replace(str(made.output_path.parents[2]), str(tmp_path)), encoding="utf-8")
    shutil.copy(made.output_path.parents[2] / "d.jsonl", tmp_path)
    return tmp_path, made.run_id


def merge(folder: Path, *arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "backpropagate", "merge", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def weights(adapter: Path) -> bytes:
    return (adapter / "adapter_model.safetensors").read_bytes()


def test_the_same_rule_once_more_gives_the_same_bytes(campaign: tuple[Path, str]) -> None:
    folder, run_id = campaign
    code, out, err = merge(folder, run_id, "--json")
    document = json.loads(out)

    assert (code, err) == (0, "")
    assert weights(Path(document["adapter"])) == weights(folder / "output" / "runs" / run_id / "adapter")
    assert [run["coefficient"] for run in document["runs"]] == pytest.approx([1, 0.5**0.5, 3**-0.5])
    assert sum(run["weight"] for run in document["runs"]) == pytest.approx(1)


def test_another_rule_gives_another_adapter_and_prints_its_coefficients(campaign: tuple[Path, str]) -> None:
    folder, _ = campaign
    code, out, err = merge(folder, "latest", "--merge", "average")
    lines = [" ".join(line.split()) for line in out.splitlines()]

    assert code == 0, err
    assert "1 d 1-20 1.000 0.333" in lines
    assert "3 d 41-60 0.333 0.333" in lines
    assert weights(folder / "output" / "lora") != weights(Path(lines[-1].partition(" ")[2]))


def test_a_floor_is_kept_to(campaign: tuple[Path, str]) -> None:
    folder, run_id = campaign
    document = json.loads(merge(folder, run_id, "--floor", "0.9", "--json")[1])

    assert [run["coefficient"] for run in document["runs"]] == pytest.approx([1, 0.9, 0.9])


def test_it_goes_where_it_is_told_and_is_published_if_asked(campaign: tuple[Path, str]) -> None:
    folder, run_id = campaign
    code, out, err = merge(folder, run_id, "--merge", "none", "-o", "mine", "--publish", "--json")
    document = json.loads(out)

    assert code == 0, err
    assert weights(folder / "mine") == weights(folder / "output" / "lora") == weights(Path(document["adapter"]))
    assert document["copy"] == str(folder / "mine")


def test_auto_tries_every_rule_and_takes_the_best(campaign: tuple[Path, str]) -> None:
    folder, run_id = campaign
    code, out, err = merge(folder, run_id, "--merge", "auto", "--json")
    document = json.loads(out)

    assert (code, err) == (0, "")
    assert set(document["scores"]) == {"slao", "slao-product", "ema", "average", "ties", "dare", "none"}
    assert document["scores"][document["rule"]] == max(document["scores"].values())


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["abc"], "INPUT_RUN_NOT_FOUND", "abc"),
        (["latest", "--merge", "soup"], "CONFIG_INVALID_SETTING", "--merge"),
        (["latest", "--merge", "ties", "--floor", "0.2"], "CONFIG_INVALID_SETTING", "means nothing to --merge ties"),
        (["latest", "--floor", "2"], "CONFIG_INVALID_SETTING", "--merge-floor: '2'"),
        (["latest", "-o", "output"], "CONFIG_OUTPUT_UNWRITABLE", "is there already"),
        (["latest", "-o", "d.jsonl/below"], "CONFIG_OUTPUT_UNWRITABLE", "d.jsonl"),
        (["latest", "--runs", "elsewhere"], "INPUT_RUN_NOT_FOUND", "elsewhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_wish_is_one_coded_error_and_nothing_is_made(
    campaign: tuple[Path, str], arguments: list[str], code: str, words: str
) -> None:
    folder, run_id = campaign
    exit_code, out, err = merge(folder, *arguments)

    assert (exit_code, out) == (1, "")
    assert err.startswith(f"[{code}]: ")
    assert words in err
    assert not list((folder / "output" / "runs" / run_id / "merges").glob("again-*"))


def test_a_run_of_the_campaign_is_not_the_campaign(campaign: tuple[Path, str], made: Campaign) -> None:
    folder, _ = campaign
    code, _, err = merge(folder, made.runs[0].run_id)

    assert code == 1
    assert f"is a run of campaign {made.run_id[:8]}" in err


def test_an_adapter_that_is_gone_is_named(campaign: tuple[Path, str], made: Campaign) -> None:
    folder, run_id = campaign
    shutil.rmtree(folder / "output" / "runs" / made.runs[1].run_id / "adapter")
    code, _, err = merge(folder, run_id)

    assert code == 1
    assert "the adapter of run 2 (d 21-40) is not there any more" in err


def test_while_another_has_the_folder_nothing_is_published(campaign: tuple[Path, str]) -> None:
    folder, run_id = campaign
    with locks.hold(OutputDir(folder / "output").lock, "another", "the output folder"):
        code, _, err = merge(folder, run_id, "--publish")
        alone = merge(folder, run_id)[0]

    assert (code, alone) == (75, 0)
    assert err.startswith("[STATE_BUSY]: ")
