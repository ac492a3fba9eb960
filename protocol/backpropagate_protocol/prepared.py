"""A prepared data set on disk: token ids and loss flags of every row, written once, then memory-mapped.

Four files in one folder, each a flat little-endian array, so that opening is O(1) and no framework is needed:

    tokens.i32    the token ids of all rows, one after the other
    trained.u8    for each token: 1 if it carries loss, else 0
    rows.i64      len(rows) + 1 offsets into the two above; row i is [rows[i], rows[i+1])
    prepared.json PreparedManifest, written last: sizes and a digest over the three

A row's index is its sample id for ever. Several processes may write the same set at once: each writes a folder of its
own, the first to finish gives it the name, and the others find it there.
"""

from __future__ import annotations

import hashlib
import mmap
import sys
import time
import uuid
from array import array
from pathlib import Path
from typing import BinaryIO

import msgspec

from backpropagate_protocol.durable import DISK, Disk, discard, write_file
from backpropagate_protocol.jobs import PreparedRef
from backpropagate_protocol.rundir import PARTIAL

TOKENS, TRAINED, ROWS, ABOUT = "tokens.i32", "trained.u8", "rows.i64", "prepared.json"
PREPARED_SCHEMA = 1
_BUFFER = 256 * 1024
_DEAD_AFTER = 24 * 3600  # seconds without a write after which an unfinished folder's writer is taken for dead

if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("prepared data sets are little-endian, and this machine is not")


class PreparedManifest(msgspec.Struct, frozen=True, kw_only=True):
    """`prepared.json`."""

    schema: int = PREPARED_SCHEMA
    key: str  # what it was made from: source digest, tokenizer, template, length, options
    digest: str  # over the three arrays
    rows: int
    skipped: int
    tokens: int
    trained_tokens: int
    truncated: int
    format: str
    source_digest: str


class PreparedWriter:
    """Streams rows to a folder beside `final`; `commit` gives it its name. Memory does not grow with the rows."""

    def __init__(self, final: Path, disk: Disk = DISK) -> None:
        self._final, self._disk = final, disk
        _sweep(final.parent, disk)
        self._partial = final.with_name(f"{final.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
        self._partial.mkdir(parents=True)
        self._files: dict[str, BinaryIO] = {}
        for name in (TOKENS, TRAINED, ROWS):
            self._files[name] = open(self._partial / name, "wb", _BUFFER)  # noqa: SIM115 - closed by commit or abandon
        self._hashes = {name: hashlib.sha256() for name in self._files}
        self.rows = self.tokens = self.trained_tokens = 0
        self._write(ROWS, array("q", [0]).tobytes())

    def _write(self, name: str, data: bytes) -> None:
        self._files[name].write(data)
        self._hashes[name].update(data)

    def add(self, ids: list[int], trained: list[int]) -> None:
        """Adds one row: token ids, and for each 1 (carries loss) or 0. Both have the same length."""
        if len(ids) != len(trained):
            raise ValueError(f"{len(ids)} tokens and {len(trained)} flags")
        self.rows += 1
        self.tokens += len(ids)
        self.trained_tokens += sum(trained)
        self._write(TOKENS, array("i", ids).tobytes())
        self._write(TRAINED, bytes(trained))
        self._write(ROWS, array("q", [self.tokens]).tobytes())

    def commit(self, *, key: str, skipped: int, truncated: int, format: str, source_digest: str) -> PreparedManifest:
        for file in self._files.values():
            file.flush()
            self._disk.fsync(file.fileno())
            file.close()
        whole = _whole([hash.hexdigest() for hash in self._hashes.values()])
        manifest = PreparedManifest(
            key=key,
            digest=whole,
            rows=self.rows,
            skipped=skipped,
            tokens=self.tokens,
            trained_tokens=self.trained_tokens,
            truncated=truncated,
            format=format,
            source_digest=source_digest,
        )
        write_file(self._partial / ABOUT, msgspec.json.encode(manifest), self._disk)
        try:
            there = verify(self._final)
        except ValueError:
            discard(self._final, self._disk)  # damaged, or nothing
        else:
            discard(self._partial, self._disk)
            return there
        try:
            self._disk.rename(self._partial, self._final)
        except OSError as error:
            try:
                there = verify(self._final)  # made by another process between the look and the rename
            except ValueError:
                raise error from None
            discard(self._partial, self._disk)
            return there
        self._disk.sync_dir(self._final.parent)
        return manifest

    def abandon(self) -> None:
        for file in self._files.values():
            try:
                file.close()
            except OSError:
                pass  # a full disk, once more; the folder goes anyway
        discard(self._partial, self._disk)


class Prepared:
    """A prepared data set, memory-mapped for reading. len() is the number of rows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        self.tokens = _map(folder / TOKENS).cast("i")
        self.trained = _map(folder / TRAINED)
        self.offsets = _map(folder / ROWS).cast("q")

    def __len__(self) -> int:
        return self.manifest.rows

    def row(self, index: int) -> tuple[memoryview, memoryview]:
        """Token ids (int32) and loss flags (uint8) of one row."""
        start, end = self.offsets[index], self.offsets[index + 1]
        return self.tokens[start:end], self.trained[start:end]


def _map(path: Path) -> memoryview:
    if path.stat().st_size == 0:
        return memoryview(b"")
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def read_manifest(folder: Path) -> PreparedManifest:
    """Raises ValueError if the folder is not a whole prepared data set (sizes are checked, contents are not)."""
    try:
        manifest = msgspec.json.decode((folder / ABOUT).read_bytes(), type=PreparedManifest)
        expected = {TOKENS: 4 * manifest.tokens, TRAINED: manifest.tokens, ROWS: 8 * (manifest.rows + 1)}
        for name, size in expected.items():
            if (folder / name).stat().st_size != size:
                raise ValueError(f"{folder / name} has the wrong size")
    except (OSError, msgspec.DecodeError) as error:
        raise ValueError(f"{folder} holds no prepared data: {error}") from error
    return manifest


def verify(folder: Path) -> PreparedManifest:
    """Like `read_manifest`, and every byte of the arrays is read: ValueError unless they are what was written."""
    manifest = read_manifest(folder)
    digests = []
    for name in (TOKENS, TRAINED, ROWS):
        try:
            with open(folder / name, "rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            raise ValueError(f"{folder / name} cannot be read: {error}") from error
    if _whole(digests) != manifest.digest:
        raise ValueError(f"{folder} has other content than was written")
    return manifest


def _whole(digests: list[str]) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _sweep(cache: Path, disk: Disk) -> None:
    """Removes what writers left when they died."""
    for left in cache.glob(f"*{PARTIAL}"):
        try:
            age = time.time() - max(path.stat().st_mtime for path in (left, *left.iterdir()))
        except OSError:
            continue  # gone already
        if age > _DEAD_AFTER:
            discard(left, disk)


def open_prepared(ref: PreparedRef) -> Prepared:
    """The data set that the Job names; raises ValueError if it is gone or another one."""
    prepared = Prepared(Path(ref.path))
    if prepared.manifest.digest != ref.digest:
        raise ValueError(f"{ref.path} holds other data than this run began with")
    return prepared
