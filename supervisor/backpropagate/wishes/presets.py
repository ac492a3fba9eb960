"""Named starting points: of a training, of an adapter, and of base models that are known to fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from backpropagate.wishes.suggest import did_you_mean
from backpropagate_protocol.errors import InvalidSettingError


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPreset:
    """`--preset NAME`. What the user sets himself wins over every field here.

    steps, samples, runs and replay describe one campaign of several runs; a single training takes the steps.
    """

    name: str
    lora_r: int
    batch_size: int
    gradient_accumulation: int
    learning_rate: float
    warmup_steps: int
    steps: int
    runs: int
    samples: int
    replay: float = 0.0

    @property
    def lora_alpha(self) -> int:
        return 2 * self.lora_r

    @property
    def effective_batch(self) -> int:
        """Samples in one optimizer step."""
        return self.batch_size * self.gradient_accumulation


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraPreset:
    """`--lora-preset NAME`."""

    name: str
    r: int
    targets: tuple[str, ...]

    @property
    def alpha(self) -> int:
        return 2 * self.r


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPreset:
    """`--model NAME`.

    vram_gb, vram_gb_fast: the free GPU memory, in GB, into which 4-bit training surely fits by the estimator, at the defaults and
    with `--lora-preset fast`.
    """

    name: str
    repo: str
    licence: str
    vram_gb: int
    vram_gb_fast: int
    lora_r: int
    max_length: int
    note: str = ""


TRAINING: dict[str, TrainingPreset] = {
    preset.name: preset
    for preset in (
        TrainingPreset(name="fast-3b", lora_r=8, batch_size=4, gradient_accumulation=2, learning_rate=5e-4, warmup_steps=5, steps=50, runs=3, samples=500),
        TrainingPreset(name="fast", lora_r=8, batch_size=2, gradient_accumulation=4, learning_rate=5e-4, warmup_steps=5, steps=50, runs=3, samples=500),
        TrainingPreset(name="balanced", lora_r=16, batch_size=2, gradient_accumulation=8, learning_rate=2e-4, warmup_steps=10, steps=100, runs=5, samples=1000),
        TrainingPreset(name="quality", lora_r=32, batch_size=4, gradient_accumulation=8, learning_rate=1e-4, warmup_steps=20, steps=200, runs=10, samples=2000, replay=0.1),
    )
}  # fmt: skip

LORA: dict[str, LoraPreset] = {
    preset.name: preset
    for preset in (
        LoraPreset(name="quality", r=256, targets=("all-linear",)),
        LoraPreset(name="fast", r=16, targets=("q_proj", "v_proj")),
    )
}

MODELS: dict[str, ModelPreset] = {
    preset.name: preset
    for preset in (
        ModelPreset(name="qwen3.5-4b", repo="Qwen/Qwen3.5-4B", licence="Apache-2.0", vram_gb=10, vram_gb_fast=7, lora_r=128, max_length=4096),
        ModelPreset(name="phi-4-mini-3.8b", repo="microsoft/Phi-4-mini-instruct", licence="MIT", vram_gb=7, vram_gb_fast=6, lora_r=128, max_length=4096),
        ModelPreset(name="smollm3-3b", repo="HuggingFaceTB/SmolLM3-3B", licence="Apache-2.0", vram_gb=8, vram_gb_fast=6, lora_r=128, max_length=8192),
        ModelPreset(name="qwen2.5-7b", repo="Qwen/Qwen2.5-7B-Instruct", licence="Apache-2.0", vram_gb=15, vram_gb_fast=8, lora_r=256, max_length=2048),
        ModelPreset(name="qwen2.5-3b", repo="Qwen/Qwen2.5-3B-Instruct", licence="Qwen-Research", vram_gb=6, vram_gb_fast=4, lora_r=128, max_length=2048, note="the licence of Qwen2.5-3B allows research only, no commercial use"),
        ModelPreset(name="llama-3.2-3b", repo="meta-llama/Llama-3.2-3B-Instruct", licence="Llama-3.2-Community", vram_gb=6, vram_gb_fast=4, lora_r=128, max_length=2048, note="gated: accept the licence on the hub first"),
        ModelPreset(name="llama-3.2-1b", repo="meta-llama/Llama-3.2-1B-Instruct", licence="Llama-3.2-Community", vram_gb=3, vram_gb_fast=3, lora_r=64, max_length=2048, note="gated: accept the licence on the hub first"),
        ModelPreset(name="mistral-7b", repo="mistralai/Mistral-7B-Instruct-v0.3", licence="Apache-2.0", vram_gb=13, vram_gb_fast=7, lora_r=256, max_length=2048),
    )
}  # fmt: skip

_Preset = TypeVar("_Preset")


def _take(presets: dict[str, _Preset], name: str, what: str) -> _Preset:
    found = presets.get(name.lower())
    if found is None:
        raise InvalidSettingError(
            f"there is no {what} called {name!r}; choose one of {', '.join(presets)}{did_you_mean(name, presets)}"
        )
    return found


def get_preset(name: str) -> TrainingPreset:
    """The training preset of that name; raises InvalidSettingError naming those there are."""
    return _take(TRAINING, name, "training preset")


def get_lora_preset(name: str) -> LoraPreset:
    """The adapter preset of that name; raises InvalidSettingError naming those there are."""
    return _take(LORA, name, "LoRA preset")


def get_model_preset(name: str) -> ModelPreset:
    """The model preset of that name; raises InvalidSettingError naming those there are."""
    return _take(MODELS, name, "model preset")


# Peak learning rates where 2e-4 would be wrong: preference methods move a model that can talk already (ORPO as its authors
# recommend, SimPO, DPO and KTO as theirs), and without an adapter every weight moves.
LEARNING_RATES = {"orpo": 8e-6, "simpo": 1e-6, "dpo": 1e-6, "kto": 1e-6, "full": 2e-5}

FULL_GRACE = 180.0  # seconds: a checkpoint of a whole model is tens of gigabytes
TRACE_LENGTH = 8192  # tokens of a row with its reasoning
