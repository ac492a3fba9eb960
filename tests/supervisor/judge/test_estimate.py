"""What a training is told to take: laws that hold for every card and batch, and the figures of known trainings."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backpropagate.judge.cards import power_of
from backpropagate.judge.estimate import MIB, Estimate, Gpu, Measured, Range, Rows, Sizing, estimate
from backpropagate.judge.memory import memory
from backpropagate.judge.start import first_micro_batch
from backpropagate.judge.too_large import doubt, refusal
from backpropagate.keep.userstate import fit_key
from backpropagate.wishes.preset_configs import CONFIGS
from backpropagate.wishes.presets import MODELS
from backpropagate_protocol.spec import DataSpec, LoraSpec, ModelSpec, RunSpec, SafetySpec, TrainSpec

QWEN_7B, QWEN_3B, LLAMA_1B = "qwen2.5-7b", "qwen2.5-3b", "llama-3.2-1b"


def wish(model: str = QWEN_7B, *, length: int = 2048, r: int = 256, backend: str = "cuda", **train: object) -> RunSpec:
    return RunSpec(
        run_id="e",
        created="",
        output="/o",
        backend=backend,
        model=ModelSpec(name=model, path=MODELS[model].repo),
        data=DataSpec(source="d.jsonl", max_length=length, method=str(train.get("method", "sft"))),
        lora=LoraSpec(r=r),
        train=msgspec.convert(train, TrainSpec),
        safety=SafetySpec(keep_checkpoints=3),
    )


def told(spec: RunSpec, gpu: Gpu | None = None, **more: object) -> Estimate:
    found = estimate(spec, CONFIGS[spec.model.path], gpu, **more)  # type: ignore[arg-type]
    assert found is not None
    return found


def sized(spec: RunSpec, gpu: Gpu, measured: Measured | None = None) -> Sizing:
    found = Sizing.of(spec, CONFIGS[spec.model.path], gpu, measured)
    assert found is not None
    return found


def test_every_preset_of_a_model_can_be_estimated_without_the_network() -> None:
    for preset in MODELS.values():
        found = told(wish(preset.name))
        assert found.exact
        assert found.parameters > 1e9


def test_seven_billion_parameters_in_four_bits_fit_a_16_gb_card_at_the_default_rank() -> None:
    found = told(wish(), Gpu("NVIDIA GeForce RTX 4080", 16_376))
    assert found.fits
    assert found.largest
    assert 5e9 < found.memory.weights < 6e9
    assert found.trained == pytest.approx(646e6, rel=0.01)


def test_a_full_fine_tune_of_three_billion_moves_its_optimizer_to_the_host_where_the_card_is_full() -> None:
    found = told(wish(QWEN_3B, mode="full", batch_size=1), Gpu("NVIDIA GeForce RTX 4080", 16_376))
    assert found.memory.weights == found.memory.gradients == 2 * found.parameters
    assert found.movable == 2 * found.parameters
    assert found.vram.low - found.movable < 16_376 * MIB < found.vram.low


def test_without_a_card_nothing_is_said_of_fitting_and_of_time() -> None:
    found = told(wish())
    assert (found.fits, found.largest, found.seconds, found.watt_hours) == (None, None, None, None)
    assert found.micro_batch * found.accumulation == 8


def test_a_card_that_is_not_known_has_memory_and_no_speed() -> None:
    found = told(wish(), Gpu("Some Card", 24_000))
    assert found.largest
    assert found.seconds is None


@given(
    st.sampled_from(sorted(MODELS)),
    st.integers(4_000, 200_000),
    st.integers(1, 24),
    st.sampled_from([128, 1024, 8192]),
    st.sampled_from(["sft", "orpo", "dpo", "kto"]),
)
def test_the_batch_that_is_chosen_divides_the_effective_one_and_fits(
    model: str, memory: int, effective: int, length: int, method: str
) -> None:
    spec, gpu = wish(model, length=length, method=method, effective_batch=effective), Gpu("RTX 4090", memory)
    sizing = sized(spec, gpu)
    largest = sizing.largest(gpu.free)
    micro = first_micro_batch(spec, sized=largest)
    assert effective % micro == 0
    if largest:
        assert micro == largest
        assert sizing.vram(micro).high - sizing.movable <= memory * MIB
    more = sizing.largest(2 * gpu.free)
    assert more >= largest


@given(st.integers(1, 12), st.integers(1, 12), st.booleans())
def test_more_rows_never_take_less(few: int, more: int, checkpointing: bool) -> None:
    sizing = sized(wish(gradient_checkpointing=checkpointing), Gpu("RTX 4090", 24_000))
    low, high = sorted((few, more))
    assert sizing.peak(low) <= sizing.peak(high)


def test_a_pair_counts_as_two_rows() -> None:
    gpu = Gpu("RTX 4090", 24_000)
    assert sized(wish(method="orpo"), gpu).peak(2) == sized(wish(), gpu).peak(4)


def test_what_was_asked_for_wins_over_what_fitted_and_that_over_the_estimate() -> None:
    assert first_micro_batch(wish(batch_size=8), fitted=4, sized=2, card_memory=8_000) == 8
    assert first_micro_batch(wish(), fitted=4, sized=2, card_memory=8_000) == 4
    assert first_micro_batch(wish(), sized=2, card_memory=80_000) == 2
    assert first_micro_batch(wish(), sized=0, card_memory=80_000) == 1


# --- real steps correct it ------------------------------------------------------------------------------------------


def test_what_was_measured_is_what_is_told_for_the_same_batch() -> None:
    gpu = Gpu("RTX 4090", 24_000)
    peak = round(1.2 * sized(wish(), gpu).peak(2))
    measured = Measured(micro_batch=2, peak=peak, longest=2048, tokens_per_second=1000.0)
    assert sized(wish(), gpu, measured).peak(2) == pytest.approx(peak, rel=1e-6)
    assert sized(wish(), gpu, measured).peak(4) > sized(wish(), gpu).peak(4)


@pytest.mark.parametrize("method", ["sft", "orpo"])
@pytest.mark.parametrize("share", [0.8, 1.0, 1.3])
def test_steps_on_short_rows_correct_what_is_told_of_long_ones_by_their_share_alone(method: str, share: float) -> None:
    gpu, both = Gpu("RTX 4090", 24_000), 2 if method == "orpo" else 1
    told, short = sized(wish(method=method), gpu), sized(wish(method=method, length=200), gpu)
    held = memory(told.shape, told.setup(2)).held
    peak = round(held + share * (short.peak(2) - held))
    measured = Measured(micro_batch=2, peak=peak, longest=200 * both, tokens_per_second=1000.0)
    corrected = sized(wish(method=method), gpu, measured)
    assert corrected.peak(4) - held == pytest.approx(share * (told.peak(4) - held), rel=1e-3)
    assert (corrected.largest(gpu.free) > told.largest(gpu.free)) <= (share < 1)


def test_a_base_that_is_turned_to_fp8_must_first_fit_in_16_bits() -> None:
    spec, small = wish(fp8=True, r=16), Gpu("RTX 4080", 12 << 10)
    found = told(spec, small)
    assert found.peak >= 2 * found.parameters > small.total * MIB
    assert found.fits is False
    assert sized(spec, small).impossible(small.total) is not None
    assert sized(spec, small).impossible(24 << 10) is None


def test_a_device_that_does_not_say_its_memory_still_gives_the_time() -> None:
    rows = Rows(800, Range(100.0, 100.0))
    found = told(
        wish(epochs=1.0, steps=None),
        rows=rows,
        measured=Measured(micro_batch=1, peak=0, longest=99, tokens_per_second=1000.0),
    )
    assert found.peak == found.memory.peak
    assert found.steps == 100
    assert found.seconds is not None
    assert found.seconds.low < 800 * 100 / 1000 < found.seconds.high


def test_the_time_of_a_known_training_is_in_the_range() -> None:
    """An 8 B LoRA on one H100 was measured elsewhere at 12,473 tokens a second, in 16 bits without making anything again."""
    spec = wish("mistral-7b", length=4096, r=16, gradient_checkpointing=False, steps=100)
    spec = msgspec.structs.replace(spec, model=msgspec.structs.replace(spec.model, load_in_4bit=False))
    rows = Rows(None, Range(4096.0, 4096.0))
    found = told(spec, Gpu("NVIDIA H100 80GB HBM3", 81_559, watts=700.0), rows=rows)
    assert found.seconds is not None
    tokens = 100 * 8 * 4096
    assert found.seconds.low < tokens / 12_473 < found.seconds.high
    assert found.watt_hours is not None
    assert found.watt_hours.high == pytest.approx(found.seconds.high * 700 / 3600)


# --- refused and doubted --------------------------------------------------------------------------------------------


@pytest.mark.skipif("sys.platform == 'win32'", reason="the driver lends the host's memory there")
def test_what_cannot_fit_whatever_the_rows_are_is_refused_with_both_numbers() -> None:
    gpu = Gpu("Tiny Card", 4_096)
    error = refusal(sized(wish(), gpu), gpu)
    assert error is not None
    assert error.code == "RUNTIME_GPU_OOM"
    assert int(error.exit_code) == 1
    assert "4.0 GB" in error.message
    assert "--lora-r" in (error.suggestion or "")


def test_what_only_may_not_fit_is_tried_and_said() -> None:
    gpu = Gpu("RTX 3060", 12_288)
    sizing = sized(wish(batch_size=8), gpu)
    assert refusal(sizing, gpu) is None
    assert "if it does not fit, it is halved" in doubt(sizing, gpu, 8)
    roomy = Gpu("H100", 81_559)
    assert doubt(sized(wish(), roomy), roomy, 2) == ""


def test_a_family_that_is_guessed_at_is_never_refused() -> None:
    gpu = Gpu("Tiny Card", 1_000)
    config = {**CONFIGS[MODELS[QWEN_7B].repo], "model_type": "a new one"}
    sizing = Sizing.of(wish(), config, gpu)
    assert sizing is not None
    assert refusal(sizing, gpu) is None


# --- disk and cards -------------------------------------------------------------------------------------------------


def test_checkpoints_hold_adapter_and_moments_and_one_more_than_are_kept() -> None:
    found = told(wish(LLAMA_1B, r=16, optim="adamw_torch"))
    assert found.disk.checkpoints == 4 * (4 + 8) * found.trained
    assert found.disk.result == 2 * 4 * found.trained


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA GeForce RTX 4070 Ti", 80),
        ("NVIDIA GeForce RTX 4070", 58),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 82.5),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA L40S", 362),
        ("Tesla T4", 65),
    ],
)
def test_a_card_is_known_by_the_name_that_its_driver_says(name: str, tflops: float) -> None:
    power = power_of(name)
    assert power is not None
    assert power.tflops == tflops


def test_what_changes_a_trainings_memory_changes_what_it_is_remembered_under() -> None:
    kinds = [wish(), wish(unsloth=True), wish(compile=True), wish(liger=True), wish(liger=False)]
    packed = msgspec.structs.replace(wish(), data=DataSpec(source="d.jsonl", max_length=2048, packing=True))
    assert len({fit_key("A100", spec) for spec in [*kinds, packed]}) == 6
