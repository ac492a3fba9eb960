"""An export under supervision: real stages on the tiny base, faults at their signs of progress, under the leak oracle."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import msgspec
import pytest

from backpropagate.events import (
    AttemptStarted,
    ExportProved,
    FaultSeen,
    Recovering,
    RunResumed,
    StageEnded,
    StageStarted,
)
from backpropagate.keep import exports, history, runs
from backpropagate_protocol.rundir import ExportDir
from backpropagate_protocol.spec import PushSpec
from tests.conftest import Oracle
from tests.doubles.ollama_server import OllamaDouble
from tests.system.exported import export_of, is_in, log_of, lora_export, names, result_of, trained_and_exported, wish
from tests.system.supervised import At, Supervisor, resume_here, run_here

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="a POSIX signal")

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def test_a_training_and_its_export_are_one_run(oracle: Oracle) -> None:
    output = oracle.output()
    spec = trained_and_exported(output, "train:sigkill:9", "reference:sigkill:1", "convert:error:2", "prove:sigkill:2")
    outcome, story = run_here(spec)
    assert (outcome.status, outcome.exit_code, outcome.step) == ("completed", 0, 18), outcome
    assert names(story) == ["preflight", "reference", "convert", "prove"]
    assert [seen.stage for seen in story.of(FaultSeen)] == ["", "reference", "convert", "prove"]
    assert outcome.recoveries == 4
    (proved,) = story.of(ExportProved)
    assert proved.passed
    result = result_of(spec)
    assert outcome.export == str(result)
    report = exports.read_report(result)
    assert report is not None
    assert report.proof is not None
    assert (report.run_id, report.bytes, report.proof.passed) == (spec.run_id, result.stat().st_size, True)
    assert report.versions["transformers"]
    assert output.lora.is_dir()
    (row,) = history.list_rows(output)
    assert (row.session_kind, row.export_paths, row.status) == ("single_run", [str(result)], "completed")
    assert row.proof["passed"] is True
    assert msgspec.json.encode(history.show(output.run(spec.run_id))) == msgspec.json.encode(row)


def test_a_supervisor_killed_in_any_stage_leaves_what_is_done_and_the_run_goes_on(oracle: Oracle, adapter: str) -> None:
    """One supervisor after the other dies while a stage of it hangs; the stages before it are never done again."""
    output = oracle.output()
    stages = ("reference", "convert", "quantize", "prove")
    export = wish(output, adapter, quantization="q4_k_m")
    spec = export_of(adapter, output, *(f"{stage}:hang:1" for stage in stages), export=export)
    run_dir = runs.create(spec)
    for stage in stages:
        with Supervisor(run_dir) as running:
            running.until(lambda: is_in(running, stage), f"it is in {stage}")  # noqa: B023 - waited for right here
            running.process.kill()
            running.wait()
        assert history.show(run_dir).status == "interrupted"
        assert not result_of(spec).exists()
    outcome, story = resume_here(run_dir)
    assert (outcome.status, outcome.exit_code) == ("completed", 0), outcome
    assert names(story) == ["prove"]
    assert result_of(spec).is_file()
    (row,) = history.list_rows(output)
    assert (row.session_kind, row.status) == ("export", "completed")
    assert [stage["stage"] for stage in row.stages] == ["preflight", *stages]


def test_a_merge_whose_every_stage_is_killed_once_is_proven_all_the_same(oracle: Oracle, adapter: str) -> None:
    output = oracle.output()
    faults = ("preflight:sigkill:1", "merge:sigkill:2", "merged-reference:sigkill:1", "prove:segfault:1")
    spec = export_of(adapter, output, *faults, export=wish(output, adapter, "merged"))
    outcome, story = run_here(spec)
    assert (outcome.status, outcome.recoveries) == ("completed", 4), outcome
    assert names(story) == ["preflight", "reference", "merge", "merged-reference", "prove"]
    assert (result_of(spec) / "config.json").is_file()
    assert story.of(ExportProved)[-1].passed


def test_what_ends_a_stage_after_the_training_costs_only_the_stage(oracle: Oracle) -> None:
    """Exit 3, the stage's code, and one command that goes on: with the stage, not with the training."""
    output = oracle.output()
    spec = trained_and_exported(output, "place:error:1", "place:error:1:2", export=wish(output, None, "lora"))
    outcome, story = run_here(spec)
    assert (outcome.status, outcome.exit_code, outcome.code) == ("partial", 3, "RUNTIME_LORA_EXPORT_FAILED"), outcome
    run_dir = output.run(spec.run_id)
    assert runs.resuming(run_dir) in outcome.suggestion
    assert outcome.step == 18
    assert outcome.adapter == str(run_dir.adapter)
    assert output.lora.is_dir()
    assert history.show(run_dir).status == "partial"
    (output.lora / "of-a-newer-run").touch()
    again, story = resume_here(run_dir)
    assert (again.status, again.exit_code) == ("completed", 0), again
    assert (again.step, again.order, again.final_loss) == (outcome.step, outcome.order, outcome.final_loss)
    assert not story.of(AttemptStarted)
    assert result_of(spec).is_dir()
    assert (output.lora / "of-a-newer-run").exists()


