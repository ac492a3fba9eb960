"""One run from its spec to its end: takes the folder, finds out where it stood, drives it, and says how it ended."""

from __future__ import annotations

import errno
import platform
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import anyio

from backpropagate import __version__, checkpoints, process
from backpropagate.driver import Driver
from backpropagate.events import AttemptStarted, DataPrepared, RunCreated, RunEnded, RunResumed
from backpropagate.judge import plan
from backpropagate.judge.decisions import Finish
from backpropagate.judge.policy import Policy
from backpropagate.keep import journal, locks, results, runs
from backpropagate.keep.journal import Journal
from backpropagate.keep.record import Record, finite
from backpropagate.outcome import Outcome
from backpropagate.reporter import Reporter
from backpropagate.sensors.card import Card
from backpropagate.watch.sinks import Sink
from backpropagate_protocol.errors import CATALOGUE, ExitCode, error_for
from backpropagate_protocol.jobs import PreparedRef
from backpropagate_protocol.redact import redact
from backpropagate_protocol.rundir import RunDir
from backpropagate_protocol.spec import RunSpec

__all__ = ["Outcome", "supervise"]

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)  # a matter of time, not of the wrong folder


def supervise(
    run_dir: RunDir,
    sinks: Sequence[Sink] = (),
    *,
    owner_pipe: bool = False,
    resumed: bool = False,
    gpu_script: Path | None = None,
) -> Outcome:
    """Runs it to its end and says how it ended. Blocks; must be called in the main thread of the process.

    owner_pipe: standard input is the owner's control pipe (lines `stop`, `kill`; end of file: the owner is gone).
    resumed: an earlier supervisor of this run ended; go on from the newest checkpoint.
    gpu_script: a series of sensor readings to play instead of the card's own (drills; see gpu_script.py).

    Raises BusyError (STATE_BUSY) if the output folder or the GPU is taken before anything began, RunNotFoundError, STATE_RUN_FINISHED as UserInputError,
    and RUNTIME_DISK_FULL or CONFIG_OUTPUT_UNWRITABLE if the run directory takes no line; whatever happens later is in
    the Outcome.
    """
    spec = runs.load_spec(run_dir)
    lock = locks.output_lock(run_dir.output)
    with ExitStack() as held:
        with _writable(run_dir, spec.run_id):
            held.enter_context(locks.hold(lock, spec.run_id, f"the output folder {run_dir.output.path}"))
            checkpoints.sweep(run_dir)
            resumed = resumed or run_dir.events.exists()
            record, start, previous = _where_it_stood(spec, run_dir)
            if previous == "completed":
                raise error_for("STATE_RUN_FINISHED", f"run {spec.run_id} is finished", run_id=spec.run_id)
            held.callback(_drop_if_empty, run_dir.events)
            lines = held.enter_context(Journal(run_dir.events))
        report = Reporter(run_dir, lines, record, sinks)
        held.callback(report.close)
        # A signal before the driver listens is kept for it. Once the driver is done, what remains is short and must not
        # be cut off: nobody looks into the list any more.
        early: list[str] = []
        with process.signals(early.append):
            return _supervise(
                spec, run_dir, report, start, previous if resumed else None, owner_pipe, gpu_script, early
            )


def _drop_if_empty(events: Path) -> None:
    """A journal without a line is that of a run that never began."""
    with suppress(OSError):
        if not events.stat().st_size:
            events.unlink()


@contextmanager
def _writable(run_dir: RunDir, run_id: str) -> Iterator[None]:
    """A folder that takes nothing, in the user's words. Once the run has begun, the disk's faults are the run's own."""
    try:
        yield
    except OSError as error:
        text = f"{run_dir.path} cannot be written: {error.strerror or error}"
        code = "RUNTIME_DISK_FULL" if error.errno in _NO_ROOM else "CONFIG_OUTPUT_UNWRITABLE"
        raise error_for(code, text, run_id=run_id) from error


