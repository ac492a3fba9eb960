"""The names in an output folder: each is spelt once, and a checkpoint's name says its step."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backpropagate_protocol.rundir import PARTIAL, QUARANTINE, OutputDir, checkpoint_name, checkpoint_step


@given(st.integers(0, 10**12))
def test_a_checkpoints_name_says_its_step(step: int) -> None:
    assert checkpoint_step(checkpoint_name(step)) == step


@given(st.lists(st.integers(0, 10**8 - 1), min_size=2))
def test_names_sort_like_steps(steps: list[int]) -> None:
    assert sorted(map(checkpoint_name, steps)) == [checkpoint_name(step) for step in sorted(steps)]


@pytest.mark.parametrize(
    "name",
    [
        f"step-00000001{PARTIAL}",
        f"step-00000001{QUARANTINE}",
        "step-1",
        "checkpoint-00000001",
        "step-0000000x",
        "",
        ".",
    ],
)
def test_what_is_partial_quarantined_or_foreign_is_no_checkpoint(name: str) -> None:
    assert checkpoint_step(name) is None


def test_a_run_directory_knows_its_output_folder() -> None:
    output = OutputDir(Path("/o"))
    run = output.run("abc")
    assert (run.run_id, run.output) == ("abc", output)
    assert {run.spec, run.events, run.log, run.checkpoints, run.staging, run.adapter} == {
        run.path / name for name in ("spec.json", "events.jsonl", "runner.log", "checkpoints", "staging", "adapter")
    }
