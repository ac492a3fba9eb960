"""The toy's adapter: two small matrices, on the disk as PEFT lays out a LoRA, written and read with the standard library.

    A (r, INPUTS), row by row; B (OUTPUTS, r), row by row; both float32 in the file, float64 in training

What B x A adds has one corner that the toy looks at: its number is the product of B's first row and A's first column.
So it is trained, merged and begun from like any LoRA, and can still be written down.
"""

from __future__ import annotations

import json
import math
import struct
from array import array
from dataclasses import dataclass
from operator import mul
from pathlib import Path
from random import Random

from backpropagate_backends.base import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from backpropagate_backends.init_adapter import check_config, check_tensors, config_of, refusal
from backpropagate_protocol.spec import LoraSpec

INPUTS, OUTPUTS = 6, 4
_MAX_RANK = 4  # a larger one is granted as this
_MODULE = "base_model.model.number"
_A, _B = f"{_MODULE}.lora_A.weight", f"{_MODULE}.lora_B.weight"


@dataclass(slots=True)
class Factors:
    """The two matrices. What is trained is `column`, of A, and `row`, of B: r numbers each."""

    a: array[float]
    b: array[float]
    rank: int

    @property
    def column(self) -> list[float]:
        return list(self.a[::INPUTS])

    @property
    def row(self) -> list[float]:
        return list(self.b[: self.rank])

    @property
    def number(self) -> float:
        return product(self.column, self.row)

    def trained(self, column: list[float], row: list[float]) -> Factors:
        """These, with what was trained in its place."""
        a, b = array("d", self.a), array("d", self.b)
        a[::INPUTS] = array("d", column)
        b[: self.rank] = array("d", row)
        return Factors(a, b, self.rank)

    def to_bytes(self) -> bytes:
        """Exact to the last bit, for checkpoints."""
        return self.a.tobytes() + self.b.tobytes()


def product(column: list[float], row: list[float]) -> float:
    return math.fsum(map(mul, column, row))


def rank_of(lora: LoraSpec) -> int:
    return min(lora.r, _MAX_RANK)


def fresh(lora: LoraSpec, seed: int) -> Factors:
    """A at random, the same for the same seed, its first column of length 1; B zero: the number begins as 0."""
    rank, random = rank_of(lora), Random(f"adapter/{seed}")
    a = array("d", (random.uniform(-1.0, 1.0) for _ in range(rank * INPUTS)))
    length = math.hypot(*a[::INPUTS])
    return Factors(array("d", (x / length for x in a)), array("d", bytes(8 * OUTPUTS * rank)), rank)


def from_bytes(data: bytes, lora: LoraSpec) -> Factors:
    values, split = array("d", data), rank_of(lora) * INPUTS
    return Factors(values[:split], values[split:], rank_of(lora))


def config(lora: LoraSpec, base: str) -> dict[str, object]:
    """What PEFT would write of it."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank_of(lora),
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": ["number"],
        "bias": "none",
        "use_rslora": lora.use_rslora,
        "use_dora": False,
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def save(folder: Path, factors: Factors, about: dict[str, object]) -> None:
    """Writes the two files into `folder`."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, shape, values in (
        (_A, (factors.rank, INPUTS), factors.a),
        (_B, (OUTPUTS, factors.rank), factors.b),
    ):
        packed = array("f", values).tobytes()
        table[name] = {"dtype": "F32", "shape": shape, "data_offsets": (len(data), len(data) + len(packed))}
        data += packed
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    (folder / ADAPTER_WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header + data)
    (folder / ADAPTER_CONFIG).write_text(json.dumps(about), encoding="utf-8")


def load(folder: Path) -> Factors:
    """Raises UserInputError [INPUT_ADAPTER_MISMATCH] for what `save` did not write in some rank."""
    found = _tensors(folder)
    rank = len(found[_B][1]) // OUTPUTS if _B in found else 0
    check_tensors(folder, {name: shape for name, (shape, _) in found.items()}, _shapes(rank))
    return Factors(found[_A][1], found[_B][1], rank)


def begin_from(folder: Path, lora: LoraSpec, base: str) -> Factors:
    """The adapter in `folder`, if it is one of this run's shape. Raises UserInputError [INPUT_ADAPTER_MISMATCH]."""
    check_config(folder, config_of(folder), config(lora, base))
    found = _tensors(folder)
    check_tensors(folder, {name: shape for name, (shape, _) in found.items()}, _shapes(rank_of(lora)))
    factors = Factors(found[_A][1], found[_B][1], rank_of(lora))
    if not all(map(math.isfinite, (*factors.a, *factors.b))):
        raise refusal(folder, ["it holds weights that are not finite"])
    return factors


def _shapes(rank: int) -> dict[str, tuple[int, ...]]:
    return {_A: (rank, INPUTS), _B: (OUTPUTS, rank)}


def _tensors(folder: Path) -> dict[str, tuple[tuple[int, ...], array[float]]]:
    """Every tensor of the file: its shape and its values."""
    found = {}
    try:
        raw = (folder / ADAPTER_WEIGHTS).read_bytes()
        (length,) = struct.unpack_from("<Q", raw)
        for name, entry in json.loads(raw[8 : 8 + length]).items():
            if name == "__metadata__":
                continue
            if entry["dtype"] != "F32":
                raise ValueError(f"{name} is {entry['dtype']}, not F32")
            begin, end = entry["data_offsets"]
            values = array("f", raw[8 + length + begin : 8 + length + end])
            if len(values) != math.prod(entry["shape"]):
                raise ValueError(f"{name} has {len(values)} values")
            found[name] = (tuple(entry["shape"]), array("d", values))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise refusal(folder, [f"its {ADAPTER_WEIGHTS} cannot be read: {error}"]) from error
    return found
