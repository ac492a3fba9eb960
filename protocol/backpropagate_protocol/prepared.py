"""A prepared data set on disk: token ids and loss flags of every row, written once, then memory-mapped.

A few files in one folder, each a flat little-endian array, so that opening is O(1) and no framework is needed:

    tokens.i32    the token ids of all rows, one after the other
    trained.u8    for each token: 1 if it carries loss, else 0
    rows.i64      one more offset into the two above than there are rows; row i is [rows[i], rows[i+1])
    labels.u8     kind `labelled` only, for each row: 1 if its answer is a good one, else 0
    easy.i64      of a curriculum only: the sample ids, the easiest first
    prepared.json PreparedManifest, written last: sizes and a digest over the arrays

A sample is a row; of kind `pairs` it is two rows, the chosen answer and then the rejected one. Its number is its sample id for
ever. Several processes may write the same set at once: each writes a folder of its own, the first to finish gives it the
name, and the others find it there.
"""

from __future__ import annotations

import hashlib
import mmap
import sys
import time
import uuid
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from backpropagate_protocol.durable import DISK, Disk, discard, write_file
from backpropagate_protocol.jobs import PreparedRef
from backpropagate_protocol.rundir import PARTIAL

TOKENS, TRAINED, ROWS, ABOUT = "tokens.i32", "trained.u8", "rows.i64", "prepared.json"
LABELS, EASY = "labels.u8", "easy.i64"
PLAIN, PAIRS, LABELLED = "rows", "pairs", "labelled"  # kinds
PREPARED_SCHEMA = 1
Row = tuple[list[int], list[int]]  # token ids and loss flags
_BUFFER = 256 * 1024
WIDTH = {PLAIN: 1, PAIRS: 2, LABELLED: 1}  # rows of a sample
_TRIES = 20  # one is enough but where others give the name, or put something damaged aside, at the same instant
_DEAD_AFTER = 24 * 3600  # seconds without a write after which an unfinished folder's writer is taken for dead

if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("prepared data sets are little-endian, and this machine is not")


class PreparedManifest(msgspec.Struct, frozen=True, kw_only=True):
    """`prepared.json`."""

    schema: int = PREPARED_SCHEMA
    key: str  # what it was made from: source digest, tokenizer, template, length, options
    digest: str  # over the arrays
    rows: int  # samples: a pair is one
    skipped: int
    tokens: int
    trained_tokens: int
    truncated: int
    format: str
    source_digest: str
    kind: str = PLAIN
    dropped: dict[str, int] = {}  # why → how many of the `skipped`
    curriculum: bool = False  # there is an order from easy to hard

    def arrays(self) -> dict[str, int]:
        """The arrays there must be, in the order of the digest, and their sizes in bytes."""
        found = {TOKENS: 4 * self.tokens, TRAINED: self.tokens, ROWS: 8 * (self.rows * WIDTH[self.kind] + 1)}
        if self.kind == LABELLED:
            found[LABELS] = self.rows
        if self.curriculum:
            found[EASY] = 8 * self.rows
        return found


