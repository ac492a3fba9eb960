"""One run from its spec to its end: takes its locks, finds out where it stood, has it done, and says how it ended."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from backpropagate import __version__, checkpoints
from backpropagate.doors import process
from backpropagate.drive import campaign
from backpropagate.drive.campaign import Campaign
from backpropagate.drive.chain import Chain
from backpropagate.drive.ending import outcome_of, run_ended
from backpropagate.drive.reporter import Reporter
from backpropagate.drive.stood import Stood, where_it_stood
from backpropagate.drive.stops import Stops
from backpropagate.drive.training import Training, finished, from_row, published
from backpropagate.events import Noticed, RunCreated, RunResumed, StageEnded
from backpropagate.judge import plan, telling
from backpropagate.judge.decisions import Finish
from backpropagate.keep import exports, locks, runs, stop_requests
from backpropagate.keep.journal import Journal
from backpropagate.keep.locks import Holder
from backpropagate.keep.past import TRAINED
from backpropagate.outcome import Outcome
from backpropagate.track.trackers import Trackers
from backpropagate.watch.sinks import Sink
from backpropagate.wishes.export_spec import reaching
from backpropagate_protocol.catalogue import CATALOGUE, ExitCode, Retry
from backpropagate_protocol.errors import BackpropagateError, code_of_write, error_for
from backpropagate_protocol.redact import redact
from backpropagate_protocol.rundir import ExportDir, RunDir
from backpropagate_protocol.spec import RunSpec

__all__ = ["Outcome", "supervise"]


def supervise(
    run_dir: RunDir,
    sinks: Sequence[Sink] = (),
    *,
    owner_pipe: bool = False,
    resumed: bool = False,
    gpu_script: Path | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Runs it to its end and says how it ended. Blocks; must be called in the main thread of the process.

    owner_pipe: standard input is the owner's control pipe (lines `stop`, `kill`; end of file: the owner is gone).
    resumed: an earlier supervisor of this run ended; go on from the newest checkpoint, and after the training with the
    first stage that is not done.
    gpu_script: a series of sensor readings to play instead of the card's own (drills; see gpu_script.py).
    tell: is told what happens when all that watch the run are gone: that trackers are waited for, or were not told all.

    Raises BusyError (STATE_BUSY) if the output folder, the export's destination or the GPU is taken before anything began,
    RunNotFoundError, STATE_RUN_FINISHED as UserInputError, RUNTIME_DISK_FULL or CONFIG_OUTPUT_UNWRITABLE if the run
    directory takes no line, and what keeps an export that was asked for from working, before anything else is done;
    whatever happens later is in the Outcome.
    """
    spec = runs.load_spec(run_dir)
    runs.check_its_own(run_dir, spec)
    if spec.export is not None:
        spec = msgspec.structs.replace(spec, export=reaching(spec.export))
    with ExitStack() as held:
        tracked = Trackers(run_dir, spec.report_to if plan.trains(spec) else ())
        held.callback(tracked.wait, tell=tell)  # first, so last: when everything else is over and no lock is held
        with _writable(run_dir, spec.run_id):
            me = _take_locks(held, spec, run_dir)
            _sweep(spec, run_dir)
            resumed = resumed or runs.has_begun(run_dir)
            stood = where_it_stood(spec, run_dir)
            if stood.status == "completed":
                raise error_for("STATE_RUN_FINISHED", f"run {spec.run_id} is finished", run_id=spec.run_id)
            held.callback(_drop_if_empty, run_dir.events)
            lines = held.enter_context(Journal(run_dir.events))
        watching: list[Sink] = [stood.past, *([stood.facts] if stood.facts else []), *sinks, tracked]
        report = Reporter(run_dir, lines, stood.record, watching)
        tracked.tell = lambda text: report.event(_warning(spec.run_id, text))
        held.callback(report.close)
        # A signal before the event loop listens is kept for it. Once the run is done, what remains is short and must not
        # be cut off: nobody looks into the list any more.
        early: list[str] = []
        with process.signals(early.append):
            stops = Stops(early, owner_pipe=owner_pipe, requested=partial(stop_requests.take, run_dir, me))
            did = _Supervision(spec, run_dir, report, stops, stood, sinks, held, resumed=resumed, gpu_script=gpu_script)
            return did.outcome()


