"""`chat`: in a pipe, as JSON lines, on a terminal; and what cannot be talked to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def chat(folder: Path, *arguments: str, said: str = "") -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "backpropagate", "chat", *arguments],
        cwd=folder,
        input=said,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_each_line_of_a_pipe_is_a_question_and_stdout_has_the_answers_only(tmp_path: Path) -> None:
    code, out, err = chat(tmp_path, "me/any", "--backend", "toy", said="one\n\n/help\n/tmp?\n/reset\n/exit\nthree\n")

    assert code == 0
    assert len(out.splitlines()) == 2
    loading, help_, forgotten = err.splitlines()
    assert (loading, "/exit ends it" in help_, forgotten) == ("loading me/any", True, "forgotten")


def test_with_json_each_answer_is_a_line(tmp_path: Path) -> None:
    code, out, err = chat(tmp_path, "me/any", "--backend", "toy", "--json", said="one\ntwo\n")
    lines = [json.loads(line) for line in out.splitlines()]

    assert (code, err) == (0, "")
    assert [line["prompt"] for line in lines] == ["one", "two"]
    assert all(line["answer"] and line["seconds"] >= 0 for line in lines)


def test_nothing_said_is_nothing_answered(tmp_path: Path) -> None:
    assert chat(tmp_path, "me/any", "--backend", "toy")[:2] == (0, "")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["nothing.gguf"], "INPUT_MODEL_NOT_FOUND"),
        (["broken.gguf"], "INPUT_VALIDATION_FAILED"),
        (["real.gguf", "--base"], "CONFIG_INVALID_SETTING"),
        (["./nothing"], "INPUT_MODEL_NOT_FOUND"),
        (["nix"], "INPUT_MODEL_NOT_FOUND"),
        (["latest"], "INPUT_RUN_NOT_FOUND"),
        ([""], "INPUT_VALIDATION_FAILED"),
        (["tiny", "--temperature", "-1"], "INPUT_VALIDATION_FAILED"),
        (["tiny", "--max-new-tokens", "0"], "INPUT_VALIDATION_FAILED"),
        (["tiny", "--runner-python", "no-such-program"], "CONFIG_INVALID_SETTING"),
    ],
    ids=str,
)
def test_what_cannot_be_talked_to_is_refused_with_its_code(tmp_path: Path, arguments: list[str], code: str) -> None:
    (tmp_path / "broken.gguf").write_text("no")
    (tmp_path / "real.gguf").write_bytes(b"GGUF and so on")
    status, out, err = chat(tmp_path, *arguments, said="one\n")

    assert (status, out) == (1, "")
    assert err.startswith(f"[{code}]: ")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals in the standard library there")
def test_a_person_can_reset_ask_for_help_and_leave(tmp_path: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "backpropagate", "chat", "me/any", "--backend", "toy"],
        cwd=tmp_path,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.write(ours, b"one\n/reset\n/what\n/exit\n")
    out, err = process.communicate(timeout=120)
    os.close(ours)
    os.close(theirs)

    assert process.returncode == 0
    assert out.replace("> ", "").strip()
    assert "forgotten" in err
    assert err.count("/reset begins anew") == 2
