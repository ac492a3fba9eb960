"""Swaps of a folder or a file for a newer one, and what is left where one was cut off."""

from __future__ import annotations

from pathlib import Path

import pytest

from backpropagate_protocol import swap
from backpropagate_protocol.rundir import PARTIAL


def made(path: Path, *, folder: bool) -> Path:
    if folder:
        path.mkdir()
    (path / "of" if folder else path).write_text(path.name)
    return path


def content(path: Path) -> str:
    return (path / "of" if path.is_dir() else path).read_text()


@pytest.mark.parametrize("old_is_folder", [True, False])
@pytest.mark.parametrize("new_is_folder", [True, False])
def test_the_new_takes_the_place_of_the_old_and_nothing_else_stays(
    tmp_path: Path, *, old_is_folder: bool, new_is_folder: bool
) -> None:
    made(tmp_path / "lora", folder=old_is_folder)
    swap.rename_over(made(tmp_path / "new", folder=new_is_folder), tmp_path / "lora")
    assert content(tmp_path / "lora") == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["lora"]


def test_what_cannot_be_renamed_leaves_the_old_one(tmp_path: Path) -> None:
    made(tmp_path / "lora", folder=True)
    with pytest.raises(OSError):
        swap.rename_over(tmp_path / "never-made", tmp_path / "lora")
    assert content(tmp_path / "lora") == "lora"
    assert [path.name for path in tmp_path.iterdir()] == ["lora"]


@pytest.mark.parametrize("replaced", [True, False])
def test_a_swap_that_was_cut_off_ends_with_the_new_one_if_it_has_the_name(tmp_path: Path, *, replaced: bool) -> None:
    made(tmp_path / "old", folder=True).rename(tmp_path / f".lora.old{PARTIAL}")
    if replaced:
        made(tmp_path / "lora", folder=True)
    swap.settle(tmp_path / "lora")
    assert content(tmp_path / "lora") == ("lora" if replaced else "old")
    assert [path.name for path in tmp_path.iterdir()] == ["lora"]
