"""Walks fixtures/scenarios: what the policy answers must be what is written there (`--rewrite` writes it anew)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.supervisor.transcript import play

SCENARIOS = sorted((Path(__file__).parents[2] / "fixtures" / "scenarios").glob("*.txt"))


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_the_policy_acts_as_the_transcript_says(path: Path, pytestconfig: pytest.Config) -> None:
    written = path.read_text(encoding="utf-8")
    played = play(written)
    if pytestconfig.getoption("--rewrite"):
        path.write_text(played, encoding="utf-8", newline="\n")
        return
    assert played == written


def test_there_are_scenarios() -> None:
    assert SCENARIOS
