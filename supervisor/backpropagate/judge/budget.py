"""What a run has spent of its supervisor's patience, and on what. Pure; seconds."""

from __future__ import annotations

from backpropagate.judge.halving import halved
from backpropagate.judge.states import BACKOFF
from backpropagate.judge.verdict import Again, Cause, Rules, Standing, Verdict, judge
from backpropagate_protocol.spec import SafetySpec


class Budget:
    """Respawns count against progress, halvings against the run. `jitter` in [0, 1) stretches the delays."""

    def __init__(self, safety: SafetySpec, jitter: float, least_batch: int = 1) -> None:
        self.rules = Rules(safety.oom_recovery, safety.max_halvings, safety.max_respawns, least_batch)
        self._jitter = jitter
        self._halvings = 0
        self._respawns = 0  # counted ones, since the last newly committed step
        self._causes: list[Cause] = []
        self._told = 0  # causes before that step

    def progress(self) -> None:
        """A new step was committed."""
        self._respawns, self._told = 0, len(self._causes)

    def judge(
        self, cause: Cause, micro: int, effective: int, *, checkpointing_can_help: bool, loaded: bool, resuming: bool
    ) -> Verdict:
        """The verdict on the cause, which is remembered."""
        at = Standing(
            micro=micro,
            effective=effective,
            halvings=self._halvings,
            respawns=self._respawns,
            checkpointing_can_help=checkpointing_can_help,
            loaded=loaded,
            resuming=resuming,
            earlier=tuple(self._causes),
            fruitless=tuple(self._causes[self._told :]),
        )
        self._causes.append(cause)
        return judge(cause, at, self.rules)

    def smaller(self, micro: int, effective: int) -> tuple[int, ...]:
        """The micro-batches that a child may go down to by itself, one after the other."""
        found: list[int] = []
        while self.rules.oom_recovery and self._halvings + len(found) < self.rules.max_halvings:
            next_one = halved(found[-1] if found else micro, effective, self.rules.least_batch)
            if next_one is None:
                break
            found.append(next_one)
        return tuple(found)

    def halved_in_place(self) -> None:
        """Pays for a halving that cost no child."""
        self._halvings += 1

    def spend(self, verdict: Again) -> float:
        """Pays for a respawn; returns the delay before it."""
        self._halvings += verdict.halving
        if not verdict.counts:
            return 0.0
        self._respawns += 1
        return self.delay(self._respawns - 1)

    def delay(self, tries: int) -> float:
        """The wait after so many tries in vain."""
        return BACKOFF[min(tries, len(BACKOFF) - 1)] * (1 + self._jitter)
