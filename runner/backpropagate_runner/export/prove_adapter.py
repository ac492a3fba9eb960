"""The proof of a GGUF adapter: each module must add what PEFT adds, with the scale that llama.cpp computes from the file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backpropagate_protocol.jobs import ProveJob
from backpropagate_protocol.measured import Check, Proof
from backpropagate_runner.export import gguf_arch
from backpropagate_runner.export.adapter import LoraModule, as_float, open_adapter
from backpropagate_runner.export.gguf_arch import GgufArch
from backpropagate_runner.export.model_files import open_model
from backpropagate_runner.export.prove_bounds import tensor_bound
from backpropagate_runner.export.read_gguf import GgufFile
from backpropagate_runner.export.stage import Stage

_ROWS = 256  # of a change, computed at once
_PARTS = (".lora_a", ".lora_b")

Floats = NDArray[np.float32]


def prove_adapter(job: ProveJob, stage: Stage) -> Proof:
    """Raises GGUFExportError, UserInputError, NotCovered or OSError for what cannot be read."""
    assert job.adapter is not None
    files = open_model(job.model, stage.advance, weights=False)
    arch = gguf_arch.read(files.config)
    file = GgufFile(Path(job.target))
    modules = list(open_adapter(job.adapter).modules())
    mapped = arch.names(f"{module.name}.weight" for module in modules)
    by_name = {mapped[f"{module.name}.weight"]: module for module in modules}
    wrong = _wrong_metadata(arch, file)
    checks = [
        _changes(by_name, arch, file, stage),
        Check("metadata", not wrong, detail=wrong or "kind, architecture, alpha"),
    ]
    return Proof(all(check.passed for check in checks), "weights", tuple(checks), 0, 0)


def _wrong_metadata(arch: GgufArch, file: GgufFile) -> str:
    said = {"general.type": "adapter", "adapter.type": "lora", "general.architecture": arch.name}
    for key, expected in said.items():
        if (found := file.fields.get(key)) != expected:
            return f"{key} is {found}, not {expected}"
    alpha = file.fields.get("adapter.lora.alpha")
    if not isinstance(alpha, float) or not math.isfinite(alpha):
        return f"adapter.lora.alpha is {alpha}, which is no scale"
    return ""


def _changes(modules: dict[str, LoraModule], arch: GgufArch, file: GgufFile, stage: Stage) -> Check:
    names = {name + part for name in modules for part in _PARTS}
    if missing := sorted(names - file.tensors.keys()):
        return Check("adapter", False, detail=f"{len(missing)} tensors are missing, among them {missing[0]}")
    if unknown := sorted(file.tensors.keys() - names):
        return Check("adapter", False, detail=f"{len(unknown)} tensors are not the adapter's, among them {unknown[0]}")
    worst, farthest = -1.0, ""
    for index, (name, module) in enumerate(modules.items()):
        stage.advance(index, len(modules), name)
        a, b = (file.rows(name + part, 0, file.tensors[name + part].rows) for part in _PARTS)
        if module.kind == "embedding":
            a = a.T
        if a.shape != module.A.shape or b.shape != module.B.shape:
            return Check("adapter", False, detail=f"{name} has the shapes {a.shape} and {b.shape}")
        if heads := arch.heads(f"{module.name}.weight"):
            b = _halves(b, b.shape[0] // heads)
        error = _error(module, a, b, _scale(file, module.r))
        if not error <= worst:
            worst, farthest = (error if math.isfinite(error) else math.inf), name
    limit = tensor_bound("F32", 1.0, copied=False)
    detail = f"what {len(modules)} modules add, the farthest is {farthest}"
    return Check("adapter", worst <= limit, max(worst, 0.0), limit, detail)


def _scale(file: GgufFile, rank: int) -> float:
    """As llama.cpp computes it, for which an alpha of 0 is none."""
    alpha = file.fields.get("adapter.lora.alpha")
    return float(alpha) / rank if isinstance(alpha, (int, float)) and alpha else 1.0


def _halves(rows: Floats, head_dim: int) -> Floats:
    """Rows of whole heads, from neighbours that turn together back to two halves that do."""
    return rows.reshape(-1, head_dim // 2, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def _error(module: LoraModule, a: Floats, b: Floats, scale: float) -> float:
    """Of the product, relative: the two factors may share their scale in another way."""
    a_trained, b_trained = as_float(module.A).astype(np.float64), as_float(module.B).astype(np.float64)
    difference = size = 0.0
    for start in range(0, len(b), _ROWS):
        expected = module.scale * (b_trained[start : start + _ROWS] @ a_trained)
        found = scale * (b[start : start + _ROWS].astype(np.float64) @ a.astype(np.float64))
        difference += float(((found - expected) ** 2).sum())
        size += float((expected**2).sum())
    if not size:
        return 0.0 if not difference else math.inf
    return math.sqrt(difference / size)
