"""The shape of a base model, read from its config.json: its linear layers, its vocabulary, how many parameters. Pure.

Known exactly for the families in `_FAMILIES`, which are those of the presets and their kin. Any other dense decoder is taken
for a Llama, and says of itself that it is not exact; one with routed experts has no shape here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_TEXT = "text_config"  # where a model that also sees keeps what it reads with


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer: (in, out), and whether it has a bias of `outputs` numbers."""

    name: str
    inputs: int
    outputs: int
    bias: bool = False

    @property
    def parameters(self) -> int:
        return self.inputs * self.outputs + (self.outputs if self.bias else 0)


@dataclass(frozen=True, slots=True)
class Block:
    """One layer of the decoder. `other`: parameters outside its linear layers, such as norms."""

    kind: Literal["attention", "recurrent"]
    linears: tuple[Linear, ...]
    other: int

    @property
    def parameters(self) -> int:
        return sum(linear.parameters for linear in self.linears) + self.other


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder: embedding, blocks, norm, head. `exact`: the family is known, not guessed at."""

    family: str
    exact: bool
    hidden: int
    intermediate: int
    vocabulary: int
    heads: int
    key_heads: int
    head_size: int
    tied: bool  # the head is the embedding
    blocks: tuple[Block, ...]

    @property
    def embedding(self) -> int:
        """Parameters of the embedding, and of a head of its own if there is one."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        return self.embedding + sum(block.parameters for block in self.blocks) + self.hidden

    @property
    def linear_weights(self) -> int:
        """Weights of all linear layers of the blocks, without biases: what 4-bit loading makes small."""
        return sum(linear.inputs * linear.outputs for block in self.blocks for linear in block.linears)


@dataclass(frozen=True, slots=True)
class _Family:
    """What config.json leaves unsaid. `bias`: of q, k and v; None: as `attention_bias` says, of all four."""

    bias: bool | None = None
    norms: int = 2  # in a block, each as wide as the model
    head_norms: bool = False  # of queries and keys
    fused: bool = False  # one layer for q, k and v, and one for gate and up
    gated: bool = False  # queries come with a gate of their size
    tied: bool = False
    head_size: int | None = None


_UNKNOWN = _Family()
_FAMILIES = {
    "llama": _Family(),
    "mistral": _Family(bias=False),
    "qwen2": _Family(bias=True),
    "qwen3": _Family(head_norms=True, head_size=128),
    "qwen3_5": _Family(head_norms=True, gated=True, head_size=256),
    "qwen3_5_text": _Family(head_norms=True, gated=True, head_size=256),
    "phi3": _Family(bias=False, fused=True),
    "smollm3": _Family(tied=True),
    "gemma": _Family(tied=True, head_size=256),
    "gemma2": _Family(norms=4, tied=True, head_size=256),
    "gemma3_text": _Family(norms=4, head_norms=True, tied=True, head_size=256),
}


def parameters(config: Mapping[str, object]) -> int | None:
    """How many parameters the model has as it is trained (a reader of images is not loaded); None where config.json leaves
    it unsure."""
    found = shape(config)
    return found.parameters if found is not None and found.exact else None


def shape(config: Mapping[str, object]) -> Shape | None:
    """The shape that config.json tells of; None if it tells of none: sizes missing, or routed experts."""
    family_name = str(config.get("model_type", ""))
    inner = config.get(_TEXT)
    text = inner if isinstance(inner, Mapping) else config
    sees = text is not config
    if any(_whole(text, name) for name in _EXPERTS):
        return None
    hidden, count = _whole(text, "hidden_size", "n_embd", "d_model"), _whole(text, "num_hidden_layers", "n_layer")
    heads, vocabulary = _whole(text, "num_attention_heads", "n_head"), _whole(text, "vocab_size")
    if hidden is None or count is None or heads is None or vocabulary is None:
        return None
    known = _FAMILIES.get(family_name)
    family = known or _UNKNOWN
    head_size = _whole(text, "head_dim") or family.head_size or hidden // heads
    key_heads = _whole(text, "num_key_value_heads") or heads
    intermediate = _whole(text, "intermediate_size", "n_inner", "ffn_dim") or 4 * hidden
    tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings", family.tied))
    sizes = _Sizes(hidden, intermediate, heads * head_size, key_heads * head_size, head_size)
    return Shape(
        family=family_name,
        # Of a model that sees, only Qwen's is loaded without its eyes.
        exact=known is not None and (not sees or family_name == "qwen3_5"),
        hidden=hidden,
        intermediate=intermediate,
        vocabulary=vocabulary,
        heads=heads,
        key_heads=key_heads,
        head_size=head_size,
        tied=bool(tied),
        blocks=tuple(
            _recurrent(text, family, sizes) if recurrent else _attention(text, family, sizes)
            for recurrent in _recurrences(text, family_name, count)
        ),
    )


