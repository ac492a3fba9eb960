"""A backend without a framework that is no fake: it learns one number by gradient descent, in milliseconds.

The number is what a small LoRA comes to (see `toy_adapter`), fitted to the mean token of each row. Sample order, gradient
accumulation, checkpoints, resume, adapters and scores work as in the torch backends, so all that surrounds a backend can be
tried on it, on every machine.

Its model's path is `toy`, optionally with wishes: `toy?step_seconds=0.01&state_bytes=1000000` makes each optimizer step
take that long and each checkpoint that large.
"""

from __future__ import annotations

import math
import time
import zlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from urllib.parse import parse_qsl

import msgspec

from backpropagate_backends import toy_adapter
from backpropagate_backends.base import GoOn, HeldOut, Reporting, Session
from backpropagate_backends.toy_tokenizer import EOS, BytesTokenizer
from backpropagate_protocol.data_formats import CURRICULUM, GIVEN
from backpropagate_protocol.errors import InvalidSettingError, UserInputError
from backpropagate_protocol.jobs import ChatJob, EvaluateJob, GenerateJob, ReferenceJob, TrainJob
from backpropagate_protocol.measured import Score
from backpropagate_protocol.messages import Made, Progress, Started, TrainResult
from backpropagate_protocol.prepared import Prepared
from backpropagate_protocol.spec import ModelSpec, TrainSpec
from backpropagate_protocol.toy_rules import refused_by_toy

_MOMENTUM = 0.9
_MET = 0.1
_RATE_SCALE = 100.0  # one number learns faster than a language model


class _State(msgspec.Struct):
    """All that a resume needs. Floats are kept as their bytes: exact to the last bit."""

    factors: bytes
    momentum: bytes
    step: int
    samples_seen: int
    order: int


class _Order:
    """Position → sample ids: a new seeded permutation in each epoch, or the order that was wished for. Any position is found
    at once.

    As in the torch trainers, a step does not reach into the next epoch: the last one of an epoch may be smaller.
    """

    def __init__(self, data: Prepared, seed: int, order: str) -> None:
        self._rows, self._seed, self._given = len(data), seed, order == GIVEN
        self._tenths = _tenths(data) if order == CURRICULUM else None
        self._epoch = -1
        self._permutation: array[int] = array("q")

    def take(self, position: int, count: int) -> array[int]:
        epoch, index = divmod(position, self._rows)
        if epoch != self._epoch:
            shuffled = list(range(self._rows))
            if not self._given:
                Random(f"{self._seed}/{epoch}").shuffle(shuffled)
            if self._tenths is not None:
                shuffled.sort(key=self._tenths.__getitem__)
            self._epoch, self._permutation = epoch, array("q", shuffled)
        return self._permutation[index : index + count]


def _tenths(data: Prepared) -> array[int]:
    """For each sample its tenth, 0 the easiest."""
    if data.easy is None:
        raise ValueError(f"{data.folder} holds no order from easy to hard")
    found = array("q", bytes(8 * len(data)))
    for place, sample in enumerate(data.easy):
        found[sample] = 10 * place // len(data)
    return found


