"""How planned faults are written on the command line: kind, step, attempt and stage."""

from __future__ import annotations

import pytest

from backpropagate.commands.drills import _STAGES, planned_fault
from backpropagate_protocol.errors import UserInputError
from backpropagate_protocol.messages import Phase
from backpropagate_protocol.spec import PlannedFault


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("oom@5", PlannedFault("oom", 5)),
        ("oom@5:0", PlannedFault("oom", 5, 0)),
        ("sigkill@3@convert", PlannedFault("sigkill", 3, 1, "convert")),
        ("sigkill@3:2@prove", PlannedFault("sigkill", 3, 2, "prove")),
    ],
)
def test_a_fault_is_read_as_it_is_written(text: str, fault: PlannedFault) -> None:
    assert planned_fault(text) == fault


@pytest.mark.parametrize("text", ["", "oom", "oom@", "@5", "oom@x", "oom@5:", "oom@5:x", "oom@5@", "oom@5@here@there"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UserInputError, match="KIND@STEP"):
        planned_fault(text)


def test_a_stage_that_is_misspelled_is_guessed() -> None:
    with pytest.raises(UserInputError, match="did you mean convert"):
        planned_fault("oom@5@convrt")


def test_every_stage_but_the_training_is_a_phase() -> None:
    assert set(_STAGES) - {"train"} <= {phase.value for phase in Phase}
