"""Scoring candidates on held-out rows with MLX: mean loss in nats per trained token, and the share of tokens foreseen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from backpropagate_backends import mlx_lora
from backpropagate_backends.base import GoOn, HeldOut, Reporting
from backpropagate_backends.mlx_data import micro_batches
from backpropagate_backends.mlx_model import load_base
from backpropagate_backends.model_source import find
from backpropagate_protocol.jobs import EvaluateJob
from backpropagate_protocol.measured import Score
from backpropagate_protocol.prepared import Prepared


def evaluate(job: EvaluateJob, tasks: Sequence[Prepared], stage: Reporting) -> tuple[Score, ...]:
    """See `base.Backend.evaluate`."""
    source = find(job.model)
    stage.advance(0, 0, f"loading {source.name}")
    base = load_base(source, job.model, stage.notice)
    scores = []
    for number, candidate in enumerate(job.candidates):
        if candidate.adapter is not None:
            mlx_lora.wear(base, candidate.adapter)
        for task, data in enumerate(tasks):
            stage.advance(number * len(tasks) + task, len(job.candidates) * len(tasks), candidate.name)
            scores.append(score(base.model, candidate.name, task, data, job.batch_size))
        mlx_lora.take_off(base)
    return tuple(scores)


def score(model: nn.Module, name: str, task: int, data: Prepared, batch_size: int) -> Score:
    """One model, already in evaluation mode, as a candidate's score."""
    found = held_out(model, data, batch_size, lambda done, total: True)
    assert found is not None
    return Score(name, task, found.loss, found.extra["accuracy"], found.tokens, found.rows)


def held_out(model: nn.Module, data: Prepared, batch_size: int, go_on: GoOn) -> HeldOut | None:
    """See `base.Score`; the model is in evaluation mode. Rows of like length share a batch, so little is padded; which rows
    do hangs on the rows alone, and so does the score."""
    rows = [row for row in range(len(data)) if any(data.row(row)[1][1:])]
    rows.sort(key=lambda row: (-len(data.row(row)[0]), row))
    losses: list[float] = []
    foreseen = tokens = 0
    for batch in micro_batches(data, np.array(rows, dtype=np.int64), max(1, batch_size), 1):
        logits = model(batch.ids[:, :-1]).astype(mx.float32)
        targets, flags = batch.ids[:, 1:], batch.flags[:, 1:]
        each = (nn.losses.cross_entropy(logits, targets) * flags).sum(axis=1)
        right = ((mx.argmax(logits, axis=-1) == targets) * flags).sum()
        mx.eval(each, right)
        losses += [float(value) for value in each.tolist()]
        foreseen += round(cast(float, right.item()))
        tokens += round(cast(float, flags.sum().item()))
        if not go_on(len(losses), len(rows)):
            return None
    share = max(1, tokens)
    return HeldOut(math.fsum(losses) / share, len(rows), tokens, {"accuracy": foreseen / share})
