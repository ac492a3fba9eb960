"""What RUN|PATH stands for: the commit that was trained on, the adapter that does not change, the result that is a run's own."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import msgspec
import pytest

from backpropagate import events
from backpropagate.keep import exports, results, runs
from backpropagate.wishes.chat_job import chat_job
from backpropagate.wishes.export_run import export_run
from backpropagate.wishes.export_spec import ExportWish
from backpropagate.wishes.settings import Settings
from backpropagate.wishes.sources import Source, find
from backpropagate_protocol import durable
from backpropagate_protocol.errors import UserInputError
from backpropagate_protocol.rundir import MANIFEST, Manifest, OutputDir, RunDir
from backpropagate_protocol.spec import DataSpec, ExportSpec, ModelSpec, RunSpec, TrainSpec

HUB = ModelSpec(name="smollm", path="someone/some-model")


@pytest.fixture
def output(tmp_path: Path) -> OutputDir:
    return OutputDir(tmp_path / "out")


def trained(output: OutputDir, run_id: str, *, commit: str = "c0ffee", model: ModelSpec = HUB) -> RunDir:
    """A run's directory with an adapter, as a training over a hub's model leaves it."""
    spec = RunSpec(run_id=run_id, created="", output=str(output.path), model=model, data=DataSpec(source="rows"))
    run_dir = runs.create(spec)
    run_dir.adapter.mkdir()
    (run_dir.adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/some-model"}')
    (run_dir.adapter / "adapter_model.safetensors").write_bytes(run_id.encode())
    files = {name: durable.file_entry(run_dir.adapter / name) for name in durable.files_of(run_dir.adapter)}
    manifest = Manifest(
        run_id=run_id,
        step=3,
        total_steps=3,
        samples_seen=24,
        order=1,
        micro_batch=4,
        accumulation=2,
        data_digest="d",
        spec_digest="s",
        backend="cpu",
        model_revision=commit,
        files=files,
    )
    (run_dir.adapter / MANIFEST).write_bytes(msgspec.json.encode(manifest))
    return run_dir


def fully_trained(output: OutputDir, run_id: str) -> RunDir:
    """The same of a full fine-tune: a whole model where else an adapter is."""
    spec = RunSpec(
        run_id=run_id,
        created="",
        output=str(output.path),
        model=HUB,
        data=DataSpec(source="rows"),
        train=TrainSpec(mode="full"),
    )
    run_dir = runs.create(spec)
    run_dir.adapter.mkdir()
    (run_dir.adapter / "config.json").write_text("{}")
    (run_dir.adapter / "model.safetensors").write_bytes(b"weights")
    return run_dir


def found(output: OutputDir, what: object, **given: object) -> Source:
    return find(str(what), _settings(output, **given))


def _settings(output: OutputDir, **given: object) -> Settings:
    return Settings({"output_dir": output.path, **given}, environ={}, folder=output.path)


def test_a_run_is_exported_and_asked_over_the_commit_that_it_was_trained_on(output: OutputDir) -> None:
    run_dir = trained(output, "11111111")
    settings = _settings(output, backend="toy")
    spec = export_run(settings, "11111111", ExportWish(format="merged"))
    assert (spec.model.path, spec.model.revision) == ("someone/some-model", "c0ffee")
    job, _, _ = chat_job(settings, str(run_dir.path), base=False, max_new_tokens=1, temperature=0.0, seed=0)
    assert job.model is not None
    assert job.model.revision == "c0ffee"


def test_a_branch_may_have_moved_but_what_is_said_now_counts(output: OutputDir) -> None:
    trained(output, "11111111", model=msgspec.structs.replace(HUB, revision="main"))
    assert found(output, "11111111").model.revision == "c0ffee"
    assert found(output, "11111111", revision="v2").model.revision == "v2"
    trained(output, "22222222", commit="")
    assert found(output, "22222222").model.revision is None


def test_the_newest_adapter_of_an_output_folder_is_that_of_its_run_which_stays(output: OutputDir) -> None:
    """`lora` gives way to the next training's, also while an export is at work."""
    first, second = trained(output, "11111111"), trained(output, "22222222", commit="5ec0nd")
    for run_dir in (second, first):
        results.publish_adapter(run_dir.adapter, output)
        for what in (output.path, output.lora):
            source = found(output, what)
            assert (source.adapter, source.run) == (str(run_dir.adapter), run_dir)
            assert source.model.revision == results.trained_revision(run_dir.adapter)
            assert (source.name, source.folder) == ("smollm-lora", "out")


def test_an_adapter_that_no_run_here_made_is_itself(output: OutputDir) -> None:
    trained(output, "11111111")
    shutil.copytree(trained(output, "22222222").adapter, output.lora)
    (output.lora / "adapter_model.safetensors").write_bytes(b"somebody's")
    (output.lora / MANIFEST).unlink()
    assert found(output, output.lora).adapter == str(output.lora)


