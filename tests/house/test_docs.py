"""The documentation says what the program does: everything has its entry, every command line parses, every sample runs."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import sys
import typing
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from backpropagate.cli import COMMANDS, root
from backpropagate_protocol.catalogue import CATALOGUE
from backpropagate_protocol.messages import ToChild, ToParent
from backpropagate_protocol.rundir import PARTIAL, RunDir
from tests.house.source import PARTS, ROOT

_PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / part / "README.md" for part in PARTS)])
_FRAGMENTS = ROOT / "docs" / "changelog.d"
_TAGS = {"bash", "console", "python", "json", "jsonl", "text", "toml", "ini", "powershell", "mermaid", "csv"}


@dataclass(frozen=True)
class Fence:
    """One fenced block: where it begins, what it says it is, what is in it. `python no-run` is a sample not to be run."""

    page: Path
    line: int
    info: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"


def fences(page: Path) -> list[Fence]:
    found: list[Fence] = []
    begun: tuple[int, str] | None = None
    inside: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        mark = re.match(r"\s*```(.*)", line)
        if mark and begun is None:
            begun, inside = (number, mark[1].strip()), []
        elif mark and begun is not None:
            found.append(Fence(page, begun[0], begun[1], "\n".join(inside)))
            begun = None
        else:
            inside.append(line)
    assert begun is None, f"{page}: the fence of line {begun and begun[0]} is never closed"
    return found


_FENCES = [fence for page in _PAGES for fence in fences(page)]


def command_lines() -> list[tuple[str, str]]:
    """(where, line) of each `backprop …` in a shell block; a line that ends in a backslash goes on."""
    found: list[tuple[str, str]] = []
    for fence in _FENCES:
        if fence.info in ("bash", "console", "powershell"):
            joined = re.sub(r"\\\n\s*", " ", fence.text)
            lines = (line.strip().removeprefix("$ ") for line in joined.splitlines())
            found += [(str(fence), line) for line in lines if line.startswith("backprop ")]
    return found


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("fence", _FENCES, ids=str)
def test_every_fence_says_what_it_is(fence: Fence) -> None:
    assert fence.info.split(" ")[0] in _TAGS


@pytest.mark.parametrize(("where", "line"), command_lines())
def test_every_command_line_in_the_docs_is_one_that_the_program_takes(where: str, line: str) -> None:
    words = [word for word in shlex.split(line, comments=True) if word not in ("|", "&&", ">", "2>&1", "&")]
    if words[1].startswith("-"):
        return
    with click.Context(root) as context:
        command = root.get_command(context, words[1])
        assert command is not None, f"{where}: there is no command {words[1]}"
        known = {
            name for parameter in command.get_params(context) for name in (*parameter.opts, *parameter.secondary_opts)
        }
    used = {word.split("=")[0] for word in words[2:] if re.match(r"--?[a-z]", word)}
    assert used <= known, where


@pytest.mark.parametrize("fence", [f for f in _FENCES if f.info.split(" ")[0] == "python"], ids=str)
def test_every_python_sample_is_python(fence: Fence) -> None:
    ast.parse(fence.text)


@pytest.mark.slow
@pytest.mark.parametrize("fence", [f for f in _FENCES if f.info == "python"], ids=str)
def test_every_python_sample_that_can_be_run_runs(fence: Fence, tmp_path: Path) -> None:
    shutil.copy(ROOT / "fixtures" / "quickstart.jsonl", tmp_path / "my_data.jsonl")
    (tmp_path / "sample.py").write_text(fence.text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "sample.py"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr


def test_every_message_has_its_entry() -> None:
    page = read("docs/protocol.md")
    assert not [
        m.__name__ for m in (*typing.get_args(ToChild), *typing.get_args(ToParent)) if f"`{m.__name__}`" not in page
    ]


def test_every_error_code_has_its_entry() -> None:
    page = read("docs/errors.md")
    assert not [code for code in CATALOGUE if code not in page]


@pytest.mark.parametrize("name", [name for name, entry in COMMANDS.items() if entry.section])
def test_every_command_and_each_of_its_options_has_its_entry(name: str) -> None:
    page = read("docs/cli.md")
    assert f"backprop {name}" in page
    with click.Context(root) as context:
        command = root.get_command(context, name)
        assert command is not None
        shown = [p for p in command.get_params(context) if isinstance(p, click.Option) and not p.hidden]
    assert not [option.opts for option in shown if not any(opt in page for opt in option.opts)]


def test_every_setting_has_its_entry() -> None:
    from backpropagate.wishes.options import OPTIONS

    page = read("docs/settings.md")
    assert not [option.key for option in OPTIONS if option.variable not in page]


def links(page: Path) -> list[str]:
    """To files, as they are written."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", text)


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_inside_the_docs_lead_somewhere(page: Path) -> None:
    assert not [link for link in links(page) if not (page.parent / link).exists()]


def test_every_page_is_at_most_two_links_from_the_readme() -> None:
    reached = newest = {ROOT / "README.md"}
    for _ in range(2):
        newest = {(page.parent / link).resolve() for page in newest if page.suffix == ".md" for link in links(page)}
        reached = reached | newest
    pages = {page for page in _PAGES if page.parent != _FRAGMENTS or page.name == "README.md"}
    assert sorted(page.relative_to(ROOT).as_posix() for page in pages - reached) == []


def test_the_map_for_models_lists_every_page() -> None:
    listed = {(ROOT / link).resolve() for link in links(ROOT / "llms.txt")}
    pages = {ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")}
    assert sorted(page.relative_to(ROOT).as_posix() for page in pages - listed) == []
    assert all(page.exists() for page in listed)


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_named_in_the_docs_exist(page: Path) -> None:
    """`folder/file.py` in backticks, from the root of the repository or from the page's own folder."""
    named = set(re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|md|toml|jsonl|txt))`", page.read_text(encoding="utf-8")))
    packages = [ROOT / part / package for part, package in PARTS.items()]
    places = [ROOT, page.parent, *packages, *(package.parent for package in packages)]
    assert not [name for name in named if not any((place / name).exists() for place in places)]


def test_every_test_named_in_the_docs_exists() -> None:
    """What a page says was tested can be looked up by its name."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "tests").rglob("test_*.py"))
    written = {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    named = {name for page in _PAGES for name in re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8"))}
    assert not named - written


def test_every_name_in_a_run_directory_is_drawn() -> None:
    page, run = read("docs/run-directory.md"), RunDir(Path("output/runs/id"))
    made = [run.merge(1), run.merge_again("ties"), run.merge_by(5, "ties"), run.fault(1), run.told("tensorboard")]
    for folder in (run, run.output):
        named = [name for name, member in vars(type(folder)).items() if isinstance(member, property)]
        made += [path for name in named if isinstance(path := getattr(folder, name), Path)]
    assert not [path.name for path in made if path.name.removesuffix(PARTIAL) not in page]


def test_the_reliability_page_names_every_test_of_real_training() -> None:
    page = read("docs/reliability.md")
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "tests" / "system").glob("test_real_*.py")]
    assert trees
    tests = [node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert not [name for name in tests if name.startswith("test_") and f"`{name}`" not in page]
