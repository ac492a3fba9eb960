"""What the undisturbed run is like: every disturbed one is held against it."""

from __future__ import annotations

from pathlib import Path

import pytest

from backpropagate.outcome import Outcome
from backpropagate_protocol.rundir import OutputDir
from tests.system.campaigns import Ended, campaign_of, ended
from tests.system.real import Trained, real_spec, trained
from tests.system.supervised import run_here, toy_spec


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The outcome of the toy run without any fault."""
    outcome, _ = run_here(toy_spec(OutputDir(Path(tmp_path_factory.mktemp("undisturbed")) / "out")))
    assert outcome.status == "completed"
    return outcome


@pytest.fixture(scope="session")
def undisturbed_campaign(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """What the toy campaign of three runs comes to without any fault."""
    spec = campaign_of(OutputDir(Path(tmp_path_factory.mktemp("undisturbed")) / "out"))
    outcome, _ = run_here(spec)
    return ended(spec, outcome)


@pytest.fixture(scope="session")
def untroubled(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The real training without any fault."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        spec = real_spec(OutputDir(Path(tmp_path_factory.mktemp("untroubled")) / "out"))
        outcome, _ = run_here(spec)
    return trained(spec, outcome)


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children compute in one thread: sums of floats come out the same whatever else the machine does."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def adapter(untroubled: Trained) -> str:
    """An adapter of the tiny base, really trained."""
    assert untroubled.outcome.adapter is not None
    return untroubled.outcome.adapter
