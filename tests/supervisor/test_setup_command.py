"""`setup`: what it fetches has to be named; the fetching itself is tested beside it in the runner."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def test_its_help_says_what_a_flag_does_here_and_defaults_stand_as_they_are_typed(tmp_path: Path) -> None:
    def shown(command: str) -> str:
        said = subprocess.run(
            [sys.executable, "-P", "-m", "backpropagate", command, "--help"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return " ".join(said.stdout.split())

    setup = shown("setup")
    assert "that the environment is made of" in setup
    assert "is taken as it is" not in setup
    train = shown("train")
    assert "[default: none]" in train
    assert "('" not in train


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], "INPUT_VALIDATION_FAILED"),
        (["--convertor"], "INPUT_VALIDATION_FAILED"),
        (["--converter", "--runner-python", "no-such-program"], "CONFIG_INVALID_SETTING"),
    ],
)
def test_a_wrong_wish_is_refused_and_nothing_fetched(tmp_path: Path, arguments: list[str], code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "backpropagate", "setup", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 1
    assert done.stderr.startswith(f"[{code}]: ")
    assert list(tmp_path.iterdir()) == []
