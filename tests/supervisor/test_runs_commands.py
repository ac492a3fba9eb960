"""`diff-runs`, `replay`, `export-runs`: what they say of real runs of the toy backend, and what they refuse."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from backpropagate import Trainer
from backpropagate.keep import history
from backpropagate_protocol.rundir import OutputDir


def backprop(folder: Path, *arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "backpropagate", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two runs of the same data, with other steps and another learning rate."""
    (tmp_path / "d.jsonl").write_text("".join(f'{{"text": "row number {i}"}}\n' for i in range(40)))
    trainer = Trainer("any", backend="toy", output_dir=tmp_path / "output", progress=False)
    trainer.train(tmp_path / "d.jsonl", steps=6)
    trainer.train(tmp_path / "d.jsonl", steps=9, run_name="longer")
    return tmp_path


def ids(folder: Path) -> list[str]:
    """The oldest first."""
    return [row.run_id for row in history.list_rows(folder / "output")][::-1]


def test_two_runs_are_compared(folder: Path) -> None:
    first, second = ids(folder)
    code, out, err = backprop(folder, "diff-runs", first[:8], "latest", "--json")
    document = json.loads(out)

    assert (code, err) == (0, "")
    assert (document["first"], document["second"]) == (first, second)
    assert document["asked"] == [
        {"name": "train.steps", "first": 6, "second": 9},
        {"name": "name", "first": None, "second": "longer"},
    ]
    came_out = {each["name"]: (each["first"], each["second"]) for each in document["came_out"]}
    assert came_out["steps"] == (6, 9)
    assert came_out["dataset_digest"][0] == came_out["dataset_digest"][1]
    assert document["losses"]


def test_in_words_equal_results_are_marked_as_equal(folder: Path) -> None:
    first, second = ids(folder)
    code, out, _ = backprop(folder, "diff-runs", first, second)
    lines = [" ".join(line.split()) for line in out.splitlines()]

    assert code == 0
    assert "train.steps 6 9" in lines
    assert "status completed =" in lines


def test_a_replay_is_a_new_run_that_sees_the_same_samples(folder: Path) -> None:
    old = ids(folder)[0]
    code, out, err = backprop(folder, "replay", old[:8], "--json")
    new = json.loads(out)["run_id"]
    compared = json.loads(backprop(folder, "diff-runs", old, new, "--json")[1])

    assert code == 0, err
    assert (compared["asked"], compared["same_samples"]) == ([], True)


def test_data_that_changed_are_refused_unless_that_is_said(folder: Path) -> None:
    old = ids(folder)[0]
    with (folder / "d.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')
    code, _, err = backprop(folder, "replay", old)
    runs = len(ids(folder))
    allowed, _, told = backprop(folder, "replay", old, "--changed-data")

    assert (code, runs) == (1, 2)
    assert err.startswith("[INPUT_DATASET_INVALID]: ")
    assert "--changed-data" in err
    assert allowed == 0
    assert "is not what it was" in told


def test_data_that_are_gone_are_named(folder: Path) -> None:
    old = ids(folder)[0]
    (folder / "d.jsonl").unlink()
    code, _, err = backprop(folder, "replay", old)

    assert code == 1
    assert err.startswith("[INPUT_DATASET_NOT_FOUND]: ")
    assert len(ids(folder)) == 2


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"kind": "export"}, "is no training, but an export"),
        ({"kind": "push"}, "is no training, but a push"),
        ({"parent": "c0ffee00-0000-4000-8000-000000000000", "link": 1}, "is run 1 of campaign c0ffee00: only"),
        ({"model": {"name": "mine", "path": "/nowhere/mine"}}, "/nowhere/mine is not there any more"),
    ],
)
def test_what_cannot_be_trained_again_is_said_to_be_so(folder: Path, changed: dict[str, object], words: str) -> None:
    old = ids(folder)[0]
    spec = folder / "output" / "runs" / old / "spec.json"
    spec.write_text(json.dumps({**json.loads(spec.read_text()), **changed}))
    code, _, err = backprop(folder, "replay", old)

    assert code == 1
    assert words in err


def test_the_history_is_written_out_as_lines_and_as_a_table(folder: Path) -> None:
    code, out, err = backprop(folder, "export-runs")
    rows = [json.loads(line) for line in out.splitlines()]
    table, _, told = backprop(folder, "export-runs", "--format", "csv", "--to", "runs.csv")
    with (folder / "runs.csv").open(encoding="utf-8", newline="") as file:
        cells = list(csv.DictReader(file))

    assert (code, err, table) == (0, "", 0)
    assert [row["run_id"] for row in rows] == [cell["run_id"] for cell in cells] == ids(folder)
    assert [cell["steps"] for cell in cells] == ["6", "9"]
    assert json.loads(cells[0]["hyperparameters"])["learning_rate"] == 2e-4
    assert "2 runs written to" in told


def test_only_runs_of_a_status_are_written_out(folder: Path) -> None:
    document = json.loads(backprop(folder, "export-runs", "--status", "failed", "--json")[1])

    assert document["runs"] == []
    assert backprop(folder, "export-runs", "--status", "failed") == (0, "", "")


@pytest.mark.parametrize("place", [".", "nowhere/runs.jsonl", "d.jsonl/runs.jsonl"])
def test_a_place_that_takes_no_file_is_refused(folder: Path, place: str) -> None:
    code, out, err = backprop(folder, "export-runs", "--to", place)

    assert (code, out) == (1, "")
    assert err.startswith("[CONFIG_OUTPUT_UNWRITABLE]: ")


@pytest.mark.parametrize("command", [["diff-runs", "latest", "abc"], ["replay", "abc"], ["diff-runs", "latest"]])
def test_a_run_that_is_not_there_is_an_error_of_the_user(folder: Path, command: list[str]) -> None:
    code, out, err = backprop(folder, *command)

    assert (code, out) == (1, "")
    assert "What to do: " in err
    assert len(list(OutputDir(folder / "output").runs.iterdir())) == 2
