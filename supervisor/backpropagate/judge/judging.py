"""What whoever carries decisions out needs of a policy, be it that of a training or of another stage."""

from __future__ import annotations

from typing import Protocol

from backpropagate.judge.decisions import Action, Input
from backpropagate.judge.states import State


class Judge(Protocol):
    """Whose decisions are carried out: the policy of a training, or that of another stage."""

    state: State
    attempt: int
    recoveries: int

    @property
    def device(self) -> str:
        """What the newest child trains on, as far as it is known."""

    @property
    def fit(self) -> int | None:
        """A micro-batch worth remembering for the next run."""

    @property
    def wake_at(self) -> float | None: ...

    @property
    def stop_asked(self) -> bool: ...

    def handle(self, input: Input) -> list[Action]: ...
