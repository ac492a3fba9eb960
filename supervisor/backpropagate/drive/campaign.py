"""A campaign's chain: each run trained, then merged with those before it, then scored; and what is kept of it in the end.

What to do next is `judge.campaign`'s decision, from the journal; here it is done and told. Whatever ends a supervisor, the
next one goes on with the first thing that is not in the journal.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import assert_never

import anyio.to_thread
import msgspec

from backpropagate.doors.environ import environment
from backpropagate.drive.campaign_totals import totals
from backpropagate.drive.link import LinkRun
from backpropagate.drive.reporter import Reporter
from backpropagate.drive.stages import Stages
from backpropagate.drive.stops import Stops
from backpropagate.drive.training import Kept, published
from backpropagate.events import (
    LinkMerged,
    LinkScored,
    LinkStarted,
    Noticed,
    StageEnded,
)
from backpropagate.judge import campaign as judge
from backpropagate.judge import forgetting, telling
from backpropagate.judge.campaign import Choose, Combine, Done, Evaluate, Facts, Publish, Train
from backpropagate.judge.decisions import Finish
from backpropagate.judge.forgetting import pick
from backpropagate.judge.telling import BY_WISH
from backpropagate.keep import campaign_adapter, campaign_report, merge_folders
from backpropagate.keep.campaign_adapter import DamagedMerge, Totals
from backpropagate.keep.changed_data import Files, changed
from backpropagate.keep.past import TRAINED, Past
from backpropagate.measured import LinkScore
from backpropagate.sensors.card import Reservation
from backpropagate.watch.sinks import Sink
from backpropagate.wishes import campaign_room
from backpropagate_protocol import durable
from backpropagate_protocol.catalogue import CATALOGUE, ExitCode
from backpropagate_protocol.combined import NEXT
from backpropagate_protocol.errors import (
    BackpropagateError,
    BusyError,
    DiskFullError,
    SLAOMergeError,
    code_of_write,
)
from backpropagate_protocol.measured import Evaluation
from backpropagate_protocol.redact import redact
from backpropagate_protocol.rundir import PARTIAL, RunDir
from backpropagate_protocol.spec import RunSpec


class Campaign:
    """One supervisor's share of it. `kept`, `recoveries`: after `run`."""

    def __init__(
        self,
        spec: RunSpec,
        run_dir: RunDir,
        report: Reporter,
        stops: Stops,
        facts: Facts,
        past: Past,
        watching: Sequence[Sink],
        gpu_script: Path | None,
    ) -> None:
        """`facts` and `past` must be among those that `report` tells; `watching` are told of the runs' events, too."""
        self._spec, self._run_dir, self._report, self._stops, self._facts = spec, run_dir, report, stops, facts
        self._watching, self._gpu_script = list(watching), gpu_script
        self._stages = Stages(spec, run_dir, report, stops, past)
        self._reserved = Reservation()
        self._files, self._changes = Files(), list[str]()
        self._recovered = 0
        self._current = Kept()  # of the run under way
        self._remade: set[int] = set()  # merges that were found damaged

    @property
    def recoveries(self) -> int:
        """Of this supervisor."""
        return self._recovered + self._stages.recoveries

    async def run(self) -> Finish | None:
        """Does what is left to do; None if the merged adapter is published.

        Raises BusyError if the card is taken, or DiskFullError if there is no room, and nothing was told of the campaign yet.
        """
        self._facts.forget_missing(Path.exists, self._spec)
        try:
            await self._make_room()
            while True:
                await anyio.to_thread.run_sync(self._look_at_data)
                step = judge.next_step(self._spec, self._facts)
                if isinstance(step, Done):
                    return await self._plot()
                finish = await self._do(step)
                if finish is not None:
                    return finish
        except (BusyError, DiskFullError) as error:
            if not self._report.begun:
                raise
            return telling.refused(error)
        except BackpropagateError as error:
            return telling.refused(error)
        except OSError as error:
            return _unwritable(error)
        finally:
            self._reserved.release()

    def _look_at_data(self) -> None:
        """A run whose file is not what it was is neither replayed nor asked about, and that is said once."""
        found = changed(self._facts, self._files.digest)
        for number in sorted(found.keys() - self._facts.changed):
            self._changes.append(f"{found[number]}; its rows are neither replayed nor scored")
        self._facts.changed = frozenset(found)
        if self._report.begun:
            for text in self._changes:
                self._warn(text)
            self._changes.clear()

    async def _do(self, step: Train | Combine | Evaluate | Choose | Publish) -> Finish | None:
        match step:
            case Train():
                return await self._train(step)
            case Combine():
                return await self._combine(step)
            case Evaluate():
                return await self._evaluate(step)
            case Choose():
                return await self._choose(step)
            case Publish():
                return await self._publish(step)
            case _:
                assert_never(step)

    # --- a run ------------------------------------------------------------------------------------------------------

    async def _train(self, step: Train) -> Finish | None:
        before = step.link.number - 1
        home = judge.campaign_dir(self._spec).merge(before)
        if before and not await anyio.to_thread.run_sync(merge_folders.whole, home, NEXT):
            self._merge_again(before, home)
            return None
        if not judge.link_dir(self._spec, step.link.number).spec.is_file():  # what has begun has most of it already
            campaign_room.check(self._spec, environment(), runs=len(self._facts.links), done=step.link.number - 1)
        link = LinkRun(step.run)

        def begin() -> None:
            self._report.event(
                LinkStarted(
                    time=time.time(),
                    run_id=self._spec.run_id,
                    link=step.link.number,
                    links=len(self._facts.links),
                    link_run=link.spec.run_id,
                    name=step.link.name,
                    offset=link.offset,
                )
            )

        outcome = await link.train(begin, self._watching, self._stops, self._reserved, self._gpu_script)
        self._recovered += outcome.recoveries
        if outcome.ended is not None:
            self._current = Kept()
            self._report.event(outcome.ended)
            await self._make_room()
            return None
        self._current = outcome.kept
        finish = outcome.finish
        where = f"run {step.link.number} of {len(self._facts.links)} ({step.link.name})"
        return Finish(finish.status, finish.exit_code, finish.code, f"{where}: {finish.message}", finish.suggestion)

    # --- merging and scoring ----------------------------------------------------------------------------------------

    async def _combine(self, step: Combine) -> Finish | None:
        finish = await self._combined(step)
        if finish is None:
            self._report.event(self._merged(step))
            await self._make_room()
        return finish

    async def _combined(self, step: Combine) -> Finish | None:
        if self._stages.has(step.stage) and merge_folders.readable(Path(step.job.out)):
            return None
        return await self._stages.do(step.stage)

    def _merge_again(self, number: int, folder: Path) -> None:
        """What is damaged is forgotten; `next_step` then asks for it. The runs' own adapters are all that it takes."""
        if number in self._remade:
            raise SLAOMergeError(f"{folder} is damaged again", suggestion="Look after the disk.")
        self._remade.add(number)
        self._warn(f"the merge after run {number} is not as it was written ({folder}); it is made again")
        durable.discard(folder)
        self._facts.merged.pop(number, None)
        self._facts.forget_missing(Path.exists, self._spec)

    async def _make_room(self) -> None:
        await anyio.to_thread.run_sync(merge_folders.thin, self._spec, self._facts)

    def _merged(self, step: Combine, *, chosen: bool = False) -> LinkMerged:
        about = campaign_adapter.combined(Path(step.job.out))
        return LinkMerged(
            time=time.time(),
            run_id=self._spec.run_id,
            link=step.link.number,
            folder=step.job.out,
            rule=step.job.rule,
            coefficient=about.coefficient,
            digest=campaign_adapter.merged_digest(about),
            chosen=chosen,
        )

    async def _evaluate(self, step: Evaluate) -> Finish | None:
        finish = await self._stages.do(step.stage)
        if finish is not None:
            if step.needed or finish.code in (None, BY_WISH):
                return finish
            self._facts.unscored.add(step.link.number)
            self._warn(f"run {step.link.number} is not scored: {finish.message}")
            return None
        scores = self._scores(step.link.number)
        if not any(score.candidate == judge.NEWEST for score in scores):  # the merged one is the newest run's own
            scores += [_as(score, judge.NEWEST) for score in scores if score.candidate == judge.MERGED]
        self._report.event(self._scored(step.link.number, scores))
        self._write_report()
        return None

    def _scores(self, number: int) -> list[LinkScore]:
        """A task is named by the run that taught it, from 0, rather than by its place in the Job."""
        answer = self._stages.answer
        assert isinstance(answer, Evaluation)
        asked = judge.tasks(self._facts, number)
        return [
            LinkScore(s.candidate, asked[s.task].number - 1, s.loss, s.accuracy, s.tokens, s.rows)
            for s in answer.scores
        ]

    def _scored(self, number: int, scores: Sequence[LinkScore]) -> LinkScored:
        names = tuple(link.name for link in self._facts.links[:number])
        return LinkScored(time=time.time(), run_id=self._spec.run_id, link=number, scores=tuple(scores), names=names)

    async def _choose(self, step: Choose) -> Finish | None:
        """Merges the last run by every rule, scores them all, and takes the best."""
        for combine in step.combine:
            finish = await self._combined(combine)
            if finish is not None:
                return finish
        finish = await self._stages.do(step.evaluate.stage)
        if finish is not None:
            return finish
        number = step.link.number
        scores = self._scores(number)
        rules = {combine.job.rule: judge.BY_RULE + combine.job.rule for combine in step.combine}
        by_candidate = forgetting.by_candidate(scores)
        scored = {rule: by_candidate[name] for rule, name in rules.items() if by_candidate.get(name)}
        if not scored:
            self._warn("there are no held-out rows to choose a merge by; it stays as it is")
        best = pick(scored) if scored else self._facts.merged[number].rule
        taken = next(combine for combine in step.combine if combine.job.rule == best)
        own = [_as(score, judge.MERGED) for score in scores if score.candidate == rules[best]]
        before = self._facts.scored[number].scores if number in self._facts.scored else ()
        others = [score for score in before if score.candidate in (judge.NEWEST, judge.BASE)]
        self._report.event(self._scored(number, [*own, *others, *scores]))
        self._report.event(self._merged(taken, chosen=True))
        await self._make_room()
        self._write_report()
        return None

    # --- what the campaign comes to ---------------------------------------------------------------------------------

    async def _publish(self, step: Publish) -> Finish | None:
        """The merged adapter becomes the campaign's own, and then the output folder's."""
        try:
            await anyio.to_thread.run_sync(self._take_adapter, step)
        except DamagedMerge:
            self._merge_again(step.link.number, step.merged.parent)
            return None
        finish = published(self._run_dir)
        if finish is None:
            lora = str(self._run_dir.output.lora)
            self._report.event(StageEnded(time=time.time(), run_id=self._spec.run_id, stage=TRAINED, path=lora))
        return finish

    def _take_adapter(self, step: Publish) -> None:
        kept = self.kept
        summed = Totals(step=kept.step, samples_seen=kept.samples_seen, order=kept.order, loss=kept.loss)
        digest = self._facts.merged[step.link.number].digest
        campaign_adapter.take(self._spec, self._run_dir, step.merged, step.newest, summed, digest)

    async def _plot(self) -> Finish | None:
        """Pictures of the scores; a campaign is none the worse without them."""
        stage = judge.plot(self._spec)
        drawn = self._spec.runner_python is not None or find_spec("matplotlib") is not None
        if not (self._facts.scored and drawn) or self._stages.has(stage):
            return None
        finish = await self._stages.do(stage)
        if finish is not None and finish.code != BY_WISH:
            self._warn(f"there is no plot: {finish.message}")
            return None
        return finish

    def _write_report(self) -> None:
        try:
            campaign_report.write(self._run_dir, self._spec, self._facts)
        except OSError as error:
            self._warn(f"{self._run_dir.campaign_report} cannot be written: {error.strerror or error}")

    def _warn(self, text: str) -> None:
        self._report.event(Noticed(time=time.time(), run_id=self._spec.run_id, level="warning", text=redact(text)))

    @property
    def kept(self) -> Kept:
        """Totals of all its runs. The adapter is there once it is published; the loss is the newest run's."""
        return totals(self._spec, self._run_dir, self._facts, self._current)


def _as(score: LinkScore, candidate: str) -> LinkScore:
    return msgspec.structs.replace(score, candidate=candidate)


def _unwritable(error: OSError) -> Finish:
    info = CATALOGUE[code_of_write(error)]
    status = "interrupted" if info.exit is ExitCode.TRY_LATER else "failed"
    return Finish(status, info.exit, info.code, f"{error.filename or 'the output folder'} cannot be written: {error.strerror or error}", info.remedy)  # fmt: skip


def sweep(run_dir: RunDir) -> None:
    """Removes what a killed merge left half-made."""
    with suppress(OSError):
        for entry in run_dir.merges.iterdir():
            if entry.name.endswith(PARTIAL):
                durable.discard(entry)
