"""Exports of the bundled tiny base under a real supervisor, for tests."""

from __future__ import annotations

import uuid
from pathlib import Path

import msgspec

from backpropagate.events import StageEnded, StageStarted
from backpropagate.keep.past import TRAINED
from backpropagate.wishes import models
from backpropagate_protocol.rundir import ExportDir, OutputDir
from backpropagate_protocol.spec import DataSpec, ExportSpec, ModelSpec, PlannedFault, RunSpec, SafetySpec
from tests.conftest import Oracle
from tests.system.real import real_spec
from tests.system.supervised import Story, Supervisor

NAME = "tiny-talk"


def wish(output: OutputDir, adapter: str | None, format: str = "gguf", quantization: str | None = "f16") -> ExportSpec:
    """An export into a folder beside the runs."""
    return ExportSpec(
        format=format,
        quantization=quantization if format == "gguf" else None,
        destination=str(output.exports),
        name=NAME,
        adapter=adapter,
    )


def staged(text: str) -> PlannedFault:
    """The fault that is written `stage:kind:sign` or `stage:kind:sign:attempt`."""
    stage, kind, sign, *attempt = text.split(":")
    return PlannedFault(kind=kind, step=int(sign), attempt=int(attempt[0]) if attempt else 1, stage=stage)


def export_of(
    adapter: str, output: OutputDir, *faults: str, export: ExportSpec | None = None, **safety: object
) -> RunSpec:
    """A run that exports an adapter of the tiny base. Faults are written as for `staged`."""
    return RunSpec(
        run_id=str(uuid.uuid4()),
        created="2026-01-01T00:00:00Z",
        backend="cpu",
        output=str(output.path),
        model=ModelSpec(name=models.TINY, path=models.resolve_model(models.TINY).path),
        data=DataSpec(source=""),
        safety=msgspec.convert(safety, SafetySpec),
        faults=tuple(staged(text) for text in faults),
        kind="export",
        export=export or wish(output, adapter),
    )


def trained_and_exported(output: OutputDir, *faults: str, export: ExportSpec | None = None) -> RunSpec:
    """A real training of the tiny base, with an export chained to it. Faults of the training are written `train:…`."""
    spec = real_spec(output)
    return msgspec.structs.replace(
        spec, faults=tuple(staged(text) for text in faults), export=export or wish(output, None)
    )


def result_of(spec: RunSpec) -> Path:
    """Where the result has to be."""
    assert spec.export is not None
    return ExportDir(Path(spec.export.destination)).result(NAME, spec.export.format, spec.export.quantization)


def lora_export(oracle: Oracle, adapter: str, *faults: str, **safety: object) -> RunSpec:
    """The shortest chain: an adapter gets a second place."""
    output = oracle.output()
    return export_of(adapter, output, *faults, export=wish(output, adapter, "lora"), **safety)


def names(story: Story) -> list[str]:
    return [ended.stage for ended in story.of(StageEnded) if ended.stage != TRAINED]


def is_in(running: Supervisor, stage: str) -> bool:
    return any(started.stage == stage for started in running.of(StageStarted))


def log_of(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
