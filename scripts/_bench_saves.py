"""What checkpoints cost a training: half a GB at once, and all of those that a run makes by itself."""

from __future__ import annotations

import statistics
from functools import cache
from pathlib import Path

import msgspec

from _bench_figure import Figure
from _bench_run import TINY, Supervised, a_spec, write_rows
from backpropagate.events import CheckpointCommitted, RunEnded, Step

_HALF_GB_RANK = 3_400  # of an adapter of the tiny base
_TRAINED = 25.0  # seconds of training whose saves are added up
_SAVE_SECONDS = 10.0  # a sixth of the default: saves come six times as often as they would


def large(folder: Path, steps: int = 7) -> list[Figure]:
    """How long a training stands still for a checkpoint of half a GB, and what else it feels of its being written.

    The adapter is wide enough that it and its moments take that much, and the rows are short, so that a step is not all.
    """
    rows = write_rows(folder / "short.jsonl", 20)
    spec = a_spec(folder / "large", rows, backend="cpu", model=str(TINY), steps=steps, save_steps=5)
    spec = msgspec.structs.replace(
        spec,
        lora=msgspec.structs.replace(spec.lora, r=_HALF_GB_RANK, alpha=_HALF_GB_RANK),
        data=msgspec.structs.replace(spec.data, max_length=48),
        train=msgspec.structs.replace(spec.train, effective_batch=1, batch_size=1),
    )
    ends: dict[int, float] = {}
    saves: list[CheckpointCommitted] = []
    for event in Supervised(spec).events():
        match event:
            case Step(step=step, time=when):
                ends[step] = when
            case CheckpointCommitted() if event.step < steps:  # the last one is all that is left to do
                saves.append(event)
            case _:
                pass
    gaps = {step: when - ends[step - 1] for step, when in ends.items() if step - 1 in ends}
    disturbed = {save.step + 1 for save in saves}
    calm = statistics.median(gap for step, gap in gaps.items() if step not in disturbed)
    blocked = max(save.blocked for save in saves)
    after = max(gaps[step] for step in disturbed if step in gaps)
    return [
        Figure(f"a {saves[0].bytes / 1e9:.2f} GB checkpoint blocks training", f"{blocked:.2f} s", "≤ 0.5 s", blocked <= 0.5),
        Figure("from its step to durable, beside the training", f"{max(save.seconds for save in saves):.2f} s"),
        Figure("step after it : other steps, all included", f"{after / calm:.2f} ({calm:.2f} s)"),
    ]  # fmt: skip


def share(folder: Path) -> list[Figure]:
    held = held_up(folder)
    return [
        Figure(
            "checkpoints, of the run's time",
            f"{100 * held:.2f} % of {_TRAINED:.0f} s of real training, saved adaptively, at most {_SAVE_SECONDS:.0f} s at "
            "risk (the default is 60 s)",
            "≤ 1 %",
            held <= 0.01,
        )
    ]


@cache
def held_up(folder: Path) -> float:
    """The share of its time for which a real training stood still for its checkpoints."""
    rows = write_rows(folder / "for-saves.jsonl", 100)
    spec = a_spec(folder / "saves", rows, backend="cpu", model=str(TINY), steps=10**5, save_steps=1)
    safety = msgspec.structs.replace(spec.safety, save_steps=None, save_seconds=_SAVE_SECONDS)
    run = Supervised(msgspec.structs.replace(spec, safety=safety))
    began = trained = blocked = 0.0
    for event in run.events(every=0.1):
        match event:
            case Step():
                began = began or event.time - event.step_seconds
                trained = event.time - began
                if trained >= _TRAINED:
                    break
            case CheckpointCommitted():
                blocked += event.blocked
            case RunEnded():
                raise RuntimeError(f"the run ended as {event.status}: {event.message}; see {run.run.log}")
            case _:
                pass
    run.stop()
    return blocked / trained