class ToyBackend:
    """See the module."""

    name = "toy"

    def warm(self) -> None: ...

    def check(self, job: TrainJob) -> None:
        _wishes(job.spec.model)
        if job.spec.train.mode != "lora" or job.spec.train.method != "sft":
            raise InvalidSettingError("the toy backend knows no other training than --method sft --mode lora")
        wish = refused_by_toy(job.spec.data, job.spec.train)
        if wish:
            raise InvalidSettingError(f"the toy backend cannot serve {wish}", suggestion="Leave it out.")

    def tokenizer(self, model: ModelSpec) -> BytesTokenizer:
        return BytesTokenizer()

    def train(self, session: Session, data: Prepared) -> TrainResult | None:
        job, spec = session.job, session.job.spec.train
        step_seconds, state_bytes = _wishes(job.spec.model)

        # ----- how long, and from where -----
        steps_per_epoch = math.ceil(len(data) / spec.effective_batch)
        total_steps = spec.steps if spec.steps is not None else math.ceil((spec.epochs or 1.0) * steps_per_epoch)
        lora, base = job.spec.lora, job.spec.model.path
        rank = toy_adapter.rank_of(lora)
        momentum = [0.0] * (2 * rank)
        step = samples = order = 0
        if job.resume_from is not None:
            state = _state(Path(job.resume_from))
            begun = toy_adapter.from_bytes(state.factors, lora)
            momentum = list(array("d", state.momentum))
            step, samples, order = state.step, state.samples_seen, state.order
        elif job.spec.init_adapter is not None:
            begun = toy_adapter.begin_from(Path(job.spec.init_adapter), lora, base)
        else:
            begun = toy_adapter.fresh(lora, spec.seed)
        column, row = begun.column, begun.row

        def score(data: Prepared, go_on: GoOn) -> HeldOut | None:
            return _held_out(toy_adapter.product(column, row), data, go_on)

        session.make_up(total_steps, score)
        over = session.ended(total_steps)
        session.started(
            Started(
                backend=self.name,
                device="toy",
                step=step,
                total_steps=total_steps,
                samples_seen=samples,
                micro_batch=job.micro_batch,
                accumulation=job.accumulation,
                trainable_parameters=len(begun.a) + len(begun.b),
                parameters=len(begun.a) + len(begun.b),
                precision="fp64",
            )
        )

        # ----- the longest rows, to see whether they fit -----
        targets: dict[int, float] = {}
        micro_batch = job.micro_batch
        if job.rehearse is not None and max(map(data.length, range(len(data)))) > job.rehearse:
            with session.rehearsal():
                longest = array("q", sorted(range(len(data)), key=data.length)[-micro_batch:])
                _, _, micro_batch = _slope(session, data, targets, longest, micro_batch, 0.0)
            session.rehearsed(data.length(longest[-1]), 0.0)

        # ----- the loop -----
        sampler = _Order(data, spec.seed, job.spec.data.order)
        loss = session.resume.loss if session.resume else None
        tokens = 0
        while not over and step < total_steps:
            session.before_step(step + 1)
            began = time.monotonic()
            ids = sampler.take(samples, spec.effective_batch)
            number = toy_adapter.product(column, row)
            loss, gradient, micro_batch = _slope(session, data, targets, ids, micro_batch, number)
            session.within("optimizer")
            rate = _rate(spec, step, total_steps)
            grad_norm = abs(gradient) * math.hypot(*column, *row)
            partners, weights = row + column, column + row  # each one's slope is the gradient times its partner
            momentum = [_MOMENTUM * m + gradient * x for m, x in zip(momentum, partners)]  # noqa: B905 - a step is microseconds
            weights = [x - rate * m for x, m in zip(weights, momentum)]  # noqa: B905
            column, row = weights[:rank], weights[rank:]
            step += 1
            samples += len(ids)
            order = zlib.crc32(ids.tobytes(), order)
            tokens += sum(data.offsets[i + 1] - data.offsets[i] for i in ids)
            if step_seconds:
                time.sleep(step_seconds)
            progress = Progress(
                step=step,
                total_steps=total_steps,
                samples_seen=samples,
                order=order,
                loss=loss,
                learning_rate=rate,
                grad_norm=grad_norm,
                tokens=tokens,
                step_seconds=time.monotonic() - began,
                epoch=samples / len(data),
            )
            directive = session.step_done(progress, score)
            if directive.save:
                self._save(session, progress, begun.trained(column, row), momentum, state_bytes)
            if directive.stop:
                return None
            over = directive.finish

        # ----- the result -----
        best = session.best()
        if best is not None:
            kept = toy_adapter.from_bytes(_state(best).factors, lora)
            column, row = kept.column, kept.row
        adapter = session.staging / "adapter"
        adapter.mkdir()
        toy_adapter.save(adapter, begun.trained(column, row), toy_adapter.config(lora, base))
        return TrainResult(str(adapter), step, samples, order, loss)

    def _save(
        self,
        session: Session,
        progress: Progress,
        factors: toy_adapter.Factors,
        momentum: list[float],
        state_bytes: int,
    ) -> None:
        state = _State(
            factors.to_bytes(), array("d", momentum).tobytes(), progress.step, progress.samples_seen, progress.order
        )

        def write(folder: Path) -> None:
            (folder / "state.json").write_bytes(msgspec.json.encode(state))
            if state_bytes:
                (folder / "ballast.bin").write_bytes(bytes(state_bytes))

        session.keep(session.staging / f"checkpoint-{progress.step}", progress, write)

    def generate(self, job: GenerateJob) -> tuple[str, ...]:
        return tuple(f"{_learnt(job.adapter):.6f}" for _ in job.prompts)

    def reference(self, job: ReferenceJob, stage: Reporting) -> Made:
        raise UserInputError(
            "the toy backend's model is one number, which no export format can hold", code="INPUT_MODEL_UNSUPPORTED"
        )

    def evaluate(self, job: EvaluateJob, tasks: Sequence[Prepared], stage: Reporting) -> tuple[Score, ...]:
        """The loss is the mean squared distance to the rows' targets; foreseen is a row that is met within a tenth."""
        scores = []
        for candidate in job.candidates:
            number = _learnt(candidate.adapter)
            for task, data in enumerate(tasks):
                errors = [number - _target(data, row) for row in range(len(data))]
                loss = math.fsum(error * error for error in errors) / len(errors)
                met = sum(abs(error) < _MET for error in errors) / len(errors)
                scores.append(Score(candidate.name, task, loss, met, data.manifest.trained_tokens, len(data)))
                stage.advance(len(scores), len(job.candidates) * len(tasks), candidate.name)
        return tuple(scores)

    def chat(self, job: ChatJob) -> ToyConversation:
        return ToyConversation(_learnt(job.adapter))


