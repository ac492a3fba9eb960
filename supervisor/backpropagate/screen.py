"""What a command says: data to stdout, everything else to stderr, every error in one shape, all of it redacted."""

from __future__ import annotations

import errno
import io
import re
import sys
from dataclasses import dataclass

import click

from backpropagate_protocol.catalogue import ExitCode, Retry
from backpropagate_protocol.errors import BackpropagateError
from backpropagate_protocol.redact import redact


@dataclass(slots=True)
class Screen:
    """One per invocation. With `json`, exactly one document is written to stdout and nothing else is shown."""

    json: bool = False
    verbose: bool = False

    def data(self, document: object, text: str) -> None:
        """The command's answer: `document` as JSON, or `text` for people."""
        if self.json:
            _write_json(document)
        elif text:
            _write(redact(text))

    def piece(self, text: str) -> None:
        """A part of an answer that is still being made, as it is; a terminal gets no control characters of a model's."""
        _write(_CONTROL.sub("", text) if terminal(sys.stdout) else text, end="")

    def line(self, document: object) -> None:
        """With `json`, one of several answers, on a line of its own."""
        _write_json(document, indent=False)

    def note(self, text: str) -> None:
        """Something that is not the answer."""
        if not self.json:
            _whisper(redact(text))

    def error(
        self, error: BackpropagateError, document: dict[str, object] | None = None, exit_code: int | None = None
    ) -> None:
        """`document`: what the command would have answered; with --json the error joins it.

        exit_code: that of the command, where it is not the error's own (Ctrl-C).
        """
        if self.json:
            code = int(error.exit_code) if exit_code is None else exit_code
            _write_json({**(document or {}), "error": {**described(error), "exit_code": code}})
            return
        _whisper(redact(f"[{error.code}]: {error.message}"))
        _whisper(redact(f"What to do: {_advice(error)}"))
        if error.run_id:
            _whisper(f"Run: {error.run_id}")


def described(error: BackpropagateError) -> dict[str, object]:
    """An error as the `error` field of a JSON document."""
    return {
        "code": error.code,
        "message": error.message,
        "suggestion": _advice(error),
        "retry": str(error.retry),
        "run_id": error.run_id,
    }


def _advice(error: BackpropagateError) -> str:
    """The suggestion, with this run's id where the catalogue says RUN: a line that can be copied."""
    return error.suggestion.replace("resume RUN", f"resume {error.run_id[:8]}") if error.run_id else error.suggestion


def current() -> Screen:
    """The screen of the command that is running."""
    screen = click.get_current_context().find_object(Screen)
    assert screen is not None
    return screen


def terminal(stream: object) -> bool:
    """Whether a person watches it: a terminal that can move its cursor."""
    isatty = getattr(stream, "isatty", None)
    return callable(isatty) and bool(isatty())


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def _write_json(document: object, *, indent: bool = True) -> None:
    import msgspec

    plain = _redacted(msgspec.to_builtins(document, str_keys=True))
    _write(msgspec.json.format(msgspec.json.encode(plain), indent=2 if indent and terminal(sys.stdout) else 0))


# A reader that went away (`backprop list-runs | head`), as POSIX and Windows say it, and a terminal that was closed.
_NOBODY_READS = (errno.EPIPE, errno.EINVAL, errno.EIO)


def _write(answer: str | bytes, end: str = "\n") -> None:
    """To stdout. That nobody reads any more does not change how the command ends."""
    try:
        click.echo(answer, nl=bool(end))
    except OSError as error:
        if error.errno not in _NOBODY_READS:
            raise
        sys.stdout = io.StringIO()  # or the interpreter would try to flush the broken one at exit, and complain


def _whisper(text: str) -> None:
    """To stderr, which may be gone."""
    try:
        click.echo(text, err=True)
    except OSError:
        sys.stderr = io.StringIO()


def _redacted(value: object) -> object:
    """Leaf by leaf, so that what is hidden cannot break the document."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: _redacted(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(item) for item in value]
    return value


def as_error(error: BaseException) -> tuple[BackpropagateError, ExitCode]:
    """Any exception as one of ours, and the exit code of the command that raised it."""
    if isinstance(error, BackpropagateError):
        return error, error.exit_code
    if isinstance(error, click.UsageError):
        help_of = error.ctx.command_path if error.ctx else "backprop"
        wrong = BackpropagateError(
            error.format_message(),
            code="INPUT_VALIDATION_FAILED",
            suggestion=f"`{help_of} --help` lists what is accepted.",
        )
        return wrong, ExitCode.USER_ERROR
    if isinstance(error, KeyboardInterrupt | click.Abort):
        stopped = BackpropagateError("interrupted", code="RUNTIME_TRAINING_ABORTED", suggestion="Run it again.")
        return stopped, ExitCode.INTERRUPTED
    if isinstance(error, MemoryError):
        return BackpropagateError("out of memory", code="RUNTIME_HOST_OOM"), ExitCode.FAILED
    message = " ".join(str(error).split())
    ours = BackpropagateError(f"{type(error).__name__}: {message}" if message else type(error).__name__)
    assert ours.retry is Retry.LATER
    return ours, ExitCode.FAILED
