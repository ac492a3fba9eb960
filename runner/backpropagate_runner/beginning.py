"""A run that begins from an adapter begins from the same one in every attempt, however often it has to.

Once there is a checkpoint, that holds the weights, and the adapter may go.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from backpropagate_backends.base import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from backpropagate_protocol.durable import write_file
from backpropagate_protocol.errors import error_for
from backpropagate_protocol.jobs import TrainJob
from backpropagate_protocol.rundir import RunDir


class BegunFrom(msgspec.Struct, frozen=True, kw_only=True):
    """`begun-from.json`."""

    schema: int = 1
    adapter: str  # where it lay then
    digest: str  # SHA-256 over its configuration and its weights


def check_beginning(job: TrainJob) -> None:
    """Called before the first step. Remembers the adapter's digest in the run directory, or compares it.

    Raises UserInputError: INPUT_ADAPTER_MISMATCH if there is no adapter to be read, STATE_RUN_MISMATCH if it is another
    than the one that an earlier attempt began from.
    """
    if job.spec.init_adapter is None:
        return
    folder = Path(job.spec.init_adapter)
    record = RunDir(Path(job.run_dir)).begun_from
    try:
        digest = _digest(folder)
    except OSError as error:
        raise error_for(
            "INPUT_ADAPTER_MISMATCH", f"the adapter {folder} to begin from cannot be read: {error.strerror or error}"
        ) from error
    try:
        before = msgspec.json.decode(record.read_bytes(), type=BegunFrom)
    except FileNotFoundError:
        write_file(record, msgspec.json.encode(BegunFrom(adapter=str(folder), digest=digest)))
        return
    if before.digest != digest:
        raise error_for("STATE_RUN_MISMATCH", f"the adapter {folder} is not the one that this run began from")


def _digest(folder: Path) -> str:
    digests = []
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        with open(folder / name, "rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
