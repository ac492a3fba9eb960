"""Which kernels a training uses: how attention is computed, whether rows lie side by side, Liger, torch.compile.

All of them do the same arithmetic in another way, so any of them may change from attempt to attempt. What is chosen by itself
is what a probe found to work here (see `probe.py` of the runner) and what the model itself proves: before the first step it is
asked about a few made-up rows, padded and side by side, and must say the same of each of them, whatever lies beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from backpropagate_backends.torch_attention import SEGMENTS, VARLEN, register, varlen_available
from backpropagate_backends.torch_model import Notice
from backpropagate_backends.torch_still import still
from backpropagate_protocol.errors import InvalidSettingError
from backpropagate_protocol.spec import RunSpec

# Names of kernels that a probe may report.
FLASH = ("flash_attention_3", "flash_attention_2")  # the fastest first
LIGER, UNSLOTH = "liger", "unsloth"

# Layers that look at their neighbours by other means than attention would see what lies beside them.
_ATTENTION = ("full_attention", "sliding_attention")

# How far two ways of computing the same may be apart, relative to the size of what is computed: some roundings.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(frozen=True, slots=True)
class Kernels:
    """What was chosen. attention: by transformers' name; notes: what to say of it in one line each."""

    attention: str
    side_by_side: bool
    liger: bool = False
    compiled: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        shown = {SEGMENTS: "sdpa", UNSLOTH: "Unsloth's", VARLEN: "torch's variable-length flash attention"}
        said = [f"attention: {shown.get(self.attention, self.attention)}"]
        said += ["rows side by side, without padding"] * self.side_by_side
        said += ["Liger's kernels"] * self.liger + ["compiled"] * self.compiled
        return tuple(said)


def check_kernels(spec: RunSpec, device: Literal["cpu", "cuda"]) -> None:
    """Raises InvalidSettingError for what can be refused before the model is loaded. Compiles something if that is wished."""
    train = spec.train
    if train.group_by_length and spec.data.order != "random":
        raise InvalidSettingError(
            f"--group-by-length and --order {spec.data.order} are two orders; choose one",
            suggestion="Leave one of them out.",
        )
    if train.attention in FLASH and device == "cpu":
        raise InvalidSettingError(f"--attention {train.attention} needs a CUDA card", suggestion="Leave it to auto.")
    if train.liger and device == "cpu":
        raise InvalidSettingError("--liger: its kernels need a CUDA card", suggestion="Leave --liger out.")
    if train.liger and find_spec("liger_kernel") is None:
        raise InvalidSettingError(
            "--liger: liger-kernel is not installed", suggestion="pip install liger-kernel, or leave --liger out."
        )
    if train.compile:
        _check_compile(device)


def fit_kernels(
    model: PreTrainedModel, spec: RunSpec, device: Literal["cpu", "cuda"], probed: Sequence[str], notice: Notice
) -> Kernels:
    """Chooses, and sets the loaded base model up accordingly. probed: what a probe found to work in this environment.

    Raises InvalidSettingError for a wish that this model or this machine cannot be granted.
    """
    train, data = spec.train, spec.data
    wants_packing = data.packing if data.method == "sft" else False
    liger = _fit_liger(model, train.liger, device, probed, notice)
    attention, side_by_side = _fit_attention(model, train.attention, wants_packing, device, probed, notice)
    return Kernels(attention, side_by_side, liger, train.compile)


