"""What our converter covers, and what it leaves to the official one."""

from __future__ import annotations

import math

import pytest

from backpropagate_runner.export.gguf_arch import COVERED, NotCovered, architecture, read

LLAMA: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "vocab_size": 300,
    "rope_theta": 500000.0,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_an_older_and_a_newer_configuration_say_the_same() -> None:
    older = read({**LLAMA, "rope_scaling": LLAMA3_ROPE})
    newer = {key: value for key, value in LLAMA.items() if key != "rope_theta"}
    assert older == read({**newer, "rope_parameters": {**LLAMA3_ROPE, "rope_theta": 500000.0}})
    assert older.metadata["rope.freq_base"] == 500000.0


def test_llama3_slows_long_waves_by_the_factor_and_leaves_short_ones() -> None:
    factors = read({**LLAMA, "head_dim": 128, "rope_scaling": LLAMA3_ROPE}).factors["rope_freqs.weight"]
    assert len(factors) == 64
    assert (factors[0], factors[-1]) == (1.0, 8.0)
    assert list(factors) == sorted(factors)


def test_a_tied_output_is_left_out_and_buffers_are() -> None:
    arch = read({**LLAMA, "tie_word_embeddings": True})
    names = arch.names(["lm_head.weight", "model.embed_tokens.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"])
    assert names == {"model.embed_tokens.weight": "token_embd.weight"}


def test_an_unknown_tensor_is_refused_and_so_is_a_missing_one() -> None:
    arch = read({**LLAMA, "num_hidden_layers": 2})
    for name in (
        "mlp.router.weight",
        "self_attn.sinks",
        "self_attn.q_norm.weight",
        "post_feedforward_layernorm.weight",
    ):
        with pytest.raises(NotCovered, match=name):
            arch.names([f"model.layers.0.{name}"])
    with pytest.raises(NotCovered, match=r"o_proj\.bias"):
        read({**LLAMA, "architectures": ["Qwen2ForCausalLM"]}).names(["model.layers.0.self_attn.o_proj.bias"])
    whole = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    whole += [f"model.layers.{layer}.self_attn.{part}_proj.weight" for layer in (0, 1) for part in "qkvo"]
    assert len(arch.all_names(whole)) == 11
    with pytest.raises(NotCovered, match=r"no blk\.1\.attn_output\.weight"):
        arch.all_names(whole[:-1])


def test_an_output_that_is_neither_there_nor_tied_is_missed() -> None:
    names = ["model.embed_tokens.weight", "model.norm.weight"]
    names += [f"model.layers.{layer}.input_layernorm.weight" for layer in range(4)]
    with pytest.raises(NotCovered, match=r"no output\.weight"):
        read(LLAMA).all_names(names)


def test_only_query_and_key_are_permuted_and_only_where_llama_cpp_pairs_halves() -> None:
    llama = read(LLAMA)
    assert llama.heads("model.layers.0.self_attn.q_proj.weight") == 4
    assert llama.heads("model.layers.0.self_attn.k_proj.bias") == 2
    assert llama.heads("model.layers.0.self_attn.v_proj.weight") == 0
    assert read({**LLAMA, "architectures": ["Qwen3ForCausalLM"]}).heads("model.layers.0.self_attn.q_proj.weight") == 0


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, "the architecture GemmaForCausalLM"),
        ({"architectures": ["Qwen3MoeForCausalLM"]}, "the architecture Qwen3MoeForCausalLM"),
        ({"num_local_experts": 8}, "num_local_experts"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"hidden_act": "gelu"}, "the activation gelu"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "of the kind yarn"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "of the kind dynamic"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 2]}}, "sections"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "between layers"),
        ({"partial_rotary_factor": 0.5}, "partial rotary"),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 256}, "a sliding window of 256"),
        ({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 256, "use_sliding_window": True}, "window of 256"),
        ({"architectures": ["Qwen2ForCausalLM"], "layer_types": ["full_attention", "sliding_attention"]}, "attention"),
        ({"architectures": ["Qwen2ForCausalLM"], "head_dim": 32}, "heads of 32"),
        ({"architectures": ["Qwen2ForCausalLM"], "rope_scaling": LLAMA3_ROPE}, "of the kind llama3"),
        ({"architectures": ["Qwen3ForCausalLM"], "attention_bias": True}, "biases"),
        ({"architectures": ["SmolLM3ForCausalLM"], "no_rope_layers": [1, 1, 1, 1]}, "every 4th layer"),
        ({"architectures": ["SmolLM3ForCausalLM"], "no_rope_layer_interval": 2}, "every 4th layer"),
        (
            {"architectures": ["Phi3ForCausalLM"], "rope_scaling": {"type": "longrope", "long_factor": [1.0]}},
            "long_factor",
        ),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small'"),
    ],
)
def test_what_was_not_checked_is_not_covered(changed: dict[str, object], reason: str) -> None:
    config = {**LLAMA, **changed}
    assert architecture(config) is None
    with pytest.raises(NotCovered, match=reason):
        read(config)


@pytest.mark.parametrize("name", COVERED)
def test_every_covered_architecture_takes_a_plain_configuration(name: str) -> None:
    arch = architecture({**LLAMA, "architectures": [name]})
    assert arch is not None
    assert arch.layers == 4
    assert not arch.factors


def test_a_window_that_is_switched_off_or_never_reached_is_none() -> None:
    assert architecture({**LLAMA, "architectures": ["Qwen2ForCausalLM"], "sliding_window": 4}) is not None
    assert architecture({**LLAMA, "architectures": ["MistralForCausalLM"], "sliding_window": 4096}) is not None


def test_longrope_says_how_much_stronger_attention_becomes() -> None:
    rope = {"type": "longrope", "long_factor": [1.0] * 8, "short_factor": [1.0] * 8}
    phi = {**LLAMA, "architectures": ["Phi3ForCausalLM"], "original_max_position_embeddings": 64, "rope_scaling": rope}
    assert read(phi).metadata["rope.scaling.attn_factor"] == pytest.approx(math.sqrt(1 + math.log(8) / math.log(64)))
    assert read({**phi, "rope_scaling": {**rope, "attention_factor": 1.5}}).metadata["rope.scaling.attn_factor"] == 1.5
