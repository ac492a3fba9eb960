"""Real campaigns: TRL and LoRA on the CPU, killed in every link, and the merged adapter bit for bit as if nothing had happened."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from backpropagate.events import CheckpointCommitted, ExportProved, LinkMerged, LinkScored, LinkStarted, StageStarted
from backpropagate.keep import exports, journal, runs
from backpropagate_protocol.rundir import OutputDir
from backpropagate_protocol.spec import CampaignSpec, RunSpec, TrainSpec
from tests.conftest import Oracle
from tests.system.campaigns import home, link_home, published, staged
from tests.system.exported import result_of, wish
from tests.system.real import ROWS, real_spec
from tests.system.supervised import Supervisor, resume_here, run_here

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

RUNS, STEPS = 2, 4


def real_campaign(output: OutputDir, *faults: str, **wishes: object) -> RunSpec:
    """One file of 26 rows, cut into 2 runs of 4 steps; a checkpoint at every second. Faults are written as for `staged`."""
    single = real_spec(output, save_steps=2)
    size = ROWS // RUNS
    every = tuple(msgspec.structs.replace(single.data, start=i * size, samples=size, holdout=4) for i in range(RUNS))
    chosen = msgspec.convert({"runs": every, "names": ("a", "b"), "eval_rows": 4, **wishes}, CampaignSpec)
    return msgspec.structs.replace(
        single,
        kind="campaign",
        data=every[0],
        campaign=chosen,
        train=TrainSpec(steps=STEPS, effective_batch=4, warmup_steps=1, learning_rate=2e-3),
        faults=tuple(map(staged, faults)),
    )


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The merged weights of the undisturbed campaign."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        spec = real_campaign(OutputDir(Path(tmp_path_factory.mktemp("untouched")) / "out"))
        outcome, story = run_here(spec)
    assert (outcome.status, outcome.step) == ("completed", RUNS * STEPS), outcome
    assert [len(event.scores) for event in story.of(LinkScored)] == [3, 6]
    return published(spec)


def test_children_that_are_killed_in_every_link_change_no_bit_of_the_merged_adapter(
    oracle: Oracle, untouched: bytes
) -> None:
    faults = ["train-2:sigkill:4", "combine-001:sigkill:1", "combine-002:sigkill:2", "evaluate-002:sigkill:2"]
    spec = real_campaign(oracle.output(), *faults, "convert:sigkill:2")
    spec = msgspec.structs.replace(spec, export=wish(oracle.output(), None))
    outcome, story = run_here(spec)
    assert (outcome.status, outcome.recoveries) == ("completed", len(faults) + 1)
    assert published(spec) == untouched
    assert outcome.export == str(result_of(spec))
    assert [proved.passed for proved in story.of(ExportProved)] == [True]
    report = exports.read_report(result_of(spec))
    assert report is not None
    assert report.adapter_digest == story.of(LinkMerged)[-1].digest  # the merged adapter is what was exported


@pytest.mark.skipif(sys.platform == "win32", reason="the children of a killed parent are awaited by pid")
def test_supervisors_that_are_killed_in_every_link_change_no_bit_of_the_merged_adapter(
    oracle: Oracle, untouched: bytes
) -> None:
    """Each one finds its way to the next place where the first attempt waits, and is killed there."""
    faults = ("train-1:hold:4", "combine-001:hang:1", "train-2:hold:4")
    spec = real_campaign(oracle.output(), *faults, evaluate=False)
    run_dir = runs.create(spec)
    for reached in (saved(spec, 1), began(spec, "combine-001"), saved(spec, 2)):
        with Supervisor(run_dir) as supervisor:
            supervisor.until(reached, "it came to the next place")
            supervisor.process.kill()
            supervisor.wait()
    outcome, story = resume_here(run_dir)
    assert (outcome.status, outcome.step) == ("completed", RUNS * STEPS)
    assert [event.link for event in story.of(LinkStarted)] == [2]
    assert published(spec) == untouched


def saved(spec: RunSpec, number: int) -> Callable[[], bool]:
    """Whether a run of the campaign has a checkpoint."""
    path = link_home(spec, number).events
    return lambda: any(isinstance(event, CheckpointCommitted) for event in journal.read(path))


def began(spec: RunSpec, stage: str) -> Callable[[], bool]:
    path = home(spec).events
    return lambda: any(isinstance(event, StageStarted) and event.stage == stage for event in journal.read(path))
