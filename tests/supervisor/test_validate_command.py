"""`backprop validate`: what it says of a data set in words and as JSON, with a model and without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from backpropagate.commands.data_report import words
from backpropagate_protocol.about_data import DataReport, ShownRow

PAIRS = [{"prompt": f"q{n}", "chosen": "yes", "rejected": "no"} for n in range(3)] + [
    {"prompt": "q", "chosen": "same", "rejected": "same"}
]
TOY = ("--model", "toy", "--backend", "toy")


def backprop(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "backpropagate", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONUTF8": "1"},
        timeout=120,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return tmp_path


def test_with_a_model_the_rows_are_measured_and_shown(folder: Path) -> None:
    done = backprop("validate", "p.jsonl", "--method", "dpo", *TOY, "--show", "1", "--json", cwd=folder)
    answer = json.loads(done.stdout)

    assert done.returncode == 0
    assert (answer["statistics"]["kind"], answer["statistics"]["samples"]) == ("pairs", 3)
    assert answer["statistics"]["lengths"]["most"] == len("user: q0$assistant: yes$")
    assert answer["dropped"] == {"equal_answers": 1}
    assert [row["what"] for row in answer["shown"]] == ["chosen", "rejected"]
    assert answer["shown"][0]["pieces"] == [["user: q0<end>assistant: ", False], ["yes<end>", True]]


def test_in_words_what_carries_loss_stands_in_brackets(folder: Path) -> None:
    done = backprop("validate", "p.jsonl", *TOY, "--show", "1", cwd=folder)

    assert "user: q0<end>assistant: «yes<end>»" in done.stdout
    assert "--method orpo, simpo, dpo or kto" in done.stdout


@pytest.mark.parametrize(
    "flags", [("--show", "2"), ("--max-length", "99"), ("--reasoning-trace",), ("--min-tokens", "3")]
)
def test_what_only_tokens_know_is_refused_without_a_model(folder: Path, flags: tuple[str, ...]) -> None:
    done = backprop("validate", "p.jsonl", *flags, cwd=folder)

    assert done.returncode == 1
    assert f"[CONFIG_INVALID_SETTING]: {flags[0]} would have no effect" in done.stderr
    assert "--model" in done.stderr


def test_nothing_in_a_shown_row_can_steer_a_terminal() -> None:
    row = ShownRow(1, "", (("\x1b]0;title\x07\u202e", False), ("fine", True)), 2, 1)
    shown = words(DataReport("text", 1, 0, (), shown=(row,)))
    assert "\x1b]" not in shown
    assert "\x07" not in shown
    assert "\u202e" not in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--min-trace-tokens", "5"), "no reasoning traces are asked for"),
        (("--split", "train"), "a file has no splits"),
    ],
)
def test_what_a_training_would_not_serve_is_refused_here_too(
    folder: Path, arguments: tuple[str, ...], words: str
) -> None:
    done = backprop("validate", "p.jsonl", *TOY, *arguments, cwd=folder)
    assert done.returncode == 1
    assert words in done.stderr
