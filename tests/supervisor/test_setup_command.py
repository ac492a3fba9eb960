"""`setup`: what it fetches has to be named; the fetching itself is tested beside it in the runner."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


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