class ToyConversation:
    """Answers with the number that was learnt, digit by digit."""

    def __init__(self, number: float) -> None:
        self._number = number

    def answer(self, messages: Sequence[tuple[str, str]]) -> Iterator[str]:
        yield from f"{self._number:.6f}"


def _slope(
    session: Session, data: Prepared, targets: dict[int, float], ids: array[int], size: int, number: float
) -> tuple[float, float, int]:
    """Loss and gradient of one step, micro-batch by micro-batch, and the size of those that it came down to."""
    while True:
        loss = gradient = 0.0
        try:
            for start in range(0, len(ids), size):
                session.within("forward")
                micro_loss = micro_gradient = 0.0
                for sample in ids[start : start + size]:
                    target = targets.get(sample)
                    if target is None:
                        target = targets[sample] = _target(data, sample)
                    error = number - target
                    micro_loss += error * error
                    micro_gradient += 2.0 * error
                session.within("backward")
                loss += micro_loss / len(ids)
                gradient += micro_gradient / len(ids)
        except Exception as error:
            smaller = session.smaller(error)
            if smaller is None:
                raise
            size = smaller
            session.shrunk()
        else:
            return loss, gradient, size


def _learnt(adapter: str | None) -> float:
    return 0.0 if adapter is None else toy_adapter.load(Path(adapter)).number


def _state(checkpoint: Path) -> _State:
    return msgspec.json.decode((checkpoint / "state.json").read_bytes(), type=_State)


def _held_out(number: float, data: Prepared, go_on: GoOn) -> HeldOut | None:
    """The loss is the mean squared distance to the rows' targets."""
    errors = []
    for sample in range(len(data)):
        if not go_on(sample, len(data)):
            return None
        errors.append(number - _target(data, sample))
    met = sum(abs(error) < _MET for error in errors) / len(errors)
    return HeldOut(
        math.fsum(error * error for error in errors) / len(errors),
        len(errors),
        data.manifest.trained_tokens,
        {"accuracy": met},
    )


def _target(data: Prepared, sample: int) -> float:
    tokens, _ = data.row(sample)
    return sum(tokens) / (EOS * len(tokens))


def _rate(spec: TrainSpec, step: int, total_steps: int) -> float:
    """Linear warm-up, then a half cosine to zero; or constant."""
    top = spec.learning_rate * _RATE_SCALE
    if step < spec.warmup_steps:
        return top * (step + 1) / spec.warmup_steps
    if spec.scheduler == "constant":
        return top
    done = (step - spec.warmup_steps) / max(1, total_steps - spec.warmup_steps)
    return top * 0.5 * (1.0 + math.cos(math.pi * done))


def _wishes(model: ModelSpec) -> tuple[float, int]:
    """step_seconds and state_bytes from the model's path."""
    _, _, query = model.path.partition("?")
    wishes = dict(parse_qsl(query))
    try:
        return float(wishes.pop("step_seconds", 0.0)), int(wishes.pop("state_bytes", 0))
    except ValueError as error:
        raise InvalidSettingError(f"the toy model {model.path!r} cannot be understood: {error}") from error
