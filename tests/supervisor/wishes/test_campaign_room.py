"""A campaign's room is asked of the disk that it will fill, for as much of it as is left to do."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from backpropagate.wishes.campaign_room import check, free_bytes
from backpropagate.wishes.models import bundled_tiny
from backpropagate_protocol.errors import DiskFullError
from backpropagate_protocol.spec import CampaignSpec, DataSpec, LoraSpec, ModelSpec, RunSpec


def campaign(tmp_path: Path, base: str) -> RunSpec:
    data = DataSpec(source="d.jsonl")
    return RunSpec(
        run_id="c",
        created="",
        output=str(tmp_path / "not" / "there" / "yet"),
        model=ModelSpec(name="m", path=base),
        data=data,
        lora=LoraSpec(r=8),
        kind="campaign",
        campaign=CampaignSpec(runs=(data, data), names=("a", "b")),
    )


def test_a_small_campaign_has_room_and_is_told_how_much_it_needs(tmp_path: Path) -> None:
    spec = campaign(tmp_path, str(bundled_tiny()))
    needed = check(spec, {}, runs=2, done=0)
    assert needed is not None
    assert 0 < needed.total < 10**9
    rest = check(spec, {}, runs=2, done=1)
    assert rest is not None
    assert 0 < rest.total < needed.total


def test_a_campaign_that_no_disk_could_hold_is_refused(tmp_path: Path) -> None:
    spec = campaign(tmp_path, str(bundled_tiny()))
    huge = msgspec.structs.replace(spec, lora=LoraSpec(r=10**15))
    with pytest.raises(DiskFullError, match="yet"):
        check(huge, {}, runs=2, done=0)
    with pytest.raises(DiskFullError):
        check(spec, {}, runs=2, done=0, parameters=10**18)
    check(huge, {}, runs=2, done=2)


def test_a_base_that_is_not_here_yet_is_no_reason_to_refuse(tmp_path: Path) -> None:
    assert check(campaign(tmp_path, "owner/name"), {"HF_HUB_CACHE": str(tmp_path)}, runs=2, done=0) is None


def test_the_room_of_a_folder_to_be_made_is_that_of_the_one_above(tmp_path: Path) -> None:
    free = free_bytes(tmp_path / "a" / "b")
    assert free is not None
    assert 0 < free <= shutil.disk_usage(tmp_path).total
