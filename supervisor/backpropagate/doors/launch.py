"""Starts the supervisor of a run as a process of its own, or a command for its answer. The second door to subprocesses:
process.py starts runners.

The supervisor gets its own session (POSIX) or process group (Windows), so that a Ctrl-C in the owner's terminal reaches
the owner alone, which then asks for a checkpoint through the control pipe. What it prints goes to `supervisor.log`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from backpropagate.keep import runs
from backpropagate_protocol.catalogue import ExitCode
from backpropagate_protocol.errors import BackpropagateError, TrainingError, error_for
from backpropagate_protocol.rundir import RunDir


class SupervisorProcess:
    """A running supervisor and, if owned, its control pipe. Closing the pipe tells it that its owner is gone."""

    def __init__(self, run_dir: RunDir, process: subprocess.Popen[bytes], log_offset: int) -> None:
        self.run_dir = run_dir
        self.process = process
        self._asked = False
        self._log_offset = log_offset  # where its own lines begin: earlier ones belong to supervisors before it

    def ask(self, wish: str) -> None:
        """`stop` (checkpoint, then end) or `kill` (end now). A supervisor that is gone already does not mind."""
        self._asked = True
        if self.process.stdin is None or self.process.stdin.closed:
            return
        try:
            self.process.stdin.write(wish.encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            pass

    def ask_once(self, wish: str) -> None:
        """The same, but nothing if it was asked for anything before: a second wish means urgency."""
        if not self._asked:
            self.ask(wish)

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self.process.poll()

    def last_words(self) -> BackpropagateError:
        """Why a supervisor ended without a last event: what it could not even begin, or that it was killed."""
        error = _refusal(self.run_dir, self._log_offset)
        if error is not None:
            return error
        return TrainingError(
            f"the supervisor of the run ended without a word (exit code {self.process.returncode})",
            suggestion=f"Look into {self.run_dir.supervisor_log}; then `{runs.resuming(self.run_dir)}`.",
            run_id=self.run_dir.run_id,
        )

    def end(self) -> None:
        """Ends it now; returns when it is gone. Its child, if it has one, follows it."""
        self.process.kill()
        self.process.wait()

    def release(self) -> None:
        """Closes the control pipe."""
        if self.process.stdin is not None and not self.process.stdin.closed:
            try:
                self.process.stdin.close()
            except OSError:
                pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()
        self.process.wait()


def start(run_dir: RunDir, *, owned: bool, wait: bool = False, gpu_script: Path | None = None) -> SupervisorProcess:
    """`owned`: the run ends, resumable, when this process does; else it goes on by itself.

    wait: if the output folder is taken, wait for it rather than refuse. gpu_script: a card that is played, for drills.
    """
    command = [sys.executable, "-P", "-m", "backpropagate", "_supervise", str(run_dir.path)]
    command += ["--owner"] * owned + ["--wait"] * wait
    command += ["--gpu-script", str(gpu_script)] if gpu_script is not None else []
    with open(run_dir.supervisor_log, "ab") as log:
        offset = log.tell()
        if sys.platform == "win32":
            # A remote session and its like are jobs that end with all that is in them: one that nobody owns leaves them.
            flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
            for leave in (0,) if owned else (subprocess.CREATE_BREAKAWAY_FROM_JOB, 0):
                try:
                    process = subprocess.Popen(
                        command,
                        stdin=subprocess.PIPE if owned else subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        creationflags=flags | leave,
                    )
                    break
                except PermissionError:
                    if not leave:
                        raise  # else: the job lets nobody go
        else:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if owned else subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
    return SupervisorProcess(run_dir, process, offset)


def answered(arguments: Sequence[str]) -> bytes:
    """What `backprop ARGUMENTS` writes to standard output, however it ends. Blocks; interrupted, it ends the command.

    For those who cannot run a child themselves: a thread, or a notebook whose event loop is running.
    """
    command = [sys.executable, "-P", "-m", "backpropagate", *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return done.stdout


def carried_out(command: Sequence[str], heard: Callable[[str], None]) -> int:
    """Runs a program of others to its end and hands on each line that it says. Its exit code; interrupted, it is ended.

    Raises OSError if it cannot be started.
    """
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                heard(line.rstrip())
        except BaseException:
            process.kill()
            raise
    return process.returncode


class _Refusal(msgspec.Struct):
    code: str
    message: str
    suggestion: str | None = None
    exit_code: ExitCode | None = None


class _RefusalDocument(msgspec.Struct):
    error: _Refusal


def _refusal(run_dir: RunDir, offset: int) -> BackpropagateError | None:
    """The error document that `_supervise` writes as its last line."""
    try:
        lines = run_dir.supervisor_log.read_bytes()[offset:].splitlines()
    except OSError:
        return None
    for line in reversed(lines[-20:]):
        try:
            said = msgspec.json.decode(line, type=_RefusalDocument).error
        except msgspec.DecodeError:
            continue
        return error_for(
            said.code, said.message, suggestion=said.suggestion, run_id=run_dir.run_id, exit_code=said.exit_code
        )
    return None
