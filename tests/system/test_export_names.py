"""To whom the name of an export's result belongs: to nobody else of ours, to an older result, or to somebody's own file."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from backpropagate.drive.supervise import supervise
from backpropagate.events import Exported
from backpropagate.keep import exports, locks, runs
from backpropagate.wishes import models
from backpropagate_protocol.errors import BackpropagateError, BusyError
from tests.conftest import Oracle
from tests.doubles.ollama_server import OllamaDouble
from tests.system.exported import NAME, export_of, lora_export, names, result_of, wish
from tests.system.supervised import Story, run_here, toy_spec

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def test_an_export_goes_beside_a_training_but_not_beside_another_to_the_same_result(
    oracle: Oracle, adapter: str
) -> None:
    output = oracle.output()
    spec = lora_export(oracle, adapter)
    run_dir = runs.create(spec)
    with locks.hold(output.lock, "a-training", "the output folder"):
        assert supervise(run_dir).status == "completed"
    other = lora_export(oracle, adapter)
    with locks.hold(locks.export_lock(result_of(other)), "another-export", "the export"):
        refused, story = runs.create(other), Story()
        with pytest.raises(BusyError, match="another-export"), runs.beginning(refused):
            supervise(refused, [story])
    assert names(story) == ["preflight"]
    assert not refused.path.exists()


def test_a_training_does_not_keep_the_name_of_its_export_from_others(oracle: Oracle) -> None:
    """Only when it comes to the export: then somebody else may be at it, and the command that goes on is told."""
    output = oracle.output()
    toy = toy_spec(output, toy=models.resolve_model(models.TINY).path)
    toy = msgspec.structs.replace(toy, export=wish(output, None, "lora"))
    with locks.hold(locks.export_lock(result_of(toy)), "another-export", "the export"):
        outcome, _ = run_here(toy)
    assert (outcome.status, outcome.exit_code, outcome.code) == ("partial", 3, "STATE_BUSY"), outcome
    assert outcome.adapter is not None
    assert runs.resuming(output.run(toy.run_id)) in outcome.suggestion


def test_what_nobody_of_us_made_keeps_its_name_whatever_the_result_comes_to_be_called(
    oracle: Oracle, adapter: str
) -> None:
    """The name that was wished for is free; the one that the route leads to is not."""
    spec = lora_export(oracle, adapter)
    result = result_of(spec)
    result.mkdir(parents=True)
    (result / "precious.txt").write_text("somebody's")
    run_dir, story = runs.create(spec), Story()
    with pytest.raises(BackpropagateError) as refused, runs.beginning(run_dir):
        supervise(run_dir, [story])
    assert (refused.value.code, refused.value.exit_code) == ("CONFIG_OUTPUT_UNWRITABLE", 1)
    assert names(story) == ["preflight"]
    assert (result / "precious.txt").read_text() == "somebody's"
    assert not run_dir.path.exists()


def test_where_ollama_quantizes_the_name_that_counts_is_that_of_the_file_on_the_disk(
    oracle: Oracle, adapter: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without llama.cpp what is called Q4_K_M is never made here; what it is instead is known after the preflight."""
    shim = tmp_path / "without"
    (shim / "llama_cpp").mkdir(parents=True)
    (shim / "llama_cpp" / "__init__.py").write_text("raise ImportError('not here')\n")
    monkeypatch.setenv("PYTHONPATH", str(shim))
    output = oracle.output()
    output.exports.mkdir(parents=True)
    precious = [output.exports / f"{NAME}-{type}.gguf" for type in ("F16", "BF16", "F32")]
    for path in precious:
        path.write_text("somebody's")
    with OllamaDouble() as server:
        export = wish(output, adapter, quantization="q4_k_m")
        export = msgspec.structs.replace(export, ollama_name="talk", ollama_host=server.url)
        spec = export_of(adapter, output, export=export)
        run_dir, story = runs.create(spec), Story()
        with pytest.raises(BackpropagateError) as refused, runs.beginning(run_dir):
            supervise(run_dir, [story])
    assert refused.value.code == "CONFIG_OUTPUT_UNWRITABLE"
    assert names(story) == ["preflight"]
    assert {path.read_text() for path in precious} == {"somebody's"}


def test_an_older_result_of_the_same_name_is_replaced_whole(oracle: Oracle, adapter: str) -> None:
    first = lora_export(oracle, adapter)
    run_here(first)
    result = result_of(first)
    (result / "left-over.txt").write_text("of the first")
    second = lora_export(oracle, adapter)
    outcome, story = run_here(second)
    assert outcome.status == "completed"
    assert not (result / "left-over.txt").exists()
    report = exports.read_report(result)
    assert report is not None
    assert report.run_id == second.run_id
    assert [event.path for event in story.of(Exported)] == [str(result)]
