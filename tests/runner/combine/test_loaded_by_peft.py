"""The merged folder in PEFT's hands: it loads, and the layers are W0 + s B_merge A_merge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import torch

from backpropagate_protocol.combined import MERGED, NEXT
from tests.runner.combine.runs import Merging, tensors
from tests.runner.export import peft_models as models

ALL: dict[str, object] = {"target_modules": "all-linear", "r": 4, "lora_alpha": 8}


def trained(base: Path, folder: Path, lora: dict[str, object], count: int = 3) -> list[Path]:
    """Runs that moved apart by more each time."""
    return [models.save_adapter(base, folder / str(n), lora, strength=0.05 * n) for n in range(1, count + 1)]


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("rule", ["slao", "slao-product", "average"])
def test_each_layer_is_the_base_plus_the_scaled_product(rule: str, rslora: bool, tmp_path: Path) -> None:
    base = models.save_base(models.llama(), tmp_path / "base")
    lora = ALL | {"use_rslora": rslora}
    merging = Merging(trained(base, tmp_path, lora), tmp_path / "out", rule)
    before = models.load(base).state_dict()
    after = models.merged_by_peft(base, tmp_path / "out" / MERGED)
    scale = 8 / np.sqrt(4) if rslora else 8 / 4
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) == 14
    for name in changed:
        module = f"base_model.model.{name.removesuffix('.weight')}"
        a, b = (merging.merged[f"{module}.lora_{side}.weight"].astype(np.float64) for side in "AB")
        expected = before[name].numpy() + scale * (b @ a)
        assert np.abs(after[name].numpy() - expected).max() < 1e-5


KINDS: tuple[dict[str, object], ...] = (
    {"target_modules": ["embed_tokens", "v_proj"]},
    {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]},
    {"target_modules": ["v_proj"], "lora_bias": True},
    {"target_modules": ["v_proj"], "bias": "all"},
    {"target_modules": ["v_proj"], "trainable_token_indices": [1, 2]},
    {"target_modules": ["v_proj", "up_proj"], "rank_pattern": {"up_proj": 6}, "alpha_pattern": {"up_proj": 3}},
)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("rule", ["slao", "average", "ties"])
def test_every_kind_of_adapter_comes_out_complete(kind: dict[str, object], rule: str, tmp_path: Path) -> None:
    """With the names, shapes and settings that PEFT expects, and with an effect of its own."""
    base = models.save_base(models.llama(), tmp_path / "base")
    runs = trained(base, tmp_path, kind)
    Merging(runs, tmp_path / "out", rule)
    newest = tensors(runs[-1])
    for below in (MERGED, NEXT):
        found = tensors(tmp_path / "out" / below)
        assert {name: value.shape for name, value in found.items()} == {n: v.shape for n, v in newest.items()}
    merged, last = (models.logits(models.adapted(base, folder)) for folder in (tmp_path / "out" / MERGED, runs[-1]))
    assert torch.isfinite(merged).all()
    assert not torch.allclose(merged, last, atol=1e-4)


def test_merging_a_run_with_itself_answers_as_it_did(tmp_path: Path) -> None:
    base = models.save_base(models.qwen2(), tmp_path / "base")
    (run,) = trained(base, tmp_path, ALL, 1)
    expected = models.logits(models.adapted(base, run))
    for rule in ("slao", "slao-product", "ema", "average", "ties", "dare", "none"):
        Merging([run] * 3, tmp_path / rule, rule, density=1.0)
        found = models.logits(models.adapted(base, tmp_path / rule / MERGED))
        assert torch.allclose(found, expected, atol=1e-5), rule