def test_what_no_framework_loads_cannot_be_exported(oracle: Oracle, adapter: str) -> None:
    """The toy cannot say what a trained model says."""
    output = oracle.output()
    outcome, story = run_here(msgspec.structs.replace(export_of(adapter, output), backend="toy"))
    assert (outcome.status, outcome.exit_code) == ("failed", 1), outcome
    assert [seen.stage for seen in story.of(FaultSeen)] == ["reference"]


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("sigkill", "died"),
        ("segfault", "died"),
        ("exit0", "died"),
        ("error", "internal"),
        ("host_oom", "host_oom"),
        ("garbage", "protocol"),
        ("hang", "hang"),
        pytest.param("sigstop", "hang", marks=POSIX),
    ],
)
def test_a_stage_that_fails_once_is_done_again(oracle: Oracle, adapter: str, fault: str, kind: str) -> None:
    deadline = {"load_deadline": 3.0} if kind == "hang" else {}
    spec = lora_export(oracle, adapter, f"place:{fault}:2", **deadline)
    outcome, story = run_here(spec)
    assert (outcome.status, outcome.recoveries) == ("completed", 1), outcome
    assert [(seen.kind, seen.stage) for seen in story.of(FaultSeen)] == [(kind, "place")]
    assert [again.stage for again in story.of(Recovering)] == ["place"]
    assert sorted(path.name for path in result_of(spec).iterdir())


def test_a_stage_that_dies_again_and_again_ends_the_run_with_its_code(oracle: Oracle, adapter: str) -> None:
    spec = lora_export(oracle, adapter, "place:sigkill:1:0")
    outcome, story = run_here(spec)
    assert (outcome.status, outcome.exit_code, outcome.code) == ("partial", 3, "RUNTIME_LORA_EXPORT_FAILED"), outcome
    assert len([started for started in story.of(StageStarted) if started.stage == "place"]) == 3
    assert runs.resuming(oracle.output().run(spec.run_id)) in outcome.suggestion
    assert not result_of(spec).exists()
    work = ExportDir(oracle.output().exports).work(spec.run_id)
    assert not work.exists() or not list(work.iterdir())


@pytest.mark.parametrize(("wished", "code"), [(b"stop\n", 130), (b"", 75)])
def test_an_export_that_is_stopped_in_a_stage_goes_on_with_it(
    oracle: Oracle, adapter: str, wished: bytes, code: int
) -> None:
    """By its owner's word, or because the owner is gone."""
    spec = lora_export(oracle, adapter, "place:hang:1")
    run_dir = runs.create(spec)
    with Supervisor(run_dir, owner=True) as running:
        running.until(lambda: is_in(running, "place"), "it is in the stage")
        if wished:
            running.tell(wished)
        else:
            assert running.process.stdin is not None
            running.process.stdin.close()
        assert running.wait() == code
        assert running.ended().status == "interrupted"
    outcome, story = resume_here(run_dir)
    assert outcome.status == "completed"
    assert [event.previous for event in story.of(RunResumed)] == ["interrupted"]


@POSIX
def test_ctrl_c_in_the_preflight_of_a_new_run_is_an_interruption(oracle: Oracle, adapter: str) -> None:
    spec = lora_export(oracle, adapter, "preflight:hang:1")
    run_dir = runs.create(spec)
    with Supervisor(run_dir) as running:
        running.until(lambda: "planned fault" in log_of(run_dir.log), "it is in the preflight")
        running.signal(signal.SIGINT)
        assert running.wait() == 130
        assert running.ended().status == "interrupted"
    outcome, _ = resume_here(run_dir)
    assert outcome.status == "completed"


def test_a_push_that_cannot_be_made_is_a_run_that_failed(oracle: Oracle, adapter: str, tmp_path: Path) -> None:
    output = oracle.output()
    push = PushSpec(folder=str(tmp_path / "nothing-here"), repo="someone/something", dry_run=True)
    spec = msgspec.structs.replace(export_of(adapter, output), kind="push", export=None, push=push)
    outcome, _ = run_here(spec)
    assert (outcome.status, outcome.exit_code, outcome.code) == ("failed", 1, "INPUT_VALIDATION_FAILED"), outcome
    (row,) = history.list_rows(output)
    assert (row.session_kind, row.steps) == ("push", 0)


def test_an_export_that_answers_otherwise_is_put_aside_and_not_registered(oracle: Oracle, adapter: str) -> None:
    """Between the converter and the proof somebody's bytes get into the file."""
    output = oracle.output()
    with OllamaDouble() as server:
        export = msgspec.structs.replace(wish(output, adapter), ollama_name="talk", ollama_host=server.url)
        spec = export_of(adapter, output, export=export)
        made = ExportDir(output.exports).work(spec.run_id) / "f16.gguf"
        damaged = At(lambda event: isinstance(event, StageEnded) and event.stage == "convert", lambda: _damage(made))
        outcome, story = run_here(spec, sinks=[damaged])
        assert not server.models
    assert (outcome.status, outcome.exit_code, outcome.code) == ("partial", 3, "RUNTIME_EXPORT_MISMATCH"), outcome
    result = result_of(spec)
    aside = ExportDir.rejected(result)
    assert aside.is_file()
    assert not result.exists()
    report = exports.read_report(aside)
    assert report is not None
    assert report.proof is not None
    assert not report.proof.passed
    assert "register" not in [started.stage for started in story.of(StageStarted)]
    assert not made.parent.exists()
    assert str(aside) in outcome.message


def _damage(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\x3c" * (path.stat().st_size // 4))
