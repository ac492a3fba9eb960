"""Bytes that a training takes on its device at the worst moment, by part, from the shape of the base. Pure.

What a layer keeps for its backward pass is counted tensor by tensor, as transformers, PEFT and TRL's fused output head make them;
a test holds the sums to the very modules, run without memory. Not counted: what the driver takes for itself, and what the
allocator cannot use of what it holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from backpropagate.judge.shape import Block, Linear, Shape
from backpropagate_protocol.spec import LoraSpec

_ALL = "all-linear"
_WIDE = 4  # bytes of a float32
_NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)  # of a weight: its code, its block's scale in 8 bits, and the scale of 256 scales
_TILE_TOKENS, _TILE_WORDS = 4096, 32768  # TRL's fused head makes logits of so many tokens and words at a time
_ALWAYS_EAGER = ("gemma2",)
_GROUPS = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How a model is trained, as far as memory depends on it.

    rows         sequences in a micro-batch: a preference pair has two
    length       tokens of the longest
    adapter      None: every weight is trained
    state        bytes of optimizer state for one trained parameter
    masked       rows of a batch differ in length, so attention is given a mask of its own
    accumulated  an optimizer step has several micro-batches
    fused        there is a kernel for the output head's tiles, as on CUDA; else it is done in steps
    eager        attention makes its whole matrix
    fp8          the frozen layers are held in 8 bits
    """

    rows: int
    length: int
    adapter: LoraSpec | None
    bytes_per_weight: int = 2
    four_bit: bool = False
    checkpointing: bool = True
    state: int = 8
    masked: bool = True
    accumulated: bool = True
    fused: bool = True
    eager: bool = False
    fp8: bool = False

    @property
    def tokens(self) -> int:
        return self.rows * self.length


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. `kept`: activations that stay from the forward to the backward pass. At the worst moment there is `layer`, one
    layer at work, or `head`, the output head at work. `load`: what is there while the weights are brought, before any step."""

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    kept: int
    layer: int
    head: int
    load: int = 0

    @property
    def held(self) -> int:
        """What is there all the time."""
        return self.weights + self.adapter + self.gradients + self.optimizer

    @property
    def activations(self) -> int:
        return self.kept + self.layer

    @property
    def in_a_step(self) -> int:
        """The worst moment of an optimizer step."""
        return self.held + self.kept + max(self.layer, self.head)

    @property
    def peak(self) -> int:
        return max(self.load, self.in_a_step)


def memory(shape: Shape, setup: Setup) -> Memory:
    """The parts of the peak of one training."""
    trained = trained_parameters(shape, setup.adapter)
    whole = setup.adapter is None
    each = setup.bytes_per_weight if whole else _WIDE
    blocks = {block: _Block(shape, block, setup) for block in set(shape.blocks)}
    copies = 0 if whole or setup.bytes_per_weight == _WIDE else setup.bytes_per_weight * trained
    if setup.checkpointing:
        kept = len(shape.blocks) * setup.bytes_per_weight * shape.hidden * setup.tokens
        # While the last layers and the head look forward, the 16-bit copies of all adapters are still there.
        forward = copies + 4 * setup.bytes_per_weight * shape.intermediate * setup.tokens
        layer = max(forward, *(block.kept + block.work for block in blocks.values()))
        head = _head(shape, setup, forward=copies)
    else:
        kept = sum(blocks[block].kept for block in shape.blocks)
        layer = max(block.work for block in blocks.values())
        head = _head(shape, setup, forward=0)
    return Memory(
        weights=_weights(shape, setup),
        adapter=0 if whole else _WIDE * trained,
        gradients=each * trained,
        optimizer=setup.state * trained,
        kept=kept,
        layer=layer,
        head=head,
        # For FP8 the whole base is on the card in 16 bits before its layers are turned; other weights come as they stay.
        load=shape.parameters * setup.bytes_per_weight if setup.fp8 else 0,
    )


def trained_parameters(shape: Shape, adapter: LoraSpec | None) -> int:
    """All of them, or those of the adapter: for each adapted layer r · (in + out), and out more with DoRA."""
    if adapter is None:
        return shape.parameters
    return sum(_adapter_of(linear, adapter) for block in shape.blocks for linear in _adapted(block, adapter))


def _adapter_of(linear: Linear, adapter: LoraSpec) -> int:
    return adapter.r * (linear.inputs + linear.outputs) + (linear.outputs if adapter.use_dora else 0)


def _adapted(block: Block, adapter: LoraSpec) -> list[Linear]:
    names = {target.rpartition(".")[2] for target in adapter.targets}
    return [linear for linear in block.linears if _ALL in names or linear.name in names]


def _weights(shape: Shape, setup: Setup) -> int:
    """4-bit loading leaves embedding, head, norms and biases as they are."""
    small = shape.linear_weights if setup.four_bit or setup.fp8 else 0
    return round((shape.parameters - small) * setup.bytes_per_weight + small * (_NF4 if setup.four_bit else 1))


def _rebuilt(linear: Linear, size: int) -> int:
    """What DoRA makes of one layer to know the length of its columns: an identity, the adapter's product, and the sum twice."""
    return _WIDE * linear.inputs**2 + (size + 2 * _WIDE) * linear.inputs * linear.outputs


