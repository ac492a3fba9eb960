"""What cannot be granted is refused before anything is loaded, with what can be chosen instead."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from backpropagate_backends.cpu import CpuBackend
from backpropagate_protocol.errors import InvalidSettingError
from backpropagate_protocol.jobs import TrainJob
from tests.backends.torch_runs import FOREIGN_WARNINGS
from tests.backends.torch_session import make_job


def changed(part: str, **changes: object) -> TrainJob:
    """A job whose spec has other values in `part`."""
    job = make_job(Path("/models/tiny"))
    new = msgspec.structs.replace(getattr(job.spec, part), **changes)
    return msgspec.structs.replace(job, spec=msgspec.structs.replace(job.spec, **{part: new}))


def test_a_plain_job_is_granted(cpu: CpuBackend) -> None:
    cpu.check(make_job(Path("/models/tiny")))


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("train", {"method": "ppo"}, "orpo"),
        ("train", {"mode": "half"}, "full"),
        ("train", {"mode": "full", "method": "dpo"}, "full"),
        ("train", {"mode": "full", "fp8": True}, "frozen"),
        ("train", {"fp8": True}, "CUDA"),
        ("train", {"fp8": True, "method": "orpo"}, "sft"),
        ("train", {"steps": 0}, "at least 1"),
        ("train", {"steps": None, "epochs": 0.0}, "more than 0"),
        ("train", {"optim": "magic"}, "magic"),
        ("train", {"scheduler": "reduce_lr_on_plateau"}, "cosine"),
        ("train", {"effective_batch": 6}, "6"),
        ("lora", {"r": 0}, "rank"),
        ("lora", {"targets": ()}, "all-linear"),
        ("lora", {"targets": ("all-linear", "q_proj")}, "alone"),
        ("lora", {"targets": ("lm_head",)}, "lm_head"),
        ("lora", {"init": "pissa"}, "pissa"),
        ("model", {"dtype": "fp8"}, "bf16"),
        ("model", {"dtype": "fp16"}, "CPU"),
    ],
)
def test_what_cannot_be_granted_is_refused(cpu: CpuBackend, part: str, changes: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidSettingError, match=words):
        cpu.check(changed(part, **changes))


@FOREIGN_WARNINGS
@pytest.mark.parametrize(
    "lora",
    [
        {"targets": ("q_proj", "v_proj")},
        {"use_rslora": True},
        {"use_dora": True},
        {"init": "gaussian"},
    ],
)
def test_every_kind_of_adapter_that_is_granted_can_be_made(
    cpu: CpuBackend, tiny: Path, lora: dict[str, object]
) -> None:
    from peft import get_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    from backpropagate_backends.torch_model import add_adapter

    job = changed("lora", **lora)
    cpu.check(job)
    model = add_adapter(AutoModelForCausalLM.from_pretrained(tiny), job.spec.lora, seed=1)
    assert get_peft_model_state_dict(model)


@FOREIGN_WARNINGS
def test_targets_that_the_model_does_not_have_are_refused(cpu: CpuBackend, tiny: Path) -> None:
    from transformers import AutoModelForCausalLM

    from backpropagate_backends.torch_model import add_adapter

    lora = changed("lora", targets=("nope",)).spec.lora
    with pytest.raises(InvalidSettingError, match="nope"):
        add_adapter(AutoModelForCausalLM.from_pretrained(tiny), lora, seed=1)


@FOREIGN_WARNINGS
def test_the_same_seed_gives_the_same_first_adapter(cpu: CpuBackend, tiny: Path) -> None:
    from peft import get_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    from backpropagate_backends.torch_model import add_adapter

    lora = make_job(tiny).spec.lora
    first, second, other = (
        get_peft_model_state_dict(add_adapter(AutoModelForCausalLM.from_pretrained(tiny), lora, seed))
        for seed in (1, 1, 2)
    )
    assert all(first[name].equal(second[name]) for name in first)
    assert not all(first[name].equal(other[name]) for name in first)


@FOREIGN_WARNINGS
def test_adapters_are_put_where_text_goes(cpu: CpuBackend) -> None:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig, SiglipVisionConfig

    from backpropagate_backends.torch_model import add_adapter

    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=Gemma3TextConfig(vocab_size=300, num_key_value_heads=1, head_dim=16, **size),
        vision_config=SiglipVisionConfig(image_size=28, patch_size=14, **size),
        image_token_index=299,
        mm_tokens_per_image=4,
    )
    model = add_adapter(Gemma3ForConditionalGeneration(config), make_job(Path("/models/tiny")).spec.lora, seed=1)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 7  # A and B of q, k, v, o, gate, up, down
    assert all("language_model" in name for name in trained)
