"""The leak oracle: after a test of real processes nothing of its runs may be left, in the system or on the disk."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

from backpropagate.doors.process import RUN_ID_VARIABLE
from backpropagate.keep import locks
from backpropagate_protocol.rundir import PARTIAL, OutputDir
from tests.waiting import eventually

# The same examples each time, however long one takes: a busy machine and luck decide nothing.
settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite", action="store_true", help="write the policy's transcripts anew, to be read in the diff"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, those of the whole system before all: what is left at the end is short, and no
    worker waits for another. Within each sort the order stays."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in slow, "system" not in item.path.parts))


@dataclass
class Oracle:
    """Knows the output folders of a test, and looks for leftovers."""

    home: Path
    outputs: list[OutputDir] = field(default_factory=list)
    descriptors: int = 0

    def output(self, name: str = "out") -> OutputDir:
        """A folder for runs whose leftovers will be looked for."""
        output = OutputDir(self.home / name)
        if output not in self.outputs:
            self.outputs.append(output)
        return output

    def leftovers(self) -> list[str]:
        """Everything that should not be there; empty when all is well."""
        found = [*self._processes(), *self._zombies(), *self._descriptors()]
        for output in self.outputs:
            found += self._locks(output) + self._files(output)
        return found

    def _run_ids(self) -> set[str]:
        return {run.name for output in self.outputs if output.runs.is_dir() for run in output.runs.iterdir()}

    def _processes(self) -> list[str]:
        ids = self._run_ids()
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(RUN_ID_VARIABLE) in ids and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(f"process {process.pid}: {' '.join(process.cmdline())}")
            except (psutil.Error, OSError):
                continue
        return found

    def _zombies(self) -> list[str]:
        children = psutil.Process().children()
        return [f"zombie {child.pid}" for child in children if child.status() == psutil.STATUS_ZOMBIE]

    def _descriptors(self) -> list[str]:
        now = open_descriptors()
        return [f"{now} open descriptors instead of {self.descriptors}"] if now > self.descriptors else []

    def _locks(self, output: OutputDir) -> list[str]:
        holder = locks.holder_of(output.lock)
        return [f"{output.lock} is held by {holder}"] if holder else []

    def _files(self, output: OutputDir) -> list[str]:
        unfinished = (p for p in output.path.rglob("*") if p.name.endswith((PARTIAL, ".tmp", ".holder")))
        staged = (p for run in output.runs.glob("*/staging") for p in run.rglob("*"))
        return [f"left on disk: {path}" for path in (*unfinished, *staged)]


def open_descriptors() -> int:
    process = psutil.Process()
    return int(process.num_handles() if sys.platform == "win32" else process.num_fds())


@pytest.fixture
def oracle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Oracle]:
    """Gives output folders, and fails the test if anything of their runs is left after it."""
    for variable in ("XDG_STATE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(variable, str(tmp_path / "state"))
    if sys.platform == "darwin":
        monkeypatch.setenv("HOME", str(tmp_path / "home"))  # the user's state is below it there
    watch = Oracle(tmp_path)
    # Elsewhere than on Linux the system opens some of its own.
    watch.descriptors = open_descriptors() + {"linux": 0, "win32": 50}.get(sys.platform, 2)
    yield watch
    eventually(lambda: not watch.leftovers(), "nothing is left", lambda: "; ".join(watch.leftovers()))
