"""A small campaign that forgets: one classifier, five tasks that each turn the inputs another way, adapters merged for real.

The base is a multilayer perceptron of 1.05 M parameters that knows ten classes of three clusters each in 64 dimensions. Task i
shows it the same labels through a rotation of its own. Every run trains LoRA (r 8, alpha 16) on the three hidden layers for
100 steps from the folder that the merge before it left as `next`, and is scored through the folder `merged`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from backpropagate_protocol.combined import MERGED, NEXT
from backpropagate_runner.export.adapter import CONFIG, WEIGHTS
from tests.runner.combine.runs import Merging

INPUTS, HIDDEN, CLASSES, CLUSTERS, TASKS = 64, 704, 10, 3, 5
R, ALPHA, STEPS, BATCH, RATE, KEPT = 8, 16.0, 100, 32, 1e-3, 64
HIDDEN_LAYERS = ("l1", "l2", "l3")

_CENTRES = torch.randn(CLASSES * CLUSTERS, INPUTS, generator=torch.Generator().manual_seed(5))


def rotation(angle: float, generator: torch.Generator) -> Tensor:
    skew = torch.randn(INPUTS, INPUTS, generator=generator)
    skew = skew - skew.T
    return torch.matrix_exp(angle * skew / torch.linalg.matrix_norm(skew, 2))


class Task:
    """The same labels behind one rotation."""

    def __init__(self, turned: Tensor, seed: int) -> None:
        self._turned = turned
        self._test = self.batch(1024, torch.Generator().manual_seed(seed))

    def batch(self, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        cluster = torch.randint(0, CLASSES * CLUSTERS, (rows,), generator=generator)
        x = _CENTRES[cluster] + 0.9 * torch.randn(rows, INPUTS, generator=generator)
        return x @ self._turned.T, cluster % CLASSES

    def score(self, net: Net) -> float:
        x, labels = self._test
        with torch.no_grad():
            return float((net(x).argmax(1) == labels).float().mean())


class Net(nn.Module):
    """`adapter`: by layer A (r, inputs) and B (outputs, r)."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"l1": (INPUTS, HIDDEN), "l2": (HIDDEN, HIDDEN), "l3": (HIDDEN, HIDDEN), "head": (HIDDEN, CLASSES)}
        for name, (inputs, outputs) in sizes.items():
            layer = nn.Linear(inputs, outputs)
            layer.weight.data = torch.randn(outputs, inputs) / math.sqrt(inputs)
            layer.bias.data.zero_()
            self.add_module(name, layer)
        self.adapter: dict[str, tuple[Tensor, Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        for name in HIDDEN_LAYERS:
            y = self.get_submodule(name)(x)
            if name in self.adapter:
                A, B = self.adapter[name]
                y = y + F.linear(F.linear(x, A), B) * (ALPHA / R)
            x = F.gelu(y)
        answer: Tensor = self.get_submodule("head")(x)
        return answer


def pretrained() -> Net:
    """Taught without a rotation, and with small ones."""
    torch.manual_seed(3)
    net = Net()
    generator, plain = torch.Generator().manual_seed(11), Task(torch.eye(INPUTS), 1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.01)
    for step in range(600):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / 600)
        x, labels = plain.batch(128, generator)
        if step % 2:
            x = x @ rotation(0.3 * torch.rand(1, generator=generator).item(), generator).T
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(net(x), labels))
        optimizer.step()
    return net.requires_grad_(False)


def tasks(seed: int, drift: float = 1.0) -> list[Task]:
    """`drift`: the largest angle of the rotations, in half turns."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return [Task(rotation(drift * math.pi, generator), 50 + number) for number in range(TASKS)]


@dataclass(frozen=True)
class Outcome:
    """scores[i, j]: accuracy on task j after run i, j <= i, of the merged adapter."""

    scores: NDArray[np.float64]

    @property
    def average(self) -> float:
        return float(self.scores[-1].mean())

    @property
    def backward_transfer(self) -> float:
        return float((self.scores[-1] - self.scores.diagonal())[:-1].mean())

    @property
    def learnt(self) -> float:
        return float(self.scores.diagonal().mean())


def campaign(
    net: Net,
    given: Sequence[Task],
    seed: int,
    rule: str,
    folder: Path,
    *,
    apart: bool = False,
    replay: int = 0,
) -> Outcome:
    """Trains and merges run after run in `folder`.

    apart: every run begins from a fresh adapter, not from what the merge before it left.
    replay: so many rows of each batch are drawn from KEPT rows of each earlier task.
    """
    scores = np.full((len(given), len(given)), np.nan)
    trained: list[Path] = []
    start = _fresh(10_000 * seed + 7)
    previous: str | None = None
    kept: list[tuple[Tensor, Tensor]] = []
    for number, task in enumerate(given):
        old = kept if replay else []
        made = _train(net, start, task, 10_000 * seed + 101 + number, old, replay)
        trained.append(_save(folder / f"run{number}", made))
        kept.append(task.batch(KEPT, torch.Generator().manual_seed(10_000 * seed + 901 + number)))
        merging = Merging(trained, folder / f"merge{number}", rule, previous=previous)
        previous = merging.made.path
        start = _fresh(10_000 * seed + 8 + number) if apart else _load(merging.out / NEXT)
        net.adapter = _load(merging.out / MERGED)
        scores[number, : number + 1] = [earlier.score(net) for earlier in given[: number + 1]]
    net.adapter = {}
    return Outcome(scores)


def _fresh(seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, inputs in zip(HIDDEN_LAYERS, (INPUTS, HIDDEN, HIDDEN), strict=True):
        A = (torch.rand(R, inputs, generator=generator) * 2 - 1) / math.sqrt(inputs)
        found[name] = (A, torch.zeros(HIDDEN, R))
    return found


def _train(
    net: Net,
    start: dict[str, tuple[Tensor, Tensor]],
    task: Task,
    seed: int,
    old: Sequence[tuple[Tensor, Tensor]],
    replay: int,
) -> dict[str, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    net.adapter = {
        name: (A.clone().requires_grad_(True), B.clone().requires_grad_(True)) for name, (A, B) in start.items()
    }
    weights = [weight for pair in net.adapter.values() for weight in pair]
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * min(1, (step + 1) / 10) * max(0.1, 1 - step / STEPS)
        x, labels = task.batch(BATCH - replay if old else BATCH, generator)
        if old:
            which = torch.randint(0, KEPT * len(old), (replay,), generator=generator)
            x = torch.cat([x, torch.cat([rows for rows, _ in old])[which]])
            labels = torch.cat([labels, torch.cat([told for _, told in old])[which]])
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(net(x), labels))
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
    return {name: (A.detach(), B.detach()) for name, (A, B) in net.adapter.items()}


def _save(folder: Path, adapter: dict[str, tuple[Tensor, Tensor]]) -> Path:
    folder.mkdir(parents=True)
    tensors = {}
    for name, (A, B) in adapter.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = A.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = B.contiguous()
    save_file(tensors, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": R, "lora_alpha": ALPHA}), encoding="utf-8")
    return folder


def _load(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    found = load_file(folder / WEIGHTS)
    return {
        name: (
            found[f"base_model.model.{name}.lora_A.weight"].clone(),
            found[f"base_model.model.{name}.lora_B.weight"].clone(),
        )
        for name in HIDDEN_LAYERS
    }
