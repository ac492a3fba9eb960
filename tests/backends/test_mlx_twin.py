"""A model is tried by a small twin with the very config.json that is trained, and refused if mlx-lm understands it otherwise."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from backpropagate_backends.model_source import find
from backpropagate_protocol.errors import UserInputError
from backpropagate_protocol.spec import ModelSpec
from tests.backends.torch_runs import FOREIGN_WARNINGS

pytest.importorskip("mlx_lm")
from backpropagate_backends.mlx_twin import check_arithmetic, distance

pytestmark = [pytest.mark.slow, FOREIGN_WARNINGS]

LLAMA: dict[str, object] = {
    "model_type": "llama",
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 512,
    "vocab_size": 1000,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 8192}
SCALINGS: dict[str, dict[str, object]] = {
    "llama3": {
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "linear": {"factor": 4.0},
    "yarn": {**YARN},
}
OTHERWISE = 0.01  # of the logits' spread: see mlx_twin


def _tried(folder: Path, config: dict[str, object]) -> list[tuple[str, str]]:
    """What is noticed; raises if it is refused."""
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").touch()
    noticed: list[tuple[str, str]] = []
    source = find(ModelSpec(name="m", path=str(folder)))
    check_arithmetic(source, lambda text, level: noticed.append((level, text)))
    return noticed


@pytest.mark.parametrize("kind", SCALINGS)
@pytest.mark.parametrize("key", ["type", "rope_type", "rope_parameters"])
def test_positions_are_the_same_in_mlx_however_they_are_written(kind: str, key: str) -> None:
    """As on most of the hub, in two spellings, and as transformers 5 writes it."""
    if key == "rope_parameters":
        rope: dict[str, object] = {key: {**SCALINGS[kind], "rope_type": kind, "rope_theta": 5e5}}
    else:
        rope = {"rope_theta": 5e5, "rope_scaling": {**SCALINGS[kind], key: kind}}
    assert distance({**LLAMA, **rope}) < OTHERWISE / 10


def test_a_scaling_that_is_not_read_would_show(tmp_path: Path) -> None:
    """The factor that attention has under YaRN can be set by hand, which mlx-lm passes over."""
    scaled = {"rope_theta": 5e5, "rope_scaling": {**YARN, "rope_type": "yarn", "attention_factor": 2.0}}
    with pytest.raises(UserInputError) as caught:
        _tried(tmp_path, {**LLAMA, **scaled})
    assert caught.value.code == "INPUT_MODEL_UNSUPPORTED"


def test_what_the_file_leaves_unsaid_is_left_so(tmp_path: Path) -> None:
    """transformers takes it for untied, and would write so; mlx-lm takes it for tied, and drops the last layer."""
    config = {**LLAMA, "rope_theta": 5e5}
    assert _tried(tmp_path, {**config, "tie_word_embeddings": False}) == []
    del config["tie_word_embeddings"]
    with pytest.raises(UserInputError) as caught:
        _tried(tmp_path, config)
    assert caught.value.code == "INPUT_MODEL_UNSUPPORTED"


def test_a_mixture_is_tried_with_few_experts() -> None:
    mixture = {
        "model_type": "qwen3_moe",
        "head_dim": 64,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "decoder_sparse_step": 1,
        "norm_topk_prob": True,
        "mlp_only_layers": [],
        "rope_theta": 1e6,
    }
    assert distance({**LLAMA, **mixture}) < OTHERWISE / 10


def test_what_cannot_be_tried_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration that no library knows; and any, where torch is not installed."""
    [(level, text)] = _tried(tmp_path, {**LLAMA, "model_type": "never_heard_of"})
    assert level == "warning"
    assert "could not be tried" in text
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not there
    [(level, text)] = _tried(tmp_path, {**LLAMA, "rope_theta": 5e5})
    assert level == "info"
    assert "needs torch" in text
