"""The merge stage: a base model and an adapter become a merged model in transformers' layout, some rows at a time."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import msgspec
import numpy as np

from backpropagate_backends.rope_styles import both_styles
from backpropagate_protocol.jobs import MergeJob
from backpropagate_protocol.messages import Made
from backpropagate_runner.export.adapter import open_adapter
from backpropagate_runner.export.digests import digest_of, files_below, folder_digest
from backpropagate_runner.export.float_bits import STORED
from backpropagate_runner.export.model_files import CONFIG, open_model
from backpropagate_runner.export.side_files import side_files
from backpropagate_runner.export.stage import Stage, new_folder
from backpropagate_runner.export.tensor_file import header_of
from backpropagate_runner.export.tensors import MergedWeights, open_weights

SHARD = 4 << 30  # bytes of tensors in one file, unless one tensor alone is larger
INDEX = "model.safetensors.index.json"
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class _Shard:
    name: str
    tensors: tuple[str, ...]


def merge(job: MergeJob, stage: Stage, shard_bytes: int = SHARD) -> Made:
    """Writes the merged model, tensors in the precision that the base has them in.

    Raises what `open_model`, `open_adapter` and `open_weights` raise, and reading from the last; OSError if the disk does
    not take it.
    """
    files = open_model(job.model, stage.advance)
    adapter = open_adapter(job.adapter)
    weights = open_weights(files, adapter)
    shards = _shards(weights, shard_bytes)
    total = sum(_bytes(weights, name) for name in weights.names)
    digests: dict[str, str] = {}
    with new_folder(Path(job.out)) as folder:
        done = 0
        for shard in shards:
            digest = hashlib.sha256()
            with open(folder / shard.name, "wb") as file:
                for piece in _content(weights, shard, _chunk(job.memory)):
                    file.write(piece)
                    digest.update(piece)
                    done += len(piece)
                    stage.advance(min(done, total), total, shard.name)
            digests[shard.name] = digest.hexdigest()
        for name, path in side_files(files, adapter).items():
            target = folder / name
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)  # its content, with the permissions of a new file
        config = both_styles(weights.config) if job.layout == "mlx" else weights.config
        if config is not files.config:
            (folder / CONFIG).write_bytes(msgspec.json.format(msgspec.json.encode(config), indent=2) + b"\n")
        if len(shards) > 1:
            (folder / INDEX).write_bytes(_index(weights, shards, total))
        for name, path in files_below(folder).items():
            if name not in digests:
                digests[name] = digest_of(path)
        size = sum((folder / name).stat().st_size for name in digests)
    return Made(job.out, size, folder_digest(digests), weights.notes)


def _shards(weights: MergedWeights, limit: int) -> list[_Shard]:
    """The tensors in the order of the base, as many in a file as fit; in a file those of wide elements come first, so
    that each of them lies where its elements are aligned."""
    groups: list[list[str]] = [[]]
    size = 0
    for name in weights.names:
        more = _bytes(weights, name)
        if groups[-1] and size + more > limit:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += more
    if len(groups) == 1:
        names = ["model.safetensors"]
    else:
        names = [f"model-{i:05}-of-{len(groups):05}.safetensors" for i in range(1, len(groups) + 1)]
    for group in groups:
        group.sort(key=lambda name: -STORED[weights.dtype(name)].itemsize)
    return [_Shard(name, tuple(group)) for name, group in zip(names, groups, strict=True)]


def _content(weights: MergedWeights, shard: _Shard, chunk: int) -> Iterator[memoryview]:
    """The file from its first byte to its last, in pieces of at most `chunk` bytes (but at least one row)."""
    header = header_of([(name, weights.dtype(name), weights.shape(name)) for name in shard.tensors])
    yield memoryview(header)
    for name in shard.tensors:
        size = _bytes(weights, name)
        rows = weights.shape(name)[0] if weights.shape(name) else 1
        step = max(1, chunk * rows // max(1, size))
        for start in range(0, rows if size else 0, step):
            yield weights.stored(name, start, min(start + step, rows)).reshape(-1).view(np.uint8).data


def _chunk(memory: int) -> int:
    """Bytes of one piece in a budget of `memory` MiB."""
    return max(_MIB // 4, min(8 * _MIB, memory * _MIB // 16))


def _bytes(weights: MergedWeights, name: str) -> int:
    return prod(weights.shape(name)) * STORED[weights.dtype(name)].itemsize


def _index(weights: MergedWeights, shards: list[_Shard], total: int) -> bytes:
    places = {name: shard.name for shard in shards for name in shard.tensors}
    index = {"metadata": {"total_size": total}, "weight_map": {name: places[name] for name in weights.names}}
    return msgspec.json.format(msgspec.json.encode(index), indent=2) + b"\n"
