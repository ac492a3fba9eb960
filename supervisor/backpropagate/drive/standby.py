"""A second runner, its frameworks imported, that waits to take over from the one that works.

It is an ordinary child that was started early: the same door, the same link to us, the same burial. Nothing it says is
read while it waits, so to the policy it is a child that says Hello the moment it is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from enum import Enum, auto

import anyio
from anyio.abc import TaskGroup

from backpropagate.doors.process import Runner
from backpropagate.judge.decisions import Death
from backpropagate.judge.standby import LOOK, Readiness
from backpropagate_protocol.host_memory import Memory, host_memory

_MOMENT = 2.0  # seconds in which the end of a dead process is heard


class End(Enum):
    """What became of a wait."""

    TAKEN = auto()  # its turn has come
    DIED = auto()
    LET_GO = auto()


class Turn:
    """One runner's wait for its turn."""

    def __init__(self, warm: str) -> None:
        self.warm = warm
        self.end: End | None = None
        self.death: Death | None = None
        self.over = anyio.Event()
        self.counted = anyio.Event()  # what followed from its end is done
        self._runner: Runner | None = None

    def decide(self, end: End, death: Death | None = None) -> None:
        """The first decision stands."""
        if self.end is None:
            self.end, self.death = end, death
            self.over.set()

    @property
    def can_come(self) -> bool:
        """Whether the runner is alive at this very moment: what kills the one that works may have killed it, too."""
        return self.end is None and (self._runner is None or not self._runner.has_ended)

    async def comes(self, runner: Runner) -> bool:
        """Waits for it, in the runner's own task. False: the runner is dead, or to be ended."""
        self._runner = runner
        runner.expendable(True)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._mourn, runner)
            await self.over.wait()
            tasks.cancel_scope.cancel()
        if self.end is not End.TAKEN:
            return False
        runner.expendable(False)
        return True

    async def _mourn(self, runner: Runner) -> None:
        self.decide(End.DIED, await runner.ended())


_Life = Callable[[str, Turn], Coroutine[object, object, None]]  # a child's, from spawn to burial


class Standby:
    """Keeps one ready while a training goes on, as `wish` (on, off, auto) says."""

    def __init__(
        self,
        wish: str,
        backend: str,
        warn: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        *,
        memory: Callable[[], Memory | None] = host_memory,
        look: float = LOOK,
    ) -> None:
        """`look`: seconds between two looks at the memory."""
        self._rules, self._backend = Readiness(wish, backend), backend
        self._warn, self._clock, self._memory, self._look = warn, clock, memory, look
        self._turn: Turn | None = None
        self._trains = False
        self._began = anyio.Event()

    def advanced(self) -> None:
        """The child that works made a step."""
        if not self._trains:
            self._trains = True
            self._rules.advanced(self._clock())
            self._began.set()

    def take(self, warm: str) -> bool:
        """A child is wanted. True: the standby is it. Another one is made ready once that has made a step."""
        if self._trains:
            self._trains, self._began = False, anyio.Event()
            self._rules.failed()
        turn = self._turn
        if turn is None or turn.warm != warm or not turn.can_come:
            return False
        turn.decide(End.TAKEN)
        return True

    async def mourned(self) -> bool:
        """Whether the one that waits is dead at this moment. If so, it returns when that was taken into account."""
        turn = self._turn
        if turn is None or turn.end is End.TAKEN or turn.can_come:
            return False
        with anyio.move_on_after(_MOMENT):
            await turn.counted.wait()
        return True

    def end(self) -> None:
        """No child is wanted any more, or the memory is needed."""
        self._rules.end()
        if self._turn is not None:
            self._turn.decide(End.LET_GO)

    async def keep(self, start: _Life, killed: Callable[[], None], tasks: TaskGroup) -> None:
        """For as long as the driver lasts. `killed` is told when the kernel has taken one for its memory."""
        while True:
            await self._began.wait()
            delay = self._rules.delay(self._clock(), self._memory())
            if delay is None:
                return
            if delay > 0:
                await anyio.sleep(min(delay, self._look))
                continue
            turn = self._turn = Turn(self._backend)
            tasks.start_soon(start, self._backend, turn)
            await self._wait(turn)
            self._turn = None
            self._after(turn, killed)
            turn.counted.set()

    async def _wait(self, turn: Turn) -> None:
        while turn.end is None:
            with anyio.move_on_after(self._look):
                await turn.over.wait()
            if not self._rules.is_kept(self._memory()):
                turn.decide(End.LET_GO)

    def _after(self, turn: Turn, killed: Callable[[], None]) -> None:
        if turn.end is End.LET_GO:
            self._rules.let_go(self._clock())
        elif turn.end is End.DIED:
            how = turn.death.text if turn.death else "could not be started"
            if turn.death is not None and turn.death.host_oom:
                killed()
            if not self._rules.died(self._clock()):
                self._warn(f"the standby {how}, as others did before; the run goes on without one")