class _Block:
    """One layer: `kept` for its backward pass, and `work` more while that runs. Bytes."""

    def __init__(self, shape: Shape, block: Block, setup: Setup) -> None:
        self._shape, self._setup, self._size = shape, setup, setup.bytes_per_weight
        self._linears = {linear.name: linear for linear in block.linears}
        adapter = setup.adapter
        adapted = [] if adapter is None else _adapted(block, adapter)
        self._adapted = {linear.name for linear in adapted}
        self._rank = 0 if adapter is None else adapter.r
        self._matrix = shape.heads * setup.length if block.kind == "attention" and self._eager() else 0
        per_token = self._norms() + self._inputs() + self._mixing(block) + self._gating()
        copies, rebuilt = 0, 0
        if adapter is not None and self._size < _WIDE:
            copies = self._size * sum(_adapter_of(linear, adapter) for linear in adapted)
        if adapter is not None and adapter.use_dora:
            per_token += 2 * self._size * sum(linear.outputs for linear in adapted)
            rebuilt = max((_rebuilt(linear, self._size) for linear in adapted), default=0)
        self.kept = per_token * setup.tokens + copies
        attention = 6 * self._matrix - self._gating()  # at its softmax, when what the MLP kept is gone
        self.work = max(self._worst(), attention * setup.tokens) + rebuilt

    def _eager(self) -> bool:
        return self._setup.eager or self._shape.family in _ALWAYS_EAGER

    def _norms(self) -> int:
        """Two of the model's width, computed in float32; where their weights are trained, what they are multiplied with."""
        norms = 4 if self._shape.family.startswith(("gemma2", "gemma3")) else 2
        each = _WIDE * self._shape.hidden + _WIDE
        if self._setup.adapter is None:
            each += self._size * self._shape.hidden
        return norms * each

    def _inputs(self) -> int:
        """Inputs of linear layers that a gradient needs. A frozen one needs none; PEFT gives each adapter a copy of its own
        in float32, which autocast turns to another in 16 bits, except over 4-bit layers."""
        total = 0
        if self._setup.adapter is None:
            for group in self._groups(self._linears):
                total += self._size * self._linears[group[0]].inputs
            return total
        for group in self._groups(self._adapted):
            copies = 1 if self._setup.four_bit or self._size == _WIDE else len(group)
            total += copies * self._size * self._linears[group[0]].inputs
        return total + len(self._adapted) * self._size * self._rank

    def _groups(self, names: Iterable[str]) -> list[list[str]]:
        """Those of `names` that have the same input stand together."""
        left = [name for name in self._linears if name in names]
        found = [[name for name in group if name in left] for group in _GROUPS]
        return [group for group in found if group] + [[name] for name in left if not any(name in g for g in _GROUPS)]

    def _mixing(self, block: Block) -> int:
        """What attention keeps: queries, keys, values, what came out, and a number for each head."""
        shape, size = self._shape, self._size
        if block.kind == "recurrent":
            return self._recurrence()
        queries, keys = shape.heads * shape.head_size, shape.key_heads * shape.head_size
        masked = self._setup.masked or self._matrix > 0
        total = size * (2 * queries + 2 * (queries if masked else keys)) + _WIDE * shape.heads
        if masked:
            total += size * self._setup.length
        total += (_WIDE + size * (2 if shape.family == "gemma2" else 1)) * self._matrix  # gemma2 bounds it by a tanh
        if "qkv_proj" in self._linears:
            total += size * (queries + keys)  # values are a view of what the fused layer gave
        if self._linears.get("q_proj") is not None and self._linears["q_proj"].outputs == 2 * queries:
            total += size * 3 * queries  # the gate, what it was made of, and what it let through
        if shape.family.startswith(("qwen3", "gemma3")):
            total += _WIDE * (queries + keys) + _WIDE * (shape.heads + shape.key_heads)
        return total

    def _recurrence(self) -> int:
        """The gated delta rule as transformers computes it without a kernel: in float32, chunk by chunk."""
        convolved = self._linears["in_proj_qkv"].outputs
        value = self._linears["in_proj_z"].outputs
        return self._size * 3 * convolved + _WIDE * 20 * value

    def _gating(self) -> int:
        """Three tensors of the inner width: both factors, and what one of them was made of."""
        return 3 * self._size * self._shape.intermediate

    def _worst(self) -> int:
        """The gradients at the last layer of the MLP, where they are widest."""
        setup, size, shape = self._setup, self._size, self._shape
        down = self._linears["down_proj"]
        whole = size * down.inputs * down.outputs  # a 4-bit weight as it is multiplied with, or the gradient of one
        wide = 3 * size * shape.intermediate + size * shape.hidden
        if setup.adapter is None:
            return wide * setup.tokens + whole
        if "down_proj" not in self._adapted:
            return wide * setup.tokens + (whole if setup.four_bit else 0)
        if setup.four_bit:
            narrow = size * shape.intermediate
            return max(
                (narrow + size * shape.hidden) * setup.tokens + narrow * setup.tokens, narrow * setup.tokens + whole
            )
        return (wide + 2 * _WIDE * shape.hidden) * setup.tokens


def _head(shape: Shape, setup: Setup, *, forward: int) -> int:
    """The last norm and the fused head: the states in float32, their gradients, and one tile of logits."""
    size, tokens = setup.bytes_per_weight, setup.tokens
    tile = min(tokens, _TILE_TOKENS) * min(shape.vocabulary, _TILE_WORDS) * size
    states = (_WIDE + 2 * size) * shape.hidden * tokens
    if not setup.fused:
        tile += 4 * _WIDE * min(tokens, _TILE_TOKENS) * min(shape.vocabulary, _TILE_WORDS)
    backward = (_WIDE + size) * shape.hidden * tokens
    if setup.adapter is None:
        backward += (_WIDE + size) * shape.vocabulary * shape.hidden
    return states + tile + max(forward, backward)
