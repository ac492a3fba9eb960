"""Attention over rows that lie side by side: each row attends to itself alone, as if it were alone in the batch.

A batch without padding is one long row with the places where each sample begins. transformers can mask such a row for
SDPA, but computes every pair of tokens in it, and most of those are masked. Here the row is cut where the samples are:
either by torch's own variable-length FlashAttention, or by one call of SDPA for each sample, which runs everywhere.

A batch that has padding is transformers' own SDPA, to the bit.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# The names under which transformers knows them.
SEGMENTS, VARLEN = "backpropagate_segments", "backpropagate_varlen"
STARTS = "cu_seq_lens_q"  # the key of a batch: where each sample begins, and the end

_HALF = (torch.bfloat16, torch.float16)


def register() -> None:
    """Makes both known to transformers; doing so again changes nothing."""
    ALL_ATTENTION_FUNCTIONS.register(SEGMENTS, _segments)
    ALL_ATTENTION_FUNCTIONS.register(VARLEN, _varlen)
    for name in (SEGMENTS, VARLEN):
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, _mask)


def varlen_available(device: Literal["cpu", "cuda"]) -> bool:
    """Whether torch brings the variable-length kernel, and the card is one that it is made for. Starts CUDA."""
    if device != "cuda" or torch.cuda.get_device_capability()[0] < 8:
        return False
    return _varlen_function() is not None


def _mask(*, attention_mask: torch.Tensor | None = None, **given: object) -> torch.Tensor | None:
    """None for rows side by side, and where nothing is padded: the functions below are causal by themselves."""
    if attention_mask is None:
        return None
    mask: torch.Tensor | None = sdpa_mask(attention_mask=attention_mask, **given)
    return mask


def _segments(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **given: object,
) -> tuple[torch.Tensor, None]:
    """query: (rows, heads, tokens, size) → (rows, tokens, heads, size)."""
    window = given.get("sliding_window")
    starts = given.get(STARTS)
    if attention_mask is not None or starts is None:
        if attention_mask is None:
            attention_mask = _window_mask(query.shape[2], window, query.device)
        return _sdpa(module, query, key, value, attention_mask, given)
    assert isinstance(starts, torch.Tensor)
    return _side_by_side(module, query, key, value, starts, given), None


@torch.compiler.disable  # type: ignore[untyped-decorator]  # its loop hangs on the lengths: compiled, it would be compiled anew for every batch
def _side_by_side(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    given: dict[str, object],
) -> torch.Tensor:
    places = starts.tolist()
    parts = []
    for start, stop in pairwise(places):
        part = slice(start, stop)
        mask = _window_mask(stop - start, given.get("sliding_window"), query.device)
        parts.append(_sdpa(module, query[:, :, part], key[:, :, part], value[:, :, part], mask, given)[0])
    return torch.cat(parts, dim=1)


def _sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    given: dict[str, object],
) -> tuple[torch.Tensor, None]:
    out: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, mask, **given)
    return out


def _window_mask(length: int, window: object, device: torch.device) -> torch.Tensor | None:
    """bool (1, 1, length, length) if the row is longer than the window of a sliding attention."""
    if not isinstance(window, int) or length <= window:
        return None
    place = torch.arange(length, device=device)
    behind = place[:, None] - place[None, :]
    return ((behind >= 0) & (behind < window))[None, None]


def _varlen(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **given: object,
) -> tuple[torch.Tensor, None]:
    """The same, by torch's kernel for rows of many lengths; what that cannot do is done by segments."""
    starts, longest = given.get(STARTS), given.get("max_length_q")
    run = _varlen_function()
    fits = query.dtype in _HALF and query.is_cuda and not given.get("dropout") and query.shape[-1] == value.shape[-1]
    if attention_mask is not None or run is None or not fits:
        return _segments(module, query, key, value, attention_mask, **given)
    if not isinstance(starts, torch.Tensor) or not isinstance(longest, int):
        return _segments(module, query, key, value, attention_mask, **given)
    window = given.get("sliding_window")
    scaling = given.get("scaling")
    out = run(
        _tokens_first(query),
        _tokens_first(key),
        _tokens_first(value),
        starts,
        longest,
        scaling if isinstance(scaling, float) else None,
        (window - 1, 0) if isinstance(window, int) else (-1, 0),
    )
    return out[None], None


def _tokens_first(part: torch.Tensor) -> torch.Tensor:
    """(1, heads, tokens, size) → (tokens, heads, size)"""
    return part[0].transpose(0, 1).contiguous()


_Run = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int, float | None, tuple[int, int]], torch.Tensor
]


def _varlen_function() -> _Run | None:
    """torch's kernel for (tokens, heads, size), in the words of the release that is installed; None where there is none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    words = inspect.signature(varlen_attn).parameters
    if "scale" not in words or "window_size" not in words:
        return None
    grouped = {"enable_gqa": True} if "enable_gqa" in words else {}

    def run(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        starts: torch.Tensor,
        longest: int,
        scale: float | None,
        window: tuple[int, int],
    ) -> torch.Tensor:
        out = varlen_attn(
            query,
            key,
            value,
            starts,
            starts,
            longest,
            longest,
            scale=scale,
            window_size=window,
            **grouped,  # type: ignore[arg-type]
        )
        assert isinstance(out, torch.Tensor)
        return out

    return run