def exported(output: OutputDir, run_id: str, result: Path) -> RunDir:
    """A run that exported its adapter to `result`, which need not be what the wish would be called."""
    base = trained(output, "0" * 8) if not output.run("0" * 8).path.exists() else output.run("0" * 8)
    export = ExportSpec(
        format="gguf", quantization="q4_k_m", destination=str(result.parent), name="mine", adapter=str(base.adapter)
    )
    spec = RunSpec(
        run_id=run_id,
        created="",
        output=str(output.path),
        model=HUB,
        data=DataSpec(source=""),
        kind="export",
        export=export,
    )
    run_dir, made = runs.create(spec), output.path / f"{run_id}.gguf"
    made.write_bytes(b"GGUF")
    report = exports.ExportReport(
        run_id=run_id,
        created="",
        result=result.name,
        bytes=4,
        digest=run_id,
        format="gguf",
        quantization="bf16",
        base_model="smollm",
        base_path="someone/some-model",
        base_revision=None,
        adapter=export.adapter,
        adapter_digest="",
        architecture="LlamaForCausalLM",
        parameters=1,
        route={},
        proof=None,
    )
    exports.publish(made, result, report)
    event = events.Exported(time=1.0, run_id=run_id, path=str(result), bytes=4, format="gguf", digest=run_id)
    run_dir.events.write_bytes(msgspec.json.encode(event) + b"\n")
    return run_dir


def test_what_a_run_exported_is_what_it_said_and_not_what_was_wished_for(output: OutputDir, tmp_path: Path) -> None:
    """Where Ollama quantizes, what lies on the disk is what it was given."""
    result = tmp_path / "exports" / "mine-BF16.gguf"
    exported(output, "11111111", result)
    assert found(output, "11111111").exported == result


def test_what_another_run_put_in_its_place_is_not_a_run_s_own(output: OutputDir, tmp_path: Path) -> None:
    result = tmp_path / "exports" / "mine-Q4_K_M.gguf"
    exported(output, "11111111", result)
    exported(output, "22222222", result)
    assert found(output, "11111111").exported is None
    assert found(output, "22222222").exported == result


# --- full fine-tuning -------------------------------------------------------------------------------------------------


def test_a_full_fine_tune_is_a_model_of_its_own_held_as_it_was_trained(output: OutputDir) -> None:
    run_dir = fully_trained(output, "a1")
    source = found(output, "a1")

    assert (source.model.path, source.model.revision, source.model.load_in_4bit) == (str(run_dir.adapter), None, False)
    assert (source.adapter, source.trained, source.base) == (None, str(run_dir.adapter), HUB)
    assert source.subject(base=True) == (HUB, None)
    assert source.subject(base=False) == (source.model, None)
    assert found(output, run_dir.adapter).model == source.model
    assert found(output, "a1", load_in_4bit=True).model.load_in_4bit is True


def test_a_full_fine_tune_without_its_result_has_nothing_to_ask(output: OutputDir) -> None:
    fully_trained(output, "a1").adapter.rename(output.path / "elsewhere")
    with pytest.raises(UserInputError, match="no finished model"):
        found(output, "a1")


def test_a_full_fine_tune_needs_no_base(output: OutputDir) -> None:
    fully_trained(output, "a1")
    with pytest.raises(UserInputError, match="whole model"):
        find("a1", _settings(output), base="someone/other")


def test_a_full_fine_tune_is_talked_with_as_it_is_and_its_base_without_it(output: OutputDir) -> None:
    run_dir = fully_trained(output, "a1")

    def asked(base: bool) -> tuple[str, str | None, str]:
        talk = {"max_new_tokens": 8, "temperature": 0.0, "seed": 0}
        job, _, words = chat_job(_settings(output, runner_python=sys.executable), "a1", base=base, **talk)  # type: ignore[arg-type]
        assert job.model is not None
        return job.model.path, job.adapter, words

    assert asked(base=False) == (str(run_dir.adapter), None, f"smollm as trained in {run_dir.adapter}")
    assert asked(base=True) == (HUB.path, None, "smollm")


@pytest.mark.parametrize("format", ["gguf", "merged"])
def test_a_full_fine_tune_is_exported_as_it_is(output: OutputDir, format: str) -> None:
    run_dir = fully_trained(output, "a1")
    made = export_run(_settings(output, runner_python=sys.executable), "a1", ExportWish(format=format))
    assert made.export is not None
    assert (made.model.path, made.export.format, made.export.adapter) == (str(run_dir.adapter), format, None)


@pytest.mark.parametrize("format", ["lora", "lora-gguf"])
def test_a_full_fine_tune_has_no_adapter_to_export(output: OutputDir, format: str) -> None:
    fully_trained(output, "a1")
    with pytest.raises(UserInputError, match="full fine-tune has none") as caught:
        export_run(_settings(output, runner_python=sys.executable), "a1", ExportWish(format=format))
    assert caught.value.code == "INPUT_ADAPTER_UNSUPPORTED"


@pytest.mark.parametrize(
    ("code", "exit_code", "advice"),
    [
        ("CONFIG_INVALID_SETTING", 1, "Begin a new run, since this one would fail again, or name the newest that has a result: 11111111."),
        ("RUNTIME_GPU_LOST", 69, "Finish it: backprop resume"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["latest", "2222"])
def test_a_run_without_a_result_is_refused_and_none_is_taken_for_it(
    output: OutputDir, name: str, code: str, exit_code: int, advice: str
) -> None:
    trained(output, "11111111")
    failed = trained(output, "22222222")
    shutil.rmtree(failed.adapter)
    ended = events.RunEnded(time=0.0, run_id="22222222", status="failed", exit_code=exit_code, step=0, total_steps=3, code=code)  # fmt: skip
    failed.events.write_bytes(msgspec.json.encode(ended) + b"\n")
    with pytest.raises(UserInputError, match="run 22222222 has no finished adapter") as caught:
        found(output, name)
    assert caught.value.suggestion.startswith(advice)
