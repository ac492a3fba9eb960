"""The copy of a trained state: what no later step changes, what is shared, and when there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from backpropagate_backends.base import ADAPTER_WEIGHTS
from backpropagate_backends.torch_copy import State, make_ready, take
from backpropagate_backends.torch_spare import MOST, Spare
from tests.backends.torch_runs import FOREIGN_WARNINGS

pytestmark = [pytest.mark.slow, FOREIGN_WARNINGS]


@pytest.fixture
def trained(tiny: Path) -> tuple[PeftModel, torch.optim.Optimizer]:
    base = AutoModelForCausalLM.from_pretrained(tiny)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert isinstance(model, PeftModel)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    _step(model, optimizer)
    return model, optimizer


def _step(model: PeftModel, optimizer: torch.optim.Optimizer) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def test_what_is_written_is_the_state_of_its_step_whatever_was_trained_since(
    trained: tuple[PeftModel, torch.optim.Optimizer], tmp_path: Path
) -> None:
    model, optimizer = trained
    (tmp_path / "then").mkdir()
    take(model, optimizer).write(tmp_path / "then")
    state = take(model, optimizer)
    assert state.copied
    _step(model, optimizer)
    (tmp_path / "later").mkdir()
    state.write(tmp_path / "later")
    for name in (ADAPTER_WEIGHTS, "adapter_config.json"):
        assert (tmp_path / "then" / name).read_bytes() == (tmp_path / "later" / name).read_bytes()
    now = {name: value for name, value in model.state_dict().items() if "lora_A" in name}
    kept = load_file(tmp_path / "later" / ADAPTER_WEIGHTS)
    assert all(not torch.equal(value, kept[name.replace(".default", "")]) for name, value in now.items())
    moments = torch.load(tmp_path / "later" / "optimizer.pt", weights_only=True)["state"]
    assert {float(part["step"]) for part in moments.values()} == {1.0}


def test_frozen_weights_are_not_copied(trained: tuple[PeftModel, torch.optim.Optimizer]) -> None:
    model, optimizer = trained
    weights = take(model, optimizer).weights
    for name, value in model.state_dict().items():
        copy = weights[name]
        assert isinstance(copy, torch.Tensor)
        assert (copy.data_ptr() == value.data_ptr()) == ("lora" not in name)


def test_where_there_is_no_memory_for_a_copy_the_state_itself_is_written(
    trained: tuple[PeftModel, torch.optim.Optimizer],
) -> None:
    model, optimizer = trained
    state = take(model, optimizer, free_memory=lambda: 1 << 20)
    assert not state.copied
    assert {v.data_ptr() for v in state.weights.values() if isinstance(v, torch.Tensor)} == {
        v.data_ptr() for v in model.state_dict().values()
    }


def _places(state: State) -> set[int]:
    """Where the copies are, of weights and moments."""
    assert isinstance(state.optimizer, dict)
    weights = [value for name, value in state.weights.items() if "lora" in name]
    moments = [value for part in state.optimizer["state"].values() for value in part.values()]
    return {value.data_ptr() for value in (*weights, *moments) if isinstance(value, torch.Tensor)}


def test_a_copy_that_is_written_lends_its_memory_to_the_next_and_never_before(
    trained: tuple[PeftModel, torch.optim.Optimizer], tmp_path: Path
) -> None:
    model, optimizer = trained
    spare = Spare()
    first = take(model, optimizer, spare)
    held = take(model, optimizer, spare)
    assert not _places(first) & _places(held)
    first.write(tmp_path)
    _step(model, optimizer)
    again = take(model, optimizer, spare)
    assert _places(again) == _places(first)
    weights = model.state_dict()
    assert all(
        torch.equal(value, weights[name]) for name, value in again.weights.items() if isinstance(value, torch.Tensor)
    )


def test_a_copy_that_is_written_twice_lends_its_memory_once(
    trained: tuple[PeftModel, torch.optim.Optimizer], tmp_path: Path
) -> None:
    model, optimizer = trained
    spare = Spare()
    first = take(model, optimizer, spare)
    first.write(tmp_path)
    second = take(model, optimizer, spare)
    first.write(tmp_path)
    assert not _places(second) & _places(take(model, optimizer, spare))


def test_the_first_copy_finds_memory_that_was_touched_before(
    trained: tuple[PeftModel, torch.optim.Optimizer],
) -> None:
    model, optimizer = trained
    spare = Spare()
    make_ready(model, optimizer, spare)
    state = take(model, optimizer, spare)
    assert state.copied
    assert spare.kept == 0


def test_a_copy_that_is_large_beside_what_is_free_is_not_kept(
    trained: tuple[PeftModel, torch.optim.Optimizer], tmp_path: Path
) -> None:
    model, optimizer = trained
    spare, size = Spare(), sum(p.nbytes for p in model.parameters() if p.requires_grad)
    state = take(
        model, optimizer, spare, free_memory=lambda: (1 << 30) + 8 * size
    )  # with its moments, more than a third
    state.write(tmp_path)
    assert state.copied
    assert spare.kept == 0
    assert not spare.begin(MOST, lambda: MOST - 1)
