"""A merge in a real child: what it reports, that it needs no framework, and that a killed one can be made again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from backpropagate_protocol.jobs import CombineJob
from backpropagate_protocol.messages import Done, Fault, Made, Phase, PhaseChanged
from backpropagate_protocol.spec import PlannedFault
from tests.runner.child import Child
from tests.runner.combine.runs import Merging, adapter, several, tensors


def job(runs: list[Path], out: Path, **more: object) -> CombineJob:
    return CombineJob(adapters=tuple(map(str, runs)), out=str(out), rule="slao", **more)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_killed_merge_leaves_nothing_under_its_name_and_the_next_one_is_the_same(tmp_path: Path) -> None:
    runs = several(tmp_path / "runs", 3)
    expected = Merging(runs, tmp_path / "expected").made
    killed = PlannedFault(kind="sigkill", step=9, stage="combine")
    for attempt in (1, 2):
        with Child(tmp_path / "log", "none") as child:
            child.do(job(runs, tmp_path / "out", faults=(killed,), attempt=attempt))
            done = child.finish()
            if attempt == 1:
                assert done is None
                assert not (tmp_path / "out").exists()
            else:
                assert isinstance(done, Done)
                assert isinstance(done.result, Made)
                assert done.result.digest == expected.digest
                assert any(isinstance(said, PhaseChanged) and said.phase is Phase.COMBINE for said in child.said)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "log", "out", "runs"]


@pytest.mark.slow
def test_a_refusal_reaches_the_parent_with_its_code(tmp_path: Path) -> None:
    runs = several(tmp_path / "runs", 2)
    adapter(runs[1], {name: value * np.float32(np.nan) for name, value in tensors(runs[1]).items()})
    with Child(tmp_path / "log", "none") as child:
        child.do(job(runs, tmp_path / "out"))
        fault = child.wait_for(Fault)
    assert fault.code == "INPUT_ADAPTER_INVALID"
    assert fault.phase is Phase.COMBINE
    assert not (tmp_path / "out").exists()