def _where_it_stood(spec: RunSpec, run_dir: RunDir) -> tuple[Record, plan.Start, str]:
    """The record so far, how the next child begins, and the status that an earlier supervisor left."""
    record = Record(spec, run_dir)
    attempts, micro, prepared = 0, None, None
    checkpointing = spec.train.gradient_checkpointing
    for event in journal.read(run_dir.events):
        record.fold(event)
        if isinstance(event, AttemptStarted):
            attempts, micro = max(attempts, event.attempt), event.micro_batch
            checkpointing = checkpointing if event.gradient_checkpointing is None else event.gradient_checkpointing
        elif isinstance(event, DataPrepared):
            prepared = PreparedRef(event.path, event.digest)
    start = plan.Start(
        micro_batch=micro or plan.first_micro_batch(spec),
        gradient_checkpointing=checkpointing,
        prepared=prepared,
        attempts=attempts,
    )
    status = record.row().status
    return record, start, "interrupted" if status == "running" and attempts else status


def _supervise(
    spec: RunSpec,
    run_dir: RunDir,
    report: Reporter,
    start: plan.Start,
    previous: str | None,
    owner_pipe: bool,
    gpu_script: Path | None,
    early: list[str],
) -> Outcome:
    began = time.monotonic()
    card = Card(spec, gpu_script, start.micro_batch if start.attempts else None)
    policy = Policy(spec, replace(start, wait_for_card=card.wanted), random.random())
    if previous is None:
        versions = {"backpropagate": __version__, "python": platform.python_version()}
        report.begin(RunCreated(time=time.time(), run_id=spec.run_id, versions=versions), now=not card.wanted)
    else:
        report.begin(RunResumed(time=time.time(), run_id=spec.run_id, previous=previous), now=not card.wanted)
    driver = Driver(spec, run_dir, policy, report, card, owner_pipe=owner_pipe, early=early)
    try:
        finish = anyio.run(driver.drive)
    finally:
        card.release()
    if card.busy is not None:
        if not report.begun:
            raise card.busy
        info = card.busy.info
        finish = Finish("interrupted", info.exit, info.code, card.busy.message, card.busy.suggestion)
    finish = _published(finish, run_dir)
    checkpoints.sweep(run_dir)
    outcome = _outcome(spec, run_dir, policy, finish)
    report.event(
        RunEnded(
            time=time.time(),
            run_id=spec.run_id,
            status=outcome.status,
            exit_code=outcome.exit_code,
            step=outcome.step,
            total_steps=outcome.total_steps,
            code=outcome.code,
            message=outcome.message,
            suggestion=outcome.suggestion,
            adapter=outcome.adapter,
            final_loss=outcome.final_loss,
            samples_seen=outcome.samples_seen,
            order=outcome.order,
            seconds=round(time.monotonic() - began, 3),
        )
    )
    return outcome


def _published(finish: Finish, run_dir: RunDir) -> Finish:
    """A finished adapter gets its second place, `<output>/lora`; if that fails, the run is partial."""
    if finish.exit_code is not ExitCode.DONE:
        return finish
    try:
        results.publish_adapter(run_dir.adapter, run_dir.output)
    except OSError as error:
        info = CATALOGUE["RUNTIME_LORA_EXPORT_FAILED"]
        text = f"the adapter is in {run_dir.adapter}, but could not be copied: {error.strerror or error}"
        return Finish("partial", info.exit, info.code, text, info.remedy)
    return finish


def _outcome(spec: RunSpec, run_dir: RunDir, policy: Policy, finish: Finish) -> Outcome:
    kept = policy.committed
    done = policy.result if finish.exit_code in (ExitCode.DONE, ExitCode.PARTIAL) else None
    return Outcome(
        run_id=spec.run_id,
        status=finish.status,
        exit_code=int(finish.exit_code),
        code=finish.code,
        message=redact(finish.message),
        suggestion=finish.suggestion,
        step=done.step if done else kept.step if kept else 0,
        total_steps=policy.total_steps,
        adapter=str(run_dir.adapter) if done else None,
        final_loss=finite(done.final_loss if done else kept.loss if kept else None),
        samples_seen=done.samples_seen if done else kept.samples_seen if kept else 0,
        order=done.order if done else kept.order if kept else 0,
        recoveries=policy.recoveries,
    )
