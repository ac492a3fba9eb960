"""The shape that config.json tells of, against the models that transformers builds from the same configuration."""

from __future__ import annotations

import json

import pytest

from backpropagate.judge.shape import parameters, shape

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# In the real sizes of what the presets name: nothing is allocated on the meta device.
REAL = {
    "qwen2.5-7b": ("Qwen2", {"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False}, 7_615_616_512),
    "qwen2.5-3b": ("Qwen2", {"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2, "tie_word_embeddings": True}, 3_085_938_688),
    "qwen3-4b": ("Qwen3", {"vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True}, 4_022_468_096),
    "qwen3.5-4b": ("Qwen3_5Text", {"hidden_size": 2560, "intermediate_size": 9216, "num_hidden_layers": 32, "num_attention_heads": 16, "num_key_value_heads": 4, "tie_word_embeddings": True}, None),
    "llama-3.2-1b": ("Llama", {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True}, 1_235_814_400),
    "llama-3.2-3b": ("Llama", {"vocab_size": 128256, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True}, 3_212_749_824),
    "mistral-7b": ("Mistral", {"vocab_size": 32768, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}, 7_248_023_552),
    "phi-4-mini": ("Phi3", {"vocab_size": 200064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 24, "num_key_value_heads": 8, "tie_word_embeddings": True, "pad_token_id": 0}, 3_836_021_760),
    "smollm3-3b": ("SmolLM3", {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 4}, 3_075_098_624),
    "gemma-2b": ("Gemma", {"num_hidden_layers": 3}, None),
    "gemma-2-2b": ("Gemma2", {"num_hidden_layers": 3}, None),
    "gemma-3-1b": ("Gemma3Text", {"num_hidden_layers": 3, "vocab_size": 262144}, None),
    "llama with every bias": ("Llama", {"num_hidden_layers": 2, "attention_bias": True, "mlp_bias": True}, None),
    "qwen3 with biases": ("Qwen3", {"num_hidden_layers": 2, "attention_bias": True}, None),
}  # fmt: skip

_MODEL = {"Qwen3_5Text": "Qwen3_5", "Gemma3Text": "Gemma3"}


@pytest.mark.parametrize("name", REAL)
def test_every_layer_and_every_parameter_is_what_transformers_builds(name: str) -> None:
    family, fields, published = REAL[name]
    config = getattr(transformers, f"{family}Config")(**fields)
    with torch.device("meta"):
        model = getattr(transformers, f"{_MODEL.get(family, family)}ForCausalLM")(config)
    told = shape(json.loads(config.to_json_string(use_diff=False)))
    assert told is not None
    assert told.exact
    built = [
        (path.rpartition(".")[2], layer.in_features, layer.out_features, layer.bias is not None)
        for path, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and path != "lm_head"
    ]
    ours = [(layer.name, layer.inputs, layer.outputs, layer.bias) for block in told.blocks for layer in block.linears]
    assert sorted(ours) == sorted(built)
    assert told.parameters == sum(weight.numel() for weight in model.parameters())
    if published is not None:
        assert told.parameters == published
    assert parameters(json.loads(config.to_json_string())) == told.parameters  # with everything at its default left out


def test_of_a_qwen_that_sees_only_what_reads_is_counted() -> None:
    inner = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 512}  # fmt: skip
    config = {"model_type": "qwen3_5", "tie_word_embeddings": True, "text_config": inner, "vision_config": {"depth": 2}}
    alone = {**inner, "model_type": "qwen3_5_text", "tie_word_embeddings": True}
    assert parameters(config) == parameters(alone) is not None
    told = shape(config)
    assert told is not None
    assert [block.kind for block in told.blocks] == ["recurrent"] * 3 + ["attention"]


def test_an_unknown_family_has_a_shape_and_no_certain_count() -> None:
    config = {
        "model_type": "new",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 512,
    }
    told = shape(config)
    assert told is not None
    assert not told.exact
    assert told.parameters > 0
    assert parameters(config) is None


@pytest.mark.parametrize("config", [{}, {"model_type": "llama"}, {"model_type": "mixtral", "num_local_experts": 8, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512}])  # fmt: skip
def test_without_sizes_or_with_routed_experts_there_is_no_shape(config: dict[str, object]) -> None:
    assert shape(config) is None
    assert parameters(config) is None
