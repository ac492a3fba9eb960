"""JSON values out of a file, one at a time: the elements of an array, or objects that follow one another.

Memory is bounded by the longest value. Where the text is broken nothing after it can be trusted, so that is an error and
never the quiet end of the rows.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator

from backpropagate_protocol.errors import DatasetParseError
from backpropagate_runner.sources import MAX_ROW, FileSource, without_mark

_CHUNK = 256 * 1024


class _Window:
    """A growing window on a UTF-8 file: what was used is dropped, its lines counted."""

    def __init__(self, source: FileSource) -> None:
        self._source = source
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._line, self._counted = 1, 0  # the line at text[_counted]
        self._begun = self._ended = False
        self.text = ""
        self.at = 0  # where reading goes on

    def more(self) -> bool:
        """Reads on, as much again as is held, so that a long row costs linear time; False at the end of the file."""
        if self._ended:
            return False
        if len(self.text) - self.at > MAX_ROW:
            raise self.broken(f"a row is longer than {MAX_ROW >> 20} MiB")
        self.line_at(self.at)
        self.text, self.at, self._counted = self.text[self.at :], 0, 0
        data = self._source.stream.read(max(_CHUNK, len(self.text)))
        if not self._begun:
            data, self._begun = without_mark(data, self._source.name), True
        self._ended = not data
        try:
            self.text += self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            line = self.line_at(len(self.text)) + error.object.count(b"\n", 0, error.start)
            raise DatasetParseError(f"{self._source.name}, line {line}: is not UTF-8") from error
        return True

    def line_at(self, position: int) -> int:
        """The line number at a position not before the last one asked for."""
        self._line += self.text.count("\n", self._counted, position)
        self._counted = position
        return self._line

    def peek(self) -> str:
        """The next character that is not white space, not taken; empty at the end."""
        while True:
            self.at = _past_space(self.text, self.at).end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def broken(self, reason: str, at: int | None = None) -> DatasetParseError:
        line = self.line_at(self.at if at is None else at)
        return DatasetParseError(
            f"{self._source.name}, line {line}: {reason}; nothing after it can be read",
            suggestion="Repair the file there; or write one JSON object a line (.jsonl), where a bad row spoils only itself.",
        )


_decode_value = json.JSONDecoder().raw_decode
_SPACE = re.compile(r"[ \t\r\n]*")


def _past_space(text: str, at: int) -> re.Match[str]:
    found = _SPACE.match(text, at)
    assert found is not None  # it matches nothing, too
    return found


def json_values(source: FileSource, *, array: bool) -> Iterator[tuple[int, object]]:
    """Each value with the line on which it begins."""
    window = _Window(source)
    first = window.peek()
    if not first:
        return
    if array:
        window.at += 1
        if window.peek() == "]":
            window.at += 1
            _nothing_follows(window)
            return
    while True:
        if not window.peek():
            if array:
                raise window.broken("the file ends in the middle of the array")
            return
        value, end = _next_value(window)
        line = window.line_at(window.at)
        window.at = end
        yield line, value
        if not array:
            continue
        match window.peek():
            case ",":
                window.at += 1
            case "]":
                window.at += 1
                _nothing_follows(window)
                return
            case "":
                raise window.broken("the file ends in the middle of the array")
            case _:
                raise window.broken("is not JSON: a comma or ] is missing between rows")


def _nothing_follows(window: _Window) -> None:
    if window.peek():
        raise window.broken("something follows the end of the array")


def _next_value(window: _Window) -> tuple[object, int]:
    """The JSON value at the window's position and where it ends; reads on until it is whole."""
    while True:
        try:
            value, end = _decode_value(window.text, window.at)
        except json.JSONDecodeError as error:
            if window.more():
                continue
            raise window.broken(f"is not JSON: {error.msg}", min(error.pos, len(window.text))) from error
        except RecursionError as error:
            raise window.broken("is nested too deeply") from error
        except ValueError as error:
            raise window.broken(f"is not JSON that can be read: {error}") from error
        # A number that touches the end of what was read may go on there.
        if end < len(window.text) or not window.more():
            return value, end
