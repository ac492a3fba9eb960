"""What a model says on its way to a terminal, and answers that are lines."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout

from backpropagate.screen import Screen


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_no_control_characters_of_a_model() -> None:
    with redirect_stdout(Terminal()) as terminal:
        Screen().piece("one\x1b[2J\x07\r two\n\tthree\x9b")

    assert terminal.getvalue() == "one[2J two\n\tthree"


def test_a_pipe_gets_an_answer_as_it_is() -> None:
    with redirect_stdout(io.StringIO()) as pipe:
        Screen().piece("one\x1b two")
        Screen().piece(" three")

    assert pipe.getvalue() == "one\x1b two three"


def test_each_of_several_answers_is_a_line_of_json() -> None:
    screen = Screen(json=True)
    written = io.BytesIO()
    with redirect_stdout(io.TextIOWrapper(written, write_through=True)):
        screen.line({"answer": "one"})
        screen.line({"answer": "two"})

        assert [json.loads(line) for line in written.getvalue().splitlines()] == [{"answer": "one"}, {"answer": "two"}]
