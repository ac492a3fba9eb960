"""When to save. Pure: times are handed in, in seconds of any monotonic clock.

With `save_steps`, every so many steps. Otherwise adaptive, by three rules:
1. At most `save_seconds` of work are at risk, and early in the run at most half of what was done so far (the first save
   comes after a tenth of `save_seconds`, which also tells what a save costs).
2. Rule 1 yields where saving is dear: all saves together, the next one included, hold up the training for at most 1 % of
   its time, and are written, beside it, in at most a tenth of it. Only the very first, whose cost nobody knows, may break
   this.
3. The last step is always saved, so that nothing that follows it can cost the training.
"""

from __future__ import annotations

BUDGET = 0.01
WRITING = 0.1
RETRY_SECONDS = 10.0
STUCK = 10  # times `save_seconds` at risk: a write that goes on for so long may never end


class Cadence:
    """Asked after every optimizer step; told about every save. `start` is the time at which training begins."""

    def __init__(self, save_steps: int | None, save_seconds: float, total_steps: int, start: float) -> None:
        self._save_steps, self._save_seconds, self._total_steps = save_steps, save_seconds, total_steps
        self._start = self._safe_until = start
        self._held = _Account(BUDGET)
        self._written = _Account(WRITING)
        self._not_before = start

    def due(self, step: int, now: float, writing: bool = False) -> bool:
        """`writing`: the last one is still being written; another one would have to wait for it."""
        if step >= self._total_steps:
            return True
        if self._save_steps is not None:
            return step % self._save_steps == 0
        at_risk = now - self._safe_until
        if writing:
            return at_risk >= STUCK * self._save_seconds  # waited for then, under the parent's eyes
        safe = self._safe_until - self._start
        bound = min(self._save_seconds, max(self._save_seconds / 10, safe))
        trained = now - self._start
        affordable = self._held.allows(trained) and self._written.allows(trained)
        return at_risk >= bound and affordable and now >= self._not_before

    def saved(self, begin: float, end: float, released: float | None = None) -> None:
        """A checkpoint that took from `begin` to `end` is durable: all work up to `begin` is safe.

        released: when the training went on; None: at the end.
        """
        released = end if released is None else released
        self._safe_until = released
        self._pay(begin, released, end)

    def failed(self, begin: float, end: float, released: float | None = None) -> None:
        """A checkpoint could not be written: the work stays at risk, and the next try waits a little."""
        self._not_before = end + min(RETRY_SECONDS, self._save_seconds)
        self._pay(begin, end if released is None else released, end)

    def _pay(self, begin: float, released: float, end: float) -> None:
        self._held.pay(released - begin)
        self._written.pay(end - begin)


class _Account:
    """What was spent of a share of the time trained, and what the last time cost, which is what the next will."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._spent = self._cost = 0.0

    def allows(self, trained: float) -> bool:
        return self._spent + self._cost <= self._share * trained

    def pay(self, cost: float) -> None:
        self._cost = cost
        self._spent += cost
