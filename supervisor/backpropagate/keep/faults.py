"""`faults/NNN.json`: what a child died of, as a person would want to know it the morning after."""

from __future__ import annotations

import msgspec

from backpropagate_protocol import durable
from backpropagate_protocol.rundir import RunDir

FAULT_SCHEMA = 1


class FaultRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One fault. Amounts of memory in MiB, 0 where nobody measured. Fields only grow, each new one with a default.

    `code` and `message` are the first thing that was wrong, which is what was judged; `also` what came after it.
    """

    schema: int = FAULT_SCHEMA
    run_id: str
    number: int
    time: float  # seconds since 1970, when it was noticed
    kind: str
    code: str
    message: str
    attempt: int = 0
    stage: str = ""  # other than the training
    phase: str = ""
    step: int = 0
    also: tuple[str, ...] = ()
    pid: int = 0  # 0: there was no process
    death: str = ""  # how the process ended, decoded
    exit_code: int | None = None
    meaning: str = ""  # what such an end comes from
    ended_by: str = ""  # why the supervisor ended it; empty: it ended by itself, or by a stranger's hand
    seconds: float = 0.0  # that the process had lived
    memory: int = 0  # its high water in the machine's memory
    device_memory: int = 0  # its high water on the GPU: allocated
    device_reserved: int = 0  # and reserved
    needed: int = 0
    free: int = 0
    card: tuple[str, ...] = ()  # what the GPU's driver reported while it lived
    kernel: tuple[str, ...] = ()  # what the kernel wrote of it
    last_lines: tuple[str, ...] = ()  # since its imports; of one that died in them, all
    earlier_lines: tuple[str, ...] = ()  # until then: what libraries warn of, mostly
    stacks: str = ""  # of all its threads, or the traceback that it sent
    done: str = ""  # what the supervisor did; empty: it was gone before it could do anything
    advice: str = ""


def next_number(run_dir: RunDir) -> int:
    """One more than the highest there is. Raises OSError."""
    return max(_numbers(run_dir), default=0) + 1


def write(run_dir: RunDir, record: FaultRecord) -> str:
    """Replaces the record of that number; its path in the run directory. Raises OSError."""
    run_dir.faults.mkdir(exist_ok=True)
    path = run_dir.fault(record.number)
    durable.write_file(path, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
    return path.relative_to(run_dir.path).as_posix()


def read_all(run_dir: RunDir) -> list[FaultRecord]:
    """The oldest first. One that cannot be read is left out: the journal has its essence."""
    records = []
    for number in _numbers(run_dir):
        try:
            records.append(msgspec.json.decode(run_dir.fault(number).read_bytes(), type=FaultRecord))
        except (OSError, msgspec.DecodeError):
            continue
    return records


def _numbers(run_dir: RunDir) -> list[int]:
    if not run_dir.faults.is_dir():
        return []
    return sorted(int(path.stem) for path in run_dir.faults.glob("*.json") if path.stem.isdecimal())
