"""Adapters of several runs, written by numpy as PEFT writes them, and merged in this process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from backpropagate_protocol.combined import COMBINED, MERGED, NEXT, Combined
from backpropagate_protocol.jobs import CombineJob
from backpropagate_protocol.messages import Made, Phase
from backpropagate_runner.combine.combine import combine
from backpropagate_runner.export.adapter import CONFIG, WEIGHTS
from tests.runner.export.heard import Heard

F32 = NDArray[np.float32]
Tensors = dict[str, F32]

PREFIX = "base_model.model."
A, B = f"{PREFIX}model.up.lora_A.weight", f"{PREFIX}model.up.lora_B.weight"
R, INPUTS, OUTPUTS = 4, 24, 30


def random(*shape: int, seed: int = 0) -> F32:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def factors(
    seed: int, *, r: int = R, inputs: int = INPUTS, outputs: int = OUTPUTS, module: str = "model.up"
) -> Tensors:
    """What a run may have trained in one module."""
    return {
        f"{PREFIX}{module}.lora_A.weight": random(r, inputs, seed=seed),
        f"{PREFIX}{module}.lora_B.weight": random(outputs, r, seed=seed),
    }


def adapter(folder: Path, tensors: Tensors, **config: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    about = {"peft_type": "LORA", "r": R, "lora_alpha": 8, "base_model_name_or_path": "someone/base", **config}
    (folder / CONFIG).write_text(json.dumps(about), encoding="utf-8")
    return folder


def several(folder: Path, count: int, **config: object) -> list[Path]:
    """Runs of two modules each."""
    return [
        adapter(
            folder / f"run{number}",
            factors(number) | factors(number + 100, inputs=OUTPUTS, outputs=INPUTS, module="model.down"),
            **config,
        )
        for number in range(1, count + 1)
    ]


class Merging(Heard):
    """A merge in this process, and what it said."""

    def __init__(self, adapters: Sequence[Path], out: Path, rule: str = "slao", **wishes: object) -> None:
        super().__init__(Phase.COMBINE)
        self.out = out
        given = {"adapters": [str(path) for path in adapters], "out": str(out), "rule": rule, **wishes}
        self.made: Made = combine(msgspec.convert({"type": "combine", **given}, CombineJob), self.stage)

    @property
    def merged(self) -> Tensors:
        return tensors(self.out / MERGED)

    @property
    def next(self) -> Tensors:
        return tensors(self.out / NEXT)

    @property
    def record(self) -> Combined:
        return msgspec.json.decode((self.out / COMBINED).read_bytes(), type=Combined)


def tensors(folder: Path) -> Tensors:
    return load_file(folder / WEIGHTS)


def product(found: Tensors, module: str = "model.up") -> NDArray[np.float64]:
    """B A."""
    a, b = (found[f"{PREFIX}{module}.lora_{side}.weight"].astype(np.float64) for side in "AB")
    return np.asarray(b @ a)


def rank_cut(matrix: NDArray[np.float64], r: int = R) -> NDArray[np.float64]:
    """The nearest of rank r, from the dense decomposition."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return np.asarray((u[:, :r] * s[:r]) @ vt[:r])


def near(one: NDArray[np.floating], other: NDArray[np.floating], relative: float = 1e-5) -> bool:
    return bool(np.linalg.norm(one - other) <= relative * np.linalg.norm(other))
