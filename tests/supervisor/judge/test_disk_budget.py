"""A campaign's room on the disk, told before it begins: by the shapes of models that are known, and by laws."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backpropagate.judge.campaign import RULES
from backpropagate.judge.disk_budget import CampaignBytes, adapter_parameters, campaign_bytes, check_room
from backpropagate_protocol.errors import DiskFullError
from backpropagate_protocol.spec import CampaignSpec, DataSpec, LoraSpec, ModelSpec, RunSpec, SafetySpec, TrainSpec

_QUALITY, _FAST = LoraSpec(r=256), LoraSpec(r=16, targets=("q_proj", "v_proj"))
_LLAMA_2_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
_QWEN_25_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}


def campaign(
    runs: int = 5, *, merge: str = "slao", keep: int = 3, optim: str = "adamw_torch", steps: int = 100
) -> RunSpec:
    data = tuple(DataSpec(source=f"{i}.jsonl") for i in range(runs))
    return RunSpec(
        run_id="c",
        created="",
        output="/o",
        model=ModelSpec(name="m", path="m"),
        data=data[0],
        kind="campaign",
        safety=SafetySpec(keep_checkpoints=keep),
        train=TrainSpec(optim=optim, steps=steps),
        campaign=CampaignSpec(runs=data, names=tuple(each.source for each in data), merge=merge),
    )


@pytest.mark.parametrize(
    ("config", "lora", "millions"),
    [
        (_LLAMA_2_7B, _QUALITY, 639.6),
        (_QWEN_25_7B, _QUALITY, 645.9),
        ({**_LLAMA_2_7B, "intermediate_size": 14336, "num_key_value_heads": 8}, _QUALITY, 671.1),
        ({"text_config": _LLAMA_2_7B}, _QUALITY, 639.6),
        (_LLAMA_2_7B, _FAST, 8.4),
        (_LLAMA_2_7B, LoraSpec(r=16, targets=("model.layers.0.self_attn.q_proj", "v_proj")), 8.4),
    ],
)
def test_adapters_of_known_models_have_their_known_size(
    config: dict[str, object], lora: LoraSpec, millions: float
) -> None:
    found = adapter_parameters(config, lora)
    assert found is not None
    assert found / 1e6 == pytest.approx(millions, abs=0.06)


def test_the_tiny_bases_adapter_is_counted_to_the_parameter() -> None:
    """q 256·256, k and v 256·128, o 256·256, three of 256·512, in three blocks."""
    config = json.loads((Path(__file__).parents[3] / "fixtures" / "tiny-base" / "config.json").read_bytes())
    assert adapter_parameters(config, LoraSpec(r=8)) == 3 * 8 * (512 + 2 * 384 + 512 + 3 * 768)
    with_dora = adapter_parameters(config, LoraSpec(r=8, use_dora=True))
    assert with_dora == 3 * (8 * (512 + 2 * 384 + 512 + 3 * 768) + 256 + 2 * 128 + 256 + 2 * 512 + 256)


def test_routed_experts_are_no_linear_layers() -> None:
    routed = {**_LLAMA_2_7B, "num_experts": 64}
    assert adapter_parameters(routed, LoraSpec(r=1)) == 32 * 4 * 8192
    assert adapter_parameters({**routed, "shared_expert_intermediate_size": 100}, LoraSpec(r=1)) == 32 * (
        4 * 8192 + 3 * 4196
    )


@pytest.mark.parametrize("config", [{}, {"hidden_size": 64}, {"hidden_size": "64", "num_attention_heads": 2}])
def test_what_a_configuration_does_not_say_is_not_guessed(config: dict[str, object]) -> None:
    assert adapter_parameters(config, _QUALITY) is None


def test_targets_that_nobody_knows_are_not_guessed() -> None:
    assert adapter_parameters(_LLAMA_2_7B, LoraSpec(targets=("mystery",))) is None


def test_every_part_as_counted_by_hand() -> None:
    found = campaign_bytes(campaign(2, keep=3), 1_000_000_000)
    assert found.adapters == 2 * (4_000_000_000 + (16 << 20))
    assert found.checkpoints == 12_000_000_000 * (3 + 3 + 1)
    assert found.merges == 2 * 8_000_000_000
    assert found.result == 8_000_000_000
    assert found.export == 0
    assert found.total == found.adapters + found.checkpoints + found.merges + found.result


def test_fewer_checkpoints_kept_after_a_run_cost_less() -> None:
    assert campaign_bytes(campaign(5), 10**9, kept_after=1).checkpoints == 12 * 10**9 * (4 + 4)
    assert campaign_bytes(campaign(5), 10**9, kept_after=0).checkpoints == 12 * 10**9 * 4


def test_a_run_saves_no_more_often_than_it_steps() -> None:
    assert campaign_bytes(campaign(1, steps=1), 10**9).checkpoints == 12 * 10**9 * 2


def test_eight_bit_moments_are_small_and_unknown_ones_are_taken_for_small() -> None:
    for optim in ("paged_adamw_8bit", "auto"):
        assert campaign_bytes(campaign(1, optim=optim, steps=1), 10**9).checkpoints == 6 * 10**9 * 2


def test_trying_every_rule_needs_a_merge_of_each() -> None:
    assert campaign_bytes(campaign(2, merge="auto"), 10**9).merges == (2 + len(RULES) - 1) * 8 * 10**9


@given(st.integers(1, 12), st.integers(0, 14), st.integers(1, 10**10), st.integers(0, 10**12))
def test_what_is_done_needs_no_room_any_more(runs: int, done: int, parameters: int, export: int) -> None:
    spec = campaign(runs)
    whole, rest = (
        campaign_bytes(spec, parameters, export=export),
        campaign_bytes(spec, parameters, done=done, export=export),
    )
    assert 0 <= rest.total <= whole.total
    if done >= runs:
        assert rest.total == export
    grown = campaign_bytes(spec, parameters, runs=runs + 1, export=export)
    assert grown.total > whole.total


def test_too_little_room_is_refused_with_what_is_needed_and_what_there_is() -> None:
    needed = CampaignBytes(adapters=5_000_000_000, checkpoints=30_000_000_000, merges=0, result=900_000, export=0)
    with pytest.raises(DiskFullError) as refused:
        check_room(needed, 12_345_000_000, "/out", "c")
    assert refused.value.message == (
        "the campaign needs about 35.0 GB on the disk of /out, which has 12.3 GB free: "
        "30.0 GB for checkpoints, 5.0 GB for adapters, 0.9 MB for the result"
    )
    assert "--keep-checkpoints 1" in refused.value.suggestion
    assert refused.value.run_id == "c"


@pytest.mark.parametrize("free", [None, 1, 2])
def test_enough_room_or_a_disk_that_does_not_say_is_no_reason_to_refuse(free: int | None) -> None:
    check_room(CampaignBytes(1, 0, 0, 0, 0), free, "/out")
