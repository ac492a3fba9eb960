"""`multi-run` as it is typed: what begins, what goes on, what is refused; real processes on the toy backend."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, rows in (("d.jsonl", 60), ("e.jsonl", 40), ("few.jsonl", 2)):
        (tmp_path / name).write_text("".join(f'{{"text": "row number {i}"}}\n' for i in range(rows)))
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\nnonsense\n' * 20)
    (tmp_path / "empty.jsonl").write_text("")
    return tmp_path


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


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], "INPUT_VALIDATION_FAILED", "no training data was named"),
        (["d.jsonl"], "INPUT_VALIDATION_FAILED", "what to do with d.jsonl"),
        (["--data", "nowhere.jsonl"], "INPUT_DATASET_NOT_FOUND", "nowhere.jsonl"),
        (["--data", "empty.jsonl"], "INPUT_DATASET_INVALID", "is empty"),
        (["--data", "few.jsonl"], "INPUT_DATASET_INVALID", "2 rows, too few for 5 runs"),
        (["--data", "bad.jsonl"], "INPUT_DATASET_PARSE_FAILED", "20 of 40 rows"),
        (["--data", "d.jsonl", "--data", "e.jsonl", "--runs", "3"], "CONFIG_INVALID", "2 data files are 2 runs"),
        (["--data", "d.jsonl", "--merge", "soup"], "CONFIG_INVALID_SETTING", "--merge: 'soup'"),
        (["--data", "d.jsonl", "--replay", "0.6"], "CONFIG_INVALID_SETTING", "--replay: '0.6'"),
        (["--data", "d.jsonl", "--density", "0.6"], "CONFIG_INVALID", "--density means nothing to --merge slao"),
        (["--data", "d.jsonl", "--backend", "mlx"], "CONFIG_INVALID_SETTING", "mlx"),
        (["--data", "d.jsonl", "--mode", "full"], "CONFIG_INVALID_SETTING", "full"),
        (["--data", "d.jsonl", "--use-dora"], "CONFIG_INVALID_SETTING", "DoRA"),
        (["--data", "d.jsonl", "--fp8"], "CONFIG_INVALID_SETTING", "--fp8 is not part of this release"),
        (["--data", "d.jsonl", "--output", "d.jsonl"], "CONFIG_OUTPUT_UNWRITABLE", "d.jsonl"),
        (["--resume", "abc"], "INPUT_RUN_NOT_FOUND", "abc"),
        (["--resume", "abc", "--steps", "3"], "INPUT_VALIDATION_FAILED", "--steps"),
        (["--resume", "abc", "--data", "d.jsonl"], "INPUT_VALIDATION_FAILED", "--data"),
        (["--resume", "abc", "abc"], "INPUT_VALIDATION_FAILED", "named twice"),
        (["--append", "e.jsonl"], "INPUT_VALIDATION_FAILED", "there is no campaign"),
        (["--append", "e.jsonl", "--runs", "2"], "INPUT_VALIDATION_FAILED", "--runs"),
        (["--append", "e.jsonl", "--fresh"], "INPUT_VALIDATION_FAILED", "--fresh"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_wish_is_one_coded_error_and_nothing_is_made(
    folder: Path, arguments: list[str], code: str, words: str
) -> None:
    there = sorted(folder.iterdir())
    backend = (
        [] if "--backend" in arguments or "--resume" in arguments or "--append" in arguments else ["--backend", "toy"]
    )
    exit_code, out, err = backprop(folder, "multi-run", *arguments, *backend)
    told = [line for line in err.splitlines() if not line.startswith("note: ")]

    assert (exit_code, out) == (1, "")
    assert told[0].startswith(f"[{code}]: ")
    assert words in err
    assert any(line.startswith("What to do: ") for line in told)
    assert "Traceback" not in err
    assert sorted(folder.iterdir()) == there