def compile_layers(model: PreTrainedModel | PeftModel) -> int:
    """Compiles each layer in place, for rows of any length; names and weights stay. How many there were."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    names = set(base._no_split_modules or ())
    layers = [module for module in base.modules() if type(module).__name__ in names]
    for layer in layers:
        layer.compile(dynamic=True)
    return len(layers)


def _check_compile(device: Literal["cpu", "cuda"]) -> None:
    """Raises InvalidSettingError if nothing can be compiled here: no compiler, no Triton."""

    def small(values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(values) * 2

    try:
        values = torch.ones(8, device=device)
        torch.testing.assert_close(torch.compile(small)(values), small(values))
    except Exception as error:  # a compiler fails in many ways, and each means the same
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InvalidSettingError(
            f"--compile: torch.compile does not work here: {first}",
            suggestion="Install a C++ compiler (and, on CUDA, Triton), or leave --compile out; `backprop doctor` tries it.",
        ) from error


# --- attention --------------------------------------------------------------------------------------------------------


def _fit_attention(
    model: PreTrainedModel,
    wish: str,
    packing: bool | None,
    device: Literal["cpu", "cuda"],
    probed: Sequence[str],
    notice: Notice,
) -> tuple[str, bool]:
    register()
    before = model.config._attn_implementation
    if packing is False or (packing is None and wish == "eager"):
        # SDPA, or what the model does instead, is transformers' own choice.
        chosen = (
            wish if wish != "auto" else next((name for name in FLASH if name in probed and device == "cuda"), before)
        )
        _set(model, chosen)
        return chosen, False
    reason = _cannot_lie_side_by_side(model)
    if reason is None:
        alone = _alone(model)
        for chosen in _ways(wish, device, probed):
            try:
                _set(model, chosen)
                reason = _contamination(model, alone)
            except (RuntimeError, ValueError, ImportError) as error:
                reason = f"{type(error).__name__}: {error}"
            if reason is None:
                return chosen, True
            if chosen == wish:
                break
    if packing:
        raise InvalidSettingError(
            f"--packing: {model.name_or_path} cannot have rows side by side: {reason}",
            suggestion="Leave --packing out, and rows are padded.",
        )
    chosen = wish if wish != "auto" else before
    _set(model, chosen)
    notice(f"rows are padded, since {reason}", "info")
    return chosen, False


def _ways(wish: str, device: Literal["cpu", "cuda"], probed: Sequence[str]) -> Iterator[str]:
    """Ways to compute attention over rows side by side, the fastest first."""
    if wish == "eager" or wish in FLASH:
        yield wish
        return
    if wish == "auto" and device == "cuda":
        yield from (name for name in FLASH if name in probed)
        if varlen_available(device) and (not probed or "varlen" in probed):
            yield VARLEN
    yield SEGMENTS


def _set(model: PreTrainedModel, name: str) -> None:
    """Raises InvalidSettingError if the model does not take it."""
    try:
        model.set_attn_implementation(name)
    except (ValueError, ImportError) as error:
        raise InvalidSettingError(
            f"--attention {name}: {str(error).strip().splitlines()[0]}", suggestion="Leave --attention to auto."
        ) from error
    if model.config._attn_implementation != name:
        raise InvalidSettingError(
            f"--attention: {model.name_or_path} knows {model.config._attn_implementation} only",
            suggestion="Leave --attention to auto.",
        )


def _cannot_lie_side_by_side(model: PreTrainedModel) -> str | None:
    """Why not, as far as its configuration says it."""
    config = model.config.get_text_config()
    others = sorted(set(getattr(config, "layer_types", None) or ()) - set(_ATTENTION))
    if others:
        return f"it has layers of {', '.join(others)}"
    for name in ("attn_logit_softcapping", "alibi"):
        if getattr(config, name, None):
            return f"its attention has {name}"
    if not model._can_set_attn_implementation():
        return "its attention cannot be replaced"
    return None


def _made_up(model: PreTrainedModel) -> list[list[int]]:
    words = model.config.get_text_config().vocab_size
    return [[(7 * row + 3 * at + 5) % words for at in range(length)] for row, length in enumerate((5, 11, 8))]


def _alone(model: PreTrainedModel) -> list[torch.Tensor]:
    """What the model says of each made-up row, by transformers' own attention: (tokens, size) each."""
    device = model.get_input_embeddings().weight.device
    with still(model):
        return [
            model.base_model(input_ids=torch.tensor([row], device=device), use_cache=False).last_hidden_state[0]
            for row in _made_up(model)
        ]


def _contamination(model: PreTrainedModel, alone: Sequence[torch.Tensor]) -> str | None:
    """What is wrong with rows side by side in this model, as it is set up now; None: nothing.

    Of each made-up row it must say what it says of it alone, and nothing else when another row changes.
    """
    device = model.get_input_embeddings().weight.device
    rows = _made_up(model)
    other = [(token + 11) % model.config.get_text_config().vocab_size for token in rows[0]]
    with still(model):
        together = _states(model, rows, device)
        changed = _states(model, [other, *rows[1:]], device)
    if any(not torch.equal(one, two) for one, two in zip(together[1:], changed[1:], strict=True)):
        return "a row would see the one beside it"
    for one, two in zip(together, alone, strict=True):
        difference = (one.float() - two.float()).norm() / two.float().norm().clamp(min=1e-12)
        if not difference <= _TOLERANCE.get(model.dtype, 5e-2):
            return "a row would not be what it is alone"
    return None


def _states(model: PreTrainedModel, rows: Sequence[Sequence[int]], device: torch.device) -> list[torch.Tensor]:
    """The last hidden states of each row, (tokens, size), all of them computed side by side."""
    starts = torch.tensor([0, *(sum(len(row) for row in rows[: at + 1]) for at in range(len(rows)))], dtype=torch.int32)
    longest = max(len(row) for row in rows)
    out = model.base_model(
        input_ids=torch.tensor([[token for row in rows for token in row]], device=device),
        position_ids=torch.tensor([[at for row in rows for at in range(len(row))]], device=device),
        cu_seq_lens_q=starts.to(device),
        cu_seq_lens_k=starts.to(device),
        max_length_q=longest,
        max_length_k=longest,
        use_cache=False,
    )
    return list(out.last_hidden_state[0].split([len(row) for row in rows]))


# --- Liger ------------------------------------------------------------------------------------------------------------


def _fit_liger(
    model: PreTrainedModel, wish: bool | None, device: Literal["cpu", "cuda"], probed: Sequence[str], notice: Notice
) -> bool:
    """Liger's layers (norms, rotary positions, activations). Not its loss: TRL's head keeps no logits either."""
    if wish is False or (wish is None and (device == "cpu" or LIGER not in probed)):
        return False
    try:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    except ImportError as error:
        raise InvalidSettingError(
            f"--liger: liger-kernel cannot be imported: {error}",
            suggestion="pip install liger-kernel, or leave it out.",
        ) from error
    kind = model.config.get_text_config().model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        if wish:
            raise InvalidSettingError(f"--liger: there are no kernels for {kind}", suggestion="Leave --liger out.")
        return False
    _apply_liger_kernel_to_instance(model=model, fused_linear_cross_entropy=False, cross_entropy=False)
    return True
