"""The supervisor's end of the trackers: one process for each, which reads the journal by itself. Nothing here can block a run.

A process that fails is started again after a while: since the journal has everything, it then tells what it has not told.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from backpropagate.doors.attendant import Attendant
from backpropagate.doors.process import RUN_ID_VARIABLE
from backpropagate.events import Event, RunCreated, RunEnded, RunResumed
from backpropagate.track import told
from backpropagate_protocol.rundir import RunDir

PATIENCE = 30.0  # seconds that the end of a run is held up by trackers at most
_LOOK_EVERY = 5.0
_SHORT = 2.0  # seconds of waiting that nobody needs to be told of
_AGAIN_AFTER = (10.0, 60.0, 300.0)  # seconds until a failed process is started once more; then it is left until the end

# Neither a report to the maker of a tracker nor a question; a user's own value stays.
_ENVIRONMENT = {
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_SILENT": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}


@dataclass(slots=True)
class _Kept:
    name: str
    process: Attendant | None = None
    failures: int = 0
    again_at: float = 0.0
    look_at: float = 0.0  # when to look again whether it is kept here
    kept_told: bool = False


class Trackers:
    """A sink. `close` says that nothing more comes; `wait` gives them a moment to finish.

    tell: to be set to what passes a warning on to those who watch the run.
    """

    def __init__(self, run_dir: RunDir, names: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._run_dir, self._clock = run_dir, clock
        self._kept = [_Kept(name) for name in names]
        self.tell: Callable[[str], None] = lambda text: None

    def event(self, event: Event) -> None:
        for one in self._kept:
            if isinstance(event, RunCreated | RunResumed):
                self._start(one)
            elif not isinstance(event, RunEnded):  # the last line of a journal is no warning about a tracker
                self._look_after(one)

    def _start(self, one: _Kept) -> None:
        argv = ["-m", "backpropagate.track.attend", one.name, str(self._run_dir.path)]
        try:
            variables = {**_ENVIRONMENT, RUN_ID_VARIABLE: self._run_dir.run_id}
            one.process = Attendant(argv, self._run_dir.trackers_log, variables)
        except OSError as error:
            self._failed(one, str(error))

    def _look_after(self, one: _Kept) -> None:
        if self._clock() >= one.look_at:
            one.look_at = self._clock() + _LOOK_EVERY
            self._tell_if_kept(one, self.tell)
        if one.process is not None and one.process.exit_code is not None:
            one.process.end()
            one.process = None
            self._failed(one, told.load(self._run_dir.told(one.name)).problem or "its process ended")
        elif one.process is None and 0 < one.failures <= len(_AGAIN_AFTER) and self._clock() >= one.again_at:
            self._start(one)

    def _tell_if_kept(self, one: _Kept, tell: Callable[[str], None]) -> None:
        if not one.kept_told and (kept := told.load(self._run_dir.told(one.name)).kept):
            one.kept_told = True
            tell(f"{one.name}: {kept}. More in {self._run_dir.trackers_log}")

    def _failed(self, one: _Kept, problem: str) -> None:
        one.failures += 1
        if one.failures <= len(_AGAIN_AFTER):
            one.again_at = self._clock() + _AGAIN_AFTER[one.failures - 1]
        if one.failures == 1:
            self.tell(
                f"{one.name} does not take the run ({problem}); the run goes on, and {one.name} is tried again. "
                f"More in {self._run_dir.trackers_log}"
            )

    def close(self) -> None:
        for one in self._kept:
            ended = one.process is not None and one.process.exit_code is not None
            if ended or (one.failures and one.process is None):
                self._start(one)  # one last try, with all of the run
            if one.process is not None:
                one.process.release()

    def wait(self, seconds: float = PATIENCE, tell: Callable[[str], None] = lambda text: None) -> tuple[str, ...]:
        """Returns when they have finished, after `seconds`, or at a Ctrl-C; none of them runs then.

        The names of those that were not told all, each of which `tell` is told of, as of a longer wait.
        """
        now = time.monotonic()
        slow = [one.name for one in self._kept if one.process is not None and not one.process.ends_within(_SHORT)]
        if slow and seconds > _SHORT:
            tell(f"waiting at most {seconds:.0f} s for {' and '.join(slow)} (Ctrl-C: not)")
        untold = tuple(one.name for one in self._kept if not self._finished(one, now + seconds))
        for one in self._kept:
            self._tell_if_kept(one, tell)
        for name in untold:
            problem = told.load(self._run_dir.told(name)).problem or "it did not finish in time"
            tell(
                f"{name} was not told all of the run ({problem}); `backprop track {self._run_dir.run_id[:8]} --output "
                f"{shlex.quote(str(self._run_dir.output.path))}` tells it the rest. More in {self._run_dir.trackers_log}"
            )
        return untold

    def _finished(self, one: _Kept, deadline: float) -> bool:
        """Whether it has been told all. Its process is ended."""
        process, one.process = one.process, None
        if process is None:
            return not one.failures
        return process.end(max(0.0, deadline - time.monotonic())) == 0

    def told_again(self, seconds: float, tell: Callable[[str], None]) -> tuple[str, ...]:
        """For a run that nobody supervises now: each is told what it has not been told. As `wait`."""
        for one in self._kept:
            self._start(one)
        self.close()
        return self.wait(seconds, tell)
