"""Runs everything that must hold before a change is done: style, types, walls, and the whole test suite.

    python scripts/test.py                 all of it
    python scripts/test.py -k framing      arguments go to pytest

Makes .venv with the `dev` extra first. The exit status is 0 only if every part passed.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from _venv import ROOT, Refusal, ensure, say


def checks(python: Path, pytest_arguments: list[str]) -> list[tuple[str, list[str]]]:
    run = [str(python), "-m"]
    walls = "import sys; from importlinter.cli import lint_imports_command as lint; sys.exit(lint())"
    return [
        ("ruff check", [*run, "ruff", "check", "."]),
        ("ruff format", [*run, "ruff", "format", "--check", "."]),
        ("mypy", [*run, "mypy"]),
        ("import walls", [str(python), "-c", walls]),
        # Most tests wait for children of theirs; the tests of one file share what it takes long to make. The order is that of
        # tests/conftest.py: by itself, xdist would leave files of few tests to the end, and those are the longest.
        ("pytest", [*run, "pytest", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", *pytest_arguments]),
    ]


def main() -> int:
    try:
        python = ensure("dev")
    except Refusal as refusal:
        print(f"cannot run the tests: {refusal}", file=sys.stderr)
        return 1
    results: list[tuple[str, int, float]] = []
    for name, command in checks(python, sys.argv[1:]):
        say(name)
        began = time.monotonic()
        status = subprocess.run(command, stdin=subprocess.DEVNULL, cwd=ROOT, check=False).returncode
        results.append((name, status, time.monotonic() - began))
    print("\nsummary")
    for name, status, seconds in results:
        print(f"  {'ok    ' if status == 0 else 'FAILED'}  {name:<14} {seconds:6.0f} s")
    return 0 if all(status == 0 for _, status, _ in results) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
