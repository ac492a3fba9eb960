"""Wishes that leave each other without effect are refused by name, before anything starts and before anything is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from backpropagate.wishes.build_spec import build_spec, hypothetical_spec
from backpropagate.wishes.settings import Settings
from backpropagate.wishes.together import check_of_export
from backpropagate_protocol.errors import BackpropagateError, InvalidSettingError
from backpropagate_protocol.spec import RunSpec

# Qwen2.5-7B's, as its config.json has them: 7.6 billion parameters.
LARGE = {
    "model_type": "qwen2",
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}


def spec(folder: Path, **arguments: object) -> RunSpec:
    """What a training with these arguments comes to."""
    return spec_in(folder, {}, **arguments)


def spec_in(folder: Path, environ: dict[str, str], **arguments: object) -> RunSpec:
    data = folder / "d.jsonl"
    data.write_text('{"text": "hello"}\n')
    wishes = {"data": str(data), "output_dir": str(folder / "out"), "model": "tiny", "backend": "cpu", **arguments}
    return build_spec(Settings(wishes, environ=environ, folder=folder))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mode": "full", "lora_r": 8}, "--lora-r would have no effect: mode full trains no adapter"),
        ({"mode": "full", "use_dora": True}, "--use-dora would have no effect"),
        ({"mode": "full", "lora_preset": "fast"}, "--lora-preset would have no effect"),
        ({"mode": "full", "load_in_4bit": True}, "4-bit"),
        ({"mode": "full", "dtype": "fp16"}, "fp16"),
        ({"mode": "full", "method": "dpo"}, "sft only, not by dpo"),
        ({"keep_best": True}, "--keep-best would have no effect: no rows are held out"),
        ({"early_stopping": 3}, "--early-stopping would have no effect"),
        ({"eval_steps": 10}, "--eval-steps would have no effect"),
        ({"full_ft_ceiling_billions": 8}, "--full-ft-ceiling-billions would have no effect"),
        ({"orpo_beta": 0.2}, "--orpo-beta would have no effect: it belongs to the method orpo"),
        ({"method": "orpo", "simpo_gamma": 1.5}, "--simpo-gamma would have no effect"),
        ({"kto_desirable_weight": 2.0}, "--kto-desirable-weight would have no effect"),
        ({"min_trace_tokens": 4}, "--min-trace-tokens would have no effect: no reasoning traces are asked for"),
        ({"reasoning_trace": True, "min_trace_tokens": 9, "max_trace_tokens": 8}, "at least 9 and at most 8 tokens"),
        ({"reasoning_trace": True, "method": "orpo"}, "learnt by the method sft, not by orpo"),
        ({"min_tokens": 9, "max_tokens": 8}, "at least 9 and at most 8 tokens"),
        ({"max_tokens": 4096, "max_length": 100}, "more than 4096 tokens cannot be dropped: they are cut at 100"),
        ({"backend": "toy", "model": "toy", "group_by_length": True}, "toy cannot serve --group-by-length"),
        ({"backend": "toy", "model": "toy", "attention": "eager"}, "toy cannot serve --attention eager"),
        ({"backend": "toy", "model": "toy", "compile": True}, "toy cannot serve --compile"),
        ({"backend": "toy", "model": "toy", "liger": True}, "toy cannot serve --liger"),
        ({"backend": "toy", "model": "toy", "packing": True}, "toy cannot serve --packing"),
        ({"order": "curriculum", "group_by_length": True}, "in the order curriculum and grouped by length"),
        ({"split": "test"}, "--split would have no effect: a file has no splits"),
        ({"revision": "v2"}, "--revision would have no effect: a folder has no revisions"),
        ({"scheduler": "constant", "warmup_steps": 5}, "--warmup-steps would have no effect: a constant learning rate"),
        ({"liger": True}, "--liger would have no effect: Liger's kernels need a card"),
        ({"attention": "flash_attention_2"}, "--attention would have no effect: FlashAttention needs a card"),
        ({"fp8": True}, "the backend is cpu"),
        ({"fp8": True, "backend": "auto", "mode": "full"}, "frozen"),
        ({"fp8": True, "backend": "auto", "method": "kto"}, "not with kto"),
        ({"fp8": True, "backend": "auto", "load_in_4bit": True}, "4-bit"),
        ({"fp8": True, "backend": "auto", "use_dora": True}, "DoRA"),
        ({"fp8": True, "backend": "auto", "dtype": "fp32"}, "bf16"),
    ],
    ids=str,
)
def test_a_wish_without_effect_is_refused_by_its_flag(tmp_path: Path, arguments: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidSettingError) as caught:
        spec(tmp_path, **arguments)
    assert words in caught.value.message
    assert caught.value.suggestion
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "orpo", "packing": True}, "nothing of it can be packed"),
        ({"method": "kto", "batch_size": 1}, "at least 2 rows"),
        ({"unsloth": True, "fp8": True, "backend": "auto"}, "--fp8 does not go with --unsloth"),
        ({"report_to": ["bogus"]}, "no tracker called bogus"),
        ({"report_to": ["none"], "project": "x"}, "--project would have no effect"),
        ({"order": "curriculum", "group_by_length": True}, "in the order curriculum and grouped by length"),
        ({"min_tokens": 9, "max_tokens": 8}, "at least 9 and at most 8 tokens"),
        ({"backend": "mlx", "method": "orpo"}, "MLX cannot serve --method orpo"),
        ({"model": "qwen2.5-7b", "mode": "full"}, "7.62 billion parameters"),
    ],
    ids=str,
)
def test_what_a_training_refuses_is_not_estimated_either(
    tmp_path: Path, arguments: dict[str, object], words: str
) -> None:
    wishes = Settings({"model": "tiny", "backend": "cpu", **arguments}, environ={}, folder=tmp_path)
    with pytest.raises(BackpropagateError) as caught:
        hypothetical_spec(wishes)
    assert words in caught.value.message


def test_a_preset_that_is_too_large_to_be_trained_whole_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(BackpropagateError) as caught:
        spec(tmp_path, model="qwen2.5-7b", mode="full")
    assert caught.value.code == "RUNTIME_FULL_FT_MODEL_TOO_LARGE"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"export_dir": "x"}, "--export-dir would have no effect: nothing is exported"),
        ({"llama_cpp_dir": "x"}, "--llama-cpp-dir would have no effect"),
        ({"ollama_host": "there:1"}, "--ollama-host would have no effect: nothing is registered"),
        ({"export": "q4_k_m", "ollama_host": "there:1"}, "--ollama-host would have no effect"),
    ],
    ids=str,
)
def test_what_is_said_of_an_export_that_is_not_made_is_refused(
    tmp_path: Path, said: dict[str, object], words: str
) -> None:
    with pytest.raises(InvalidSettingError) as caught:
        check_of_export(Settings(said, environ={}, folder=tmp_path), said)
    assert words in caught.value.message


def test_what_is_said_of_an_export_that_is_made_is_not(tmp_path: Path) -> None:
    """Nor what a Trainer was made with, which its later exports will use."""
    said = {"ollama_name": "m", "ollama_host": "there:1", "export_dir": "x"}
    check_of_export(Settings(said, environ={}, folder=tmp_path), said)
    check_of_export(Settings({"export_dir": "x"}, environ={}, folder=tmp_path), ["data"])


@pytest.mark.parametrize("off", ["use_dora", "use_rslora"])
def test_a_switch_that_is_off_asks_for_nothing(tmp_path: Path, off: str) -> None:
    assert spec(tmp_path, mode="full", **{off: False}).train.mode == "full"


def test_a_value_from_the_environment_is_for_other_trainings_too(tmp_path: Path) -> None:
    environ = {"BACKPROPAGATE_LORA__R": "8", "BACKPROPAGATE_TRAINING__ORPO_BETA": "0.3"}
    made = spec_in(tmp_path, environ, mode="full")
    assert (made.train.mode, made.train.beta) == ("full", None)


def test_a_full_fine_tune_has_a_learning_rate_of_its_own(tmp_path: Path) -> None:
    assert spec(tmp_path, mode="full").train.learning_rate == 2e-5
    assert spec(tmp_path, mode="full", learning_rate=1e-4).train.learning_rate == 1e-4


@pytest.mark.parametrize("wish", [{"mode": "full"}, {"fp8": True, "backend": "auto"}], ids=str)
def test_what_was_not_trained_in_four_bits_is_not_asked_in_them(tmp_path: Path, wish: dict[str, object]) -> None:
    assert spec(tmp_path, **wish).model.load_in_4bit is False
    assert spec(tmp_path).model.load_in_4bit is None


def test_a_full_fine_tune_has_time_for_the_checkpoint_of_a_whole_model_when_it_is_stopped(tmp_path: Path) -> None:
    assert (spec(tmp_path, mode="full").safety.grace, spec(tmp_path).safety.grace) == (180.0, 30.0)
    assert spec(tmp_path, mode="full", grace=7).safety.grace == 7


@pytest.mark.parametrize("what", ["lora", "lora-gguf"])
def test_a_full_fine_tune_cannot_end_as_an_adapter(tmp_path: Path, what: str) -> None:
    with pytest.raises(BackpropagateError, match="full fine-tune has none") as caught:
        spec(tmp_path, mode="full", export=what)
    assert caught.value.code == "INPUT_ADAPTER_UNSUPPORTED"


def test_a_model_too_large_for_full_fine_tuning_is_refused_by_its_configuration_alone(tmp_path: Path) -> None:
    model = tmp_path / "large"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(LARGE))
    with pytest.raises(BackpropagateError, match=r"7\.62 billion .* at most 4 billion") as caught:
        spec(tmp_path, model=str(model), mode="full")
    assert caught.value.code == "RUNTIME_FULL_FT_MODEL_TOO_LARGE"
    assert "--mode lora" in caught.value.suggestion
    assert "--full-ft-ceiling-billions" in caught.value.suggestion
    assert spec(tmp_path, model=str(model), mode="full", full_ft_ceiling_billions=8).train.ceiling == 8
    assert spec(tmp_path, model=str(model)).train.mode == "lora"


def test_the_configuration_of_a_hub_model_is_read_where_the_hub_client_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "hub" / "models--me--large"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("c0ffee")
    (home / "snapshots" / "c0ffee").mkdir(parents=True)
    (home / "snapshots" / "c0ffee" / "config.json").write_text(json.dumps(LARGE))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(BackpropagateError, match="me/large has"):
        spec(tmp_path, model="me/large", mode="full")
