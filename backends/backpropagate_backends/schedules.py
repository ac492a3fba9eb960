"""The learning rate of each step, by transformers' names and with its values. Needs no framework."""

from __future__ import annotations

import math

from backpropagate_protocol.spec import TrainSpec

POLYNOMIAL_END = 1e-7


def learning_rate(train: TrainSpec, step: int, total_steps: int) -> float:
    """Of the step after `step` done ones. Raises ValueError for a schedule that is not known here."""
    return train.learning_rate * _factor(train, step, total_steps)


def _factor(train: TrainSpec, step: int, total: int) -> float:
    warmup, name = train.warmup_steps, train.scheduler
    if name == "constant":
        return 1.0
    if step < warmup:
        return step / max(1, warmup)
    if name == "constant_with_warmup":
        return 1.0
    if name == "inverse_sqrt":
        timescale = warmup or 10_000
        return 1.0 / math.sqrt((step + timescale - warmup) / timescale)
    done = (step - warmup) / max(1, total - warmup)
    if name == "linear":
        return max(0.0, (total - step) / max(1, total - warmup))
    if name == "cosine":
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * done)))
    if name == "cosine_with_restarts":
        return 0.0 if done >= 1.0 else max(0.0, 0.5 * (1.0 + math.cos(math.pi * (done % 1.0))))
    if name == "polynomial":
        if step > total:
            return POLYNOMIAL_END / train.learning_rate
        end = POLYNOMIAL_END / train.learning_rate
        return (1.0 - end) * (1.0 - done) + end
    raise ValueError(f"there is no schedule called {name!r}")
