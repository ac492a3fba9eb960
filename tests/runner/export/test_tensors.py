"""Merged rows against PEFT's own merge, for every kind of adapter and in every precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import torch
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedModel

from backpropagate_protocol.errors import ModelLoadError, UserInputError
from backpropagate_runner.export import float_bits
from backpropagate_runner.export.adapter import open_adapter
from backpropagate_runner.export.model_files import open_model
from backpropagate_runner.export.tensors import MergedWeights, open_weights
from tests.runner.export import peft_models as models

Case = tuple[Callable[[], PreTrainedModel], dict[str, object]]

CASES: dict[str, Case] = {
    "all-linear": (models.llama, {"r": 8, "lora_alpha": 12, "target_modules": "all-linear"}),
    "rslora with patterns": (
        models.llama,
        {
            "r": 8,
            "target_modules": "all-linear",
            "use_rslora": True,
            "rank_pattern": {"q_proj": 4},
            "alpha_pattern": {r"layers\.0\.mlp\.down_proj": 3, "v_proj": 5},
        },
    ),
    "dora": (models.llama, {"target_modules": "all-linear", "use_dora": True}),
    "embeddings": (models.llama, {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "dora on embeddings": (models.llama, {"target_modules": ["embed_tokens", "lm_head"], "use_dora": True}),
    "modules to save": (
        models.llama,
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head", "norm"]},
    ),
    "trained tokens": (models.llama, {"target_modules": ["q_proj"], "trainable_token_indices": [1, 5, 95]}),
    "trained tokens, tied": (models.qwen2, {"target_modules": ["q_proj"], "trainable_token_indices": [95, 1]}),
    "a bias in the adapter": (models.llama, {"target_modules": ["q_proj", "o_proj"], "lora_bias": True}),
    "all biases": (models.llama, {"target_modules": ["q_proj"], "bias": "all"}),
    "conv1d": (models.gpt2, {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "square conv1d": (models.gpt2, {"target_modules": ["attn.c_proj"]}),
    "dora on conv1d": (models.gpt2, {"target_modules": ["c_attn", "c_proj", "c_fc"], "use_dora": True}),
}


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("case", CASES)
def test_merged_rows_are_those_of_pefts_own_merge(case: str, dtype: str, tmp_path: Path) -> None:
    make, lora = CASES[case]
    base = models.save_base(make(), tmp_path / "base", dtype)
    adapter = models.save_adapter(base, tmp_path / "adapter", lora, dtype)
    expected = models.merged_by_peft(base, adapter, dtype)
    weights = opened(base, adapter)
    changed = 0
    for name in weights.names:
        theirs, ours = expected[name], whole(weights, name)
        assert close(ours, theirs, dtype), name
        assert weights.touched(name) or torch.equal(ours, theirs), name
        changed += weights.touched(name)
    assert changed


def test_without_an_adapter_every_row_is_as_it_was(tmp_path: Path) -> None:
    base = models.save_base(models.llama(), tmp_path / "base", "BF16", shard="10KB")
    expected = models.load(base, "BF16").state_dict()
    files = open_model(models.spec(base))
    assert len(files.shards) > 2
    weights = open_weights(files, None)
    assert set(weights.names) == expected.keys()
    assert not any(weights.touched(name) for name in weights.names)
    assert all(torch.equal(whole(weights, name), expected[name]) for name in weights.names)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_which_rows_are_asked_for_at_once_changes_no_bit(dtype: str, tmp_path: Path) -> None:
    base = models.save_base(models.gpt2(), tmp_path / "base", dtype)
    adapter = models.save_adapter(base, tmp_path / "adapter", {"target_modules": ["c_attn", "c_fc"], "use_dora": True})
    weights = opened(base, adapter)
    for name in weights.names:
        assert torch.equal(whole(weights, name, 5), whole(weights, name, 1000)), name
        rows = weights.shape(name)[0]
        values = np.concatenate([weights.rows(name, at, min(at + 7, rows)) for at in range(0, rows, 7)])
        assert torch.equal(torch.from_numpy(values), whole(weights, name).float()), name


def test_one_trained_embedding_of_a_tied_pair_leaves_the_other_alone(tmp_path: Path) -> None:
    """PEFT's merge adds the same delta to both; what was trained is a model in which they differ."""
    base = models.save_base(models.qwen2(), tmp_path / "base")
    adapter = models.save_adapter(base, tmp_path / "adapter", {"target_modules": ["embed_tokens", "q_proj"]})
    weights = opened(base, adapter)
    original = models.load(base).state_dict()["lm_head.weight"]
    assert torch.equal(whole(weights, "lm_head.weight"), original)
    assert not torch.equal(whole(weights, "model.embed_tokens.weight"), original)
    assert weights.config["tie_word_embeddings"] is False
    assert weights.notes


