"""Unsloth as a wish: what goes with it, where it is looked for, and how its environment is built."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from backpropagate.keep import unsloth_home
from backpropagate.wishes.build_spec import build_spec
from backpropagate.wishes.settings import Settings
from backpropagate.wishes.unsloth import recipe
from backpropagate_protocol.errors import BackpropagateError
from backpropagate_protocol.spec import RunSpec, rail

posix = pytest.mark.skipif(
    sys.platform in ("win32", "darwin"), reason="the state of a user is moved by a variable of Linux"
)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def build(folder: Path, **wishes: object) -> RunSpec:
    data = folder / "data.jsonl"
    data.write_text('{"text": "hello"}\n')
    given = {"model": "tiny", "data": data, "output_dir": folder / "out", "unsloth": True, **wishes}
    return build_spec(Settings(given, environ={}, folder=folder))


def refusal(folder: Path, **wishes: object) -> str:
    with pytest.raises(BackpropagateError) as caught:
        build(folder, **wishes)
    return caught.value.code


@posix
def test_without_an_environment_that_has_it_the_way_to_one_is_named(tmp_path: Path, state: Path) -> None:
    assert refusal(tmp_path) == "DEP_RUNNER_MISSING"


@posix
@pytest.mark.parametrize(
    "wish", [{"method": "orpo"}, {"mode": "full"}, {"packing": True}, {"compile": True}, {"liger": True}, {"fp8": True}]
)
def test_what_it_does_itself_or_not_at_all_is_refused(tmp_path: Path, state: Path, wish: dict[str, object]) -> None:
    assert refusal(tmp_path, runner_python=sys.executable, **wish) == "CONFIG_INVALID_SETTING"


@posix
def test_the_environment_that_was_built_is_the_runners_and_has_the_code_of_today(tmp_path: Path, state: Path) -> None:
    environment = state / "backpropagate" / "unsloth"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True, timeout=120)
    python = unsloth_home.python_in(environment)
    place = unsloth_home.place_code(environment)
    unsloth_home.remember(python, "unsloth 1")
    spec = build(tmp_path)
    assert spec.runner_python == str(python)
    assert rail(spec) == "unsloth"
    assert rail(build(tmp_path, unsloth=False, runner_python=sys.executable)) == "auto"
    where = "import importlib.util as u; print(u.find_spec('backpropagate_runner').origin)"
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    said = subprocess.run(
        [python, "-P", "-c", where], env=clean, capture_output=True, text=True, timeout=60, check=True
    )
    assert Path(said.stdout.strip()).parents[1] == place
    assert unsloth_home.place_code(environment) == place  # the same code is not copied again


def test_the_recipe_is_uv_where_there_is_uv_else_venv_and_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    make, install = recipe(tmp_path / "env", base="/usr/bin/python3")
    assert make[:3] == ("/usr/bin/python3", "-m", "venv")
    assert install[1:4] == ("-m", "pip", "install")
    program = tmp_path / ("uv.exe" if sys.platform == "win32" else "uv")
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    make, install = recipe(tmp_path / "env", base="/usr/bin/python3")
    assert (make[0], install[0]) == (str(program), str(program))
    assert any(part.startswith("unsloth") for part in install)


@posix
def test_a_dry_run_shows_the_commands_and_does_nothing(tmp_path: Path, state: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "backpropagate", "setup", "--unsloth", "--dry-run", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["commands"]) == 2
    assert not (state / "backpropagate" / "unsloth").exists()


@posix
def test_an_environment_that_cannot_be_built_is_told_with_its_last_words(tmp_path: Path, state: Path) -> None:
    broken = tmp_path / "uv"
    broken.write_text("#!/bin/sh\necho no network here\nexit 3\n")
    broken.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "backpropagate", "setup", "--unsloth"],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "[DEP_RUNNER_MISSING]" in done.stderr
    assert "no network here" in done.stderr


@posix
def test_what_was_built_stays_in_use_while_another_is_built(tmp_path: Path, state: Path) -> None:
    first = unsloth_home.new_folder()
    assert unsloth_home.new_folder() == first
    unsloth_home.remember(unsloth_home.python_in(first), "unsloth 1")
    second = unsloth_home.new_folder()
    assert second != first
    unsloth_home.remember(unsloth_home.python_in(second), "unsloth 2")
    assert unsloth_home.new_folder() == first
