"""Carries out what a policy decides: children, clock, sensors, journal and watchers of one stage, in one event loop.

Everything happens in the main thread, so nothing here needs a lock: an input is handled to its end, actions included,
before the next one. What takes time (a child's life, verifying a checkpoint) is a task that ends in an input.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import aclosing
from functools import partial
from typing import assert_never

import anyio
import msgspec
from anyio.abc import TaskGroup

from backpropagate import checkpoints
from backpropagate.doors import process
from backpropagate.doors.death import with_last_words
from backpropagate.drive.aside import aside
from backpropagate.drive.assigning import attempt_started, train_job
from backpropagate.drive.autopsy import Autopsy
from backpropagate.drive.child_log import ChildLog, bounded, child_log, waiting_log
from backpropagate.drive.kernels import Kernels
from backpropagate.drive.narrate import narrate
from backpropagate.drive.reporter import Reporter
from backpropagate.drive.standby import End, Standby, Turn
from backpropagate.drive.stops import Stops
from backpropagate.events import CheckpointQuarantined, Noticed, StageStarted, Step
from backpropagate.judge.decisions import (
    Action,
    Assign,
    Begin,
    CheckpointFound,
    Death,
    DumpStacks,
    Emit,
    FindCheckpoint,
    Finish,
    Give,
    Input,
    Kill,
    MemoryShort,
    Quarantine,
    RunnerExited,
    RunnerGarbled,
    RunnerSaid,
    SearchFailed,
    Send,
    Spawn,
    SpawnFailed,
    StopAsked,
    Terminate,
    Tick,
)
from backpropagate.judge.judging import Judge
from backpropagate.judge.states import State
from backpropagate.keep import userstate
from backpropagate.keep.stop_requests import AT_ONCE, SAVING
from backpropagate.sensors import pressure
from backpropagate.sensors.card import Card
from backpropagate_protocol.catalogue import ExitCode
from backpropagate_protocol.framing import ProtocolError
from backpropagate_protocol.jobs import TrainJob
from backpropagate_protocol.messages import CheckpointSaved, Hello, Ping, Progress, Rehearsed, RunJob, ToParent
from backpropagate_protocol.redact import redact
from backpropagate_protocol.rundir import RunDir
from backpropagate_protocol.spec import RunSpec, rail

_TICK = 1.0
_PING_EVERY = 5.0
_MUTE_SECONDS = 5.0


class Driver:
    """One stage's work. `drive` runs it to the end and returns the policy's last word."""

    def __init__(
        self,
        spec: RunSpec,
        run_dir: RunDir,
        policy: Judge,
        report: Reporter,
        card: Card,
        stops: Stops,
        clock: Callable[[], float] = time.monotonic,
        standby: str = "off",
    ) -> None:
        self._spec, self._run_dir, self._policy, self._report = spec, run_dir, policy, report
        self._card, self._stops, self._clock = card, stops, clock
        card.child = lambda: self._runner.pid if self._runner is not None else None
        self._runner: process.Runner | None = None
        self._kill_at_birth = False
        # Unsloth looks at the card as it is imported, which whoever stands by must not.
        self._standby = Standby("off" if rail(spec) == "unsloth" else standby, rail(spec), self._warn, clock)
        self._autopsy = Autopsy(run_dir, report)
        self._kernels = Kernels(spec, partial(self._note, level="info"))
        self._plain = True  # the newest Job computes as the spec says: what fits it fits the next run
        self._stood_by = False  # the newest child did
        self.packages: dict[str, str] = {}  # that the newest child has
        self._finish: Finish | None = None
        self._tasks: TaskGroup
        self._ended = anyio.Event()
        self._rearmed = anyio.Event()
        self._sleeping_until = 0.0

    async def drive(self) -> Finish:
        """Must be called in the main thread: a child follows the thread that started it."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            self.feed(Begin(self._clock()))
            with self._stops.told(self.stop):
                tasks.start_soon(self._keep_time)
                if self._card.wanted:
                    tasks.start_soon(self._card.watch, self.feed, lambda: self._policy.device, self._warn)
                tasks.start_soon(self._standby.keep, self._child, self._not_ours, tasks)
                tasks.start_soon(pressure.watch, self.feed, self._shares_memory, self._clock)
                await self._ended.wait()
                if self._finish is not None:
                    await self._autopsy.ended(self._finish)
            tasks.cancel_scope.cancel()
        assert self._finish is not None
        return self._finish

    def _shares_memory(self) -> str:
        return self._policy.device or pressure.expected(rail(self._spec))

    def feed(self, input: Input) -> None:
        """Tells the policy, and does what it answers."""
        if isinstance(input, MemoryShort):
            self._standby.end()
        for action in self._policy.handle(input):
            self._act(action)
        wake = self._policy.wake_at
        if wake is not None and wake < self._sleeping_until:
            self._rearmed.set()

    def stop(self, reason: str) -> None:
        """A wish to end: `ctrl-c` and `sigterm` (the second one kills), `owner-gone`, `kill`, and those of stop_requests."""
        if reason in ("owner-gone", SAVING) and self._policy.stop_asked:
            return  # who goes away after asking asks no second time, and who wants it at once says --now
        self._standby.end()
        code = ExitCode.INTERRUPTED if reason in ("ctrl-c", "kill") else ExitCode.TRY_LATER
        self.feed(StopAsked(self._clock(), reason, code, kill=reason in ("kill", AT_ONCE)))

    # --- actions ----------------------------------------------------------------------------------------------------

    def _act(self, action: Action) -> None:
        match action:
            case Spawn():
                self._spawn(action.warm or rail(self._spec))
            case FindCheckpoint():
                self._tasks.start_soon(self._find_checkpoint)
            case Assign():
                self._assign(action)
            case Give():
                self._give(action)
            case Send():
                self._to_runner(lambda runner: runner.send(action.message))
            case Terminate():
                self._to_runner(process.Runner.terminate)
            case DumpStacks():
                self._autopsy.killed(action.reason)
                self._to_runner(process.Runner.dump_stacks)
            case Kill():
                self._autopsy.killed(action.reason)
                self._kill_at_birth = True  # where the process is only just being made
                self._to_runner(process.Runner.kill)
            case Quarantine():
                checkpoints.quarantine(self._run_dir, action.name)
                self._emit_quarantined(action.name, action.reason)
            case Emit():
                if self._card.turned_away and not self._report.begun:
                    return  # the end of what never began
                event = msgspec.structs.replace(action.event, time=time.time())
                self._report.event(event)
                self._autopsy.saw(event)
            case Finish():
                self._finish = action
                self._ended.set()
            case _:
                assert_never(action)

    def _spawn(self, warm: str) -> None:
        self._kill_at_birth = False
        self._autopsy.begin()
        self._stood_by = self._standby.take(warm)
        if not self._stood_by:
            self._tasks.start_soon(self._child, warm)

    def _not_ours(self) -> None:
        self._to_runner(process.Runner.discount_oom_kill)

    def _to_runner(self, deed: Callable[[process.Runner], None]) -> None:
        if self._runner is not None:
            deed(self._runner)

    def _assign(self, job: Assign) -> None:
        if self._runner is None:
            return  # it died this very moment; its exit is on the way
        self._plain = job.gradient_checkpointing == self._spec.train.gradient_checkpointing
        spec, packages = self._spec, self.packages
        self._report.event(attempt_started(spec.run_id, job, self._runner.pid, packages, standby=self._stood_by))
        rehearse = self._card.rehearsal(job.micro_batch)
        train = train_job(spec, self._run_dir, job, rehearse, moves_in=self._stood_by)
        self._tasks.start_soon(self._send_when_free, self._runner, train)

    async def _send_when_free(self, runner: process.Runner, job: TrainJob) -> None:
        """Sends the Job, after a death only when the dead child's memory is back: the new one imports meanwhile."""
        if self._policy.recoveries:
            await self._card.memory_back()
        kernels = await self._kernels.working(self.packages, self._card.name)
        if self._policy.state is State.WORKING and self._runner is runner:
            runner.send(RunJob(msgspec.structs.replace(job, kernels=kernels)))

    def _give(self, work: Give) -> None:
        if self._runner is None:
            return  # as above
        self._report.event(
            StageStarted(
                time=time.time(),
                run_id=self._spec.run_id,
                stage=work.stage,
                attempt=work.job.attempt,
                pid=self._runner.pid,
                versions=self.packages,
            )
        )
        self._runner.send(RunJob(work.job))

    # --- tasks ------------------------------------------------------------------------------------------------------

    async def _child(self, warm: str, turn: Turn | None = None) -> None:
        """One child's life, from spawn to burial. With a `turn` it is the standby, and nobody's child until that comes."""
        home = self._run_dir
        with child_log(home.log) if turn is None else waiting_log(home.standby_log, home.log) as log:
            try:
                python, run_id = self._spec.runner_python, self._spec.run_id
                async with process.running(python, run_id, warm, log.descriptor) as runner, bounded(log):
                    if turn is not None and not await turn.comes(runner):
                        return
                    death, words = await self._lived(runner, log)
            except OSError as error:
                if turn is not None and turn.end is not End.TAKEN:
                    turn.decide(End.DIED)
                    return
                self._runner = None
                why = error.strerror or str(error)
                self._autopsy.died(Death(None, f"could not be started: {why}"), "")
                self.feed(SpawnFailed(self._clock(), why))
            else:
                self._autopsy.died(death, words)
                self.feed(RunnerExited(self._clock(), death))
        await self._autopsy.bury()

    async def _lived(self, runner: process.Runner, log: ChildLog) -> tuple[Death, str]:
        """Listens to it, to its end; how that was, and its last words."""
        log.begin()
        self._runner = runner
        self._autopsy.born(runner.pid)
        if self._kill_at_birth:
            runner.kill()
        drained = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._listen, runner, drained)
            death = await runner.wait(drained)
            if death.host_oom and await self._standby.mourned():
                death = runner.death()  # the kernel may have meant the one that waited
            words = log.last_words()
            tasks.cancel_scope.cancel()
        self._runner = None
        return with_last_words(death, words, self._policy.device), words

    async def _listen(self, runner: process.Runner, drained: anyio.Event) -> None:
        try:
            async with aclosing(runner.messages()) as messages:
                async for message in messages:
                    self._hear(message)
            drained.set()
            # Whoever dies closes it too, so a moment is allowed; one that lives on without it can tell us nothing more.
            await anyio.sleep(_MUTE_SECONDS)
            self.feed(RunnerGarbled(self._clock(), "the runner closed its pipe and did not end"))
        except ProtocolError as error:
            self.feed(RunnerGarbled(self._clock(), redact(str(error))))
        finally:
            drained.set()

    def _hear(self, message: ToParent) -> None:
        self._autopsy.measure()
        if isinstance(message, Hello):
            self.packages = message.packages
        if isinstance(message, Progress):
            self._standby.advanced()
        event = narrate(message, time=time.time(), run_id=self._spec.run_id, attempt=self._policy.attempt)
        if isinstance(event, Step) and self._card.latest is not None:
            event = msgspec.structs.replace(event, celsius=self._card.latest.celsius)
        if event is not None:
            self._report.event(event)
            self._autopsy.saw(event)
            self._card.event(event)
        self.feed(RunnerSaid(self._clock(), message))
        fit = self._policy.fit if self._spec.train.batch_size is None else None
        if isinstance(message, CheckpointSaved) and self._card.fit_key and fit is not None:
            userstate.remember(self._card.fit_key, fit)
        if isinstance(message, Rehearsed) and self._card.fit_key and self._plain:
            userstate.remember_rehearsed(self._card.fit_key, message.micro_batch, message.tokens)

    def _warn(self, text: str) -> None:
        self._note(text, level="warning")

    def _note(self, text: str, level: str) -> None:
        self._report.event(Noticed(time=time.time(), run_id=self._spec.run_id, level=level, text=redact(text)))

    async def _find_checkpoint(self) -> None:
        search = await aside(partial(checkpoints.newest_good, self._run_dir))
        for name, reason in search.aside:
            self._emit_quarantined(name, reason)
        if search.unreadable:
            self.feed(SearchFailed(self._clock(), redact(search.unreadable)))
        else:
            self.feed(CheckpointFound(self._clock(), search.found))

    def _emit_quarantined(self, name: str, reason: str) -> None:
        self._report.event(
            CheckpointQuarantined(time=time.time(), run_id=self._spec.run_id, name=name, reason=redact(reason))
        )

    async def _keep_time(self) -> None:
        """A tick a second, and at every moment that the policy waits for."""
        pinged = self._clock()
        while True:
            now = self._clock()
            wake = self._policy.wake_at
            target = now + _TICK if wake is None else min(now + _TICK, max(now, wake))
            self._sleeping_until = target
            self._rearmed = anyio.Event()
            with anyio.move_on_after(target - now):
                await self._rearmed.wait()
                continue
            now = self._clock()
            late = now - target
            self._autopsy.measure()
            self.feed(Tick(now, late if late > _TICK else 0.0))
            if now - pinged >= _PING_EVERY:
                pinged = now
                self._to_runner(lambda runner: runner.send(Ping()))
