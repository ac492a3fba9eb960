"""Compares a GGUF with the model it was made from, number by number: its tensors, configuration and vocabulary.

Needs no llama.cpp, and no memory for the model. Where llama.cpp answers as well, some rows of each tensor are enough to
tell a wrong, missing or reordered one; otherwise all rows are read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from backpropagate_protocol.measured import Check
from backpropagate_protocol.reference import Reference
from backpropagate_runner.export.gguf_arch import GgufArch
from backpropagate_runner.export.gguf_tensors import Tensor, tensors
from backpropagate_runner.export.prove_bounds import tensor_bound
from backpropagate_runner.export.prove_change import Changes, Compared
from backpropagate_runner.export.read_gguf import GgufFile
from backpropagate_runner.export.weights import Weights

_SAMPLES = 4  # places in each tensor
_SAMPLE_ROWS = 32
_TINY = 1e-9  # what stands for a bound of nothing
_OPTIONAL_TOLERANCE = 1e-5
_DEFAULT_BASE = 10000.0
_BYTE_LEVEL = "gpt2"  # tokenizer.ggml.model

Advance = Callable[[int, int, str], None]


def check_tensors(
    weights: Weights, base: Weights, arch: GgufArch, file: GgufFile, memory: int, advance: Advance, *, every_row: bool
) -> list[Check]:
    """`base`: the same without the adapter. `memory`: bytes for one piece.

    Two checks: that each tensor is what it has to be, and that what the adapter changed is changed: quantizing rounds by
    more than most fine-tunes change, so that the first alone would pass an export without its adapter.
    """
    planned = tensors(weights, arch, "f32")
    names = {tensor.name for tensor in planned}
    if missing := sorted(names - file.tensors.keys()):
        return [Check("tensors", False, detail=f"{len(missing)} are missing, among them {missing[0]}")]
    if every_row and (unknown := sorted(file.tensors.keys() - names)):  # else, the answers judge them
        return [Check("tensors", False, detail=f"{len(unknown)} are not the model's, among them {unknown[0]}")]
    worst, detail, value, bound = -1.0, "", 0.0, 0.0
    untouched = _untouched(weights, base, arch)
    changes = Changes()
    total = sum(math.prod(tensor.shape) for tensor in planned)
    done = 0
    for tensor in planned:
        info = file.tensors[tensor.name]
        if info.elements != math.prod(tensor.shape):
            return [Check("tensors", False, detail=f"{tensor.name} has the shape {info.shape}, not {tensor.shape}")]
        advance(done, total, tensor.name)
        before = untouched.get(tensor.name)
        compared = _compare(tensor, before, file, memory, every_row)
        if before is not None and not compared.change and not every_row:  # few rows of an embedding may be trained
            compared = _compare(tensor, before, file, memory, every_row=True)
        if before is not None:
            changes.add(tensor.name, compared)
        copied = before is None and tensor.source.dtype == info.type
        limit = tensor_bound(info.type, compared.mean_size, copied=copied)
        error = compared.error
        far = error / max(limit, _TINY) if math.isfinite(error) else math.inf  # not a number is the worst of all
        if far > worst:
            worst, value, bound = far, error, limit
            detail = f"{len(planned)} tensors, the farthest is {tensor.name} ({info.type})"
        done += math.prod(tensor.shape)
    return [Check("tensors", worst <= 1.0, value, bound, detail), *changes.checks()]


def _untouched(weights: Weights, base: Weights, arch: GgufArch) -> dict[str, Tensor]:
    """What the base has in the place of each tensor that the adapter changes, by its name in the file."""
    names = arch.all_names(weights.names)
    plain = {tensor.name: tensor for tensor in tensors(base, arch, "f32")}
    shared = plain.get("token_embd.weight")  # stands for an output that the base has no tensor of its own for
    found = {mapped: plain.get(mapped, shared) for name, mapped in names.items() if weights.touched(name)}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _compare(tensor: Tensor, before: Tensor | None, file: GgufFile, memory: int, every_row: bool) -> Compared:
    """A tensor, or some of its rows."""
    compared = Compared()
    for start, stop in tensor.pieces(memory) if every_row else sampled(tensor.shape, tensor.step):
        expected, _ = tensor.piece(start, stop)
        one = expected.astype(np.float64)
        flat = len(tensor.shape) == 1
        found = file.rows(tensor.name, 0, 1)[0, start:stop] if flat else file.rows(tensor.name, start, stop)
        was = one if before is None else before.piece(start, stop)[0].astype(np.float64)
        compared.add(was.reshape(one.shape), one, found.reshape(one.shape).astype(np.float64))
    return compared


def sampled(shape: tuple[int, ...], step: int = 1) -> Iterator[tuple[int, int]]:
    """Ranges of rows, in whole multiples of `step`, from the first to the last; all of a one-dimensional tensor."""
    rows = shape[0]
    if len(shape) == 1:
        yield 0, rows
        return
    count = max(_SAMPLE_ROWS // step, 1) * step
    starts = {at * max(rows - count, 0) // (_SAMPLES - 1) // step * step for at in range(_SAMPLES)}
    for start in sorted(starts):
        yield start, min(start + count, rows)


def wrong_metadata(arch: GgufArch, file: GgufFile) -> str:
    """The first number of the configuration that the file says otherwise; empty if there is none."""
    if file.architecture != arch.name:
        return f"the architecture is {file.architecture}, not {arch.name}"
    for key, expected in arch.metadata.items():
        found = file.fields.get(f"{arch.name}.{key}")
        if found is None and key == "rope.freq_base":
            found = _DEFAULT_BASE
        if found is None and key not in ("block_count", "embedding_length", "attention.head_count"):
            continue  # what another converter leaves to llama.cpp's default, the answers judge
        if isinstance(expected, (int, float)) and isinstance(found, (int, float)):
            if math.isclose(found, expected, rel_tol=_OPTIONAL_TOLERANCE):
                continue
        elif found == expected:
            continue
        return f"{key} is {found}, not {expected}"
    return ""


def wrong_vocabulary(folder: Path, reference: Reference, file: GgufFile) -> str:
    """The first token, merge or special token that differs from tokenizer.json in `folder`; empty if none does.

    Only for byte-level BPE: other kinds are written down in GGUF in ways of their own.
    """
    if file.fields.get("tokenizer.ggml.model") != _BYTE_LEVEL or not (folder / "tokenizer.json").is_file():
        return ""
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    texts = file.texts("tokenizer.ggml.tokens")
    expected: dict[int, str] = {index: token for token, index in tokenizer["model"]["vocab"].items()}
    expected |= {entry["id"]: entry["content"] for entry in tokenizer.get("added_tokens", [])}
    for index, token in sorted(expected.items()):
        if index >= len(texts) or texts[index] != token:
            return f"token {index} is {texts[index] if index < len(texts) else 'missing'!r}, not {token!r}"
    merges = [_merge(pair) for pair in tokenizer["model"]["merges"]]
    if file.texts("tokenizer.ggml.merges") != merges:
        return "the merges are others"
    return _wrong_special(reference.special, file)


def _merge(pair: str | list[str]) -> str:
    return pair if isinstance(pair, str) else " ".join(part.replace(" ", "Ġ") for part in pair)


def _wrong_special(special: Mapping[str, int], file: GgufFile) -> str:
    adds_bos = file.fields.get("tokenizer.ggml.add_bos_token")
    for name, key in (("eos", "eos_token_id"), ("bos", "bos_token_id")):
        expected, found = special.get(name), file.fields.get(f"tokenizer.ggml.{key}")
        if expected is not None and found != expected and (name == "eos" or found is not None or adds_bos):
            return f"the {name} token is {found}, not {expected}"
    return ""
