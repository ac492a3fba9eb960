"""The trained state copied to host memory at a step boundary, so that a thread can write it while the training goes on.

Only what training changes is copied: frozen weights stay where they are, and are never written. A copy must fit into the
machine's memory; where it would not, the state is written as it is, and the training waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedModel

from backpropagate_backends.host_memory import free_host_memory
from backpropagate_backends.torch_spare import Spare
from backpropagate_backends.torch_whole import save_trained

_OPTIMIZER = "optimizer.pt"  # where the Trainer looks for it
_MARGIN = 1 << 30  # bytes of host memory that stay free
# How torch words a failed write: its archive writer raises a bare RuntimeError.
_WRITE_ERRORS = (
    "inline_container",
    "PytorchStreamWriter",
    "file write failed",
    "unexpected pos",
    "iostream error",
    "No space left",
)


def is_write_error(error: BaseException) -> bool:
    """True if `error` says that a file could not be written."""
    if isinstance(error, (OSError, SafetensorError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _WRITE_ERRORS)


@dataclass(frozen=True, slots=True)
class State:
    """Weights and moments of one step. `copied`: in memory of its own, which no later step changes."""

    model: PreTrainedModel | PeftModel
    weights: Mapping[str, object]  # as `model.state_dict` names them
    optimizer: object
    copied: bool
    let_go: Callable[[], None] = lambda: None

    def write(self, folder: Path) -> None:
        """Once: a copy's memory is the next one's after that. Raises OSError if it cannot be written."""
        try:
            save_trained(self.model, str(folder), self.weights)
            torch.save(self.optimizer, folder / _OPTIMIZER)
        except (RuntimeError, SafetensorError) as error:
            if not is_write_error(error):
                raise
            raise OSError(str(error)) from error
        finally:
            self.let_go()


def make_ready(
    model: PreTrainedModel | PeftModel,
    optimizer: torch.optim.Optimizer,
    spare: Spare,
    free_memory: Callable[[], int] = free_host_memory,
) -> None:
    """Memory for the first copy, when the optimizer has its moments. It is touched beside the training."""
    spare.touch(lambda: _tensors(list(_parts(model, optimizer)[1:])), lambda: free_memory() - _MARGIN)


def take(
    model: PreTrainedModel | PeftModel,
    optimizer: torch.optim.Optimizer,
    spare: Spare | None = None,
    free_memory: Callable[[], int] = free_host_memory,
) -> State:
    """The state as it is now; copied, if there is memory for that: into what is in `spare`, as far as it goes."""
    spare = Spare() if spare is None else spare
    weights, changing, moments = _parts(model, optimizer)
    needed = sum(tensor.nbytes for tensor in _tensors([changing, moments]))
    if not spare.begin(needed, lambda: free_memory() - _MARGIN):
        return State(model, weights, moments, copied=False)
    if any(tensor.is_cuda for tensor in changing.values() if isinstance(tensor, torch.Tensor)):
        torch.cuda.synchronize()  # paged moments are read by the processor, which does not wait for the card by itself
    copies = _Copies(spare)
    copied = {**weights, **copies.each(changing)}
    return State(model, copied, copies.of(moments), copied=True, let_go=copies.let_go)


def _parts(
    model: PreTrainedModel | PeftModel, optimizer: torch.optim.Optimizer
) -> tuple[Mapping[str, object], dict[str, object], Mapping[str, object]]:
    """All weights, those of them that change, and the moments."""
    weights: Mapping[str, object] = model.state_dict()
    names = _changing(model)
    return weights, {name: value for name, value in weights.items() if name in names}, optimizer.state_dict()


def _changing(model: torch.nn.Module) -> set[str]:
    """Names of the weights that are trained and, of a whole model, of what a forward pass may change."""
    names = {name for name, weight in model.named_parameters(remove_duplicate=False) if weight.requires_grad}
    if not isinstance(model, PeftModel):
        names |= {name for name, _ in model.named_buffers(remove_duplicate=False)}
    return names


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)


class _Copies:
    """What shares memory is copied once, and shares it again: a file of theirs would hold it twice."""

    def __init__(self, spare: Spare) -> None:
        self._spare = spare
        self._made: dict[tuple[object, ...], torch.Tensor] = {}

    def let_go(self) -> None:
        """Once: what is given back twice would be given out twice, too, and two saves would write into each other."""
        made, self._made = self._made, {}
        self._spare.give_back(made.values())

    def each(self, values: Mapping[str, object]) -> dict[str, object]:
        return {name: self.of(value) for name, value in values.items()}

    def of(self, value: object) -> object:
        match value:
            case torch.Tensor():
                return self._tensor(value)
            case Mapping():
                return {key: self.of(part) for key, part in value.items()}
            case list():
                return [self.of(part) for part in value]
            case tuple():
                return tuple(self.of(part) for part in value)
            case _:
                return value

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if place not in self._made:
            self._made[place] = self._spare.copy(tensor)
        return self._made[place]
