"""An export that goes on after something has changed: its inputs, its result's name, or what its journal knows."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from safetensors.numpy import load, save_file

from backpropagate.drive.supervise import supervise
from backpropagate.events import Exported, StageEnded, StageStarted
from backpropagate.keep import exports, history, results, runs
from backpropagate_protocol.rundir import ExportDir
from backpropagate_protocol.weights import digest_in
from tests.conftest import Oracle
from tests.doubles.ollama_server import OllamaDouble
from tests.system.exported import export_of, is_in, log_of, lora_export, names, result_of, wish
from tests.system.real import WEIGHTS
from tests.system.supervised import At, Supervisor, resume_here, run_here

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def copied(adapter: str, target: Path) -> Path:
    """An adapter in a folder of the user's own, where anything may happen to it."""
    return results.copy_adapter(Path(adapter), target)


def changed(folder: Path) -> str:
    """Other weights, the same names and shapes; returns their digest."""
    path = folder / WEIGHTS
    weights = load(path.read_bytes())
    save_file({name: value * 1.5 for name, value in weights.items()}, path)
    return digest_in(folder)


def test_an_adapter_that_was_changed_between_two_supervisors_is_exported_as_it_is_now(
    oracle: Oracle, adapter: str
) -> None:
    output = oracle.output()
    folder = copied(adapter, oracle.home / "mine")
    run_dir = runs.create(export_of(str(folder), output, "convert:hang:1"))
    with Supervisor(run_dir) as running:
        running.until(lambda: is_in(running, "convert"), "it is in the stage")
        running.process.kill()
        running.wait()
    digest = changed(folder)
    outcome, story = resume_here(run_dir)
    assert (outcome.status, outcome.exit_code) == ("completed", 0), outcome
    assert names(story) == ["preflight", "reference", "convert", "prove"]
    report = exports.read_report(result_of(runs.load_spec(run_dir)))
    assert report is not None
    assert report.adapter_digest == digest


def test_an_adapter_that_changes_under_an_export_is_no_fault_of_the_export(oracle: Oracle, adapter: str) -> None:
    """Neither put aside as wrong, nor published with the digest of weights that are not in it."""
    output = oracle.output()
    folder = copied(adapter, oracle.home / "mine")
    spec = export_of(str(folder), output)
    swap = At(lambda event: isinstance(event, StageEnded) and event.stage == "reference", lambda: changed(folder))
    outcome, _ = run_here(spec, sinks=[swap])
    assert (outcome.status, outcome.exit_code, outcome.code) == ("failed", 1, "STATE_RUN_MISMATCH"), outcome
    assert not result_of(spec).exists()
    assert not ExportDir.rejected(result_of(spec)).exists()
    again, story = resume_here(output.run(spec.run_id))
    assert (again.status, names(story)[0]) == ("completed", "preflight"), again


def test_what_was_registered_is_the_run_s_own_and_not_what_another_put_in_its_place(
    oracle: Oracle, adapter: str
) -> None:
    """A registration that failed, an export of other weights to the same name, and the resume of the first."""
    output = oracle.output()
    with OllamaDouble() as server:
        export = msgspec.structs.replace(wish(output, adapter), ollama_name="talk", ollama_host=server.url)
        first = export_of(adapter, output, export=export)
        server.faults.error_line = "no space left on device"
        outcome, story = run_here(first)
        (own,) = story.of(Exported)
        assert outcome.status == "partial"
        folder = copied(adapter, oracle.home / "mine")
        changed(folder)
        other, _ = run_here(export_of(str(folder), output))
        assert other.status == "completed"
        server.faults.error_line = ""
        again, second = resume_here(output.run(first.run_id))
        assert (again.status, again.ollama) == ("completed", "talk"), again
        assert names(second) == ["preflight", "reference", "convert", "prove", "register"]
        (model,) = server.models.values()
        assert own.digest in "".join(model.files.values())


def test_a_supervisor_killed_before_it_could_tell_of_the_result_is_made_up_for(oracle: Oracle, adapter: str) -> None:
    """The result has its name and the journal does not know: the next one says so, and makes nothing anew."""
    spec = lora_export(oracle, adapter)
    run_here(spec)
    run_dir = oracle.output().run(spec.run_id)
    lines = run_dir.events.read_bytes().splitlines(keepends=True)
    cut = next(at for at, line in enumerate(lines) if b'"event":"exported"' in line)
    run_dir.events.write_bytes(b"".join(lines[:cut]))
    outcome, story = resume_here(run_dir)
    assert (outcome.status, outcome.export) == ("completed", str(result_of(spec))), outcome
    assert [event.path for event in story.of(Exported)] == [str(result_of(spec))]
    assert not story.of(StageStarted)
    assert history.show(run_dir).export_paths == [str(result_of(spec))]


def test_a_run_killed_in_its_first_preflight_is_listed_and_begins_when_it_is_resumed(
    oracle: Oracle, adapter: str
) -> None:
    run_dir = runs.create(lora_export(oracle, adapter, "preflight:hang:1"))
    with Supervisor(run_dir) as running:
        running.until(lambda: "planned fault" in log_of(run_dir.log), "it is in the preflight")
        running.process.kill()
        running.wait()
    (row,) = history.list_rows(oracle.output())
    assert (row.run_id, row.status) == (run_dir.run_id, "interrupted")
    spec = runs.load_spec(run_dir)  # nothing knows of the first child, so the fault planned for it would come again
    run_dir.spec.write_bytes(msgspec.json.encode(msgspec.structs.replace(spec, faults=())))
    outcome = supervise(run_dir)
    assert outcome.status == "completed"
    (row,) = history.list_rows(oracle.output())
    assert (row.status, row.started_at[-1]) == ("completed", "Z")
    assert row.packages["backpropagate"]
