"""What an export leaves on the disk: its work folder, the result under its final name, and the report beside it.

1. A result has its final name only when it is complete and proven; a result of that name from before is replaced whole.
2. The report is written before the result gets its name, so that there is no result without one.
3. What was not proven never gets the name: it is put aside as `.rejected`, with its report.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from backpropagate.events import Check
from backpropagate_protocol import durable
from backpropagate_protocol.rundir import MANIFEST, PARTIAL, ExportDir, Manifest

REPORT_SCHEMA = 1


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


def weights_digest(folder: Path) -> str:
    """Over the weight files of an adapter; equal for equal weights. Empty if there are none. Raises OSError."""
    try:
        files = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest).files
    except (OSError, msgspec.DecodeError):
        files = {name: durable.file_entry(folder / name) for name in durable.files_of(folder) if _weighs(name)}
    lines = [f"{name} {entry.sha256}" for name, entry in sorted(files.items()) if _weighs(name)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else ""


def _weighs(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))


def read_report(result: Path) -> ExportReport | None:
    """The report beside a result; None if there is none that can be read."""
    try:
        return msgspec.json.decode(ExportDir.report(result).read_bytes(), type=ExportReport)
    except (OSError, msgspec.DecodeError):
        return None


def publish(made: Path, result: Path, report: ExportReport) -> None:
    """Gives `made`, which lies on the same disk, its final name. Raises OSError; an older result of that name then stands."""
    result.parent.mkdir(parents=True, exist_ok=True)
    _write(result, report)
    _rename_over(made, result)


def reject(made: Path, result: Path, report: ExportReport) -> Path:
    """Puts aside what was not proven; returns where it is. Raises OSError."""
    aside = ExportDir.rejected(result)
    _write(aside, report)
    _rename_over(made, aside)
    return aside


def _write(result: Path, report: ExportReport) -> None:
    text = msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
    durable.write_file(ExportDir.report(result), text)


def _rename_over(source: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.old{PARTIAL}")
    if target.is_dir():  # a folder is not replaced by a rename
        durable.discard(old)
        durable.rename(target, old)
    try:
        durable.rename(source, target)
    except OSError:
        if old.exists():
            durable.rename(old, target)
        raise
    durable.DISK.sync_dir(target.parent)
    durable.discard(old)


def is_published(run_id: str, made: Path, result: Path, adapter: str | None) -> bool:
    """Whether a supervisor that was cut off had given this run's result its name. Not if the adapter is another by now."""
    report = read_report(result)
    if report is None or report.run_id != run_id or not result.exists() or made.exists():
        return False
    return adapter is None or report.adapter_digest == weights_digest(Path(adapter))


def sweep(work: Path, result: Path | None = None) -> None:
    """Removes what killed stages left half-made; what is complete stays. Ends a swap of folders that was cut off."""
    if work.is_dir():
        for entry in work.iterdir():
            if entry.name.endswith(PARTIAL):
                durable.discard(entry)
    if result is not None:
        old = result.with_name(f".{result.name}.old{PARTIAL}")
        if old.exists() and not result.exists():
            durable.rename(old, result)
        durable.discard(old)
