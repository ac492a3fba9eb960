"""How far an exported model may be from the trained one: one table, and why each number is what it is.

Measured on a two-layer Qwen2 of 1.4 M parameters, float32 transformers against llama.cpp (docs/export.md): with random
weights the relative error of the logits is 4e-6 for f32, 0.0011 for f16, 0.0078 for bf16, and KL is 4e-7 (f16), 2e-5
(bf16), 2.2e-4 (q8_0), 1.5e-3 (q6_k), 5.3e-3 (q5_k_m), 1.9e-2 (q4_k_m), 4.7e-2 (q3_k_m); after training, KL is 100 times
smaller and all greedy answers are equal. What is published for Llama-3-8B is larger: 1.4e-3 (q8_0), 5.5e-3 (q6_k), 1.1e-2
(q5_k_m), 3.1e-2 (q4_k_m), 9.6e-2 (q3_k_m), 0.45 (q2_k); half a billion parameters lose three to five times that.

What is broken is far away from all of it: on the small model a wrong rotary base gives a relative error of 0.09 and heads
in the wrong order 0.26, in each layer; on a trained model of any size both give KL of whole nats. So the bounds on KL
are about ten times what an honest 8 B model has. They need not be tight at 4 bits and below: `tensors` and `metadata`
compare every kind of tensor and every number of the configuration there, and these do not widen with the model.

`tie`: where the two best tokens are nearer than this (in nats), rounding may decide; such positions say nothing. It is
at least five standard deviations of the noise that the KL of an honest model stands for (KL is half its square).

The trained model itself was computed with rounding if it was held in 16 bits, and merging rounds to what the base is
stored in: the loosest of the three counts.
"""

from __future__ import annotations

from dataclasses import dataclass

from backpropagate_protocol.reference import Reference


@dataclass(frozen=True, slots=True)
class Bounds:
    """error: of the logits, relative RMS; None: not judged. kl: mean, nats. agreement, answers: the share that must agree."""

    error: float | None
    kl: float
    tie: float
    agreement: float
    answers: float


_EXACT = Bounds(1e-3, 1e-5, 0.05, 1.0, 1.0)
_HALF = Bounds(1e-2, 1e-3, 0.15, 1.0, 1.0)
_BRAIN = Bounds(5e-2, 1e-2, 0.5, 0.98, 0.85)
_Q8 = Bounds(None, 2e-2, 0.5, 0.97, 0.85)
_Q6 = Bounds(None, 5e-2, 0.75, 0.95, 0.8)
_Q5 = Bounds(None, 0.15, 1.0, 0.9, 0.7)
_Q4 = Bounds(None, 0.4, 1.5, 0.85, 0.5)
_Q4_PLAIN = Bounds(None, 0.7, 2.0, 0.8, 0.4)
_Q3 = Bounds(None, 1.0, 2.5, 0.7, 0.25)
_Q2 = Bounds(None, 3.0, 4.0, 0.4, 0.0)

_BY_QUANTIZATION = {
    "f32": _EXACT,
    "f16": _HALF,
    "bf16": _BRAIN,
    "q8_0": _Q8,
    "q6_k": _Q6,
    "q5_k_m": _Q5,
    "q5_k_s": _Q5,
    "q5_1": _Q5,
    "q5_0": _Q5,
    "q4_k_m": _Q4,
    "q4_k_s": _Q4,
    "q4_1": _Q4_PLAIN,
    "q4_0": _Q4_PLAIN,
    "q3_k_l": _Q3,
    "q3_k_m": _Q3,
    "q3_k_s": _Q3,
    "q2_k": _Q2,
}
_BY_PRECISION = {"fp32": _EXACT, "fp16": _HALF, "bf16": _BRAIN}

# Relative RMS error of a whole tensor, by its type: about five times that of normally distributed weights, since blocks
# with outliers are rounded more coarsely; three times where every number is rounded alone. A tensor in the wrong place or
# order is at 1.4, a missing one at 1. What an adapter changes may be far below: see `prove_change`.
_BY_TYPE = {
    "F32": 1e-5,
    "F16": 1e-3,
    "BF16": 5e-3,
    "Q8_0": 0.06,
    "Q6_K": 0.12,
    "Q5_K": 0.2,
    "Q5_1": 0.2,
    "Q5_0": 0.25,
    "Q4_K": 0.35,
    "Q4_1": 0.35,
    "Q4_0": 0.4,
    "Q3_K": 0.55,
}
_COARSEST = 0.75
_HALF_STEP = 2.0**-25  # float16 below 2^-14 rounds by this, however small the number is


def bounds_for(quantization: str, *references: Reference) -> Bounds:
    """For what was exported, and for how the trained model was held when it was asked."""
    rows = [_BY_QUANTIZATION.get(quantization, _EXACT)]
    for reference in references:
        rows += [_BY_PRECISION.get(reference.precision, _BRAIN), _BY_PRECISION.get(reference.stored, _BRAIN)]
    errors = [row.error for row in rows]
    return Bounds(
        error=None if None in errors else max(error for error in errors if error is not None),
        kl=max(row.kl for row in rows),
        tie=max(row.tie for row in rows),
        agreement=min(row.agreement for row in rows),
        answers=min(row.answers for row in rows),
    )


def tensor_bound(kind: str, mean_size: float, *, copied: bool) -> float:
    """For a tensor of this type of GGUF. mean_size: RMS of its numbers. copied: it is stored so already, to the bit."""
    if copied and kind in ("F32", "F16", "BF16"):
        return 0.0
    bound = _BY_TYPE.get(kind, _COARSEST)
    if kind == "F16" and mean_size:
        bound += _HALF_STEP / mean_size
    return bound
