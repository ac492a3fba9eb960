"""The parent's side of a talk with a model: what was said so far, and the child that answers, replaced when it dies.

The caller's thread is free to wait for a person; the child is watched from the event loop of a portal's thread, which lives
as long as the conversation, so that the child's link to us (see process.py) holds as long, too.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Self, TypeVar

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from backpropagate.doors import process
from backpropagate.doors.oneshot import coded, last_words
from backpropagate.judge.decisions import Death
from backpropagate_protocol.errors import BackpropagateError, TrainingError, error_for
from backpropagate_protocol.framing import ProtocolError
from backpropagate_protocol.jobs import ChatJob
from backpropagate_protocol.messages import (
    PROTOCOL_VERSION,
    Fault,
    Hello,
    RunJob,
    Said,
    Say,
    ToParent,
    Turn,
)

_GLANCE = 0.2  # seconds between two looks for a Ctrl-C, where waiting for a thread hides it (Windows)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer. `stopped`: it was cut off, and `text` is what there was of it. seconds: of thinking, not of loading."""

    text: str
    tokens: int
    seconds: float
    stopped: bool = False


class Conversation:
    """Use as a context manager; blocks the thread that calls. `heard` gets each piece of an answer as it is made.

    note gets lines about the child: that it died, and that another one has taken the conversation up.
    """

    def __init__(
        self,
        job: ChatJob,
        *,
        runner_python: str | None,
        system: str | None = None,
        heard: Callable[[str], None],
        note: Callable[[str], None],
    ) -> None:
        self._job, self._python = job, runner_python
        self._start: list[tuple[str, str]] = [("system", system)] if system else []
        self._said = list(self._start)
        self._heard, self._note = heard, note
        self._child: _Child | None = None
        self._held = ExitStack()

    def __enter__(self) -> Self:
        """Loads the model. Raises the coded error of what keeps it from being loaded."""
        try:
            self._log = self._held.enter_context(tempfile.TemporaryFile())
            self._portal = self._held.enter_context(start_blocking_portal())
            self._ready()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._close()

    def _close(self) -> None:
        self._end_child()
        self._held.close()

    def reset(self) -> None:
        """Forgets what was said, but for the system's words."""
        self._said = list(self._start)

    def ask(self, text: str) -> Reply:
        """The answer. Ctrl-C ends it: what there is of it counts as the answer, and the next question has a new child.

        A child that dies is replaced once, and asked the same again. Raises the coded error of a question that cannot be
        answered; the conversation is then what it was before it.
        """
        before = list(self._said)
        self._said.append(("user", text))
        pieces: list[str] = []
        try:
            reply = self._answered(pieces)
        except KeyboardInterrupt:
            self._end_child()
            reply = Reply("".join(pieces), len(pieces), 0.0, stopped=True)
        except BaseException:
            self._end_child()
            self._said = before
            raise
        if reply.text:
            self._said.append(("assistant", reply.text))
        else:
            self._said = before
        return reply

    def _answered(self, pieces: list[str]) -> Reply:
        try:
            return self._once(pieces)
        except _Died as died:
            self._end_child()
            self._note(f"{died.error.message}; another one goes on with the conversation" + ("" if not pieces else ", from the last question"))  # fmt: skip
            pieces.clear()
        try:
            return self._once(pieces)
        except _Died as died:
            raise died.error from None

    def _once(self, pieces: list[str]) -> Reply:
        child = self._ready()
        child.send(Say(tuple(self._said)))
        while True:
            message = child.next()
            if isinstance(message, Said):
                pieces.append(message.text)
                self._heard(message.text)
            elif isinstance(message, Turn):
                return Reply(message.text, message.tokens, message.seconds)

    def _ready(self) -> _Child:
        """A child that has the model loaded."""
        if self._child is not None:
            return self._child
        try:
            child = self._child = _Child(self._portal, self._job, self._python, self._log)
            while not isinstance(child.next(), Turn):
                pass
        except _Died as died:
            raise died.error from None  # before it could answer at all: another one would not do better
        return child

    def _end_child(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None


class _Died(Exception):
    """The child is gone without having said why."""

    def __init__(self, error: BackpropagateError) -> None:
        super().__init__(error.message)
        self.error = error


class _Child:
    """One runner that holds the model."""

    def __init__(self, portal: BlockingPortal, job: ChatJob, python: str | None, log: IO[bytes]) -> None:
        self._portal, self._log, self._python = portal, log, python
        log.seek(0)
        log.truncate()
        warm = "none" if job.gguf is not None else job.backend
        running = process.running(python, f"chat-{uuid.uuid4()}", warm, log.fileno())
        self._held: AbstractContextManager[process.Runner] = portal.wrap_async_context_manager(running)
        try:
            self._runner = self._held.__enter__()
        except OSError as error:
            raise coded(error, python) from error
        self._messages = self._runner.messages()
        self._job = job

    def send(self, message: Say) -> None:
        self._wait(self._sent, message)

    async def _sent(self, message: Say | RunJob) -> None:
        self._runner.send(message)

    def next(self) -> ToParent:
        """The next thing it says. Raises _Died, and the coded error of its Fault or of words that we do not know."""
        try:
            message = self._wait(self._next)
        except (OSError, ProtocolError, ExceptionGroup) as error:
            raise coded(error, self._python) from error
        if message is None:
            death = self._wait(self._death)
            text = f"the process that held the model {death.text}{last_words(self._log)}"
            raise _Died(TrainingError(text, code="RUNTIME_CHILD_DIED", suggestion="Run it again."))
        if isinstance(message, Fault):
            raise error_for(message.code, message.message, suggestion=message.suggestion or None)
        if isinstance(message, Hello):
            if message.protocol != PROTOCOL_VERSION:
                text = f"the runner speaks protocol {message.protocol}, this program {PROTOCOL_VERSION}"
                raise TrainingError(text, code="RUNTIME_PROTOCOL")
            self._wait(self._sent, RunJob(self._job))
        return message

    async def _next(self) -> ToParent | None:
        return await anext(self._messages, None)

    async def _death(self) -> Death:
        drained = anyio.Event()
        drained.set()
        return await self._runner.wait(drained)

    def close(self) -> None:
        """Ends it, if it has not ended."""
        self._held.__exit__(None, None, None)

    def _wait(self, function: Callable[..., Awaitable[T]], *arguments: object) -> T:
        """What the function comes to, in the portal's thread; a Ctrl-C ends the waiting, and the function."""
        future = self._portal.start_task_soon(function, *arguments)
        try:
            while True:
                try:
                    return future.result(_GLANCE)
                except TimeoutError:
                    if future.done():
                        raise
        except BaseException:
            future.cancel()
            raise
