"""A GGUF adapter over its base's GGUF answers as PEFT does, whatever scales the modules have."""

from __future__ import annotations

from pathlib import Path

import llama_cpp
import numpy as np
import pytest
import torch

from backpropagate_protocol.errors import UserInputError
from backpropagate_protocol.jobs import ConvertAdapterJob
from backpropagate_protocol.messages import Made, Phase
from backpropagate_runner.export.adapter import as_float, open_adapter
from backpropagate_runner.export.convert_adapter import convert_adapter
from tests.runner.export.gguf_models import read as contents
from tests.runner.export.gguf_models import save
from tests.runner.export.heard import Heard
from tests.runner.export.peft_models import adapted, save_adapter, spec
from tests.runner.export.test_convert import own

IDS = [5, 77, 130, 301, 9, 256, 2, 44]


def alone(base: Path, adapter: Path, out: Path) -> Made:
    job = ConvertAdapterJob(model=spec(base), adapter=str(adapter), out=str(out), name="tiny")
    return convert_adapter(job, Heard(Phase.CONVERT).stage)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    for name in ("llama3", "phi3", "qwen2-tied"):
        own(save(name, folder / name), folder / f"{name}.gguf", "f32")
    return folder


def with_llama_cpp(base: Path, adapter: Path) -> np.ndarray:
    llama = llama_cpp.Llama(
        str(base), lora_path=str(adapter), logits_all=True, n_ctx=64, n_threads=1, type_k=0, type_v=0, verbose=False
    )
    llama.eval(IDS)
    answer = np.array(llama.scores[: len(IDS)])
    llama.close()
    return answer


KINDS: dict[str, tuple[str, dict[str, object]]] = {
    "plain": ("llama3", {"target_modules": "all-linear"}),
    "rslora": ("llama3", {"target_modules": "all-linear", "use_rslora": True}),
    "alpha for some": ("llama3", {"target_modules": "all-linear", "alpha_pattern": {"q_proj": 32, "down_proj": 2}}),
    "rank and alpha for some": (
        "llama3",
        {
            "target_modules": "all-linear",
            "rank_pattern": {"k_proj": 2},
            "alpha_pattern": {r"layers\.1\.mlp\.up_proj": 1},
        },
    ),
    "the output": ("llama3", {"target_modules": ["lm_head", "v_proj"]}),
    "the embedding": ("llama3", {"target_modules": ["embed_tokens", "k_proj"]}),
    "fused": ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj", "o_proj"]}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_over_its_base_answers_as_peft_does(bases: Path, tmp_path: Path, kind: str) -> None:
    name, lora = KINDS[kind]
    adapter = save_adapter(bases / name, tmp_path / "adapter", {"r": 4, "lora_alpha": 8, **lora})
    made = alone(bases / name, adapter, tmp_path / "adapter.gguf")
    with torch.inference_mode():
        wanted = adapted(bases / name, adapter).eval()(torch.tensor([IDS])).logits[0].numpy()
    answer = with_llama_cpp(bases / f"{name}.gguf", tmp_path / "adapter.gguf")
    assert np.abs(answer - wanted).max() < 2e-4
    assert made.bytes == (tmp_path / "adapter.gguf").stat().st_size


@pytest.mark.slow
def test_a_plain_adapter_keeps_its_alpha_and_every_bit(bases: Path, tmp_path: Path) -> None:
    adapter = save_adapter(
        bases / "llama3", tmp_path / "adapter", {"r": 4, "lora_alpha": 12, "target_modules": ["v_proj"]}
    )
    alone(bases / "llama3", adapter, tmp_path / "adapter.gguf")
    made = contents(tmp_path / "adapter.gguf")
    assert {key: made.said[key] for key in made.said if "adapter" in key or "type" in key} == {
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 12.0,
        "general.file_type": 0,
    }
    for name, module in open_adapter(str(adapter)).lora.items():
        layer = name.split(".")[2]
        for part, stored in (("a", module.A), ("b", module.B)):
            assert np.array_equal(made.tensors[f"blk.{layer}.attn_v.weight.lora_{part}"][2], as_float(stored))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "lora", "why"),
    [
        ("llama3", {"target_modules": ["q_proj"], "use_dora": True}, "DoRA"),
        ("llama3", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "whole trained tensors"),
        ("llama3", {"target_modules": ["q_proj"], "trainable_token_indices": [1, 2]}, "token embeddings"),
        ("qwen2-tied", {"target_modules": ["lm_head"]}, "in and out alike"),
        ("qwen2-tied", {"target_modules": ["embed_tokens"]}, "in and out alike"),
    ],
)
def test_what_a_gguf_adapter_cannot_say_is_refused_in_favour_of_a_merge(
    bases: Path, tmp_path: Path, name: str, lora: dict[str, object], why: str
) -> None:
    adapter = save_adapter(bases / name, tmp_path / "adapter", {"r": 4, **lora})
    with pytest.raises(UserInputError, match=why) as raised:
        alone(bases / name, adapter, tmp_path / "adapter.gguf")
    assert raised.value.code == "INPUT_ADAPTER_UNSUPPORTED"
    assert "merged" in raised.value.suggestion
    assert not (tmp_path / "adapter.gguf").exists()
