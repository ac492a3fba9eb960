"""The history's rows of exports and pushes: what was made, where it is, and whether its supervisor still works."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

from backpropagate.events import (
    Event,
    Exported,
    ExportProved,
    RunCreated,
    RunEnded,
    StageEnded,
    StageStarted,
)
from backpropagate.keep import history, locks, runs
from backpropagate.keep.journal import Journal
from backpropagate.keep.past import Past
from backpropagate.measured import Check
from backpropagate.wishes.models import last_part
from backpropagate_protocol.rundir import RunDir
from backpropagate_protocol.spec import ExportSpec, ModelSpec, PushSpec
from tests.supervisor.keep.test_history import TIME, spec

PATH = "/exports/talk-Q4_K_M.gguf"


def events(run_id: str) -> list[Event]:
    def done(stage: str, size: int) -> StageEnded:
        return StageEnded(time=TIME, run_id=run_id, stage=stage, path=f"/made/{stage}", bytes=size, seconds=2.0)

    checks = (Check("tokens", True, 15.0, 15.0), Check("kl", True, 0.001, 0.01), Check("metadata", True))
    return [
        RunCreated(time=TIME, run_id=run_id, versions={"backpropagate": "0"}),
        StageStarted(time=TIME, run_id=run_id, stage="convert", attempt=1, pid=1, versions={"gguf": "0.19.0"}),
        done("convert", 10),
        done("convert", 20),
        ExportProved(time=TIME, run_id=run_id, passed=True, verifier="llama", checks=checks, prompts=15, positions=213),
        Exported(time=TIME, run_id=run_id, path=PATH, bytes=20, format="gguf", quantization="q4_k_m"),
    ]


def an_export(output: Path, run_id: str, *, ended: bool) -> RunDir:
    export = ExportSpec(format="gguf", quantization="q4_k_m", destination="/exports", name="talk", adapter="/lora")
    run_dir = runs.create(msgspec.structs.replace(spec(output, run_id), kind="export", export=export))
    end = RunEnded(
        time=TIME, run_id=run_id, status="completed", exit_code=0, step=0, total_steps=0, export=PATH, ollama="talk"
    )
    with Journal(run_dir.events) as journal:
        for event in [*events(run_id), *([end] if ended else [])]:
            journal.append(event)
    return run_dir


def test_a_row_tells_what_was_exported_and_how_it_was_proven(tmp_path: Path) -> None:
    row = history.show(an_export(tmp_path, "a", ended=True))
    assert (row.session_kind, row.status, row.steps) == ("export", "completed", 0)
    assert (row.export_paths, row.ollama_name) == ([PATH], "talk")
    assert row.stages == [{"stage": "convert", "seconds": 2.0, "bytes": 20}]
    assert (row.proof["passed"], row.proof["kl"], row.proof["metadata"]) == (True, 0.001, True)
    assert row.hyperparameters["quantization"] == "q4_k_m"
    assert row.packages == {"backpropagate": "0", "gguf": "0.19.0"}


def test_an_export_runs_while_its_own_lock_is_held_whoever_trains_in_the_folder(tmp_path: Path) -> None:
    run_dir = an_export(tmp_path, "a", ended=False)
    with locks.hold(run_dir.output.lock, "a-training", "the output folder"):
        assert history.show(run_dir).status == "interrupted"
        with locks.hold(run_dir.lock, "a", "the run"):
            assert history.show(run_dir).status == "running"


def test_a_rebuilt_history_has_the_exports(tmp_path: Path) -> None:
    an_export(tmp_path, "a", ended=True)
    assert history.rebuild(tmp_path) == 1
    (row,) = history.list_rows(tmp_path)
    assert row.export_paths == [PATH]


def test_the_past_knows_what_is_done_and_whether_it_is_still_there(tmp_path: Path) -> None:
    past = Past()
    for event in events("a"):
        past.event(event)
    there = tmp_path / "f16.gguf"
    assert past.has("convert", None)
    assert not past.has("convert", str(there))
    there.write_bytes(b"")
    assert past.has("convert", str(there))
    assert not past.has("quantize", str(there))
    assert past.attempts == {"convert": 1}
    assert past.exported is not None


def told(*arguments: str) -> str:
    command = [sys.executable, "-P", "-m", "backpropagate", *arguments]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True, timeout=60).stdout


def test_an_export_is_listed_by_what_it_made_and_an_upload_by_where_it_went(tmp_path: Path) -> None:
    run_dir = an_export(tmp_path, "a", ended=True)
    history.record(tmp_path, history.row_of(run_dir))
    push = PushSpec(folder="/made/talk", repo="me/talk", card="---\nall of a README")
    upload = runs.create(
        msgspec.structs.replace(spec(tmp_path, "b"), kind="push", push=push, model=ModelSpec(name="talk", path="/x"))
    )
    history.record(tmp_path, history.row_of(upload))
    _, *lines = told("list-runs", "--output", str(tmp_path)).splitlines()
    assert {line.split("  ")[-1] for line in lines} == {
        f"{last_part(spec(tmp_path, 'a').model.name)} -> talk-Q4_K_M.gguf (mine)",
        "talk -> me/talk (mine)",
    }
    shown = told("show-run", "b", "--output", str(tmp_path))
    assert "README" not in shown
    assert "loss" not in shown