def _take_locks(held: ExitStack, spec: RunSpec, run_dir: RunDir) -> Holder:
    """What trains has its output folder to itself; what only exports or pushes, its own run. Results' names: see chain."""
    if plan.trains(spec):
        what = f"the output folder {run_dir.output.path}"
        return held.enter_context(locks.hold(run_dir.output.lock, spec.run_id, what))
    return held.enter_context(locks.hold(run_dir.lock, spec.run_id, f"the run {spec.run_id}"))


def _sweep(spec: RunSpec, run_dir: RunDir) -> None:
    if plan.trains(spec):
        checkpoints.sweep(run_dir)
        campaign.sweep(run_dir)
    if spec.export is not None:
        with suppress(OSError):
            exports.sweep(ExportDir(Path(spec.export.destination)).work(spec.run_id))


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
        raise error_for(code_of_write(error), text, run_id=run_id) from error


def _warning(run_id: str, text: str) -> Noticed:
    return Noticed(time=time.time(), run_id=run_id, level="warning", text=redact(text))


def _unreached(finish: Finish, *, begun: bool, given: bool) -> tuple[str, ExitCode]:
    """Status and exit of a run that reached nothing: nothing is partly done then, whatever the code says.

    Unless a stage failed after a training that is finished, though another run's: what was `given` stands.
    """
    if finish.exit_code is not ExitCode.PARTIAL:
        return finish.status, finish.exit_code
    if begun and given:
        return "partial", ExitCode.PARTIAL
    never = CATALOGUE[finish.code].retry is Retry.NEVER if finish.code else False
    if begun and (never or not str(finish.code).startswith(("DEP_", "HUB_"))):
        return "failed", ExitCode.FAILED
    return ("failed", ExitCode.USER_ERROR) if never else ("interrupted", ExitCode.TRY_LATER)


