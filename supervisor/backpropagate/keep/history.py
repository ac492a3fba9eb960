"""`run_history.json`: one row per run in an output folder, the newest last; an index that can always be made again.

The file is a JSON array with one row on each line, so that the newest rows can be read from its end and one row can be
replaced without understanding the others. It is only ever replaced as a whole, under a file lock. A file that cannot be
understood is moved aside, never overwritten, and the index is made again from the run directories.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path

import msgspec
import orjson
from filelock import FileLock

from backpropagate.keep import journal, locks, stop_requests
from backpropagate.keep.record import Record, RunRow
from backpropagate.keep.runs import Output, as_output, find, has_begun, load_spec, run_ids
from backpropagate_protocol import durable
from backpropagate_protocol.errors import BackpropagateError, RunNotFoundError
from backpropagate_protocol.rundir import OutputDir, RunDir

_OPEN, _CLOSE, _BETWEEN = b"[\n", b"\n]\n", b",\n"
_CHUNK = 1 << 17  # a piece of the file when it is read from its end
_decoder = msgspec.json.Decoder(RunRow)


class _Torn(Exception):
    """The index is not a JSON array of rows."""


def _lines(data: bytes) -> list[bytes]:
    """One row a line. Raises _Torn if that is not what the file holds."""
    if not data.startswith(_OPEN) or not data.endswith(_CLOSE):
        return _foreign(data)
    body = data[len(_OPEN) : -len(_CLOSE)]
    lines = body.split(_BETWEEN) if body else []
    try:
        return list(map(_checked, lines))
    except _Torn:
        return _foreign(data)


def _foreign(data: bytes) -> list[bytes]:
    """The same array in another layout: someone's editor has been at it."""
    try:
        rows = msgspec.json.decode(data, type=list[RunRow])
    except msgspec.DecodeError as error:
        raise _Torn(str(error)) from error
    return [_line(row) for row in rows]


def _line(row: RunRow) -> bytes:
    return orjson.dumps(row, default=msgspec.to_builtins)


def _write(output: OutputDir, lines: Iterable[bytes]) -> None:
    """Under the lock, so that what looks unfinished was left by a process that is gone."""
    for left in output.path.glob(f".{output.history.name}.*.tmp"):
        durable.discard(left)
    durable.write_file(output.history, _OPEN + _BETWEEN.join(lines) + _CLOSE)


def _locked(output: OutputDir, patience: float = 30.0) -> FileLock:
    return FileLock(output.history_lock, timeout=patience)


def record(output: Output, row: RunRow, patience: float = 30.0) -> None:
    """Writes the row in place of the one with the same run id, or after the last.

    Raises filelock's Timeout if others have the index for `patience` seconds, and OSError.
    """
    output = as_output(output)
    with _locked(output, patience):
        lines = _load(output)
        key = b'{"run_id":' + orjson.dumps(row.run_id) + b","
        line = _line(row)
        for index in range(len(lines) - 1, -1, -1):
            if lines[index].startswith(key):
                lines[index] = line
                break
        else:
            lines.append(line)
        _write(output, lines)


def _load(output: OutputDir) -> list[bytes]:
    """All lines; under the lock, since a torn file is moved aside and made again."""
    try:
        return _lines(output.history.read_bytes())
    except FileNotFoundError:
        return []
    except _Torn:
        return _repaired(output)


def _repaired(output: OutputDir) -> list[bytes]:
    durable.rename(output.history, output.history.with_name(f"{output.history.name}.torn-{time.time_ns()}"))
    lines = [_line(row) for row in _from_journals(output)]
    _write(output, lines)
    return lines


def rebuild(output: Output) -> int:
    """Makes the index again from the run directories; returns the number of rows. The old file is kept aside."""
    output = as_output(output)
    if not output.path.is_dir():
        raise RunNotFoundError(f"{output.path} is no output folder")
    with _locked(output):
        rows = list(_from_journals(output))
        if output.history.exists():
            durable.rename(output.history, output.history.with_name(f"{output.history.name}.replaced-{time.time_ns()}"))
        _write(output, [_line(row) for row in rows])
    return len(rows)


def _from_journals(output: OutputDir) -> Iterator[RunRow]:
    rows = []
    for run_id in run_ids(output):
        try:
            rows.append(row_of(output.run(run_id)))
        except BackpropagateError:
            continue  # a folder without a readable spec is no run
    yield from sorted(rows, key=lambda row: row.started_at)


def row_of(run_dir: RunDir) -> RunRow:
    """One run's row, made from its spec and its journal. Raises RunNotFoundError if there is no readable spec."""
    folded = Record(load_spec(run_dir), run_dir)
    for event in journal.read(run_dir.events):
        folded.fold(event)
    return folded.row()


def list_rows(
    output: Output,
    status: str | None = None,
    limit: int | None = None,
    counted_as: Callable[[RunRow], str] = lambda row: row.run_id,
) -> list[RunRow]:
    """The rows, newest first. A run whose supervisor is gone without a word is shown as `interrupted`.

    With a limit, only as much of the file's end is read as is needed, however many runs there are. Rows that are
    `counted_as` the same are counted once.
    """
    output = as_output(output)
    alive = _training_here(output)
    unbegun = _unbegun(output, alive)
    try:
        return _select(output, chain(unbegun, _from_end(output.history)), alive, status, limit, counted_as)
    except FileNotFoundError:
        return _select(output, unbegun, alive, status, limit, counted_as)
    except (_Torn, msgspec.DecodeError):
        with _locked(output):
            lines = _load(output)
            try:
                return _select(output, chain(unbegun, reversed(lines)), alive, status, limit, counted_as)
            except msgspec.DecodeError:
                return _select(output, reversed(_repaired(output)), alive, status, limit, counted_as)


