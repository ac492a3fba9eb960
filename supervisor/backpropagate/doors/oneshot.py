"""One child for one question: validate data, generate answers, do one stage. No run directory, no recovery; what fails is raised."""

from __future__ import annotations

import sys
import tempfile
import uuid
from collections.abc import Callable
from functools import partial
from typing import IO, TypeVar

import anyio

from backpropagate.doors.process import Runner, running
from backpropagate_protocol.errors import (
    BackpropagateError,
    DependencyError,
    InvalidSettingError,
    TrainingError,
    error_for,
)
from backpropagate_protocol.framing import ProtocolError
from backpropagate_protocol.jobs import CalibrateJob, GenerateJob, ProbeJob, StageJob, ValidateJob
from backpropagate_protocol.messages import PROTOCOL_VERSION, Done, Fault, Hello, RunJob, ToParent
from backpropagate_protocol.redact import redact

_LAST_LINES = 5
_LOG_TAIL = 8192

Result = TypeVar("Result")


def run_job(
    job: ValidateJob | GenerateJob | ProbeJob | CalibrateJob | StageJob,
    answer: type[Result],
    *,
    backend: str,
    runner_python: str | None = None,
    on_message: Callable[[ToParent], None] | None = None,
    deadline: float | None = None,
) -> Result:
    """The job's result, which must be an `answer`. Blocks; call it in the main thread.

    backend: whose frameworks the child imports at once, or `none`. Raises the coded error of the child's fault;
    RUNTIME_CHILD_DIED with its last words if it died, or was ended since `deadline` seconds were over; RUNTIME_PROTOCOL if it
    does not speak our protocol.
    """
    ask = partial(
        ask_job,
        job,
        answer,
        backend=backend,
        runner_python=runner_python,
        on_message=on_message,
        deadline=deadline,
    )
    return anyio.run(ask)


async def ask_job(
    job: ValidateJob | GenerateJob | ProbeJob | CalibrateJob | StageJob,
    answer: type[Result],
    *,
    backend: str,
    runner_python: str | None = None,
    on_message: Callable[[ToParent], None] | None = None,
    deadline: float | None = None,
) -> Result:
    """As `run_job`, in an event loop of the main thread. Cancelled, it ends the child."""
    try:
        with tempfile.TemporaryFile() as log:
            result = await _ask_in_time(deadline, job, backend, runner_python, on_message, log)
    except (OSError, ProtocolError, ExceptionGroup) as error:
        raise coded(error, runner_python) from error
    if isinstance(result, BackpropagateError):
        raise result
    if not isinstance(result, answer):
        raise TrainingError(f"the runner answered with a {type(result).__name__}", code="RUNTIME_PROTOCOL")
    return result


def coded(error: Exception, python: str | None) -> Exception:
    """What the child's end of the pipe did to us, as an error of ours; task groups wrap what went wrong in them."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, ProtocolError):
        return TrainingError(f"the runner said what we do not understand: {error}", code="RUNTIME_PROTOCOL")
    if isinstance(error, OSError):
        return InvalidSettingError(f"the runner {python or sys.executable} cannot be started: {error}")
    return error


async def _ask_in_time(
    deadline: float | None,
    job: ValidateJob | GenerateJob | ProbeJob | CalibrateJob | StageJob,
    backend: str,
    python: str | None,
    on_message: Callable[[ToParent], None] | None,
    log: IO[bytes],
) -> object:
    with anyio.move_on_after(deadline):
        return await _ask(job, backend, python, on_message, log)
    return TrainingError(f"the runner did not answer within {deadline:g} s{last_words(log)}", code="RUNTIME_CHILD_DIED")


async def _ask(
    job: ValidateJob | GenerateJob | ProbeJob | CalibrateJob | StageJob,
    backend: str,
    python: str | None,
    on_message: Callable[[ToParent], None] | None,
    log: IO[bytes],
) -> object:
    drained = anyio.Event()
    greeted = False
    async with running(python, f"oneshot-{uuid.uuid4()}", backend, log.fileno()) as runner:
        async for message in runner.messages():
            greeted = True
            if on_message is not None:
                on_message(message)
            ended = _react(runner, job, message)
            if ended is not None:
                return ended
        drained.set()
        death = await runner.wait(drained)
    if not greeted and python is not None:
        return DependencyError(
            f"{python} did not start a runner: it {death.text}{last_words(log)}",
            suggestion="Install backpropagate with its training packages there, or name another --runner-python.",
        )
    return TrainingError(
        f"the runner {death.text}{last_words(log)}", code="RUNTIME_CHILD_DIED", suggestion="Run it again."
    )


def _react(
    runner: Runner, job: ValidateJob | GenerateJob | ProbeJob | CalibrateJob | StageJob, message: ToParent
) -> object:
    """The end of the conversation, if this message is it: a result, or an error."""
    if isinstance(message, Hello):
        if message.protocol != PROTOCOL_VERSION:
            return TrainingError(
                f"the runner speaks protocol {message.protocol}, this supervisor {PROTOCOL_VERSION}",
                code="RUNTIME_PROTOCOL",
            )
        runner.send(RunJob(job))
    elif isinstance(message, Done):
        return message.result
    elif isinstance(message, Fault):
        return error_for(message.code, message.message, suggestion=message.suggestion or None)
    return None


def last_words(log: IO[bytes]) -> str:
    """The last lines that the child wrote to its standard error."""
    log.seek(max(0, log.seek(0, 2) - _LOG_TAIL))
    lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return redact(": " + " | ".join(lines[-_LAST_LINES:])) if lines else ""
