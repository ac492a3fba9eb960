"""The error catalogue: every code can be raised, sent over the wire, and answered with a deed."""

from __future__ import annotations

import re
import traceback

import pytest

from backpropagate_protocol.catalogue import CATALOGUE, ExitCode, Retry
from backpropagate_protocol.errors import BackpropagateError, error_for

CODES = sorted(CATALOGUE)


@pytest.mark.parametrize("code", CODES)
def test_a_code_becomes_an_exception_that_says_it_again(code: str) -> None:
    error = error_for(code, "what happened", run_id="r-1")
    assert error.code == code
    assert str(error) == f"[{code}]: what happened"
    assert error.suggestion == CATALOGUE[code].remedy
    assert error.run_id == "r-1"
    assert error.exit_code is CATALOGUE[code].exit


@pytest.mark.parametrize("code", CODES)
def test_an_entry_says_what_to_do_in_whole_sentences(code: str) -> None:
    info = CATALOGUE[code]
    assert re.fullmatch(r"(INPUT|CONFIG|DEP|HUB|RUNTIME|STATE|PARTIAL)_[A-Z_]+", code)
    assert len(info.title) > 10
    assert not info.title.endswith(".")
    assert info.remedy.endswith(".")


@pytest.mark.parametrize("code", CODES)
def test_no_failure_exits_with_success(code: str) -> None:
    assert CATALOGUE[code].exit is not ExitCode.DONE


@pytest.mark.parametrize("code", CODES)
def test_only_what_may_succeed_later_invites_a_retry(code: str) -> None:
    """75 tells a scheduler to come again: never for what needs a change first."""
    info = CATALOGUE[code]
    if info.exit is ExitCode.TRY_LATER:
        assert info.retry is not Retry.NEVER


def test_the_most_precise_class_is_rebuilt_on_this_side_of_the_wire() -> None:
    assert type(error_for("RUNTIME_GPU_OOM", "m")).__name__ == "GPUMemoryError"
    assert type(error_for("INPUT_DATASET_PARSE_FAILED", "m")).__name__ == "DatasetParseError"
    assert type(error_for("INPUT_RUN_AMBIGUOUS", "m")).__name__ == "RunNotFoundError"


def test_a_code_of_a_newer_runner_is_kept_in_the_message() -> None:
    error = error_for("RUNTIME_FROM_THE_FUTURE", "unheard of")
    assert error.code == "RUNTIME_INTERNAL"
    assert "RUNTIME_FROM_THE_FUTURE" in str(error)


def test_a_code_that_is_not_in_the_catalogue_cannot_be_raised() -> None:
    with pytest.raises(KeyError):
        BackpropagateError("m", code="MADE_UP")


def test_exit_codes_are_the_documented_numbers() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "DONE": 0,
        "USER_ERROR": 1,
        "FAILED": 2,
        "PARTIAL": 3,
        "NEEDS_RESET": 69,
        "TRY_LATER": 75,
        "INTERRUPTED": 130,
    }


def test_an_error_that_nobody_caught_says_what_to_do() -> None:
    error = error_for("STATE_BUSY", "taken")

    assert f"What to do: {error.suggestion}" in "".join(traceback.format_exception(error))