def _unbegun(output: OutputDir, alive: str | None) -> list[bytes]:
    """Of runs that were killed before they could write a line: the index does not know them. Newest first.

    A run that waits for the folder, or was refused, has no journal at all.
    """
    rows = []
    for run_id in run_ids(output):
        run_dir = output.run(run_id)
        if (
            not run_dir.events.exists()
            or has_begun(run_dir)
            or run_dir.checkpoints.exists()
            or run_dir.adapter.exists()
        ):
            continue
        with suppress(BackpropagateError):
            row = _as_it_is(output, row_of(run_dir), alive)
            if row.status == "interrupted":
                rows.append(row)
    return [_line(row) for row in sorted(rows, key=lambda row: row.started_at, reverse=True)]


def _from_end(path: Path) -> Iterator[bytes]:
    """The lines, newest first. Raises _Torn where the file is not laid out as we do it."""
    with open(path, "rb") as file:
        position = file.seek(0, 2) - len(_CLOSE)
        file.seek(max(0, position))
        if position < len(_OPEN) or file.read() != _CLOSE:
            raise _Torn("the end is missing")
        rest = b""
        while position > len(_OPEN):
            size = min(_CHUNK, position - len(_OPEN))
            position -= size
            file.seek(position)
            rest, *lines = (file.read(size) + rest).split(_BETWEEN)
            yield from map(_checked, reversed(lines))
        file.seek(0)
        if file.read(len(_OPEN)) != _OPEN:
            raise _Torn("the beginning is missing")
        if rest:
            yield _checked(rest)


def _checked(line: bytes) -> bytes:
    if not (line.startswith(b'{"run_id":"') and line.endswith(b"}")):
        raise _Torn("a line is no row")
    return line


def _select(
    output: OutputDir,
    newest_first: Iterable[bytes],
    alive: str | None,
    status: str | None,
    limit: int | None,
    counted_as: Callable[[RunRow], str],
) -> list[RunRow]:
    found: list[RunRow] = []
    counted: set[str] = set()
    seen_ids: set[str] = set()  # a rebuilt index knows those that never began, too
    for line in newest_first:
        row = _decoder.decode(line)
        key = counted_as(row)
        if limit is not None and len(counted) >= limit and key not in counted:
            break
        row = _as_it_is(output, _current(output, row), alive)
        if (status is None or row.status == status) and row.run_id not in seen_ids:
            found.append(row)
            seen_ids.add(row.run_id)
            counted.add(key)
    return found


def _current(output: OutputDir, row: RunRow) -> RunRow:
    """A row is written when a run begins and when it ends; in between, and after a kill, the journal knows more."""
    run_dir = output.run(row.run_id)
    if row.status != "running" or not run_dir.events.is_file():
        return row
    try:
        return row_of(run_dir)
    except BackpropagateError:
        return row


def show(run_dir: RunDir) -> RunRow:
    """The row of one run as it stands now, from its journal. Raises RunNotFoundError."""
    return _as_it_is(run_dir.output, row_of(run_dir), _training_here(run_dir.output))


def to_resume(output: Output, what: str) -> RunDir:
    """The run that is meant to go on; `latest`: the newest that is neither complete nor running, if there is one. A run of a
    campaign goes on with its campaign.

    Raises RunNotFoundError as `runs.find` does.
    """
    output = as_output(output)
    if what == "latest":
        made = sorted(map(output.run, run_ids(output)), key=lambda run: run.spec.stat().st_mtime_ns, reverse=True)
        for run_dir in made:
            with suppress(BackpropagateError):
                row = show(run_dir)
                if row.parent is None and row.status not in ("completed", "running"):
                    return run_dir
    return find(output, what)


def to_stop(output: Output, what: str) -> RunDir:
    """The run that is meant to end; `latest`: the newest that somebody supervises, if there is one. Raises as `runs.find` does."""
    output = as_output(output)
    if what == "latest":
        made = sorted(map(output.run, run_ids(output)), key=lambda run: run.spec.stat().st_mtime_ns, reverse=True)
        for run_dir in made:
            with suppress(BackpropagateError):
                if stop_requests.supervisor_of(run_dir, load_spec(run_dir)):
                    return run_dir
    return find(output, what)


def _as_it_is(output: OutputDir, row: RunRow, training: str | None) -> RunRow:
    """An export does not need the folder to itself: the lock of its own directory tells whether it runs."""
    if row.status == "running" and row.session_kind not in ("single_run", "multi_run"):
        holder = locks.holder_of(output.run(row.run_id).lock)
        training = holder.run_id if holder else None
    return seen(row, training)


def _training_here(output: OutputDir) -> str | None:
    holder = locks.holder_of(locks.output_lock(output))
    return holder.run_id if holder else None


def seen(row: RunRow, alive: str | None) -> RunRow:
    """The row as the world is: only a run whose supervisor, or that of its campaign, holds the folder's lock is running."""
    if row.status == "running" and alive not in (row.run_id, row.parent or row.run_id):
        return msgspec.structs.replace(row, status="interrupted")
    return row
