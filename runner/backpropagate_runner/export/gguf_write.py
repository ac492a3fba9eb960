"""Writes a GGUF file tensor by tensor, piece by piece: what is held in memory does not grow with the model.

The `gguf` package lays out header, metadata and the list of tensors; the data follows as it is made. The digest is taken
on the way, in a thread, so that the file need not be read again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import struct
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from backpropagate_runner.export.gguf_arch import Value
from backpropagate_runner.export.gguf_tensors import Tensor

if TYPE_CHECKING:
    from gguf import GGUFWriter

    from backpropagate_runner.export.gguf_vocab import Vocabulary

Advance = Callable[[int, int, str], None]

_ALIGNMENT = 32
_FILE_TYPE = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
_QUANTIZATION_VERSION = 2
_PHI3 = ("phi-3", "phi3")


class Head:
    """What stands before the data of a file: metadata now, the list of tensors when it is written."""

    def __init__(self, architecture: str, name: str) -> None:
        from gguf import GGUFWriter

        logging.getLogger("gguf.gguf_writer").setLevel(logging.WARNING)
        self.writer: GGUFWriter = GGUFWriter(None, architecture)
        self.architecture = architecture
        self.say("general.name", safe_name(name))

    def say(self, key: str, value: Value) -> None:
        match value:
            case bool():
                self.writer.add_bool(key, value)
            case int():
                self.writer.add_uint32(key, value)
            case float():
                self.writer.add_float32(key, value)
            case str():
                self.writer.add_string(key, value)

    def adapter(self, alpha: float) -> None:
        """llama.cpp multiplies each pair by alpha over its rank."""
        self.say("general.type", "adapter")
        self.say("adapter.type", "lora")
        self.say("adapter.lora.alpha", alpha)
        self.say("general.file_type", _FILE_TYPE["f32"])
        self.say("general.quantization_version", _QUANTIZATION_VERSION)

    def model(self, metadata: Mapping[str, Value], wanted: str) -> None:
        self.say("general.type", "model")
        for key, value in metadata.items():
            self.say(f"{self.architecture}.{key}", value)
        self.say("general.file_type", _FILE_TYPE[wanted])
        self.say("general.quantization_version", _QUANTIZATION_VERSION)

    def vocabulary(self, vocabulary: Vocabulary) -> None:
        self.say("tokenizer.ggml.model", "gpt2")
        self.say("tokenizer.ggml.pre", vocabulary.pre)
        self.writer.add_token_list(list(vocabulary.tokens))
        self.writer.add_token_types(list(vocabulary.types))
        self.writer.add_token_merges(list(vocabulary.merges))
        for kind, index in vocabulary.special.items():
            key = {"unk": "unknown", "sep": "seperator", "pad": "padding"}.get(kind, kind)  # GGUF's own spelling
            self.say(f"tokenizer.ggml.{key}_token_id", index)
        self.say("tokenizer.ggml.add_bos_token", vocabulary.add_bos)
        self.say("tokenizer.ggml.add_eos_token", vocabulary.add_eos)
        if vocabulary.chat_template is not None:
            self.say("tokenizer.chat_template", vocabulary.chat_template)


def safe_name(name: str) -> str:
    """llama.cpp looks for tokens of Phi-3's first vocabulary in any model whose name has phi-3 or phi3 in it, and
    does not load one that has not got them."""
    for trap in _PHI3:
        while (at := name.lower().find(trap)) >= 0:
            name = f"{name[: at + 3]} 3{name[at + len(trap) :]}"
    return name or "model"


def fitting_name(name: str, *, phi3: bool) -> str:
    """What a converted model is called. phi3: its vocabulary is the one that llama.cpp's rule is for, which then reads
    prompts as the model's own tokenizer does, and only by that name."""
    if not phi3:
        return safe_name(name)
    return name if any(trap in name.lower() for trap in _PHI3) else f"{name} (phi-3)".strip()


def write(path: Path, head: Head, tensors: Sequence[Tensor], advance: Advance, memory: int) -> tuple[str, list[str]]:
    """Writes the file and returns its SHA-256 and what ought to be said about it. memory: bytes.

    A tensor with numbers that float16 cannot hold is kept as bfloat16, which has the same size and a wider range.
    """
    from gguf import GGMLQuantizationType

    types = {kind.name: kind for kind in GGMLQuantizationType}
    for tensor in tensors:
        dtype = np.dtype(np.float32)  # not looked at, since the type is given
        head.writer.add_tensor_info(tensor.name, tensor.shape, dtype, tensor.bytes, types[tensor.type])
    head.writer.write_header_to_file(path)
    head.writer.write_kv_data_to_file()
    head.writer.write_ti_data_to_file()
    head.writer.close()
    listed = path.stat().st_size

    total, done = sum(tensor.bytes for tensor in tensors), 0
    wide: dict[int, Tensor] = {}
    with open(path, "r+b") as file, ThreadPoolExecutor(1) as pool:
        body = _Body(file, pool)
        for number, tensor in enumerate(tensors):

            def moved(bytes_: int, before: int = done, name: str = tensor.name) -> None:
                advance(before + bytes_, total, name)

            if not body.add(tensor, memory, moved):
                wide[number] = dataclasses.replace(tensor, type="BF16")
                body.replace(wide[number], memory, moved)
            done += tensor.bytes
        digest = body.digest()
        for number in wide:
            _retype(file, listed, tensors, number, types["BF16"])
    if not wide:
        return digest, []
    names = ", ".join(tensor.name for tensor in list(wide.values())[:3])
    with open(path, "rb") as again:
        digest = hashlib.file_digest(again, "sha256").hexdigest()
    return digest, [f"numbers too large for f16: kept as bf16 in {len(wide)} tensors ({names}, …)"]


class _Body:
    """The data of the tensors, after what is in the file already. One piece is hashed while the next one is made."""

    def __init__(self, file: BinaryIO, pool: ThreadPoolExecutor) -> None:
        self._file, self._pool = file, pool
        self._sha = hashlib.sha256(file.read())
        self._pending: Future[None] | None = None
        self._put(bytes(-file.tell() % _ALIGNMENT))
        self._last = file.tell()

    def add(self, tensor: Tensor, memory: int, moved: Callable[[int], None]) -> bool:
        """False if a number did not fit its type: then nothing of the tensor counts."""
        self._last = self._file.tell()
        for start, stop in tensor.pieces(memory):
            piece, overflowed = tensor.piece(start, stop)
            if overflowed:
                return False
            self._put(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
            moved(self._file.tell() - self._last)
        self._put(bytes(-self._file.tell() % _ALIGNMENT))
        return True

    def replace(self, tensor: Tensor, memory: int, moved: Callable[[int], None]) -> None:
        """In place of what was begun last. From here on the digest is not that of the file."""
        self._file.seek(self._last)
        self.add(tensor, memory, moved)

    def digest(self) -> str:
        if self._pending is not None:
            self._pending.result()
        return self._sha.hexdigest()

    def _put(self, data: bytes | memoryview) -> None:
        if self._pending is not None:
            self._pending.result()
        self._pending = self._pool.submit(self._sha.update, data)
        self._file.write(data)


def _retype(file: BinaryIO, end: int, tensors: Sequence[Tensor], number: int, kind: int) -> None:
    """Changes the type of one tensor in the list of tensors, which ends at `end`."""
    # of each: name with its length, number of dimensions, dimensions, type, offset
    sizes = [8 + len(tensor.name.encode()) + 4 + 8 * len(tensor.shape) + 4 + 8 for tensor in tensors]
    file.seek(end - sum(sizes[number + 1 :]) - 12)
    file.write(struct.pack("<I", kind))
