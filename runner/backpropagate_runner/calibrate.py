"""A few real steps on the longest rows, to know what a training takes: memory at its worst, and tokens per second.

The backend is told that it trains, and does just that; only the session is another: it saves nothing and ends the training after
the steps that were asked for. Two micro-batches make one optimizer step, so that gradients lie there while the second is done.
"""

from __future__ import annotations

import heapq
import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import msgspec

from backpropagate_backends.base import Directive, Score, Write
from backpropagate_protocol.errors import DatasetError, LossDivergedError
from backpropagate_protocol.jobs import CalibrateJob, PreparedRef, TrainJob
from backpropagate_protocol.measured import Calibrated
from backpropagate_protocol.messages import Phase, Progress, Started
from backpropagate_protocol.prepared import LABELLED, PAIRS, Prepared, PreparedWriter, View, open_prepared
from backpropagate_protocol.rundir import Manifest, OutputDir
from backpropagate_protocol.spec import RunSpec, rail
from backpropagate_runner.drill import Drill
from backpropagate_runner.frameworks import Frameworks
from backpropagate_runner.prepare import prepare
from backpropagate_runner.validate import needs_frameworks, scan
from backpropagate_runner.voice import Voice

_WARM_UP = 2  # first steps, whose time says nothing
_PARTS = 2  # micro-batches in a step


def calibrate(job: CalibrateJob, voice: Voice, frameworks: Frameworks, drill: Drill) -> Calibrated:
    """Raises whatever a training would; being out of memory means that this micro-batch does not fit."""
    spec, scratch = job.spec, Path(job.scratch)
    inner = TrainJob(
        spec=_short(job),
        run_dir=job.scratch,
        attempt=1,
        micro_batch=job.micro_batch,
        accumulation=_PARTS,
        gradient_checkpointing=spec.train.gradient_checkpointing,
        kernels=job.kernels,
    )

    def phase(done: int, total: int, detail: str) -> None:
        voice.phase(voice.where, done, total, detail)

    if needs_frameworks(spec.data):
        voice.phase(Phase.IMPORT)
        frameworks.backend(rail(spec))
    voice.phase(Phase.VALIDATE)
    found = scan(spec.data, phase)
    voice.phase(Phase.IMPORT)
    backend = frameworks.backend(rail(spec))
    backend.check(inner)
    voice.phase(Phase.TOKENIZE)
    ready = prepare(spec.data, backend.tokenizer(spec.model), found, OutputDir(Path(spec.output)).cache, phase)
    data = open_prepared(PreparedRef(ready.path, ready.digest))
    trial = _Trial(inner, scratch / "trial", voice, drill, job.steps)
    voice.phase(Phase.LOAD)
    backend.train(trial, _longest(data, _PARTS * job.micro_batch, scratch / "longest"))
    return trial.told(data)


def _short(job: CalibrateJob) -> RunSpec:
    spec = job.spec
    train = msgspec.structs.replace(
        spec.train,
        effective_batch=_PARTS * job.micro_batch,
        steps=job.steps + 1,  # the last is never made: what a finished training writes is not wanted
        epochs=None,
        warmup_steps=0,
        early_stopping=0,
        keep_best=False,
        group_by_length=False,
    )
    data = msgspec.structs.replace(spec.data, holdout=0, part="train", order="random")
    return msgspec.structs.replace(spec, train=train, data=data, init_adapter=None, export=None)


def _longest(data: Prepared, count: int, folder: Path) -> Prepared:
    """The `count` longest samples as a data set of their own; where there are fewer, they come again."""
    if not len(data):
        raise DatasetError("there are no rows to train on")
    ids = heapq.nlargest(count, range(len(data)), key=data.length)
    writer = PreparedWriter(folder, kind=data.kind)
    try:
        for at in range(count):
            index = ids[at % len(ids)]
            if data.kind == PAIRS:
                chosen, rejected = data.pair(index)
                writer.add_pair(_lists(chosen), _lists(rejected))
            elif data.kind == LABELLED:
                writer.add_labelled(*_lists(data.row(index)), data.label(index))
            else:
                writer.add(*_lists(data.row(index)))
        about = data.manifest
        writer.commit(key="longest", skipped=0, truncated=0, format=about.format, source_digest=about.source_digest)
    except BaseException:
        writer.abandon()
        raise
    return Prepared(folder)


def _lists(row: View) -> tuple[list[int], list[int]]:
    return row[0].tolist(), row[1].tolist()


class _Trial:
    """A session that saves nothing, scores nothing, and ends after some steps."""

    resume: Manifest | None = None

    def __init__(self, job: TrainJob, staging: Path, voice: Voice, drill: Drill, steps: int) -> None:
        self.job, self.staging = job, staging
        self._voice, self._drill, self._steps = voice, drill, steps
        self._started: Started | None = None
        self._progress: list[Progress] = []
        staging.mkdir(parents=True)

    def phase(self, phase: Phase, done: int = 0, total: int = 0, detail: str = "") -> None:
        self._voice.phase(phase, done, total, detail)

    def notice(self, text: str, level: str = "info") -> None:
        self._voice.notice(text, level)

    def started(self, started: Started) -> None:
        self._started = started
        self.phase(Phase.FIRST_STEP)

    def before_step(self, step: int) -> None:
        self._drill.before_step(step)

    def step_done(self, progress: Progress, score: Score | None = None) -> Directive:
        if progress.loss is not None and not math.isfinite(progress.loss):
            raise LossDivergedError(f"the loss of step {progress.step} is {progress.loss}")
        self._progress.append(progress)
        self._voice.step = progress.step
        self.phase(Phase.TRAIN, progress.step, self._steps)
        return Directive(stop=progress.step >= self._steps)

    def within(self, place: str) -> None:
        return

    def smaller(self, error: BaseException, others: int = 0) -> int | None:
        return None  # that it does not fit is the answer

    def shrunk(self) -> None:
        return

    def taken_by_others(self, memory: int) -> None:
        return

    def rehearsal(self) -> AbstractContextManager[None]:
        return nullcontext()

    def rehearsed(self, tokens: int, seconds: float, memory: int = 0) -> None:
        return

    def owes(self, total_steps: int) -> bool:
        return False

    def make_up(self, total_steps: int, score: Score) -> None:
        return

    def ended(self, total_steps: int) -> bool:
        return False

    def best(self) -> Path | None:
        return None

    def keep(self, staged: Path, progress: Progress, write: Write, *, copied: bool = True) -> None:
        return

    def save_failed(self, progress: Progress, error: BaseException) -> None:
        return

    def told(self, data: Prepared) -> Calibrated:
        """What the steps took; `data` are all rows, of which they saw the longest."""
        started, last = self._started, self._progress[-1]
        assert started is not None
        timed = self._progress[min(_WARM_UP, len(self._progress) - 1) :]
        before = self._progress[-len(timed) - 1].tokens if len(self._progress) > len(timed) else 0
        seconds = sum(progress.step_seconds for progress in timed)
        return Calibrated(
            device=started.device,
            micro_batch=started.micro_batch,
            steps=len(self._progress),
            memory_peak=max(progress.memory_used for progress in self._progress),
            memory_reserved=max(progress.memory_reserved for progress in self._progress),
            device_memory=started.device_memory,
            tokens_per_second=(last.tokens - before) / seconds if seconds > 0 else 0.0,
            longest=max(data.length(index) for index in range(len(data))),
            rows=len(data),
            mean_tokens=data.manifest.tokens / max(1, len(data)),
            precision=started.precision,
            optimizer=started.optimizer,
        )
