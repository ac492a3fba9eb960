"""The keeping of a standby, with real processes that wait: it goes when memory runs short, and one that dies is replaced."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import anyio
import pytest

from backpropagate.doors import process
from backpropagate.drive.standby import End, Standby, Turn
from backpropagate.judge.standby import PATIENCE, REST
from backpropagate_protocol.host_memory import Memory
from tests.system.supervised import is_gone

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="an interpreter made of a script needs a shebang")
PLENTY, SCARCE = Memory(65536, 32768), Memory(65536, 100)


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Waiting:
    """The lives of standbys: each a real process that does `body`, and nothing but waits for its turn."""

    def __init__(self, folder: Path, body: str) -> None:
        self._python = folder / "python"
        self._python.write_text(f"#!{sys.executable} -P\nimport os, time\n{body}\n")
        self._python.chmod(self._python.stat().st_mode | stat.S_IXUSR)
        self.turns: list[Turn] = []
        self.pids: list[int] = []

    async def life(self, warm: str, turn: Turn) -> None:
        self.turns.append(turn)
        log = os.open(os.devnull, os.O_WRONLY)
        try:
            async with process.running(str(self._python), "a-run", warm, log) as runner:
                self.pids.append(runner.pid)
                await turn.comes(runner)
        finally:
            os.close(log)

    def died(self, number: int) -> bool:
        """Whether as many have died as were ever started."""
        return len(self.turns) == number and self.turns[-1].end is End.DIED

    async def until(self, fact: Callable[[], object]) -> None:
        with anyio.fail_after(60):
            while not fact():
                await anyio.sleep(0.005)


def readings(*first: Memory, then: Memory) -> Callable[[], Memory | None]:
    """Plays a series of readings."""

    def series() -> Iterator[Memory]:
        yield from first
        while True:
            yield then

    played = series()
    return lambda: next(played)


def test_one_that_waits_goes_when_memory_runs_short_and_comes_back_after_a_rest(tmp_path: Path) -> None:
    clock, waiting = Clock(), Waiting(tmp_path, "time.sleep(600)")
    memory = readings(PLENTY, PLENTY, SCARCE, then=PLENTY)

    async def main() -> None:
        standby = Standby("auto", "cpu", pytest.fail, clock, memory=memory, look=0.05)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(standby.keep, waiting.life, pytest.fail, tasks)
            standby.advanced()
            clock.now = 60.0
            await waiting.until(lambda: waiting.turns and waiting.turns[0].end is End.LET_GO)
            await waiting.until(lambda: is_gone(waiting.pids[0]))
            clock.now += REST
            await waiting.until(lambda: len(waiting.pids) == 2)
            assert standby.take("cpu")
            assert waiting.turns[1].end is End.TAKEN
            tasks.cancel_scope.cancel()

    anyio.run(main)


def test_those_that_die_are_replaced_until_it_is_enough_and_that_is_told_once(tmp_path: Path) -> None:
    clock, waiting = Clock(), Waiting(tmp_path, "os._exit(3)")
    told: list[str] = []

    async def main() -> None:
        standby = Standby("on", "cpu", told.append, clock, look=0.005)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(standby.keep, waiting.life, pytest.fail, tasks)
            standby.advanced()
            for n, pause in enumerate((*PATIENCE, 0.0), start=1):
                await waiting.until(partial(waiting.died, n))
                clock.now += pause
            await waiting.until(lambda: told)
            assert not standby.take("cpu")
            tasks.cancel_scope.cancel()

    anyio.run(main)
    assert len(waiting.turns) == len(PATIENCE) + 1
    assert told == ["the standby exited with 3, as others did before; the run goes on without one"]


def test_one_that_is_dead_though_nobody_has_heard_of_it_is_not_taken(tmp_path: Path) -> None:
    waiting = Waiting(tmp_path, "time.sleep(600)")

    async def main() -> None:
        standby = Standby("on", "cpu", pytest.fail, look=0.05)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(standby.keep, waiting.life, lambda: None, tasks)
            standby.advanced()
            await waiting.until(lambda: waiting.pids)
            assert not standby.take("none")  # it imports what is not wanted
            assert not await standby.mourned()
            os.kill(waiting.pids[0], 9)
            if sys.platform == "linux":
                while not is_gone(waiting.pids[0]):
                    pass  # the event loop must not run meanwhile
                assert not standby.take("cpu")
                assert await standby.mourned()
                assert waiting.turns[0].counted.is_set()
            tasks.cancel_scope.cancel()

    anyio.run(main)
