"""A small process of ours beside a run, with a log and the environment of the user. The third door to subprocesses.

It is told nothing but that we are done, or gone: its standard input then ends. It, and whatever it starts, is in a group (on
Windows, a job) of its own, so that a Ctrl-C in the terminal is not for it, and none of it stays when it is ended.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from backpropagate.doors.environ import environment

if sys.platform == "win32":
    from backpropagate.doors.winjob import CREATE_SUSPENDED, JobObject

_BURIAL_SECONDS = 5.0


class Attendant:
    """Started at once. No method but `end` takes any time. Raises OSError if it cannot be started."""

    def __init__(self, argv: Sequence[str], log: Path, variables: Mapping[str, str]) -> None:
        """`variables`: for its environment, where they are not set already."""
        command = [sys.executable, "-P", *argv]
        env = {**variables, **environment()}
        with open(log, "ab") as out:
            if sys.platform == "win32":
                flags = CREATE_SUSPENDED | subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=out, stderr=out, env=env, creationflags=flags
                )
                self._job = JobObject()
                try:
                    self._job.adopt(self._process.pid)
                except OSError:
                    self._job.close()
                    self._process.kill()
                    raise
            else:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=out, stderr=out, env=env, start_new_session=True
                )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def ends_within(self, seconds: float) -> bool:
        """Waits for its end, at most so long, or until a Ctrl-C."""
        try:
            self._process.wait(seconds)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            return False
        return True

    def release(self) -> None:
        """Tells it that nothing more comes."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def end(self, seconds: float = 0.0) -> int | None:
        """Gives it `seconds` to end by itself, or until a Ctrl-C; then it and all that it started are killed.

        Its exit code, if it ended by itself.
        """
        self.release()
        by_itself: int | None = None
        try:
            by_itself = self._process.wait(seconds)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            pass
        self._kill()
        try:
            self._process.wait(_BURIAL_SECONDS)
        except subprocess.TimeoutExpired:
            pass  # it hangs in the kernel; nobody can wait for that
        return by_itself

    def _kill(self) -> None:
        if sys.platform == "win32":
            self._job.kill()
            self._job.close()
        elif self._process.pid > 1:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass  # gone already, or nothing but zombies
