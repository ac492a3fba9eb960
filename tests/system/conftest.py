"""What the undisturbed run is like: every disturbed one is held against it."""

from __future__ import annotations

from pathlib import Path

import pytest

from backpropagate.outcome import Outcome
from backpropagate_protocol.rundir import OutputDir
from tests.system.supervised import run_here, toy_spec


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The outcome of the toy run without any fault."""
    outcome, _ = run_here(toy_spec(OutputDir(Path(tmp_path_factory.mktemp("undisturbed")) / "out")))
    assert outcome.status == "completed"
    return outcome
