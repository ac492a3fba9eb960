"""Presets: the numbers that the documentation promises, under the names it gives."""

from __future__ import annotations

import pytest

from backpropagate.config import MODELS, get_lora_preset, get_model_preset, get_preset
from backpropagate_protocol.errors import InvalidSettingError


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
        assert preset.vram_gb > 0


def test_the_research_licence_of_qwen_3b_is_said() -> None:
    assert "research" in get_model_preset("qwen2.5-3b").note
