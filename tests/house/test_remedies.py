"""What an error tells the user to type exists: commands of ours, and flags of the command that is running."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import click
import pytest

from backpropagate.cli import COMMANDS, root
from backpropagate.commands.flags import normalise
from backpropagate_protocol.catalogue import CATALOGUE, CodeInfo
from tests.house.source import ROOT

_FLAG = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]+)")
# Said where only another command can be running: an export of what is there already, by its own words; and of what is run
# by a runner's own doors.
_OF_OTHERS = {"base", "quantization", "converter"}
_NOT_OURS = {"fetch_converter.py", "official.py", "__main__.py", "chat.py"}


@cache
def flags(command: str) -> frozenset[str]:
    found = root.get_command(click.Context(root), command)
    assert found is not None
    return frozenset(name.lstrip("-") for one in found.params for name in (*one.opts, *one.secondary_opts))


@pytest.mark.parametrize("info", CATALOGUE.values(), ids=lambda info: info.code)
def test_a_remedy_names_only_commands_and_flags_that_there_are(info: CodeInfo) -> None:
    for words in re.findall(r"`backprop ([a-z-]+)", info.remedy):
        assert words in COMMANDS
    everywhere = frozenset().union(*(flags(name) for name in COMMANDS)) | {"help"}
    for flag in _FLAG.findall(info.remedy):
        assert normalise(flag) in everywhere


@pytest.mark.parametrize("folder", ["runner/backpropagate_runner", "backends/backpropagate_backends"])
def test_what_a_child_tells_to_say_is_a_flag_of_the_training_that_it_may_belong_to(folder: str) -> None:
    unknown = {
        f"{path.name}: --{flag}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path.name not in _NOT_OURS
        for text in strings(path)
        for flag in _FLAG.findall(text)
        if flag not in _OF_OTHERS and normalise(flag) not in flags("train")
    }
    assert unknown == set()


def strings(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
