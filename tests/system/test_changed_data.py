"""A data file that is changed while a run is interrupted: the run goes on with what it began with, and says so once."""

from __future__ import annotations

import json

import pytest

from backpropagate.events import Noticed
from backpropagate.keep import history
from backpropagate.outcome import Outcome
from backpropagate_protocol.rundir import RunDir
from tests.conftest import Oracle
from tests.system.supervised import Story, resume_here, run_here, toy_spec

pytestmark = pytest.mark.slow

TOLD = "rows.jsonl was changed since this run began; it goes on with the rows that it began with"


def told(story: Story) -> list[str]:
    return [event.text for event in story.of(Noticed) if event.level == "warning"]


def test_a_resume_keeps_its_rows_and_says_that_the_file_has_others(oracle: Oracle, undisturbed: Outcome) -> None:
    spec = toy_spec(oracle.output(), "error:12", "error:12:2", "hold:15:3", toy="toy?step_seconds=0.02")
    assert run_here(spec)[0].status == "failed"
    run_dir = RunDir(oracle.output().runs / spec.run_id)
    with open(spec.data.source, "a", encoding="utf-8") as rows:
        rows.write(json.dumps({"text": "one more"}) + "\n")

    cache, away = run_dir.output.cache, run_dir.output.cache.with_name("away")
    cache.rename(away)
    refused, story = resume_here(run_dir)
    assert (refused.code, told(story)) == ("STATE_RUN_MISMATCH", [])
    for prepared in away.iterdir():
        prepared.rename(cache / prepared.name)

    outcome, story = resume_here(run_dir)
    assert (outcome.status, outcome.order) == ("completed", undisturbed.order)
    [warning] = told(story)
    assert warning.startswith(TOLD)
    assert "new run" in warning
    assert warning in history.row_of(run_dir).warnings
