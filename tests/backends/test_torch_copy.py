"""The copy of a trained state: what no later step changes, what is shared, and when there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from backpropagate_backends.base import ADAPTER_WEIGHTS
from backpropagate_backends.torch_copy import take
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