class _Supervision:
    """One supervisor's work on a run that is ours."""

    def __init__(
        self,
        spec: RunSpec,
        run_dir: RunDir,
        report: Reporter,
        stops: Stops,
        stood: Stood,
        sinks: Sequence[Sink],
        held: ExitStack,
        *,
        resumed: bool,
        gpu_script: Path | None,
    ) -> None:
        self._spec, self._run_dir, self._report, self._stops = spec, run_dir, report, stops
        self._previous = stood.status if resumed else None
        self._earlier = stood.record.row().duration_seconds
        self._training = Training(spec, run_dir, report, stops, stood.start, gpu_script)
        self._campaign = (
            Campaign(spec, run_dir, report, stops, stood.facts, stood.past, sinks, gpu_script) if stood.facts else None
        )
        self._chain = Chain(spec, run_dir, report, stops, stood.past, held)
        self._kept = self._campaign.kept if self._campaign else from_row(stood.record.row())

    def outcome(self) -> Outcome:
        """Does it, and tells how it ended."""
        began = time.monotonic()
        self._begin()
        finish = anyio.run(self._work)
        _sweep(self._spec, self._run_dir)
        outcome = self._outcome(finish)
        self._report.event(run_ended(outcome, self._spec.kind, began, self._earlier))
        return outcome

    def _begin(self) -> None:
        now, run_id = time.time(), self._spec.run_id
        at_once = self._spec.export is None and not (plan.trains(self._spec) and self._training.card.wanted)
        if self._previous is not None:
            self._report.begin(RunResumed(time=now, run_id=run_id, previous=self._previous), now=at_once)
            return
        versions = {"backpropagate": __version__, "python": platform.python_version()}
        self._report.begin(RunCreated(time=now, run_id=run_id, versions=versions), now=at_once)

    async def _work(self) -> Finish:
        with self._stops.heard():
            if self._campaign is not None:
                return await self._run_campaign(self._campaign)
            trains = self._spec.kind == "train"
            try:
                done = await anyio.to_thread.run_sync(finished, self._run_dir) if trains else None
            except OSError as error:
                why = redact(error.strerror or str(error))
                return self._advised(telling.unreadable_adapter(str(self._run_dir.adapter), why))
            self._kept = done or self._kept
            unfit = await self._preflight(trained=done is not None)
            if unfit is not None:
                return self._advised(unfit, begun=False)
            finish = await self._train() if trains and done is None else None
            if finish is None and trains and not (done is not None and self._chain.follows):
                finish = self._publish()
            return finish or self._advised(await self._chain.run(self._kept.revision))

    async def _run_campaign(self, campaign: Campaign) -> Finish:
        unfit = await self._preflight(trained=self._kept.adapter is not None)
        if unfit is not None:
            return self._advised(unfit, begun=False)
        finish = await campaign.run()
        self._kept = campaign.kept
        return self._advised(finish or await self._chain.run(self._kept.revision))

    async def _preflight(self, *, trained: bool) -> Finish | None:
        """Before anything that takes long. A run that only now begins leaves nothing if its export cannot work."""
        if self._previous is not None:
            return await self._preflight_again(trained=trained)
        with self._report.rehearsing():
            finish = await self._chain.preflight(trained=trained, revision="")
        if finish is None or finish.code is None or finish.code == telling.BY_WISH:
            return finish
        advice = finish.suggestion.replace("Then continue.", "Then run the same command again.")
        _, code = _unreached(finish, begun=False, given=False)
        raise error_for(
            finish.code, redact(finish.message), suggestion=advice, run_id=self._spec.run_id, exit_code=code
        )

    async def _preflight_again(self, *, trained: bool) -> Finish | None:
        """A run that was under way does not wait for what only its last stage needs, and what may be there by then."""
        try:
            finish = await self._chain.preflight(trained=trained, revision=self._kept.revision)
        except BackpropagateError as error:
            if not self._report.begun:
                raise
            finish = telling.refused(error)
        if finish is None or not plan.trains(self._spec) or trained or finish.code != "DEP_OLLAMA_REGISTRATION_FAILED":
            return finish
        text = f"{finish.message}; the training goes on, and Ollama is asked again after it"
        self._report.event(_warning(self._spec.run_id, text))
        return None

    async def _train(self) -> Finish | None:
        self._chain.discard()  # what was made of an adapter that is gone
        finish = await self._training.run()
        self._kept = self._training.kept(finish)
        return finish if finish.exit_code is not ExitCode.DONE else None

    def _publish(self) -> Finish | None:
        """Once: when an export is taken up again, another run's adapter may be the newest by now."""
        finish = published(self._run_dir)
        if finish is None and self._spec.export is not None:
            lora = str(self._run_dir.output.lora)
            self._report.event(StageEnded(time=time.time(), run_id=self._spec.run_id, stage=TRAINED, path=lora))
        return finish

    def _advised(self, finish: Finish, *, begun: bool = True) -> Finish:
        """A stage that fails does not undo what was reached before it; the advice names the one command that goes on.

        Reached is the adapter that this run has trained, and the result that it has exported. begun False: nothing but the
        preflight was asked.
        """
        if finish.exit_code is ExitCode.DONE or finish.code is None:
            return finish
        reached = self._kept.adapter is not None or self._chain.export is not None
        message, status = finish.message, finish.status
        exit_code: ExitCode = finish.exit_code
        if reached and finish.code != telling.BY_WISH:
            status, exit_code = "partial", ExitCode.PARTIAL
        elif not reached:
            given = self._spec.kind == "push" or (
                self._spec.export is not None and self._spec.export.adapter is not None
            )
            status, exit_code = _unreached(finish, begun=begun, given=given)
        command = f"`{runs.resuming(self._run_dir)}`"
        advice = (finish.suggestion or CATALOGUE[finish.code].remedy).replace("`backprop resume RUN`", command)
        worth_it = CATALOGUE[finish.code].retry is not Retry.NEVER or reached
        if command not in advice and worth_it and finish.code != "RUNTIME_EXPORT_MISMATCH":
            advice = f"{advice} {command} goes on from there.".strip()
        return Finish(status, exit_code, finish.code, message, advice)

    def _outcome(self, finish: Finish) -> Outcome:
        chain = self._chain
        recoveries = (self._campaign or self._training).recoveries + chain.recoveries
        told = outcome_of(self._spec.run_id, finish, self._kept, recoveries)
        return msgspec.structs.replace(told, export=chain.export, ollama=chain.ollama, url=chain.url)
