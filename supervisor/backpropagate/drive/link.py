"""One run of a campaign: a training with its own directory, journal and row, done by its campaign's supervisor."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import anyio.to_thread

from backpropagate import __version__, checkpoints
from backpropagate.drive.ending import outcome_of, run_ended
from backpropagate.drive.reporter import Reporter
from backpropagate.drive.stood import Stood, where_it_stood
from backpropagate.drive.stops import Stops
from backpropagate.drive.training import Kept, Training, finished
from backpropagate.events import Event, LinkEnded, RunCreated, RunResumed
from backpropagate.judge.decisions import Finish
from backpropagate.judge.telling import completed
from backpropagate.keep import runs
from backpropagate.keep.changed_data import as_read
from backpropagate.keep.data_digest import digests
from backpropagate.keep.journal import OF_ONE_RUN, Journal
from backpropagate.sensors.card import Reservation
from backpropagate.watch.sinks import Sink
from backpropagate_protocol import weights
from backpropagate_protocol.catalogue import CATALOGUE, ExitCode
from backpropagate_protocol.rundir import OutputDir
from backpropagate_protocol.spec import RunSpec


class Relay:
    """Passes a run's events on to those who watch its campaign. `begin` is called before the first."""

    def __init__(self, begin: Callable[[], None], watching: Sequence[Sink]) -> None:
        self._begin, self._watching = begin, list(watching)
        self.begun = False

    def event(self, event: Event) -> None:
        if not self.begun:
            self.begun = True
            self._begin()
        if isinstance(event, OF_ONE_RUN):
            return
        for sink in list(self._watching):
            try:
                sink.event(event)
            except Exception:  # noqa: BLE001 - as for every other run: it never stops one
                self._watching.remove(sink)

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class LinkOutcome:
    """How one supervisor's share of a run ended. `ended`: the campaign's event, if it is trained."""

    finish: Finish
    kept: Kept
    ended: LinkEnded | None
    recoveries: int  # of this supervisor


class LinkRun:
    """One run of a campaign, as one supervisor takes it up. `offset`: the size of its journal before."""

    def __init__(self, spec: RunSpec) -> None:
        self.run_dir = OutputDir(Path(spec.output)).run(spec.run_id)
        if not self.run_dir.path.is_dir():
            runs.create(spec)
        elif not self.run_dir.spec.is_file():  # a supervisor was killed between the folder and its spec
            runs.write_spec(self.run_dir, spec)
        self.spec = runs.load_spec(self.run_dir)
        self.offset = self.run_dir.events.stat().st_size if self.run_dir.events.exists() else 0

    async def train(
        self,
        begin: Callable[[], None],
        watching: Sequence[Sink],
        stops: Stops,
        reserved: Reservation,
        gpu_script: Path | None,
    ) -> LinkOutcome:
        """Trains it to its end, from where it stood. `begin` is called when it has begun.

        Raises BusyError if its card is taken and nothing was told of it yet, OSError if its directory takes nothing.
        """
        with runs.beginning(self.run_dir):
            checkpoints.sweep(self.run_dir)
            stood = where_it_stood(self.spec, self.run_dir)
            relay = Relay(begin, watching)
            try:
                with Journal(self.run_dir.events) as lines:
                    report = Reporter(self.run_dir, lines, stood.record, [relay])
                    return await self._train(report, stood, stops, reserved, gpu_script)
            finally:
                with suppress(OSError):
                    if not self.run_dir.events.stat().st_size:  # the journal of a run that never began
                        self.run_dir.events.unlink()

    async def _train(
        self, report: Reporter, stood: Stood, stops: Stops, reserved: Reservation, gpu_script: Path | None
    ) -> LinkOutcome:
        began, earlier = time.monotonic(), stood.record.row().duration_seconds
        training = Training(self.spec, self.run_dir, report, stops, stood.start, gpu_script, reserved)
        done = await anyio.to_thread.run_sync(finished, self.run_dir)
        if done is not None and stood.status == "completed":
            return LinkOutcome(completed(), done, self._ended(done, stood), 0)
        now, run_id = time.time(), self.spec.run_id
        if self.offset:
            first: RunCreated | RunResumed = RunResumed(time=now, run_id=run_id, previous=stood.status)
        else:
            first = RunCreated(time=now, run_id=run_id, versions={"backpropagate": __version__})
        report.begin(first, now=done is not None or not training.card.wanted)
        if done is None:
            finish = self._advised(await training.run())
            kept = training.kept(finish)
        else:
            finish, kept = completed(), done
        checkpoints.sweep(self.run_dir)
        told = outcome_of(self.spec.run_id, finish, kept, training.recoveries)
        report.event(run_ended(told, self.spec.kind, began, earlier))
        ended = self._ended(kept, stood) if finish.exit_code is ExitCode.DONE else None
        return LinkOutcome(finish, kept, ended, training.recoveries)

    def _advised(self, finish: Finish) -> Finish:
        """It is not resumed by itself: the advice names the campaign."""
        if finish.code is None:
            return finish
        campaign = self.run_dir.output.run(self.spec.parent or self.spec.run_id)
        advice = finish.suggestion or CATALOGUE[finish.code].remedy
        advice = advice.replace("`backprop resume RUN`", f"`{runs.resuming(campaign)}`")
        return Finish(finish.status, finish.exit_code, finish.code, finish.message, advice)

    def _ended(self, kept: Kept, stood: Stood) -> LinkEnded:
        """For the campaign's journal. Recoveries and seconds are those of all supervisors."""
        row = stood.record.row()
        return LinkEnded(
            time=time.time(),
            run_id=self.spec.parent or "",
            link=self.spec.link,
            link_run=self.spec.run_id,
            name=self.spec.name or "",
            adapter=str(self.run_dir.adapter),
            digest=weights.digest_in(self.run_dir.adapter),
            steps=kept.step,
            final_loss=kept.loss,
            recoveries=row.recoveries,
            seconds=row.duration_seconds,
            samples_seen=kept.samples_seen,
            order=kept.order,
            model_revision=kept.revision,
            backend=row.backend,
            device=row.device,
            source_digest=as_read(self.spec.data, row.dataset_digest, digests()),
        )
