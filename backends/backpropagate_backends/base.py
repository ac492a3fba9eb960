"""The contract between the runner and a backend: what a backend does, and what the runner does for it.

A backend wraps its ecosystem's own trainer and decides nothing. It gets a `Session`, through which it says where it is,
asks at every optimizer step boundary whether to go on, save or stop, and hands over finished checkpoint folders. Every
backend passes tests/backends/test_contract.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from backpropagate_protocol import measured
from backpropagate_protocol.jobs import ChatJob, EvaluateJob, FuseJob, GenerateJob, ReferenceJob, TrainJob
from backpropagate_protocol.messages import Made, Phase, Progress, Started, TrainResult
from backpropagate_protocol.prepared import Prepared
from backpropagate_protocol.rundir import Manifest
from backpropagate_protocol.spec import ModelSpec

# An adapter is a folder as PEFT lays it out, with these two files in it, whatever backend made it.
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class Directive:
    """What the runner wants at a step boundary. `save` before the others; a stopped backend returns None from `train`, one
    that is to finish trains no further step and writes its result."""

    save: bool = False
    stop: bool = False
    finish: bool = False


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What the held-out rows say of a model. loss: mean, in nats per token that carries loss, or the method's own loss per
    sample. `extra`: what else was measured, finite."""

    loss: float
    rows: int
    tokens: int
    extra: Mapping[str, float] = field(default_factory=dict)


# Is told samples done and in all, again and again. False: leave the scoring at once, a stop waits.
GoOn = Callable[[int, int], bool]

# Writes the files of a checkpoint into the folder it is given. A disk that does not take them is an OSError.
Write = Callable[[Path], None]

# Scores the model that is trained, as it is now, on prepared held-out data. Leaves no trace in it, nor in any generator of
# random numbers; the same weights have the same score, to the bit, on the same device. None: it was left.
Score = Callable[[Prepared, GoOn], HeldOut | None]


class Session(Protocol):
    """What the runner does for a backend. Called from the thread that trains; none of it blocks on the parent."""

    job: TrainJob
    resume: Manifest | None  # the manifest of job.resume_from, already verified
    staging: Path  # an empty folder on the file system of the checkpoints

    def phase(self, phase: Phase, done: int = 0, total: int = 0, detail: str = "") -> None: ...

    def notice(self, text: str, level: str = "info") -> None: ...

    def started(self, started: Started) -> None:
        """Once, when the first step is next."""

    def before_step(self, step: int) -> None:
        """Before optimizer step `step` (1-based) consumes its first sample. Planned faults happen here."""

    def step_done(self, progress: Progress, score: Score | None = None) -> Directive:
        """After each optimizer step. A loss or gradient norm that is not finite raises LossDivergedError here.

        If the held-out rows are due to be scored, `score` is called within.
        """

    # Out of memory in forward or backward: the optimizer is not entered yet, and nothing is lost.

    def within(self, place: str) -> None:
        """In `forward`, `backward` and before the `optimizer` steps. Planned shortages of memory happen here."""

    def smaller(self, error: BaseException, others: int = 0) -> int | None:
        """What forward or backward raised: the micro-batch to do the samples of this step again with, all of them; None: it is a
        fault, to be raised. `others`: MiB of the device that other processes took since the first step."""

    def shrunk(self) -> None:
        """Before they are: all that the step had of the memory is free again. Else the error is raised after all."""

    def taken_by_others(self, memory: int) -> None:
        """MiB, as in `smaller`; before another error is raised that may come of it."""

    def rehearsal(self) -> AbstractContextManager[None]:
        """Around the trial of the longest samples, after `started`, if job.rehearse wants one: forward and backward, as often as
        `smaller` has an answer. Weights, optimizer, random state and the order of samples are afterwards what they were."""

    def rehearsed(self, tokens: int, seconds: float, memory: int = 0) -> None:
        """They fit. tokens: of the longest; memory: MiB, the peak."""

    def owes(self, total_steps: int) -> bool:
        """Of a resume: whether a stop or a death came between the checkpoint's step and its evaluation. Then the weights
        of the checkpoint are loaded and `make_up` is called, before `ended` is asked."""

    def make_up(self, total_steps: int, score: Score) -> None:
        """Does the evaluation that is owed, if one is."""

    def ended(self, total_steps: int) -> bool:
        """Of a resume: whether no step is to follow. All were trained, or the evaluations said that it is enough."""

    def best(self) -> Path | None:
        """After the last step: the checkpoint (verified) whose weights are to be the result; None: the weights as they
        are now."""

    def keep(self, staged: Path, progress: Progress, write: Write, *, copied: bool = True) -> None:
        """Has `write` fill the folder `staged`, and makes that the checkpoint of progress.step.

        staged: below `staging`; is made if it is not there, and may hold small files already.
        copied: what `write` writes is a copy that no step changes. It is then called in another thread while the training
        goes on. Otherwise it has been called when this returns.

        A disk that is full or failing is told, the partial goes, the training goes on. Raises nothing for that.
        """

    def save_failed(self, progress: Progress, error: BaseException) -> None:
        """Says that what is written before `keep` could not be; the staged remains are removed."""


