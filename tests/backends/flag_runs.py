"""From the flags of `backprop train` to the trainer that they built: every part between is the real one, but for the process.

Flags → settings → RunSpec → rows → tokens → TrainJob → a training of one step, whose trainer is kept to be looked at.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from transformers import Trainer

from backpropagate.commands.train import train as command
from backpropagate.judge.start import first_micro_batch
from backpropagate.wishes.build_spec import build_spec
from backpropagate.wishes.options import BY_ARGUMENT
from backpropagate.wishes.settings import Settings
from backpropagate_backends.cpu import CpuBackend
from backpropagate_protocol.jobs import TrainJob
from backpropagate_protocol.prepared import Prepared
from backpropagate_protocol.spec import RunSpec
from backpropagate_runner.prepare import prepare
from backpropagate_runner.validate import scan
from tests.backends.torch_session import KeepingSession, Killed

Row = Mapping[str, object]


def chat(question: str, answer: str) -> Row:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


# 12 rows, none as long as its neighbour.
CHAT = [chat(f"How many are {row}?", " ".join(["more"] * (1 + row * 5 % 9))) for row in range(12)]
PAIRS = [{"prompt": f"And {row}?", "chosen": "yes " * (1 + row % 3), "rejected": "no"} for row in range(12)]


@dataclass(frozen=True)
class Wished:
    """What some flags came to before the training."""

    backend: CpuBackend
    folder: Path
    spec: RunSpec
    data: Prepared

    def rows(self) -> list[list[int]]:
        return [list(self.data.row(index)[0]) for index in range(len(self.data))]

    @property
    def job(self) -> TrainJob:
        micro_batch = first_micro_batch(self.spec)
        return TrainJob(
            spec=self.spec,
            run_dir=str(self.folder / "run"),
            attempt=1,
            micro_batch=micro_batch,
            accumulation=self.spec.train.effective_batch // micro_batch,
            gradient_checkpointing=self.spec.train.gradient_checkpointing,
        )


@dataclass(frozen=True)
class Seen:
    """What some flags came to in a real training, which ended after its first step. `orders`: step → order after it."""

    wished: Wished
    trainer: Trainer
    orders: dict[int, int] = field(default_factory=dict)


def understood(folder: Path, *typed: str) -> RunSpec:
    """What `backprop train` with these flags comes to. folder: where its files with settings would be."""
    parsed = command.make_context("train", list(typed)).params
    given = {name: value for name, value in parsed.items() if name in BY_ARGUMENT}
    return build_spec(Settings(given, environ={}, folder=folder))


def wished(backend: CpuBackend, model: Path, folder: Path, *flags: str, rows: Iterable[Row] = CHAT) -> Wished:
    """As the command line would be understood, and the data made of `rows`."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    typed = ["--data", str(source), "--model", str(model), "--output", str(folder / "out"), *flags]
    if "--backend" not in typed:
        typed += ["--backend", "cpu"]
    spec = understood(folder, *typed)
    tokenizer = backend.tokenizer(spec.model)
    ready = prepare(spec.data, tokenizer, scan(spec.data), folder / "cache", lambda done, total, detail: None)
    return Wished(backend, folder, spec, Prepared(Path(ready.path)))


def seen(
    backend: CpuBackend, model: Path, folder: Path, *flags: str, rows: Iterable[Row] = CHAT, steps: int = 1
) -> Seen:
    """One step of the training that the flags ask for; or none, up to where the first one begins."""
    what = wished(backend, model, folder, *flags, rows=rows)
    backend.check(what.job)
    found: list[Trainer] = []

    def keep(step: int) -> None:
        found.append(_of(session))
        if not steps:
            raise Killed

    session = KeepingSession(what.job, folder, what.data, stop_at=1, on_step=keep)
    try:
        assert backend.train(session, what.data) is None
    except Killed:
        assert not steps
    return Seen(what, found[0], {progress.step: progress.order for progress in session.progress})


def _of(session: KeepingSession) -> Trainer:
    """The trainer that works for `session`: nobody hands it out, but there it is."""
    # By type: asking some objects for their class makes them warn.
    trainers = (each for each in gc.get_objects() if issubclass(type(each), Trainer))
    return next(trainer for trainer in trainers if vars(trainer).get("session") is session)


Look = Callable[[Seen], object]