class PreparedWriter:
    """Streams samples to a folder beside `final`; `commit` gives it its name. Memory does not grow with their number."""

    def __init__(self, final: Path, disk: Disk = DISK, kind: str = PLAIN) -> None:
        self._final, self._disk, self._kind = final, disk, kind
        _sweep(final.parent, disk)
        self._partial = final.with_name(f"{final.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
        self._partial.mkdir(parents=True)
        self._files: dict[str, BinaryIO] = {}
        self._hashes: dict[str, hashlib._Hash] = {}
        for name in (TOKENS, TRAINED, ROWS, *((LABELS,) if kind == LABELLED else ())):
            self._open(name)
        self.rows = self.tokens = self.trained_tokens = 0
        self._write(ROWS, array("q", [0]).tobytes())

    def _open(self, name: str) -> None:
        self._files[name] = open(self._partial / name, "wb", _BUFFER)  # noqa: SIM115 - closed by commit or abandon
        self._hashes[name] = hashlib.sha256()

    def _write(self, name: str, data: bytes) -> None:
        self._files[name].write(data)
        self._hashes[name].update(data)

    def add(self, ids: list[int], trained: list[int]) -> None:
        """Adds one row: token ids, and for each 1 (carries loss) or 0. Both have the same length."""
        self._row(PLAIN, ids, trained)
        self.rows += 1

    def add_pair(self, chosen: Row, rejected: Row) -> None:
        """Adds two answers to the same prompt: both begin with its tokens, whose flags are 0."""
        self._row(PAIRS, *chosen)
        self._row(PAIRS, *rejected)
        self.rows += 1

    def add_labelled(self, ids: list[int], trained: list[int], label: bool) -> None:
        """Adds one row and whether its answer is a good one."""
        self._row(LABELLED, ids, trained)
        self._write(LABELS, bytes((label,)))
        self.rows += 1

    def _row(self, kind: str, ids: list[int], trained: list[int]) -> None:
        if kind != self._kind:
            raise ValueError(f"a sample of {kind} in a set of {self._kind}")
        if len(ids) != len(trained):
            raise ValueError(f"{len(ids)} tokens and {len(trained)} flags")
        self.tokens += len(ids)
        self.trained_tokens += sum(trained)
        self._write(TOKENS, array("i", ids).tobytes())
        self._write(TRAINED, bytes(trained))
        self._write(ROWS, array("q", [self.tokens]).tobytes())

    def written(self) -> Iterator[tuple[array[int], bytes]]:
        """The rows so far, read back one by one: token ids and flags."""
        for file in self._files.values():
            file.flush()
        with (
            open(self._partial / TOKENS, "rb") as tokens,
            open(self._partial / TRAINED, "rb") as trained,
            open(self._partial / ROWS, "rb") as rows,
        ):
            start = int.from_bytes(rows.read(8), "little")
            while ends := array("q", rows.read(8 * 1024)):
                for end in ends:
                    ids = array("i", tokens.read(4 * (end - start)))
                    yield ids, trained.read(end - start)
                    start = end

    def commit(
        self,
        *,
        key: str,
        skipped: int,
        truncated: int,
        format: str,
        source_digest: str,
        dropped: dict[str, int] | None = None,
        easy: array[int] | None = None,
    ) -> PreparedManifest:
        """`easy`: every sample id once, the easiest first."""
        if easy is not None:
            self._open(EASY)
            self._write(EASY, easy.tobytes())
        for file in self._files.values():
            file.flush()
            self._disk.fsync(file.fileno())
            file.close()
        manifest = PreparedManifest(
            key=key,
            digest=_whole(self._kind, [hash.hexdigest() for hash in self._hashes.values()]),
            rows=self.rows,
            skipped=skipped,
            tokens=self.tokens,
            trained_tokens=self.trained_tokens,
            truncated=truncated,
            format=format,
            source_digest=source_digest,
            kind=self._kind,
            dropped=dropped or {},
            curriculum=easy is not None,
        )
        write_file(self._partial / ABOUT, msgspec.json.encode(manifest), self._disk)
        there = self._give_name()
        if there is None:
            self._disk.sync_dir(self._final.parent)
        return there or manifest

    def _give_name(self) -> PreparedManifest | None:
        """None if the name is this folder's now; else what another process made meanwhile, which is kept."""
        for left in reversed(range(_TRIES)):
            try:
                self._disk.rename(self._partial, self._final)
            except OSError:
                if not left:
                    raise
            else:
                return None
            try:
                there = verify(self._final)
            except ValueError:
                self._put_aside()  # and never removed by its name: another writer's good one may stand there by now
            else:
                discard(self._partial, self._disk)
                return there
        raise AssertionError("the last try returns or raises")

    def _put_aside(self) -> None:
        aside = self._final.with_name(f"{self._final.name}.{uuid.uuid4().hex[:8]}.old{PARTIAL}")
        try:
            self._disk.rename(self._final, aside)
        except OSError:
            return  # another writer did; or the next rename says what is wrong
        try:
            verify(aside)
            self._disk.rename(aside, self._final)  # it came between the look and the rename
        except (ValueError, OSError):
            discard(aside, self._disk)

    def abandon(self) -> None:
        for file in self._files.values():
            try:
                file.close()
            except OSError:
                pass  # a full disk, once more; the folder goes anyway
        discard(self._partial, self._disk)


View = tuple[memoryview, memoryview]  # token ids (int32) and loss flags (uint8) of a row


class Prepared:
    """A prepared data set, memory-mapped for reading. len() is the number of samples."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        self.kind = self.manifest.kind
        self.tokens = _map(folder / TOKENS).cast("i")
        self.trained = _map(folder / TRAINED)
        self.offsets = _map(folder / ROWS).cast("q")
        self._labels = _map(folder / LABELS) if self.kind == LABELLED else None
        # int64 (samples,): of a curriculum the sample ids, the easiest first
        self.easy = _map(folder / EASY).cast("q") if self.manifest.curriculum else None

    def __len__(self) -> int:
        return self.manifest.rows

    def row(self, index: int) -> View:
        """Token ids (int32) and loss flags (uint8) of one sample; not of a pair."""
        if self.kind == PAIRS:
            raise TypeError("these are pairs")
        return self._row(index)

    def pair(self, index: int) -> tuple[View, View]:
        """The chosen and the rejected answer, each after the same prompt, whose flags are 0."""
        if self.kind != PAIRS:
            raise TypeError(f"these are {self.kind}, not pairs")
        return self._row(2 * index), self._row(2 * index + 1)

    def label(self, index: int) -> bool:
        """Whether the answer of a sample is a good one; of kind `labelled` only."""
        if self._labels is None:
            raise TypeError(f"these are {self.kind}, without labels")
        return self._labels[index] != 0

    def length(self, index: int) -> int:
        """Tokens of one sample; of a pair, of both rows."""
        width = WIDTH[self.kind]
        return self.offsets[(index + 1) * width] - self.offsets[index * width]

    def _row(self, index: int) -> View:
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
        if manifest.kind not in WIDTH:
            raise ValueError(f"{folder} holds {manifest.kind!r}, which this version does not know")
        for name, size in manifest.arrays().items():
            if (folder / name).stat().st_size != size:
                raise ValueError(f"{folder / name} has the wrong size")
    except (OSError, msgspec.DecodeError) as error:
        raise ValueError(f"{folder} holds no prepared data: {error}") from error
    return manifest


def verify(folder: Path) -> PreparedManifest:
    """Like `read_manifest`, and every byte of the arrays is read: ValueError unless they are what was written."""
    manifest = read_manifest(folder)
    digests = []
    for name in manifest.arrays():
        try:
            with open(folder / name, "rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            raise ValueError(f"{folder / name} cannot be read: {error}") from error
    if _whole(manifest.kind, digests) != manifest.digest:
        raise ValueError(f"{folder} has other content than was written")
    return manifest


def _whole(kind: str, digests: list[str]) -> str:
    named = digests if kind == PLAIN else [kind, *digests]
    return hashlib.sha256("".join(named).encode()).hexdigest()


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