def test_an_adapter_of_the_output_alone_gets_an_output_of_its_own(tmp_path: Path) -> None:
    base = models.save_base(models.qwen2(), tmp_path / "base")
    adapter = models.save_adapter(base, tmp_path / "adapter", {"target_modules": ["lm_head"]})
    weights = opened(base, adapter)
    assert not weights.touched("model.embed_tokens.weight")
    assert weights.touched("lm_head.weight")
    assert weights.config["tie_word_embeddings"] is False


def test_numbers_that_are_too_large_for_the_base_are_an_error(tmp_path: Path) -> None:
    base = models.save_base(models.llama(), tmp_path / "base", "F16")
    adapter = models.save_adapter(base, tmp_path / "adapter", {"target_modules": ["q_proj"]}, strength=1e3)
    with pytest.raises(UserInputError, match="q_proj"):
        whole(opened(base, adapter), "model.layers.0.self_attn.q_proj.weight")


def test_a_damaged_base_is_not_blamed_on_the_adapter(tmp_path: Path) -> None:
    base = models.save_base(models.llama(), tmp_path / "base")
    adapter = models.save_adapter(base, tmp_path / "adapter", {"target_modules": ["q_proj"]})
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.weight"][3, 3] = np.inf
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelLoadError, match="base model base is damaged") as told:
        whole(opened(base, adapter), "model.layers.0.self_attn.q_proj.weight")
    assert "again" in told.value.suggestion


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_rounding_is_torchs_bit_for_bit(dtype: str) -> None:
    """Every upper half of a float32, with the lower halves where rounding is decided; what would be infinite left out."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    bits = np.concatenate([upper | low for low in (0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF)])
    values = bits.view(np.float32)
    values = values[np.abs(values) < float_bits.LARGEST[dtype]]
    theirs = torch.from_numpy(values.copy()).to(models.DTYPES[dtype])
    ours = np.empty(values.shape, float_bits.STORED[dtype])
    float_bits.narrow(values.copy(), dtype, ours)
    assert np.array_equal(ours.view(np.uint16), theirs.view(torch.uint16).numpy())
    rounded = values.copy()
    float_bits.round_to(rounded, dtype)
    widened = np.empty_like(values)
    float_bits.widen(ours, dtype, widened)
    assert np.array_equal(widened.view(np.uint32), theirs.float().numpy().view(np.uint32))
    assert np.array_equal(rounded.view(np.uint32), widened.view(np.uint32))


def opened(base: Path, adapter: Path) -> MergedWeights:
    return open_weights(open_model(models.spec(base)), open_adapter(str(adapter)))


def whole(weights: MergedWeights, name: str, step: int = 13) -> torch.Tensor:
    rows = weights.shape(name)[0]
    stored = np.concatenate([weights.stored(name, at, min(at + step, rows)) for at in range(0, rows, step)])
    assert stored.shape == weights.shape(name)
    found = torch.from_numpy(stored)
    return found.view(torch.bfloat16) if weights.dtype(name) == "BF16" else found


def close(ours: torch.Tensor, theirs: torch.Tensor, dtype: str) -> bool:
    """At most one unit in the last place apart; float32 some more, since the two libraries add up in another order."""
    if dtype == "F32":
        return bool(torch.allclose(ours, theirs, rtol=1e-6, atol=1e-7))
    one, other = (tensor.contiguous().view(torch.int16).int() for tensor in (ours, theirs))
    return bool(((one - other).abs() <= 1).all())
