"""Which tensors the merged adapter and the next run's begin with consist of, for each rule and each kind of tensor.

| tensor                                    | merged: slao, ema  | merged: product rules   | next: slao, slao-product |
| lora_A, as (r, inputs)                    | the newest         | of the cut product      | orthonormal rows, Q^T    |
| lora_B, as (outputs, r)                   | interpolated       | of the cut product      | the newest               |
| lora_B.bias                               | interpolated       | interpolated            | the newest               |
| lora_embedding_A                          | interpolated       | of the cut product      | the newest               |
| lora_embedding_B                          | the newest         | of the cut product      | the newest               |
| biases, modules_to_save, trained tokens   | interpolated       | interpolated            | the newest               |

For embeddings PEFT begins with A zero and B random: A has there the part that B has elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from backpropagate_runner.combine.blend import Blend, Step
from backpropagate_runner.combine.inputs import Matched, tensors_of
from backpropagate_runner.combine.orthonormal import fits, orthonormal_rows
from backpropagate_runner.combine.outputs import F32, Output, as_it_is, blended, computed
from backpropagate_runner.combine.previous import State
from backpropagate_runner.combine.products import Factors
from backpropagate_runner.combine.rules import Wishes
from backpropagate_runner.export.adapter import LoraModule, as_float
from backpropagate_runner.export.tensor_file import StoredTensor


@dataclass
class Oddities:
    """What the orthonormal start met on its way: names of modules."""

    dependent: list[str] = field(default_factory=list)  # rows of A that depend on others
    too_high: list[str] = field(default_factory=list)  # more rows than inputs

    def notes(self) -> list[str]:
        said = []
        if self.dependent:
            said.append(
                f"rows of A depend on one another in {_some(self.dependent)}: the next run begins with arbitrary directions "
                "in their place"
            )
        if self.too_high:
            said.append(
                f"the rank is higher than the number of inputs in {_some(self.too_high)}: the next run begins with their A "
                "as it is"
            )
        return said


def merged_outputs(
    tensors: Matched, wishes: Wishes, state: State, budget: int, tick: Callable[[], None]
) -> Iterator[Output]:
    coefficients = wishes.coefficients(len(tensors.modules[0].runs) if tensors.modules else len(tensors.others[0]))

    def interpolated(runs: Sequence[StoredTensor], rescale: Callable[[int], float] = lambda run: 1.0) -> Output:
        newest, done = runs[-1], state.runs
        steps = tuple(
            Step(tensor, coefficients[run - 1], rescale(run)) for run, tensor in enumerate(runs, 1) if run > done
        )
        return blended(newest, Blend(state.tensors.get(newest.name) if done else None, steps))

    for module in tensors.modules:
        newest = module.newest
        if wishes.rule.of_products:
            factors = Factors(module, wishes, state, budget, tick)
            yield computed(newest.A, factors.A, state=True)
            yield computed(newest.B, factors.B, state=True)
        elif newest.kind == "embedding":
            yield interpolated([run.A for run in module.runs], module.rescale)
            yield as_it_is(newest.B)
        else:
            yield as_it_is(newest.A)
            yield interpolated([run.B for run in module.runs], module.rescale)
        biases = [run.bias for run in module.runs if run.bias is not None]
        if biases:
            yield interpolated(biases, module.rescale)
    for runs in tensors.others:
        yield interpolated(runs)


def orthonormal_outputs(tensors: Matched, oddities: Oddities) -> Iterator[Output]:
    """Filling `oddities` while the tensors are written."""
    for module in tensors.modules:
        for tensor in tensors_of(module.newest):
            yield _start(module.newest, oddities) if tensor is module.newest.A else as_it_is(tensor)
    for runs in tensors.others:
        yield as_it_is(runs[-1])


def _start(module: LoraModule, oddities: Oddities) -> Output:
    if module.kind == "embedding":
        return as_it_is(module.A)
    if not fits(module.A.shape):
        oddities.too_high.append(module.name)
        return as_it_is(module.A)

    def rows() -> F32:
        found = orthonormal_rows(as_float(module.A))
        if found.dependent:
            oddities.dependent.append(module.name)
        return found.rows

    return computed(module.A, rows, state=False)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more modules" if len(names) > 2 else "")
