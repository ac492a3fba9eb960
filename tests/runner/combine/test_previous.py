"""Going on from the merge before: the same bytes as from the first run, and never from a state that is not ours."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from backpropagate_protocol.combined import COMBINED, MERGED, STATE
from backpropagate_protocol.errors import SLAOCheckpointError, UserInputError
from backpropagate_runner.combine.rules import Rule
from backpropagate_runner.export.adapter import CONFIG, WEIGHTS
from tests.runner.combine.runs import F32, B, Merging, adapter, several, tensors

STATEFUL = [rule for rule in Rule if rule.has_state]


@pytest.mark.parametrize("rule", list(Rule))
@pytest.mark.parametrize("half", [False, True])
def test_one_merge_after_the_other_is_the_merge_of_all(rule: str, half: bool, tmp_path: Path) -> None:
    """Also with another scale in between, and where the adapters hold fewer bits than the state."""
    runs = several(tmp_path, 5)
    about = json.loads((runs[2] / CONFIG).read_text())
    for run in runs[2:]:
        (run / CONFIG).write_text(json.dumps(about | {"lora_alpha": 12}))
    if half:
        for run in runs:
            save_file({name: value.astype(np.float16) for name, value in tensors(run).items()}, run / WEIGHTS)
    previous: str | None = None
    for count in range(1, 6):
        made = Merging(runs[:count], tmp_path / f"after{count}", rule, previous=previous).made
        previous = made.path
    anew = Merging(runs, tmp_path / "anew", rule)
    assert anew.made.digest == made.digest
    assert anew.notices == []


@pytest.mark.parametrize("rule", STATEFUL)
def test_several_runs_may_have_come_since(rule: str, tmp_path: Path) -> None:
    runs = several(tmp_path, 5)
    Merging(runs[:2], tmp_path / "two", rule)
    later = Merging(runs, tmp_path / "five", rule, previous=str(tmp_path / "two")).made
    assert later.digest == Merging(runs, tmp_path / "anew", rule).made.digest


def test_the_state_is_what_is_read_and_not_the_runs_before(tmp_path: Path) -> None:
    """Else going on would cost as much as beginning anew: their numbers were looked at when they were merged."""
    runs = several(tmp_path, 3)
    Merging(runs[:2], tmp_path / "two")
    record = tmp_path / "two" / COMBINED
    bent = tensors(tmp_path / "two" / MERGED)
    old = bent[B][0, 0]
    bent[B][0, 0] = 100
    save_file(bent, tmp_path / "two" / MERGED / WEIGHTS)
    sealed(record, f"{MERGED}/{WEIGHTS}", tmp_path / "two")
    found = Merging(runs, tmp_path / "out", previous=str(tmp_path / "two")).merged
    expected = Merging(runs, tmp_path / "anew").merged
    share = 1 - 1 / np.sqrt(3)
    assert found[B][0, 0] - expected[B][0, 0] == pytest.approx((100 - old) * share, rel=1e-4)


def sealed(record: Path, name: str, folder: Path) -> None:
    """The record with the digest that the file has now."""
    from backpropagate_runner.export.digests import digest_of

    about = json.loads(record.read_text())
    about["files"][name] = digest_of(folder / name)
    record.write_text(json.dumps(about))


def torn(folder: Path, how: str, state: str) -> None:
    match how:
        case "shorter":
            os.truncate(folder / state, 200)
        case "another bit":
            data = bytearray((folder / state).read_bytes())
            data[-5] ^= 4
            (folder / state).write_bytes(data)
        case "no state":
            (folder / state).unlink()
        case "no record":
            (folder / COMBINED).unlink()
        case "half a record":
            os.truncate(folder / COMBINED, 100)
        case "nothing":
            for path in sorted(folder.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize("how", ["shorter", "another bit", "no state", "no record", "half a record", "nothing"])
@pytest.mark.parametrize("half", [False, True])
def test_a_damaged_state_is_told_and_all_runs_are_merged_anew(how: str, half: bool, tmp_path: Path) -> None:
    runs = several(tmp_path, 3)
    if half:
        for run in runs:
            save_file({name: value.astype(np.float16) for name, value in tensors(run).items()}, run / WEIGHTS)
    Merging(runs[:2], tmp_path / "two")
    torn(tmp_path / "two", how, STATE if half else f"{MERGED}/{WEIGHTS}")
    merging = Merging(runs, tmp_path / "out", previous=str(tmp_path / "two"))
    (notice,) = merging.notices
    assert "merged anew" in notice
    assert merging.made.digest == Merging(runs, tmp_path / "anew").made.digest


def test_a_state_of_other_adapters_is_refused(tmp_path: Path) -> None:
    one, two, three = several(tmp_path, 3)
    Merging([one, two], tmp_path / "two")
    adapter(one, {name: value + np.float32(1e-3) for name, value in tensors(one).items()})
    with pytest.raises(SLAOCheckpointError, match="adapter of run 1 is not the one") as caught:
        Merging([one, two, three], tmp_path / "out", previous=str(tmp_path / "two"))
    assert caught.value.code == "STATE_SLAO_CHECKPOINT_INVALID"
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"rule": "slao"}, {"rule": "slao-product"}),
        ({"rule": "slao"}, {"rule": "slao", "floor": 0.3}),
        ({"rule": "ema"}, {"rule": "ema", "weight": 0.4}),
        ({"rule": "average"}, {"rule": "slao"}),
    ],
    ids=str,
)
def test_a_state_of_another_rule_is_refused(before: dict[str, object], now: dict[str, object], tmp_path: Path) -> None:
    runs = several(tmp_path, 3)
    Merging(runs[:2], tmp_path / "two", **before)  # type: ignore[arg-type]
    with pytest.raises(SLAOCheckpointError, match="was made by the rule"):
        Merging(runs, tmp_path / "out", **now, previous=str(tmp_path / "two"))  # type: ignore[arg-type]


def test_a_weight_that_the_rule_does_not_use_may_change(tmp_path: Path) -> None:
    runs = several(tmp_path, 3)
    Merging(runs[:2], tmp_path / "two", weight=0.9)
    assert Merging(runs, tmp_path / "out", weight=0.1, previous=str(tmp_path / "two")).record.link == 3


def test_a_record_of_another_layout_is_refused(tmp_path: Path) -> None:
    runs = several(tmp_path, 3)
    Merging(runs[:2], tmp_path / "two")
    path = tmp_path / "two" / COMBINED
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 99}))
    with pytest.raises(SLAOCheckpointError, match="another layout"):
        Merging(runs, tmp_path / "out", previous=str(tmp_path / "two"))


@pytest.mark.parametrize("count", [2, 1])
def test_a_state_with_no_run_to_add_is_refused(count: int, tmp_path: Path) -> None:
    runs = several(tmp_path, 2)
    Merging(runs, tmp_path / "two")
    with pytest.raises(SLAOCheckpointError, match=f"2 runs are in it, and {count} are to be merged"):
        Merging(runs[:count], tmp_path / "out", previous=str(tmp_path / "two"))


@pytest.mark.parametrize("rule", STATEFUL)
def test_a_run_that_failed_leaves_the_state_as_it_was(rule: str, tmp_path: Path) -> None:
    runs = several(tmp_path, 3)
    made = Merging(runs[:2], tmp_path / "two", rule).made
    bad = {name: value * np.float32(np.nan) for name, value in tensors(runs[2]).items()}
    good = tensors(runs[2])
    adapter(runs[2], bad)
    with pytest.raises(UserInputError):
        Merging(runs, tmp_path / "out", rule, previous=made.path)
    adapter(runs[2], good)
    assert Merging(runs[:2], tmp_path / "two", rule).made.digest == made.digest
    assert Merging(runs, tmp_path / "out", rule, previous=made.path).record.link == 3


@pytest.mark.parametrize("bent", [None, np.zeros((2, 2), np.float32)])
def test_a_state_without_what_the_runs_have_is_refused(bent: F32 | None, tmp_path: Path) -> None:
    runs = several(tmp_path, 3)
    Merging(runs[:2], tmp_path / "two")
    held = {name: value for name, value in tensors(tmp_path / "two" / MERGED).items() if name != B}
    save_file(held if bent is None else held | {B: bent}, tmp_path / "two" / MERGED / WEIGHTS)
    sealed(tmp_path / "two" / COMBINED, f"{MERGED}/{WEIGHTS}", tmp_path / "two")
    with pytest.raises(SLAOCheckpointError, match="does not fit"):
        Merging(runs, tmp_path / "out", previous=str(tmp_path / "two"))
    assert not list(tmp_path.glob("out*"))
