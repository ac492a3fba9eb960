"""The house style, as far as a program can see it."""

from __future__ import annotations

import ast
import re
import statistics
from pathlib import Path

from tests.house.source import PARTS, ROOT, modules, name_of

_OURS = modules() + sorted((ROOT / "scripts").glob("*.py")) + sorted((ROOT / "tests").rglob("*.py"))
_TOO_LONG = 500
_WANTS_A_REASON = 350


def test_a_module_says_what_it_is_in_its_first_line() -> None:
    assert not [name_of(path) for path in _OURS if not says_what_it_is(path)]


def says_what_it_is(path: Path) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if not tree.body:
        return True  # an empty __init__.py
    first = (ast.get_docstring(tree) or "").split("\n")[0]
    return len(first) > 20 and re.search(r"[.:?]|\w$", first) is not None


def test_no_module_is_a_monster() -> None:
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in _OURS}
    assert not {name: length for name, length in lengths.items() if length > _TOO_LONG}


def test_most_modules_are_short() -> None:
    lengths = [len(path.read_text(encoding="utf-8").splitlines()) for path in modules()]
    assert statistics.median(lengths) <= 160
    assert sum(length > _WANTS_A_REASON for length in lengths) <= 3


def test_no_module_has_a_name_that_says_nothing() -> None:
    nothing = {"util", "utils", "helper", "helpers", "common", "misc", "core", "base_utils"}
    assert not [name_of(path) for path in _OURS if path.stem in nothing]


def test_a_test_uses_no_mock() -> None:
    words = (
        "unittest" + ".mock",
        "monkey" + "patch.setattr",
        "Magic" + "Mock",
    )  # in two pieces: this file is looked at, too
    tests = [path for path in _OURS if path.is_relative_to(ROOT / "tests")]
    assert not [(name_of(path), word) for path in tests for word in words if word in path.read_text(encoding="utf-8")]


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
