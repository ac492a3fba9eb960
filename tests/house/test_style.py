"""The house style, as far as a program can see it."""

from __future__ import annotations

import ast
import re
import statistics
from pathlib import Path

import pytest

from tests.house.source import PARTS, ROOT, modules, name_of

_OURS = modules() + sorted((ROOT / "scripts").glob("*.py")) + sorted((ROOT / "tests").rglob("*.py"))
_TOO_LONG = 500
_WANTS_A_REASON = 350


@pytest.mark.parametrize("path", _OURS, ids=name_of)
def test_a_module_says_what_it_is_in_its_first_line(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if not tree.body:
        return  # an empty __init__.py
    said = ast.get_docstring(tree)
    assert said
    first = said.splitlines()[0]
    assert len(first) > 20
    assert re.search(r"[.:?]|\w$", first)


@pytest.mark.parametrize("path", _OURS, ids=name_of)
def test_no_module_is_a_monster(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= _TOO_LONG


def test_most_modules_are_short() -> None:
    lengths = [len(path.read_text(encoding="utf-8").splitlines()) for path in modules()]
    assert statistics.median(lengths) <= 160
    assert sum(length > _WANTS_A_REASON for length in lengths) <= 3


@pytest.mark.parametrize("path", _OURS, ids=name_of)
def test_no_module_has_a_name_that_says_nothing(path: Path) -> None:
    assert path.stem not in {"util", "utils", "helper", "helpers", "common", "misc", "core", "base_utils"}


@pytest.mark.parametrize("path", [p for p in _OURS if p.is_relative_to(ROOT / "tests")], ids=name_of)
def test_a_test_uses_no_mock(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    words = (
        "unittest" + ".mock",
        "monkey" + "patch.setattr",
        "Magic" + "Mock",
    )  # in two pieces: this file is looked at, too
    assert not [word for word in words if word in text]


def test_tests_mirror_the_tree() -> None:
    """A folder of tests is a part, the house, the whole system, or servers of others as they answer."""
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == {*PARTS, "house", "system", "doubles"}


def test_no_file_names_a_place_on_the_machine_it_was_written_on() -> None:
    texts = [
        *_OURS,
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *ROOT.glob("*.toml"),
        *(ROOT / ".ci").iterdir(),
    ]
    places = ("/" + "work/", "/" + "root/", "/home/" + "claude")
    assert not [
        (name_of(path), place) for path in texts for place in places if place in path.read_text(encoding="utf-8")
    ]
