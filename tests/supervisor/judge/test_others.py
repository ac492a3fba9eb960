"""How long the others on a card are waited for: each wait has its own time."""

from __future__ import annotations

from backpropagate.judge.others import PATIENCE, PATIENCE_WITH_RESIDENTS, Others
from backpropagate.judge.verdict import Cause, Kind
from backpropagate_protocol.messages import Phase


def _short(needed: int) -> Cause:
    return Cause(Kind.OOM, "RUNTIME_GPU_OOM", "out of memory", needed=needed, phase=Phase.LOAD)


def test_residents_are_waited_for_in_full_though_strangers_were_waited_for_before() -> None:
    others = Others()
    others.read(800, "a desktop")
    others.read(9000, "a game")
    assert others.are_to_blame(_short(4000))
    assert others.wait(0.0) is not None
    assert others.wait(PATIENCE - 1) is not None

    others.read(800, "a desktop")
    assert others.are_to_blame(_short(600))
    begun = PATIENCE + 100
    assert others.wait(begun) is not None
    assert others.wait(begun + PATIENCE_WITH_RESIDENTS - 1) is not None
    assert others.are_to_blame(_short(600))
    assert others.wait(begun + PATIENCE_WITH_RESIDENTS) is None
