"""Where a function of the user's failed: its own file and line, without the frames of ours that called it. Pure."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from types import TracebackType

_OURS = __name__.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Blame:
    """`file`, `line`: of the user's function, of which `text` is the traceback; `short`: the same in one line."""

    file: str
    line: int
    short: str
    text: str


def blame(error: BaseException) -> Blame:
    """One that no frame of theirs is to blame for is told with all of its frames."""
    theirs = _beyond_us(error.__traceback__)
    text = "".join(traceback.format_exception(type(error), error, theirs or error.__traceback__)).rstrip()
    short = traceback.format_exception_only(error)[-1].strip()
    if theirs is None:
        return Blame("backpropagate", 0, short, text)
    file, line = theirs.tb_frame.f_code.co_filename, theirs.tb_lineno
    return Blame(file, line, f"{short} ({file}:{line})", text)


def _beyond_us(frames: TracebackType | None) -> TracebackType | None:
    while frames is not None and frames.tb_frame.f_globals.get("__name__", "").partition(".")[0] == _OURS:
        frames = frames.tb_next
    return frames
