"""The stage that scores adapters advises: rows and tasks that cannot be scored are left out with a word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from backpropagate_protocol.jobs import Candidate, EvaluateJob
from backpropagate_protocol.measured import Evaluation
from backpropagate_protocol.messages import Done, Fault, FaultKind, Notice, Phase, PhaseChanged
from backpropagate_protocol.spec import DataSpec, ModelSpec
from tests.runner.child import Child, runner


def _job(folder: Path, *tasks: DataSpec, adapter: str | None = None) -> EvaluateJob:
    return EvaluateJob(
        model=ModelSpec(name="toy", path="toy"),
        candidates=(Candidate("base", adapter),),
        tasks=tasks,
        cache=str(folder / "cache"),
        backend="toy",
    )


def _evaluated(job: EvaluateJob, folder: Path) -> tuple[Evaluation, Child]:
    with runner(job, folder) as child:
        last = child.finish()
    assert isinstance(last, Done), (last, child.log.read_text())
    assert isinstance(last.result, Evaluation)
    return last.result, child


def _held_out(path: Path, *lines: str) -> DataSpec:
    path.write_text("".join(f"{line}\n" for line in lines))
    return DataSpec(source=str(path), holdout=2, part="held-out")


def _row(text: str) -> str:
    return json.dumps({"text": text})


def test_only_held_out_rows_are_scored(tmp_path: Path) -> None:
    """The toy's loss of the base is the mean square of the rows' mean tokens, in parts of 256."""
    task = _held_out(tmp_path / "a.jsonl", _row("zzz"), _row("!"), _row("zzz"), _row("!"))
    [score] = _evaluated(_job(tmp_path, task), tmp_path)[0].scores
    assert score.loss == pytest.approx(((ord("!") + 256) / 2 / 256) ** 2)
    assert (score.rows, score.tokens) == (2, 4)


def test_a_bad_row_is_left_out_and_so_is_a_task_without_a_good_one(tmp_path: Path) -> None:
    some = _held_out(tmp_path / "some.jsonl", _row("a"), "{", _row("a"), _row("b"))
    none = _held_out(tmp_path / "none.jsonl", _row("a"), "{", _row("a"), "{")
    gone = DataSpec(source=str(tmp_path / "gone.jsonl"), holdout=2, part="held-out")
    found, child = _evaluated(_job(tmp_path, none, gone, some), tmp_path)
    assert [(score.task, score.rows) for score in found.scores] == [(2, 1)]
    said = [(notice.level, notice.text) for notice in child.of(Notice)]
    assert all(level == "warning" for level, _ in said)
    assert "task 1 is not scored: none.jsonl: none of its 2 rows can be used" in said[0][1]
    assert "task 2 is not scored: there is no file" in said[1][1]


def test_without_any_task_nothing_is_loaded(tmp_path: Path) -> None:
    found, child = _evaluated(_job(tmp_path, DataSpec(source="/nowhere.jsonl"), adapter="/nowhere"), tmp_path)
    assert found == Evaluation(())
    assert child.of(PhaseChanged)[-1].phase is Phase.EVALUATE


def test_a_candidate_that_is_no_adapter_is_an_error(tmp_path: Path) -> None:
    task = _held_out(tmp_path / "a.jsonl", _row("a"), _row("b"))
    with runner(_job(tmp_path, task, adapter=str(tmp_path / "nowhere")), tmp_path) as child:
        fault = child.finish()
    assert isinstance(fault, Fault)
    assert fault.kind is FaultKind.USER


def test_it_says_what_it_is_doing_from_reading_to_scoring(tmp_path: Path) -> None:
    task = _held_out(tmp_path / "a.jsonl", _row("a"), _row("b"))
    _, child = _evaluated(_job(tmp_path, task), tmp_path)
    phases = list(dict.fromkeys(m.phase for m in child.of(PhaseChanged) if m.phase is not Phase.EVALUATE))
    assert phases == [Phase.IMPORT, Phase.VALIDATE, Phase.TOKENIZE]
    last = child.of(PhaseChanged)[-1]
    assert (last.phase, last.done, last.total) == (Phase.EVALUATE, 1, 1)
