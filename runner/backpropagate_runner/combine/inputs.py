"""The runs' adapters as they are opened for a merge: what each is, its digest, and which tensors belong together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from backpropagate_runner.export.adapter import CONFIG, WEIGHTS, Adapter, LoraModule, open_adapter
from backpropagate_runner.export.digests import digest_of, folder_digest
from backpropagate_runner.export.tensor_file import StoredTensor


class About(msgspec.Struct, frozen=True):
    """What two runs' configurations must agree on, beside what their tensors show by themselves."""

    r: int = 8
    lora_alpha: float = 8
    use_rslora: bool = False
    use_dora: bool = False
    bias: str = "none"
    rank_pattern: dict[str, float] | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """The adapter of run `number` (from 1)."""

    number: int
    adapter: Adapter
    about: About
    digest: str  # of its configuration and its weights


@dataclass(frozen=True, slots=True)
class Module:
    """One module's adapters, of every run in order."""

    runs: tuple[LoraModule, ...]

    @property
    def newest(self) -> LoraModule:
        return self.runs[-1]

    @property
    def name(self) -> str:
        return self.newest.name

    def rescale(self, run: int) -> float:
        """s of the run before over s of this one: the same B A in the units of run `run` (from 1)."""
        if run == 1:
            return 1.0
        return self.runs[run - 2].scale / self.runs[run - 1].scale


@dataclass(frozen=True, slots=True)
class Matched:
    """All tensors, by what they are for. `others`: biases of base layers, modules_to_save, trained tokens."""

    modules: tuple[Module, ...]
    others: tuple[tuple[StoredTensor, ...], ...]


def digest_of_adapter(folder: Path) -> str:
    return folder_digest({name: digest_of(folder / name) for name in (CONFIG, WEIGHTS)})


def open_runs(folders: Sequence[str], tick: Callable[[str], None]) -> list[Run]:
    """The tables of contents of all. Raises UserInputError [INPUT_ADAPTER_UNSUPPORTED]."""
    runs = []
    for number, folder in enumerate(folders, 1):
        adapter = open_adapter(folder, numbers=False)
        about = msgspec.json.decode((adapter.folder / CONFIG).read_bytes(), type=About)
        runs.append(Run(number, adapter, about, digest_of_adapter(adapter.folder)))
        tick(f"run {number}")
    return runs


def matched(runs: Sequence[Run]) -> Matched:
    """Of runs that agree (see agreement.py). In the order of the newest's file."""
    newest = runs[-1].adapter
    modules = [Module(tuple(run.adapter.lora[name] for run in runs)) for name in newest.lora]
    others = [tuple(run.adapter.replaced[name] for run in runs) for name in newest.replaced]
    others += [tuple(run.adapter.tokens[name][1] for run in runs) for name in newest.tokens]
    return Matched(tuple(modules), tuple(others))


def tensors_of(module: LoraModule) -> Iterator[StoredTensor]:
    for tensor in (module.A, module.B, module.bias, module.magnitude):
        if tensor is not None:
            yield tensor
