"""What `backprop doctor` has tried out, one child for each: names, and what came of it.

A child may crash in a broken kernel, or hang in it: that is an answer, too, and it says nothing about the other probes.
"""

from __future__ import annotations

import msgspec

WORKS, MISSING, BROKEN = "works", "missing", "broken"


class Probe(msgspec.Struct, frozen=True):
    """One thing to try.

    name     as in ProbeJob; those of kernels that a training may choose by itself are the words of TrainJob.kernels
    what     what it is for, in a few words
    without  what happens where it does not work
    """

    name: str
    what: str
    without: str


PROBES: tuple[Probe, ...] = (
    Probe("packages", "torch, transformers, PEFT, TRL", "nothing can be trained here"),
    Probe("card", "a CUDA card and one training step on it", "training on the CPU"),
    Probe("loss", "TRL's output head, which keeps no logits", "no training: it is what computes the loss"),
    Probe("bitsandbytes", "4-bit weights, 8-bit optimizers", "16-bit weights, AdamW in 32 bits"),
    Probe("varlen", "torch's attention for rows side by side", "one call of SDPA for each row"),
    Probe("flash_attention_2", "FlashAttention 2", "torch's own attention"),
    Probe("flash_attention_3", "FlashAttention 3", "torch's own attention"),
    Probe("liger", "Liger's kernels for norms, positions, activations", "the model's own layers"),
    Probe("compile", "torch.compile, for --compile", "--compile is refused"),
    Probe("unsloth", "Unsloth, for --unsloth", "`backprop setup --unsloth` makes it an environment of its own"),
    Probe("fp8", "products in 8-bit floats, for --fp8", "--fp8 is refused"),
)
NAMES = tuple(probe.name for probe in PROBES)


class ProbeReport(msgspec.Struct, frozen=True, array_like=True, tag="probed"):
    """Carried by Done after a ProbeJob. state: works, missing (not installed, or no card for it), broken."""

    name: str
    state: str
    detail: str
    seconds: float = 0.0
