"""Which kernels a training may choose by itself: what a probe found here before, or finds now, once, in a child with a deadline.

A broken kernel crashes or hangs, and that must not be the training's first step. Nothing is tried where no card is seen.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import anyio

from backpropagate.doors.oneshot import ask_job
from backpropagate.keep import probed
from backpropagate_protocol.errors import BackpropagateError
from backpropagate_protocol.jobs import ProbeJob
from backpropagate_protocol.probes import WORKS, ProbeReport
from backpropagate_protocol.spec import RunSpec, rail

DEADLINE = 120.0  # seconds for each; all of them are less than a child may take to import
# By the package that each is in. Others, which are rare or cost more to try, are left to `backprop doctor`.
_PACKAGES = {"varlen": "torch", "flash_attention_2": "flash-attn", "liger": "liger-kernel"}


class Kernels:
    """One run's."""

    def __init__(
        self,
        spec: RunSpec,
        say: Callable[[str], None],
        attempt: Callable[[str], Awaitable[ProbeReport]] | None = None,
        today: Callable[[], str] = probed.today,
    ) -> None:
        """`say`: is told before anything is tried. `attempt`: tries one; raises BackpropagateError if that does not answer."""
        self._python, self._say, self._today = spec.runner_python, say, today
        self._attempt = attempt or partial(_attempt, spec.runner_python)
        train = spec.train
        chooses = train.attention == "auto" or train.liger is None
        self._chooses = chooses and spec.backend in ("auto", "cuda") and rail(spec) != "unsloth"
        self._found: tuple[str, ...] | None = None
        self._one_at_a_time = anyio.Lock()

    async def working(self, packages: Mapping[str, str], card: str) -> tuple[str, ...]:
        """TrainJob.kernels for an environment with these `packages`, on the card of this name; empty: none is seen."""
        async with self._one_at_a_time:
            known = probed.known(self._python, packages, card, self._today())
            if known is None and self._found is None and card and self._chooses:
                self._found = await self._tried(packages, card)
            return known or self._found or ()

    async def _tried(self, packages: Mapping[str, str], card: str) -> tuple[str, ...]:
        names = [name for name, package in _PACKAGES.items() if package in packages]
        if not names:
            return ()
        self._say(f"trying out what works on this {card}: {', '.join(names)}")
        answers: dict[str, str] = {}
        made = True
        for name in names:
            try:
                answers[name] = (await self._attempt(name)).state
            except BackpropagateError as error:
                made = made and error.code == "RUNTIME_CHILD_DIED"
            except (OSError, ExceptionGroup):
                made = False  # no descriptor left, a full disk: no reason to end a run that can do without
        found = tuple(name for name, state in answers.items() if state == WORKS)
        if made:
            # What hangs costs its whole deadline: not again for each run of a campaign and each resume, but tomorrow.
            day = "" if len(answers) == len(names) else self._today()
            probed.remember(self._python, packages, card, found, day)
        return found


async def _attempt(python: str | None, name: str) -> ProbeReport:
    return await ask_job(ProbeJob(name=name), ProbeReport, backend="none", runner_python=python, deadline=DEADLINE)
