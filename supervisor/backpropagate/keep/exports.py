"""What an export leaves on the disk: its work folder, the result under its final name, and the report beside it.

1. A result has its final name only when it is complete and proven; a result of that name from before is replaced whole.
2. The report waits beside it, complete, before the result gets its name; whoever is cut off in between left enough for
   the next one to end it (`settle`). So no result has the report of another.
3. What was not proven never gets the name: it is put aside as `.rejected`, with its report.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec

from backpropagate.measured import Check
from backpropagate_protocol import durable, swap
from backpropagate_protocol.errors import ConfigurationError
from backpropagate_protocol.rundir import PARTIAL, ExportDir

REPORT_SCHEMA = 1

_MADE_OF = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt")  # weights, configuration, tokenizer


class ProofReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was compared, and how it came out."""

    passed: bool
    verifier: str
    checks: tuple[Check, ...]
    prompts: int = 0
    positions: int = 0


class ExportReport(msgspec.Struct, frozen=True, kw_only=True):
    """`NAME.export.json`: what the result is made of, by whom, and the proof. Times are ISO 8601 in UTC. Fields only grow."""

    schema: int = REPORT_SCHEMA
    run_id: str
    created: str
    result: str  # the file's or folder's name
    bytes: int
    digest: str
    format: str
    quantization: str | None
    base_model: str
    base_path: str
    base_revision: str | None
    adapter: str | None
    adapter_digest: str
    architecture: str
    parameters: int
    route: dict[str, str]
    proof: ProofReport | None
    versions: dict[str, str] = {}
    notes: tuple[str, ...] = ()


def inputs_digest(*folders: Path) -> str:
    """Over the files of models that lie in them: names, sizes, times of change. Another after any of them was replaced.

    What is no folder (a hub's id) counts as empty. Raises OSError.
    """
    lines = []
    for folder in folders:
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.suffix in _MADE_OF and path.is_file():
                stat = path.stat()
                lines.append(f"{path.name} {stat.st_size} {stat.st_mtime_ns}")
        lines.append("")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_report(result: Path) -> ExportReport | None:
    """The report beside a result; None if there is none that can be read, or it is plainly another file's."""
    try:
        report = msgspec.json.decode(ExportDir.report(result).read_bytes(), type=ExportReport)
        return None if result.is_file() and result.stat().st_size != report.bytes else report
    except (OSError, msgspec.DecodeError):
        return None


def standing(run_id: str, result: Path) -> ExportReport | None:
    """The report of what this run exported, if that is what stands at `result`, and not a later run's."""
    report = read_report(result)
    return report if report is not None and report.run_id == run_id and result.exists() else None


def check_replaceable(result: Path) -> None:
    """An earlier export of the same name gives way to a new one; anything else that is there does not.

    Raises ConfigurationError (CONFIG_OUTPUT_UNWRITABLE).
    """
    if os.path.lexists(result) and read_report(result) is None and not _waiting(result).is_file():
        raise ConfigurationError(
            f"{result} is there already, and no export of ours made it",
            code="CONFIG_OUTPUT_UNWRITABLE",
            suggestion="Choose another --name or -o, or move it away.",
        )


class _Waiting(msgspec.Struct, frozen=True):
    """A report whose result is about to get its name: as long as `made` is there, it has not."""

    made: str
    report: ExportReport


def _waiting(result: Path) -> Path:
    report = ExportDir.report(result)
    return report.with_name(f".{report.name}{PARTIAL}")


def publish(made: Path, result: Path, report: ExportReport) -> None:
    """Gives `made`, which lies on the same disk, its final name. Raises OSError; an older result of that name then stands
    with its own report."""
    result.parent.mkdir(parents=True, exist_ok=True)
    settle(result)
    waiting = _waiting(result)
    durable.write_file(waiting, msgspec.json.encode(_Waiting(str(made), report)))
    try:
        swap.rename_over(made, result)
    except OSError:
        durable.discard(waiting)
        raise
    _write(result, report)
    durable.discard(waiting)


def settle(result: Path) -> None:
    """Ends a publication that was cut off, as if it had ended or never begun. Under the result's lock. Raises OSError."""
    swap.settle(result)
    waiting = _waiting(result)
    try:
        found = msgspec.json.decode(waiting.read_bytes(), type=_Waiting)
    except FileNotFoundError:
        return
    except msgspec.DecodeError:
        found = None
    if found is not None and result.exists() and not Path(found.made).exists():
        _write(result, found.report)
    durable.discard(waiting)


def reject(made: Path, result: Path, report: ExportReport) -> Path:
    """Puts aside what was not proven; returns where it is. Raises OSError."""
    aside = ExportDir.rejected(result)
    _write(aside, report)
    swap.rename_over(made, aside)
    return aside


def _write(result: Path, report: ExportReport) -> None:
    text = msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
    durable.write_file(ExportDir.report(result), text)


def sweep(work: Path) -> None:
    """Removes what killed stages left half-made; what is complete stays."""
    if work.is_dir():
        for entry in work.iterdir():
            if entry.name.endswith(PARTIAL):
                durable.discard(entry)
