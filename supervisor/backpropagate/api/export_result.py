"""Export: what a finished export gives back, made from the run's events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from backpropagate import events
from backpropagate.events import Event
from backpropagate_protocol.rundir import RunDir

_TOLD = ("relative_error", "kl", "agreement")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of a proof: what was measured and its bound; None where there is only yes or no."""

    name: str
    passed: bool
    value: float | None = None
    bound: float | None = None
    detail: str = ""

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.name} {'ok' if self.passed else 'WRONG'}"
        limit = "" if self.bound is None else f" (bound {self.bound:.3g})"
        return f"{self.name} {self.value:.3g}{limit}" + ("" if self.passed else " WRONG")


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What was exported, compared with what was trained.

    verifier   `llama` (it was run by llama.cpp), `weights` (it was read), or `text` (only template and vocabulary were)
    prompts    how many were tried; positions: places in their texts at which the two were compared
    """

    passed: bool
    verifier: str
    checks: tuple[Check, ...]
    prompts: int = 0
    positions: int = 0

    def __str__(self) -> str:
        wrong = [str(check) for check in self.checks if not check.passed]
        if wrong or not self.passed:
            return f"FAILED: {'; '.join(wrong)}"
        how = {"llama": "run by llama.cpp", "text": "weights not compared"}.get(self.verifier, "read")
        told = [
            f"{check.name} {check.value:.3g}"
            for check in self.checks
            if check.name in _TOLD and check.value is not None
        ]
        return ", ".join([f"passed, {how}", f"{self.prompts} prompts", f"{self.positions} positions", *told])


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """One export as it ended.

    path          the file (GGUF) or folder (lora, merged); bytes: its size
    proof         None where there is nothing to compare (format lora)
    ollama_name   the name it was registered under, or None
    report_path   the proof and the provenance, as JSON
    run_id        of the run that exported it
    """

    path: Path
    bytes: int
    format: str
    quantization: str | None
    proof: Proof | None
    ollama_name: str | None
    report_path: Path | None
    run_id: str

    def document(self) -> dict[str, object]:
        """As `exported` in a JSON document."""
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in self._fields()}
        return {**plain, "proof": None if self.proof is None else asdict(self.proof)}

    def _fields(self) -> Iterator[tuple[str, object]]:
        return ((field.name, getattr(self, field.name)) for field in fields(self))

    def __str__(self) -> str:
        registered = f", in Ollama as {self.ollama_name}" if self.ollama_name else ""
        return f"{self.path} ({size(self.bytes)}){registered}"


class ExportSummary:
    """Folds a run's events, of all its supervisors, into an Export."""

    def __init__(self, run_dir: RunDir) -> None:
        self._run_dir = run_dir
        self._exported: events.Exported | None = None
        self.proof: Proof | None = None
        self.url: str | None = None  # where it was pushed to
        self._ollama: str | None = None

    def event(self, event: Event) -> None:
        match event:
            case events.ExportProved():
                checks = tuple(
                    Check(name=c.name, passed=c.passed, value=c.value, bound=c.bound, detail=c.detail)
                    for c in event.checks
                )
                self.proof = Proof(
                    passed=event.passed,
                    verifier=event.verifier,
                    checks=checks,
                    prompts=event.prompts,
                    positions=event.positions,
                )
            case events.Exported():
                self._exported = event
            case events.RunEnded():
                self._ollama = event.ollama or self._ollama
                self.url = event.url or self.url
            case _:
                pass

    def close(self) -> None:
        pass

    @property
    def export(self) -> Export | None:
        """None if nothing was exported (yet)."""
        made = self._exported
        if made is None:
            return None
        return Export(
            path=Path(made.path),
            bytes=made.bytes,
            format=made.format,
            quantization=made.quantization,
            proof=self.proof,
            ollama_name=self._ollama,
            report_path=Path(made.report) if made.report else None,
            run_id=self._run_dir.run_id,
        )


def size(count: int) -> str:
    """`812 bytes`, `4.7 MB`, `3.21 GB`."""
    if count < 1000:
        return f"{count} bytes"
    for unit, worth in (("kB", 1e3), ("MB", 1e6)):
        if count < worth * 1000:
            return f"{count / worth:.1f} {unit}"
    return f"{count / 1e9:.2f} GB"
