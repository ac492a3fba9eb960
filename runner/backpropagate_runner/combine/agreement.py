"""Whether the runs' adapters can be merged at all: what differs is named, and nothing is computed.

One difference is none: another alpha, or rsLoRA, only changes the scale that B is multiplied with, and B is then rescaled
exactly (see blend.py). Everything else that two runs could differ in changes what their tensors mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import PurePath

from backpropagate_protocol.errors import SLAOMergeError
from backpropagate_runner.combine.inputs import Run
from backpropagate_runner.combine.rules import Rule
from backpropagate_runner.export.adapter import LoraModule
from backpropagate_runner.export.tensor_file import StoredTensor

_RETRAIN = "Merge only runs of one model with the same LoRA settings; the runs' own adapters are kept."
_NAMED = 3


def check_agreement(runs: Sequence[Run], rule: Rule) -> None:
    """Raises SLAOMergeError naming the first difference. `none` takes the newest run alone, and asks for nothing."""
    if rule is Rule.NONE:
        return
    for run in runs:
        if run.about.use_dora or any(module.magnitude for module in run.adapter.modules()):
            raise SLAOMergeError(
                f"the rule {rule} cannot merge DoRA adapters (run {run.number}): their magnitudes belong to directions "
                "that merging changes",
                suggestion="Train without DoRA, or choose the rule none.",
            )
    for before, run in pairwise(runs):
        difference = _difference(before, run)
        if difference:
            raise SLAOMergeError(
                f"runs {before.number} and {run.number} cannot be merged: {difference}", suggestion=_RETRAIN
            )


def notes_on_scale(runs: Sequence[Run], rule: Rule) -> list[str]:
    """What was made comparable by rescaling."""
    if rule is Rule.NONE:
        return []
    return [
        f"runs {before.number} and {run.number} have other scales (alpha {before.about.lora_alpha:g} and "
        f"{run.about.lora_alpha:g}, {_rs(before)} and {_rs(run)}): earlier runs were rescaled, exactly"
        for before, run in pairwise(runs)
        if any(module.scale != run.adapter.lora[name].scale for name, module in before.adapter.lora.items())
    ]


def _rs(run: Run) -> str:
    return "rsLoRA" if run.about.use_rslora else "plain LoRA"


def _difference(before: Run, run: Run) -> str | None:
    one, other = before.about, run.about
    if not _same_base(one.base_model_name_or_path, other.base_model_name_or_path):
        return f"their base models are {one.base_model_name_or_path} and {other.base_model_name_or_path}"
    for label, first, second in (
        ("revisions of the base model", one.revision, other.revision),
        ("ranks (r)", one.r, other.r),
        ("ranks of modules (rank_pattern)", one.rank_pattern or {}, other.rank_pattern or {}),
        ("biases (bias)", one.bias, other.bias),
    ):
        if first != second:
            return f"their {label} are {first} and {second}"
    names = _names(run)
    missing, extra = sorted(_names(before) - names), sorted(names - _names(before))
    if missing or extra:
        return "they changed other parts of the model: " + "; ".join(
            f"only run {number} has {', '.join(only[:_NAMED])}{' …' if len(only) > _NAMED else ''}"
            for number, only in ((before.number, missing), (run.number, extra))
            if only
        )
    if before.adapter.fan_in_fan_out != run.adapter.fan_in_fan_out:
        return "one of them has its weights transposed (fan_in_fan_out)"
    return _other_shape(before, run) or _other_tokens(before, run)


def _same_base(one: str | None, other: str | None) -> bool:
    """A folder may have moved between two runs, with the model of the same name in it."""
    if one == other:
        return True
    if not (one and other):
        return False
    first, second = PurePath(one), PurePath(other)
    return first.is_absolute() and second.is_absolute() and first.name == second.name


def _names(run: Run) -> set[str]:
    return {*run.adapter.lora, *run.adapter.replaced, *run.adapter.tokens}


def _other_shape(before: Run, run: Run) -> str | None:
    for name, module in run.adapter.lora.items():
        earlier = before.adapter.lora[name]
        if _parts(module) != _parts(earlier):
            return f"{name} has tensors of the shapes {_told(earlier)} and {_told(module)}"
    for name, tensor in run.adapter.replaced.items():
        if tensor.shape != before.adapter.replaced[name].shape:
            return f"{name} has the shapes {before.adapter.replaced[name].shape} and {tensor.shape}"
    return None


def _other_tokens(before: Run, run: Run) -> str | None:
    for name, (rows, tensor) in run.adapter.tokens.items():
        earlier_rows, earlier = before.adapter.tokens[name]
        if rows != earlier_rows or tensor.shape != earlier.shape:
            return f"they trained other tokens of {name}"
    return None


def _parts(module: LoraModule) -> dict[str, tuple[int, ...]]:
    found: dict[str, StoredTensor | None] = {"A": module.A, "B": module.B, "bias": module.bias}
    return {name: tensor.shape for name, tensor in found.items() if tensor is not None}


def _told(module: LoraModule) -> str:
    return ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in _parts(module).items())
