"""The door to runners and to signals: starts a runner, talks with it, ends it, and tells how it ended.

Guarantees, each with a test:
1. No runner outlives this process. The kernel sees to it (PR_SET_PDEATHSIG set by the runner itself, a Job Object on
   Windows), so a runner must be started in the main thread: on Linux the link follows the thread that started it.
2. Only a group, or a job, that was made here is killed, never a tree that was walked; a pid below 2 never.
3. When `wait` returns, the process is reaped and its group is empty.
4. Nothing that a runner sends or fails to read can block the caller: what is to be sent is queued.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import FrameType

import anyio
from anyio.abc import Process

from backpropagate.doors import death
from backpropagate.doors.environ import environment
from backpropagate.doors.line_helper import buried
from backpropagate.doors.standing import standing
from backpropagate.judge.decisions import Death
from backpropagate_protocol.framing import decoder_for_parent, encode
from backpropagate_protocol.messages import ToChild, ToParent

if sys.platform == "win32":
    from backpropagate.doors.winjob import CREATE_SUSPENDED, JobObject, ctrl_break

RUN_ID_VARIABLE = "BACKPROPAGATE_RUN_ID"  # by this mark the processes of a run are recognised
_CHUNK = 1 << 18
_DRAIN_SECONDS = 5.0  # what a dead runner left in the pipe is read, but nobody can keep the pipe open for ever
_GROUP_SECONDS = 2.0
_FIRST_VICTIM = "1000"  # the most that oom_score_adj can be


def _environment(run_id: str) -> dict[str, str]:
    """The runner's environment: ours without our settings, and with what keeps libraries quiet and on one card."""
    env = {name: value for name, value in environment().items() if not name.upper().startswith("BACKPROPAGATE_")}
    env[RUN_ID_VARIABLE] = run_id
    env.update(
        HF_HUB_DISABLE_TELEMETRY="1",
        TOKENIZERS_PARALLELISM="false",
        UNSLOTH_DISABLE_STATISTICS="1",
        TRL_EXPERIMENTAL_SILENCE="1",
        PYTHONUNBUFFERED="1",
    )
    # A card's number is the one NVML and nvidia-smi know it by, or we would lock and watch another card than we use.
    env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    env["CUDA_VISIBLE_DEVICES"] = visible_device(env.get("CUDA_VISIBLE_DEVICES"))
    return env


def visible_device(setting: str | None) -> str:
    """One device of those that CUDA_VISIBLE_DEVICES allows; an empty setting hides all cards, and stays."""
    return "0" if setting is None else setting.split(",")[0].strip()