@dataclass(frozen=True, slots=True)
class _Sizes:
    hidden: int
    intermediate: int
    queries: int
    keys: int
    head: int


def _recurrences(text: Mapping[str, object], family: str, count: int) -> Iterable[bool]:
    """For each block whether it has a recurrence in the place of attention."""
    kinds = text.get("layer_types")
    if isinstance(kinds, list | tuple) and len(kinds) == count:
        return [kind == "linear_attention" for kind in kinds]
    if family.startswith("qwen3_5"):
        every = _whole(text, "full_attention_interval") or 4
        return [(at + 1) % every != 0 for at in range(count)]
    return [False] * count


def _attention(text: Mapping[str, object], family: _Family, sizes: _Sizes) -> Block:
    everywhere = family.bias is None and text.get("attention_bias") is True
    bias = everywhere or family.bias is True
    queries = sizes.queries * (2 if family.gated else 1)
    projections: tuple[Linear, ...]
    if family.fused:
        projections = (Linear("qkv_proj", sizes.hidden, queries + 2 * sizes.keys, bias),)
    else:
        projections = (
            Linear("q_proj", sizes.hidden, queries, bias),
            Linear("k_proj", sizes.hidden, sizes.keys, bias),
            Linear("v_proj", sizes.hidden, sizes.keys, bias),
        )
    out = Linear("o_proj", sizes.queries, sizes.hidden, everywhere)
    norms = family.norms * sizes.hidden + (2 * sizes.head if family.head_norms else 0)
    return Block("attention", (*projections, out, *_mlp(text, family, sizes)), norms)


def _recurrent(text: Mapping[str, object], family: _Family, sizes: _Sizes) -> Block:
    """Qwen3.5's gated delta rule: a short convolution over keys and values, two gates, and a decay for each head."""
    key = (_whole(text, "linear_num_key_heads") or 16) * (_whole(text, "linear_key_head_dim") or 128)
    heads, head = _whole(text, "linear_num_value_heads") or 32, _whole(text, "linear_value_head_dim") or 128
    value = heads * head
    linears = (
        Linear("in_proj_qkv", sizes.hidden, 2 * key + value),
        Linear("in_proj_z", sizes.hidden, value),
        Linear("in_proj_b", sizes.hidden, heads),
        Linear("in_proj_a", sizes.hidden, heads),
        Linear("out_proj", value, sizes.hidden),
    )
    convolution = (2 * key + value) * (_whole(text, "linear_conv_kernel_dim") or 4)
    other = family.norms * sizes.hidden + convolution + 2 * heads + head
    return Block("recurrent", (*linears, *_mlp(text, family, sizes)), other)


def _mlp(text: Mapping[str, object], family: _Family, sizes: _Sizes) -> tuple[Linear, ...]:
    bias = text.get("mlp_bias") is True
    down = Linear("down_proj", sizes.intermediate, sizes.hidden, bias)
    if family.fused:
        return (Linear("gate_up_proj", sizes.hidden, 2 * sizes.intermediate, bias), down)
    up = Linear("up_proj", sizes.hidden, sizes.intermediate, bias)
    if "n_embd" in text:  # the oldest families have no gate
        return (up, down)
    return (Linear("gate_proj", sizes.hidden, sizes.intermediate, bias), up, down)


def _whole(config: Mapping[str, object], *names: str) -> int | None:
    """The first of these that is a number above 0."""
    found = (config.get(name) for name in names)
    return next((value for value in found if isinstance(value, int) and value > 0), None)
