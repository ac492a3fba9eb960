"""Settings and presets under the name that the documentation gives them: `from backpropagate.config import get_preset`."""

from __future__ import annotations

from backpropagate.wishes.presets import (
    LORA,
    MODELS,
    TRAINING,
    LoraPreset,
    ModelPreset,
    TrainingPreset,
    get_lora_preset,
    get_model_preset,
    get_preset,
)
from backpropagate.wishes.settings import Settings

__all__ = [
    "LORA",
    "MODELS",
    "TRAINING",
    "LoraPreset",
    "ModelPreset",
    "Settings",
    "TrainingPreset",
    "get_lora_preset",
    "get_model_preset",
    "get_preset",
]
