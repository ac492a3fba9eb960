"""`Trainer.export` and what belongs to it: real exports of the bundled model, and each wrong wish an exception at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from backpropagate import Export, Trainer
from backpropagate.exceptions import BackpropagateError, ConfigurationError, OllamaRegistrationError, UserInputError
from tests.house.source import ROOT

DATA = ROOT / "fixtures" / "quickstart.jsonl"


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """Has trained once, and exported in the same run."""
    output = tmp_path_factory.mktemp("exports") / "out"
    made = Trainer("tiny", lora_r=4, backend="cpu", output_dir=output, progress=False)
    made.train(DATA, steps=2, export="q8_0")
    return made


@pytest.mark.slow
def test_a_training_that_exports_has_the_export_in_its_run(trainer: Trainer) -> None:
    (run,) = trainer.runs
    export = run.export

    assert export is not None
    assert (export.format, export.quantization, export.run_id) == ("gguf", "q8_0", run.run_id)
    assert export.path.stat().st_size == export.bytes
    assert export.proof is not None
    assert export.proof.passed
    assert {check.name for check in export.proof.checks} >= {"tokens", "template", "kl", "agreement"}
    assert export.report_path is not None
    assert export.report_path.is_file()
    assert str(export).startswith(str(export.path))


@pytest.mark.slow
def test_the_newest_run_is_exported_and_so_is_one_that_is_named(trainer: Trainer, tmp_path: Path) -> None:
    (run,) = trainer.runs
    merged = trainer.export("merged", output_dir=tmp_path)
    lora = trainer.export("lora", output_dir=tmp_path, run=run, name="mine")

    assert isinstance(merged, Export)
    assert (merged.path / "model.safetensors").is_file()
    assert merged.proof is not None
    assert merged.proof.passed
    assert lora.path == tmp_path / "mine-lora"
    assert lora.proof is None
    assert merged.run_id not in (run.run_id, lora.run_id)
    assert trainer.runs == [run]


@pytest.mark.slow
def test_an_adapter_is_saved_under_a_new_name_only(trainer: Trainer, tmp_path: Path) -> None:
    path = trainer.save(tmp_path / "a" / "copy")

    assert (path / "adapter_model.safetensors").is_file()
    assert not list(tmp_path.rglob("*.partial"))
    with pytest.raises(ConfigurationError, match="is there already"):
        trainer.save(path)


@pytest.mark.slow
def test_without_ollama_registering_is_an_exception_that_says_what_to_do(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:1")
    with pytest.raises(OllamaRegistrationError) as caught:
        trainer.push_to_ollama("mine")

    assert "ollama serve" in caught.value.suggestion


@pytest.mark.slow
def test_wrong_wishes_are_exceptions_at_once_and_create_nothing(trainer: Trainer, tmp_path: Path) -> None:
    runs = trainer.runs[0].output_path.parent
    before = sorted(runs.iterdir())
    wishes: list[tuple[str, Callable[[], object]]] = [
        ("CONFIG_INVALID_SETTING", lambda: trainer.export("ggml")),
        ("CONFIG_INVALID_SETTING", lambda: trainer.export("merged", quantization="q8_0")),
        ("INPUT_MODEL_NOT_FOUND", lambda: trainer.export(run="nothing")),
        ("INPUT_RUN_NOT_FOUND", lambda: trainer.export(run="ffffffff")),
        ("HUB_PUSH_INVALID_REPO", lambda: trainer.push_to_hub("mine")),
        ("INPUT_AUTH_REQUIRED", lambda: trainer.push_to_hub("me/mine", token_file=tmp_path / "none")),
        ("INPUT_VALIDATION_FAILED", lambda: trainer.export("gguf", nonsense=1)),
    ]
    for code, wish in wishes:
        with pytest.raises(BackpropagateError) as caught:
            wish()
        assert caught.value.code == code
    assert sorted(runs.iterdir()) == before


def test_a_trainer_that_has_no_run_has_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="there is no run"):
        Trainer("tiny", output_dir=tmp_path / "out", progress=False).export()
    assert not (tmp_path / "out").exists()
