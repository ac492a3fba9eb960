"""Preference data and jobs for tests: answers and prompts of very different lengths, since equal ones would prove nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from backpropagate_protocol.jobs import TrainJob
from backpropagate_protocol.prepared import LABELLED, PAIRS, Prepared, PreparedWriter, Row
from tests.backends.torch_session import make_job

# Large enough that a few steps move the model, and KTO's drift is not 0 for long.
LEARNING_RATE = 5e-3


def preference_job(
    model: Path, method: str, train: Mapping[str, object] | None = None, *, four_bit: bool | None = None
) -> TrainJob:
    """8 steps of one micro-batch of 4. `train`: other values of its TrainSpec."""
    job = make_job(model, steps=8, four_bit=four_bit)
    wished = {"method": method, "learning_rate": LEARNING_RATE, **(train or {})}
    changed = msgspec.convert({**msgspec.to_builtins(job.spec.train), **wished}, type(job.spec.train))
    data = msgspec.structs.replace(job.spec.data, method=method)
    return msgspec.structs.replace(job, spec=msgspec.structs.replace(job.spec, train=changed, data=data))


def make_pairs(folder: Path, pairs: int = 15, vocabulary: int = 400) -> Prepared:
    writer = PreparedWriter(folder, kind=PAIRS)
    for pair in range(pairs):
        writer.add_pair(_row(pair, 1 + pair * 7 % 17, vocabulary), _row(pair, 1 + pair * 11 % 13, vocabulary))
    writer.commit(key="test", skipped=0, truncated=0, format="preference", source_digest="test")
    return Prepared(folder)


def make_labelled(folder: Path, rows: int = 15, vocabulary: int = 400) -> Prepared:
    writer = PreparedWriter(folder, kind=LABELLED)
    for row in range(rows):
        writer.add_labelled(*_row(row, 1 + row * 7 % 17, vocabulary), row * 5 % 3 != 0)
    writer.commit(key="test", skipped=0, truncated=0, format="labelled", source_digest="test")
    return Prepared(folder)


def make_preferences(method: str, folder: Path) -> Prepared:
    return make_labelled(folder) if method == "kto" else make_pairs(folder)


def _row(sample: int, answer: int, vocabulary: int) -> Row:
    """A prompt that hangs on the sample alone, and an answer that hangs on its length too."""
    prompt = [(sample * 31 + at * at * 7 + 3) % vocabulary for at in range(2 + sample * 5 % 9)]
    said = [(sample * 17 + answer * 3 + at * 11 + 5) % vocabulary for at in range(answer)]
    return prompt + said, [0] * len(prompt) + [1] * len(said)
