"""What RUN|PATH stands for: the commit that was trained on, the adapter that does not change, the result that is a run's own."""

from __future__ import annotations

import shutil
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
from backpropagate_protocol.rundir import MANIFEST, Manifest, OutputDir, RunDir
from backpropagate_protocol.spec import DataSpec, ExportSpec, ModelSpec, RunSpec

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
