"""What a child measured of a result: the checks that prove an export, the scores of adapters on held-out rows.

Both are carried by Done; their rules are those of `messages.py`.
"""

from __future__ import annotations

import msgspec


class Check(msgspec.Struct, frozen=True, array_like=True):
    """One line of a proof: what was measured, and the bound. `value` and `bound` are None where there is only yes or no."""

    name: str  # tokens, template, answers, relative_error, kl, agreement, tensors, metadata
    passed: bool
    value: float | None = None
    bound: float | None = None
    detail: str = ""


class Proof(msgspec.Struct, frozen=True, array_like=True, tag="proof"):
    """Carried by Done after a ProveJob.

    verifier: llama, transformers, mlx (it was run); weights (it was read); text (its weights could be neither run nor read).
    """

    passed: bool
    verifier: str
    checks: tuple[Check, ...]
    prompts: int = 0
    positions: int = 0  # logit rows compared


class Calibrated(msgspec.Struct, frozen=True, array_like=True, tag="calibrated"):
    """Carried by Done after a CalibrateJob. Memory in MiB, 0 where the device does not say; the rows were the longest there are."""

    device: str
    micro_batch: int
    steps: int
    memory_peak: int  # of tensors
    memory_reserved: int
    device_memory: int
    tokens_per_second: float
    longest: int  # tokens of the longest sample
    rows: int  # of the whole data set
    mean_tokens: float  # of a sample of the whole data set
    precision: str = ""
    optimizer: str = ""


class Score(msgspec.Struct, frozen=True, array_like=True):
    """One candidate on one task. loss: mean, in nats per token that carries loss; accuracy: share of them foreseen."""

    candidate: str
    task: int  # index into the Job's tasks
    loss: float
    accuracy: float
    tokens: int
    rows: int


class Evaluation(msgspec.Struct, frozen=True, array_like=True, tag="evaluation"):
    """Carried by Done after an EvaluateJob: every candidate on every task."""

    scores: tuple[Score, ...]
