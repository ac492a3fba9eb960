"""What a training is told to take, against the very modules: in their real widths, with only a few layers, without memory."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from backpropagate.judge.memory import Setup, memory, trained_parameters
from backpropagate.judge.shape import Shape, shape
from backpropagate_protocol.spec import LoraSpec

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("trl")

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")  # PEFT, of transformers

LAYERS = 3
QWEN_7B = {"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4}  # fmt: skip
LLAMA_3B = {"vocab_size": 128256, "hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True}  # fmt: skip
PHI_4 = {"vocab_size": 200064, "hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 24, "num_key_value_heads": 8, "tie_word_embeddings": True, "pad_token_id": 0}  # fmt: skip
QWEN_4B = {"vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True}  # fmt: skip

SMALL = LoraSpec(r=16)
CASES = {
    "4-bit, the headline": ("Qwen2", QWEN_7B, Setup(rows=1, length=2048, adapter=LoraSpec(), four_bit=True, masked=False)),
    "4-bit, as deep as it is": ("Qwen2", {**QWEN_7B, "num_hidden_layers": 28}, Setup(rows=2, length=2048, adapter=LoraSpec(), four_bit=True)),
    "4-bit, a large batch": ("Qwen2", QWEN_7B, Setup(rows=4, length=2048, adapter=SMALL, four_bit=True)),
    "16-bit": ("Llama", LLAMA_3B, Setup(rows=2, length=2048, adapter=SMALL)),
    "16-bit, fused layers": ("Phi3", PHI_4, Setup(rows=2, length=1024, adapter=LoraSpec(r=64))),
    "nothing made again": ("Qwen3", QWEN_4B, Setup(rows=2, length=1024, adapter=SMALL, checkpointing=False)),
    "some layers": ("Llama", LLAMA_3B, Setup(rows=2, length=2048, adapter=LoraSpec(r=16, targets=("q_proj", "v_proj")))),
    "DoRA": ("Llama", LLAMA_3B, Setup(rows=1, length=2048, adapter=LoraSpec(r=16, use_dora=True))),
    "every weight": ("Llama", LLAMA_3B, Setup(rows=1, length=2048, adapter=None, state=4)),  # AdamW in 16 bits
    "attention's whole matrix": ("Qwen3", QWEN_4B, Setup(rows=1, length=2048, adapter=SMALL, eager=True)),
}  # fmt: skip


def _shape(family: str, fields: Mapping[str, object]) -> Shape:
    config = getattr(transformers, f"{family}Config")(**fields)
    found = shape(json.loads(config.to_json_string(use_diff=False)))
    assert found is not None
    return found


@pytest.mark.parametrize("name", CASES)
def test_the_peak_is_told_within_a_tenth_of_what_the_modules_take(name: str) -> None:
    """The whole peak, and the part of it that the batch makes: the weights alone could hide any error."""
    from tests.supervisor.judge.fake_peak import fake_peak

    family, sizes, setup = CASES[name]
    fields = {"num_hidden_layers": LAYERS, **sizes}
    told, real = memory(_shape(family, fields), setup), fake_peak(family, fields, setup)
    assert told.held == pytest.approx(real.held, rel=0.02)
    assert told.peak == pytest.approx(real.peak, rel=0.05)
    assert told.peak - told.held == pytest.approx(real.peak - real.held, rel=0.10)


def test_the_trained_parameters_are_those_that_peft_makes() -> None:
    from peft import LoraConfig, get_peft_model

    fields = {**QWEN_4B, "num_hidden_layers": LAYERS}
    told = _shape("Qwen3", fields)
    for lora in (LoraSpec(r=8), LoraSpec(r=8, use_dora=True), LoraSpec(r=4, targets=("q_proj", "down_proj"))):
        with torch.device("meta"):
            model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**fields))
            targets = "all-linear" if lora.targets == ("all-linear",) else list(lora.targets)
            wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=lora.r, target_modules=targets, use_dora=lora.use_dora), low_cpu_mem_usage=True)  # fmt: skip
        trained = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
        assert trained_parameters(told, lora) == trained
    assert trained_parameters(told, None) == told.parameters
