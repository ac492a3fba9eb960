"""One child for one question: what comes back, and what is raised when the child is not one of ours."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from backpropagate.doors.oneshot import run_job
from backpropagate_protocol.errors import BackpropagateError
from backpropagate_protocol.framing import encode
from backpropagate_protocol.jobs import ValidateJob
from backpropagate_protocol.messages import PROTOCOL_VERSION, DataReport, Hello
from backpropagate_protocol.spec import DataSpec


def job(folder: Path) -> ValidateJob:
    (folder / "d.jsonl").write_text('{"text": "hello"}\n')
    return ValidateJob(data=DataSpec(source=str(folder / "d.jsonl")))


def impostor(folder: Path, says: bytes, code: int = 0) -> str:
    """A program that takes the runner's place, says these bytes and ends."""
    (folder / "says").write_bytes(says)
    program = folder / "impostor"
    program.write_text(f"#!/bin/sh\ncat '{folder / 'says'}'\necho 'last words' >&2\nexit {code}\n")
    program.chmod(0o755)
    return str(program)


def refused(folder: Path, python: str) -> BackpropagateError:
    with pytest.raises(BackpropagateError) as caught:
        run_job(job(folder), DataReport, backend="none", runner_python=python)
    return caught.value


def test_the_result_of_the_job_comes_back(tmp_path: Path) -> None:
    messages: list[str] = []
    report = run_job(job(tmp_path), DataReport, backend="none", on_message=lambda m: messages.append(type(m).__name__))

    assert (report.format, report.rows, report.bad) == ("text", 1, 0)
    assert messages[0] == "Hello"
    assert messages[-1] == "Done"


def test_an_interpreter_that_cannot_be_started_is_named(tmp_path: Path) -> None:
    error = refused(tmp_path, str(tmp_path / "nobody"))

    assert error.code == "CONFIG_INVALID_SETTING"
    assert "nobody" in error.message


@pytest.fixture
def no_temporary_folder(tmp_path: Path) -> Iterator[Path]:
    before, tempfile.tempdir = tempfile.tempdir, str(tmp_path / "gone")
    yield tmp_path / "gone"
    tempfile.tempdir = before


def test_a_machine_that_takes_no_file_for_the_last_words_is_an_error_with_a_code(
    tmp_path: Path, no_temporary_folder: Path
) -> None:
    assert str(no_temporary_folder) in refused(tmp_path, sys.executable).message


@pytest.mark.skipif(sys.platform == "win32", reason="the impostor is a shell script")
def test_what_is_not_our_protocol_is_said_so(tmp_path: Path) -> None:
    assert refused(tmp_path, impostor(tmp_path, b"\x02\x00\x00\x00hi")).code == "RUNTIME_PROTOCOL"


@pytest.mark.skipif(sys.platform == "win32", reason="the impostor is a shell script")
def test_a_runner_of_another_protocol_is_refused_before_it_gets_the_job(tmp_path: Path) -> None:
    hello = Hello(protocol=PROTOCOL_VERSION + 1, pid=1, python="3", packages={})
    error = refused(tmp_path, impostor(tmp_path, encode(hello)))

    assert error.code == "RUNTIME_PROTOCOL"
    assert f"protocol {PROTOCOL_VERSION + 1}" in error.message


@pytest.mark.skipif(sys.platform == "win32", reason="the impostor is a shell script")
def test_a_runner_that_dies_is_told_of_with_its_last_words(tmp_path: Path) -> None:
    hello = Hello(protocol=PROTOCOL_VERSION, pid=1, python="3", packages={})
    error = refused(tmp_path, impostor(tmp_path, encode(hello), code=3))

    assert error.code == "RUNTIME_CHILD_DIED"
    assert "exited with 3" in error.message
    assert "last words" in error.message


def test_bad_data_is_raised_with_its_own_code(tmp_path: Path) -> None:
    wrong = ValidateJob(data=DataSpec(source=str(tmp_path / "gone.jsonl")))
    with pytest.raises(BackpropagateError) as caught:
        run_job(wrong, DataReport, backend="none")

    assert caught.value.code == "INPUT_DATASET_NOT_FOUND"