class Reporting(Protocol):
    """What the runner does for a backend in a stage of an export: see the runner's export/stage.py."""

    def advance(self, done: int = 0, total: int = 0, detail: str = "") -> None: ...

    def notice(self, text: str, level: str = "info") -> None: ...


class Conversation(Protocol):
    """A model that is held to be talked with."""

    def answer(self, messages: Sequence[tuple[str, str]]) -> Iterator[str]:
        """The answer to a whole conversation of (role, content) pairs, in pieces of text as they are made."""


class Tokenizer(Protocol):
    """Turns one conversation into token ids and loss flags, by the model's own chat template."""

    digest: str  # over vocabulary, merges, special tokens and the training template
    max_length: int | None  # the model's own limit, if it has one

    def chat(self, messages: Sequence[dict[str, object]], tools: object | None) -> tuple[list[int], list[int]]:
        """messages: dicts with `role` and `content` (and tool fields). Flags are 1 on assistant tokens and their EOS."""

    def completion(self, prompt: str, completion: str) -> tuple[list[int], list[int]]:
        """Plain text pair; flags are 1 on the completion and its EOS."""

    def text(self, text: str) -> tuple[list[int], list[int]]:
        """Plain text; flags are 1 everywhere, EOS appended if missing."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones included."""

    def check(self) -> None:
        """Raises a coded error if training with this template cannot work: no generation markers and no patch known, or
        an EOS that would never be trained."""


class Backend(Protocol):
    """One way to train."""

    name: str

    def warm(self) -> None:
        """Imports the frameworks; touches no device. May run in a thread while the Job is awaited. Raises
        DependencyError if something is missing."""

    def check(self, job: TrainJob) -> None:
        """After `warm`: raises a coded error if the device or a wish of the Job cannot be served. Loads no model."""

    def tokenizer(self, model: ModelSpec) -> Tokenizer: ...

    def train(self, session: Session, data: Prepared) -> TrainResult | None:
        """Loads, trains to the end, writes the adapter into session.staging / 'adapter' and returns the result with that
        path; None if it was told to stop. Exceptions are faults: they are classified by the runner, never here."""

    def generate(self, job: GenerateJob) -> tuple[str, ...]: ...

    def reference(self, job: ReferenceJob, stage: Reporting) -> Made:
        """Writes what the model says to the Job's prompts: see `backpropagate_protocol.reference`."""

    def evaluate(self, job: EvaluateJob, tasks: Sequence[Prepared], stage: Reporting) -> tuple[measured.Score, ...]:
        """Every candidate on every task, the base model loaded once. Deterministic; no padding token counts."""

    def chat(self, job: ChatJob) -> Conversation: ...


class Fuser(Protocol):
    """A backend that can write a model with its adapter in it, where its format can be read by itself alone."""

    def fuse(self, job: FuseJob, folder: Path, stage: Reporting) -> None:
        """Into `folder`, which is there and empty."""
