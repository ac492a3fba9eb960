"""Which of an adapter's tensors goes into which of the base's: worked out, and checked, before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from backpropagate_protocol.errors import UserInputError
from backpropagate_runner.export.adapter import Adapter, LoraModule
from backpropagate_runner.export.float_bits import FLOATS
from backpropagate_runner.export.model_files import ModelFiles
from backpropagate_runner.export.tensor_file import StoredTensor
from backpropagate_runner.export.tensor_names import HEAD, NameMap, input_embedding, is_tied, untied


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """How one tensor comes about: `source`, then whatever is not None, rounded to `dtype`."""

    source: StoredTensor
    dtype: str
    replaced: bool = False  # `source` is the adapter's
    lora: LoraModule | None = None
    across: bool = False  # the module's outputs are the columns of its weight, not the rows
    bias: tuple[StoredTensor, float] | None = None  # added after being scaled
    tokens: tuple[Sequence[int], StoredTensor] | None = None  # rows that are replaced

    @property
    def as_it_was(self) -> bool:
        return not (self.replaced or self.lora or self.bias or self.tokens)


def plan(files: ModelFiles, adapter: Adapter | None) -> tuple[dict[str, TensorPlan], dict[str, object]]:
    """A plan for each tensor of the merged model, by name, and its configuration.

    Raises UserInputError [INPUT_ADAPTER_UNSUPPORTED] if a tensor of the adapter has no place in this base.
    """
    plans = {name: TensorPlan(tensor, tensor.dtype) for name, tensor in files.tensors.items()}
    if adapter is None:
        return plans, files.config
    planner = _Planner(files, adapter, plans)
    planner.place_all()
    return plans, planner.config


class _Planner:
    def __init__(self, files: ModelFiles, adapter: Adapter, plans: dict[str, TensorPlan]) -> None:
        self._files, self._adapter, self._plans = files, adapter, plans
        self._names = NameMap(plans)
        self._input = input_embedding(plans)
        self._head = self._names.find(f"{HEAD}.weight")
        self._tied = is_tied(files.config, self._head)
        self.config = files.config

    def place_all(self) -> None:
        adapter = self._adapter
        for name, tensor in adapter.replaced.items():
            self._replace(name, tensor)
        across = self._has_conv1d()
        for module in adapter.modules():
            self._add(module, across)
        self._part_embeddings()
        for name, (rows, tensor) in adapter.tokens.items():
            self._set_rows(name, rows, tensor)

    def _replace(self, name: str, tensor: StoredTensor) -> None:
        target = self._target(name)
        old = self._plans[target]
        if old.replaced:
            raise self._misfit(f"two of its tensors take the place of {target}")
        if tensor.shape != old.source.shape:
            raise self._misfit(f"{name} has the shape {tensor.shape} and the base's {old.source.shape}")
        self._change(target, replace(old, source=tensor, replaced=True))

    def _add(self, module: LoraModule, across: bool) -> None:
        target = self._target(f"{module.name}.weight")
        old = self._plans[target]
        if old.lora is not None:
            raise self._misfit(f"two of its modules change {target}")
        inputs, outputs = module.A.shape[1], module.B.shape[0]
        if module.kind == "embedding":
            is_across = True
        elif inputs == outputs:
            is_across = across and module.name.rpartition(".")[2] != HEAD
        else:
            is_across = old.source.shape == (inputs, outputs)
        if old.source.shape != ((inputs, outputs) if is_across else (outputs, inputs)):
            raise self._misfit(f"{module.name} maps {inputs} to {outputs} and the base's weight is {old.source.shape}")
        if module.magnitude and module.magnitude.elements != outputs:
            raise self._misfit(f"{module.name} has {module.magnitude.elements} magnitudes for {outputs} outputs")
        self._change(target, replace(old, lora=module, across=is_across))
        if module.bias:
            self._add_bias(module, module.bias)

    def _add_bias(self, module: LoraModule, bias: StoredTensor) -> None:
        target = self._names.find(f"{module.name}.bias")
        if target is None or self._plans[target].source.shape != bias.shape:
            raise self._misfit(f"{module.name} has a trained bias and the base has none to add it to")
        self._change(target, replace(self._plans[target], bias=(bias, module.scale)))

    def _set_rows(self, name: str, rows: Sequence[int], tensor: StoredTensor) -> None:
        """Where one tensor serves twice the new rows do, too: that is how they were trained."""
        targets = {self._target(f"{name}.weight")}
        if self._tied and self._head is not None and self._input in targets:
            targets.add(self._head)
        for target in targets:
            old = self._plans[target]
            if max(rows, default=0) >= old.source.rows or tensor.row_size != old.source.row_size:
                raise self._misfit(f"the trained tokens of {name} are not in the base's vocabulary")
            self._change(target, replace(old, tokens=(rows, tensor)))

    def _part_embeddings(self) -> None:
        """One tensor that serves as input and output, and of which one use was trained by itself, becomes two."""
        if not self._tied or self._input is None:
            return
        head = self._head or f"{HEAD}.weight"
        trained = [name for name in (self._input, head) if name in self._plans and not self._plans[name].as_it_was]
        if trained or any(name.rpartition(".")[2] == HEAD for name in self._adapter.tokens):
            self._plans.setdefault(head, self._shared(self._input))
            self._tied = False
            self.config = untied(self._files.config)

    def _shared(self, name: str) -> TensorPlan:
        tensor = self._files.tensors[name]
        return TensorPlan(tensor, tensor.dtype)

    def _target(self, name: str) -> str:
        found = self._names.find(name)
        if found is not None:
            return found
        if name == f"{HEAD}.weight" and self._input is not None:
            self._plans.setdefault(name, self._shared(self._input))
            return name
        raise self._misfit(f"the base has no {name}")

    def _change(self, target: str, new: TensorPlan) -> None:
        if new.dtype not in FLOATS:
            raise UserInputError(
                f"{target} of {self._files.name} is stored as {new.dtype}, and an adapter can only be merged into "
                f"{', '.join(FLOATS)}",
                code="INPUT_MODEL_UNSUPPORTED",
                suggestion="Give the model in full precision.",
            )
        self._plans[target] = new

    def _has_conv1d(self) -> bool:
        """Whether this model keeps its weights transposed, as GPT-2 does: seen where they are not square."""
        for module in self._adapter.modules():
            target = self._names.find(f"{module.name}.weight")
            inputs, outputs = module.A.shape[1], module.B.shape[0]
            if module.kind == "linear" and inputs != outputs and target and module.name.rpartition(".")[2] != HEAD:
                return self._plans[target].source.shape == (inputs, outputs)
        return self._adapter.fan_in_fan_out

    def _misfit(self, why: str) -> UserInputError:
        return UserInputError(
            f"the adapter in {self._adapter.folder} does not fit {self._files.name}: {why}",
            code="INPUT_ADAPTER_UNSUPPORTED",
            suggestion="Give the base model that it was trained on"
            + (f": {self._adapter.base}." if self._adapter.base else "."),
        )
