"""Run directories: made whole or not at all, found by any unique prefix."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from backpropagate.keep import runs
from backpropagate_protocol.errors import ConfigurationError, RunNotFoundError
from backpropagate_protocol.rundir import OutputDir
from tests.supervisor.keep.test_history import spec


def test_a_spec_comes_back_as_it_was(tmp_path: Path) -> None:
    asked = spec(tmp_path, "abc-1")
    assert runs.load_spec(runs.create(asked)) == asked


@pytest.mark.skipif(sys.platform == "win32", reason="there, access is inherited from the folder")
def test_a_run_is_its_owners_own(tmp_path: Path) -> None:
    assert runs.create(spec(tmp_path / "output", "abc-1")).path.stat().st_mode & 0o077 == 0


def test_any_unique_prefix_finds_a_run(tmp_path: Path) -> None:
    for run_id in ("abc-1", "abd-2"):
        runs.create(spec(tmp_path, run_id))
    assert runs.find(tmp_path, "abc").run_id == "abc-1"
    assert runs.find(str(tmp_path), "abd-2").run_id == "abd-2"
    assert runs.find(tmp_path, "latest").run_id == "abd-2"


@pytest.mark.parametrize(
    ("prefix", "code"), [("ab", "INPUT_RUN_AMBIGUOUS"), ("x", "INPUT_RUN_NOT_FOUND"), ("", "INPUT_RUN_NOT_FOUND")]
)
def test_none_or_several_are_errors_with_codes(tmp_path: Path, prefix: str, code: str) -> None:
    for run_id in ("abc-1", "abd-2"):
        runs.create(spec(tmp_path, run_id))
    with pytest.raises(RunNotFoundError) as caught:
        runs.find(tmp_path, prefix)
    assert caught.value.code == code


def test_an_output_folder_without_a_run_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(RunNotFoundError) as caught:
        runs.find(tmp_path, "latest")
    assert (caught.value.code, caught.value.message) == ("INPUT_RUN_NOT_FOUND", f"there is no run in {tmp_path}")
    assert "--output" in caught.value.suggestion


def test_the_command_that_resumes_a_run_names_its_output_folder_unless_that_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_id = "12345678-90ab"
    assert runs.resuming(OutputDir(tmp_path / "output").run(run_id)) == "backprop resume 12345678"
    assert runs.resuming(OutputDir(tmp_path / "o").run(run_id)) == "backprop resume 12345678 --output o"
    assert runs.resuming(OutputDir(tmp_path / "a b").run(run_id)) == 'backprop resume 12345678 --output "a b"'
    elsewhere = tmp_path.parent
    assert runs.resuming(OutputDir(elsewhere).run(run_id)) == f"backprop resume 12345678 --output {elsewhere}"


def test_an_output_that_cannot_be_made_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigurationError) as caught:
        runs.create(spec(tmp_path / "file" / "out", "abc"))
    assert caught.value.code == "CONFIG_OUTPUT_UNWRITABLE"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_of_a_run_that_never_began_not_even_its_folder_stays(tmp_path: Path) -> None:
    asked = spec(tmp_path / "new" / "out", "abc-1")
    run_dir = runs.create(asked)
    run_dir.output.lock.touch()
    with pytest.raises(ConfigurationError), runs.beginning(run_dir):
        raise ConfigurationError("it cannot work")
    assert not (tmp_path / "new" / "out").exists()
    other = runs.create(spec(tmp_path / "new" / "out", "abd-2"))
    with pytest.raises(ConfigurationError), runs.beginning(runs.create(asked)):
        raise ConfigurationError("it cannot work")
    assert other.spec.is_file()
