"""Presets: the numbers that the documentation promises, under the names it gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from backpropagate.config import MODELS, get_lora_preset, get_model_preset, get_preset
from backpropagate.judge.estimate import Gpu, Sizing
from backpropagate.wishes.base_config import config_of
from backpropagate.wishes.build_spec import hypothetical_spec
from backpropagate.wishes.presets import ModelPreset
from backpropagate.wishes.settings import Settings
from backpropagate_protocol.errors import InvalidSettingError
from backpropagate_protocol.spec import RunSpec


@pytest.mark.parametrize(
    ("name", "rank", "effective", "rate", "runs"),
    [("fast-3b", 8, 8, 5e-4, 3), ("fast", 8, 8, 5e-4, 3), ("balanced", 16, 16, 2e-4, 5), ("quality", 32, 32, 1e-4, 10)],
)
def test_training_presets_have_the_documented_numbers(
    name: str, rank: int, effective: int, rate: float, runs: int
) -> None:
    preset = get_preset(name)

    assert (preset.lora_r, preset.effective_batch, preset.learning_rate, preset.runs) == (rank, effective, rate, runs)


def test_the_adapter_preset_quality_is_rank_256_on_all_linear_layers() -> None:
    assert (get_lora_preset("quality").r, get_lora_preset("quality").targets) == (256, ("all-linear",))
    assert (get_lora_preset("fast").r, get_lora_preset("fast").targets) == (16, ("q_proj", "v_proj"))


def test_an_unknown_preset_is_an_error_that_lists_those_there_are() -> None:
    with pytest.raises(
        InvalidSettingError, match=r"choose one of fast-3b, fast, balanced, quality; did you mean balanced\?"
    ):
        get_preset("balaced")


def test_a_model_preset_names_repository_licence_and_memory() -> None:
    for preset in MODELS.values():
        assert "/" in preset.repo
        assert preset.licence


@pytest.mark.parametrize("preset", MODELS.values(), ids=lambda preset: preset.name)
def test_a_preset_fits_into_the_memory_that_is_said_of_it_and_into_no_less(preset: ModelPreset) -> None:
    for chosen, said in ((None, preset.vram_gb), ("fast", preset.vram_gb_fast)):
        spec = hypothetical_spec(Settings({"model": preset.name, "lora_preset": chosen}, environ={}, folder=Path("/")))
        config = config_of(spec.model, {})
        assert config is not None
        fits = [_fits(spec, config, gigabytes) for gigabytes in (said - 1, said)]
        assert fits == [False, True]


def _fits(spec: RunSpec, config: Mapping[str, object], gigabytes: int) -> bool:
    sizing = Sizing.of(spec, config, Gpu("a card", gigabytes << 10))
    return sizing is not None and sizing.largest(gigabytes << 10) > 0


def test_the_research_licence_of_qwen_3b_is_said() -> None:
    assert "research" in get_model_preset("qwen2.5-3b").note
