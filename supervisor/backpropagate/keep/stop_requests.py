"""The file by which another process asks a run's supervisor to stop: written, taken, withdrawn.

It names the supervisor that is meant, as that one's lock does. One that nobody heard can so never stop the next.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import msgspec

from backpropagate.keep import locks
from backpropagate.keep.locks import Holder
from backpropagate_protocol import durable
from backpropagate_protocol.rundir import RunDir
from backpropagate_protocol.spec import RunSpec

# As they stand in `stop_requested` and in the run's last words.
SAVING = "backprop stop"
AT_ONCE = "backprop stop --now"


class StopRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`stop-request.json`: what is asked of whom. now: without a save."""

    holder: Holder
    now: bool = False


def supervisor_of(run_dir: RunDir, spec: RunSpec) -> Holder | None:
    """Who supervises the run at this moment; None if nobody does. A run of a campaign has none of its own."""
    trains = spec.kind in ("train", "campaign")
    holder = locks.holder_of(run_dir.output.lock if trains else run_dir.lock)
    return holder if holder is not None and holder.run_id == run_dir.run_id else None


def ask(run_dir: RunDir, request: StopRequest) -> None:
    """Leaves it for the supervisor, in place of an earlier one. Raises OSError."""
    durable.write_file(run_dir.stop_request, msgspec.json.encode(request))


def is_heard(run_dir: RunDir) -> bool:
    return not run_dir.stop_request.exists()


def withdraw(run_dir: RunDir, request: StopRequest) -> None:
    """Once it is of no use any more; another's stays."""
    if _read(run_dir.stop_request) == request:
        durable.discard(run_dir.stop_request)


def take(run_dir: RunDir, me: Holder) -> str | None:
    """What is asked of this supervisor, SAVING or AT_ONCE; None if nothing is. What was asked of others goes, too.

    It is moved aside before it is read, so that one which is written meanwhile is not lost.
    """
    try:
        durable.DISK.rename(run_dir.stop_request, run_dir.stop_request_taken)
    except OSError:
        return None  # nearly always: there is none. On Windows it may be held by another program: in a second, then
    request = _read(run_dir.stop_request_taken)
    durable.discard(run_dir.stop_request_taken)
    if request is None or request.holder != me:
        return None
    return AT_ONCE if request.now else SAVING


def _read(path: Path) -> StopRequest | None:
    with suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode(path.read_bytes(), type=StopRequest)
    return None