class Runner:
    """One runner process. Made by `running`; all methods but `messages` and `wait` return at once."""

    def __init__(self, process: Process, oom_kills: int) -> None:
        self._process = process
        self.pid = process.pid
        self._oom_kills = oom_kills
        self._outbox, self._queued = anyio.create_memory_object_stream[ToChild](math.inf)
        self.alive = True
        if sys.platform == "win32":
            self._job = JobObject()
            try:
                self._job.adopt(process.pid)
            except OSError:
                self._job.close()
                raise

    def send(self, message: ToChild) -> None:
        """Queues a message; one for a runner that is gone is dropped."""
        try:
            self._outbox.send_nowait(message)
        except anyio.ClosedResourceError:
            pass

    async def write(self) -> None:
        """Sends what is queued, until `running` ends."""
        assert self._process.stdin is not None
        try:
            async for message in self._queued:
                await self._process.stdin.send(encode(message))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            pass  # it is gone; `wait` says how

    async def messages(self) -> AsyncGenerator[ToParent]:
        """What it says, to the end of its pipe. Raises ProtocolError at the first byte that is not our protocol."""
        assert self._process.stdout is not None
        decoder = decoder_for_parent()
        while True:
            try:
                data = await self._process.stdout.receive(_CHUNK)
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                return  # a frame that was cut off by the death says nothing more than the death does
            for message in decoder.feed(data):
                yield message

    def terminate(self) -> None:
        """Asks for a save and a stop, in case the message did not get through."""
        if sys.platform == "win32":
            if self.alive:
                try:
                    ctrl_break(self.pid)
                except OSError:
                    pass  # it is gone, or there is no console that could carry the event: the ladder goes on
        else:
            self._signal(signal.SIGTERM)

    def dump_stacks(self) -> None:
        """Makes it write all its stacks to the log and die; a stopped one is woken for it. Nothing on Windows."""
        if sys.platform != "win32":
            self._signal(signal.SIGABRT)
            self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        if self.alive:
            try:
                self._process.send_signal(signal.Signals(number))
            except OSError:
                pass  # it is gone

    def kill(self) -> None:
        """Ends it and everything it started, at once."""
        if sys.platform == "win32":
            self._job.kill()
        elif self.pid > 1:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # gone already
            except PermissionError:
                pass  # macOS: nothing but zombies is left in the group

    @property
    def has_ended(self) -> bool:
        """Whether it is dead at this moment, though the event loop may hear of it only later."""
        if sys.platform == "linux" and self._process.returncode is None:
            try:
                return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
            except ChildProcessError:
                return True  # fetched already
        return self._process.returncode is not None

    async def ended(self) -> Death:
        """Waits for its end, no matter what it had said."""
        code = await self._process.wait()
        self.alive = False
        return self._decoded(code)

    def expendable(self, is_it: bool) -> None:
        """Whether the kernel shall end it before all others when memory runs out; Linux only.

        From now on deaths of want of memory are counted anew: those before were not its own.
        """
        self._oom_kills = death.oom_kill_count()
        if sys.platform == "linux":
            try:
                inherited = Path("/proc/self/oom_score_adj").read_text(encoding="ascii")
                wanted = _FIRST_VICTIM if is_it else inherited
                Path(f"/proc/{self.pid}/oom_score_adj").write_text(wanted, encoding="ascii")
            except OSError:
                pass  # it is gone, or not ours to say

    def discount_oom_kill(self) -> None:
        """The kernel's counter grew, and another one was meant."""
        self._oom_kills += 1

    async def wait(self, drained: anyio.Event) -> Death:
        """Waits for its end, and for `drained`: that all it had said was read."""
        code = await self._process.wait()
        self.alive = False
        self.kill()  # what is left of its group
        with anyio.move_on_after(_DRAIN_SECONDS):
            await drained.wait()
        await self._group_gone()
        return self._decoded(code)

    def _decoded(self, code: int | None) -> Death:
        return death.decode(code, oom_kills=death.oom_kill_count() - self._oom_kills)

    def death(self) -> Death:
        """How it ended, by what is known now; once it has."""
        return self._decoded(self._process.returncode)

    async def _group_gone(self) -> None:
        with anyio.move_on_after(_GROUP_SECONDS):
            while self._group_lives():
                await anyio.sleep(0.005)

    def _group_lives(self) -> bool:
        if sys.platform == "win32":
            return not self._job.is_empty()
        return _group_lives(self.pid)

    async def close(self) -> None:
        """Kills what still runs and lets go of every descriptor."""
        self._outbox.close()
        self.kill()
        if await buried(self._process):
            await self._process.aclose()
        self.alive = False
        self._queued.close()
        if sys.platform == "win32":
            self._job.close()


def _group_lives(group: int) -> bool:
    """Whether anything of a process group still runs. Zombies do not count: who fetches them is not up to us."""
    if sys.platform == "win32":
        return False
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    if sys.platform != "linux":
        return True
    found = (standing(int(process.name)) for process in Path("/proc").glob("[0-9]*"))
    return any(one is not None and one.runs and one.group == group for one in found)


def command(python: str, run_id: str, warm: str) -> list[str]:
    """The command line of a runner. -P keeps the current folder out of its module path."""
    parts = ["--parent", str(os.getpid()), "--run-id", run_id, "--warm", warm]
    return [python, "-P", "-m", "backpropagate_runner", *parts]


@asynccontextmanager
async def running(python: str | None, run_id: str, warm: str, log: int) -> AsyncIterator[Runner]:
    """A runner that lives no longer than the block. `log` is a descriptor for its standard error.

    warm: the backend whose frameworks it imports while it waits for its Job, or `none`.
    Call it in the main thread. Raises OSError if the interpreter cannot be started.
    """
    kills = death.oom_kill_count()
    argv = command(python or sys.executable, run_id, warm)
    if sys.platform == "win32":
        process = await anyio.open_process(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=_environment(run_id),
            creationflags=CREATE_SUSPENDED | subprocess.CREATE_NEW_PROCESS_GROUP,
        )
    else:
        process = await anyio.open_process(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=_environment(run_id),
            start_new_session=True,
        )
    try:
        runner = Runner(process, kills)
    except OSError:
        process.kill()
        await process.aclose()
        raise
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(runner.write)
        try:
            yield runner
        finally:
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await runner.close()


@contextmanager
def signals(asked: Callable[[str], None]) -> Iterator[None]:
    """While the block runs, `asked` gets `ctrl-c` or `sigterm` in the main thread; a closed terminal is no reason to stop.

    What was installed before is put back.
    """

    def handle(number: int, _frame: FrameType | None) -> None:
        asked("ctrl-c" if number == signal.SIGINT else "sigterm")

    handlers: dict[signal.Signals, Callable[[int, FrameType | None], None] | signal.Handlers] = {
        signal.SIGINT: handle,
        signal.SIGTERM: handle,
    }
    if sys.platform == "win32":
        handlers[signal.SIGBREAK] = handle
    else:
        handlers[signal.SIGHUP] = signal.SIG_IGN
        handlers[signal.SIGPIPE] = signal.SIG_IGN
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
