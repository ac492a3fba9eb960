"""The shapes a row can have: told apart by its columns, and converted to what a tokenizer takes.

A file has one format, that of its first row whose columns are known; a later row of another shape is a bad row. One
sample of each format stands in docs/data.md.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from backpropagate_protocol.data_formats import FORMAT_ALIASES
from backpropagate_protocol.errors import DatasetFormatError
from backpropagate_protocol.prepared import LABELLED, PAIRS, PLAIN
from backpropagate_runner.example import Chat, Completion, Example, Labelled, Pair, Text
from backpropagate_runner.pairs import chosen, chosen_text, is_verdict, labelled, pair, text_pair
from backpropagate_runner.prompts import Columns, answer_turns, assistants, led_by_system, prompt_turns
from backpropagate_runner.turns import (
    CHATML_MARK,
    Message,
    RowError,
    answered,
    chatml,
    filled,
    messages_of,
    text_of,
    tools_of,
)


def _sharegpt(row: Columns) -> Chat:
    return _conversation(row, "conversations" if "conversations" in row else "messages")


def _messages(row: Columns) -> Chat:
    return _conversation(row, "messages" if "messages" in row else "conversations")


def _conversation(row: Columns, column: str) -> Chat:
    messages, dropped = answered(led_by_system(row, messages_of(row.get(column), column)))
    return Chat(messages, tools_of(row.get("tools")), dropped=dropped)


def _asked(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _alpaca(row: Columns) -> Chat:
    question = filled(row.get("instruction"), "instruction")
    for column in ("input", "context"):
        if row.get(column):
            question = f"{question}\n\n{text_of(row[column], column)}"
    column = "response" if row.get("output") is None and "response" in row else "output"
    return Chat(led_by_system(row, [*_history(row), *_asked(question, filled(row.get(column), column))]))


def _history(row: Columns) -> list[Message]:
    """Earlier turns, as some Alpaca files have them: pairs of instruction and answer."""
    turns: list[Message] = []
    history = row.get("history") or []
    if not isinstance(history, list):
        raise RowError("history is not a list of pairs")
    for asked in history:
        if not isinstance(asked, list) or len(asked) != 2:
            raise RowError("history is not a list of pairs")
        turns += _asked(filled(asked[0], "history"), filled(asked[1], "history"))
    return turns


def _question_answer(row: Columns) -> Chat:
    asked = _asked(filled(row.get("question"), "question"), filled(row.get("answer"), "answer"))
    return Chat(led_by_system(row, asked))


def _prompt_completion(row: Columns) -> Chat | Completion:
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        return Completion(text_of(prompt, "prompt"), filled(completion, "completion"))
    first, after = prompt_turns(prompt), answer_turns(completion, "completion")
    messages, dropped = answered(led_by_system(row, [*first, *after]))
    if assistants(after) == 0:
        raise RowError("completion has no assistant turn, so there is nothing to learn")
    return Chat(messages, tools_of(row.get("tools")), assistants(first), dropped)


def _labelled(row: Columns) -> Labelled:
    return labelled(row, _prompt_completion(row))


def _text(row: Columns) -> Chat | Text:
    text = filled(row.get("text"), "text")
    messages = chatml(text) if CHATML_MARK in text else None
    if messages is None:
        return Text(text)
    kept, dropped = answered(messages)
    return Chat(kept, dropped=dropped)


def _raw(row: Columns) -> Text:
    return Text(filled(row.get("text"), "text"))


class _Shape(msgspec.Struct, frozen=True):
    """A format: the sets of columns of which a row must have one, and what makes an Example of such a row.

    compare   what makes a Pair or a Labelled of it, for methods that learn from preferences
    """

    columns: tuple[tuple[str, ...], ...]
    convert: Callable[[Columns], Example]
    compare: Callable[[Columns], Pair | Labelled] | None = None


_SHAPES = {
    "sharegpt": _Shape((("conversations",), ("messages",)), _sharegpt),
    "messages": _Shape((("messages",), ("conversations",)), _messages),
    "preference": _Shape((("chosen", "rejected"),), chosen, pair),
    "preference_text": _Shape((("chosen", "rejected"),), chosen_text, text_pair),
    "alpaca": _Shape((("instruction", "output"), ("instruction", "response")), _alpaca),
    "labelled": _Shape((("prompt", "completion", "label"),), _labelled, _labelled),
    "prompt_completion": _Shape((("prompt", "completion"),), _prompt_completion),
    "question_answer": _Shape((("question", "answer"),), _question_answer),
    "text": _Shape((("text",),), _text),
    "chatml": _Shape((("text",),), _text),
    "raw": _Shape((("text",),), _raw),
}
# What says most about a row comes first; sharegpt and messages are told apart by the name of their column.
_TRIED = ("preference", "alpaca", "prompt_completion", "question_answer", "text")
FORMATS = tuple(_SHAPES)
ACCEPTED_COLUMNS = (
    "conversations; messages; instruction + output or response; prompt + completion; question + answer; text; "
    "prompt + chosen + rejected; prompt + completion + label"
)
# What each kind of method takes, and a row of it.
PREFERENCES = ("preference", "preference_text")
_OF_LABELS = ("labelled", *PREFERENCES)
_PAIR_ROW = '{"prompt": "Is water wet?", "chosen": "Yes.", "rejected": "No idea."}'
_LABELLED_ROW = '{"prompt": [{"role": "user", "content": "Is water wet?"}], "completion": [{"role": "assistant", "content": "Yes."}], "label": true}'  # fmt: skip


def kind_of(method: str) -> str:
    """What a sample of this method is: a kind of prepared data."""
    return PLAIN if method == "sft" else LABELLED if method == "kto" else PAIRS


def check_serves(format: str, method: str, name: str) -> None:
    """Raises DatasetFormatError, with a row as it would have to be, if rows of this format have nothing for the method."""
    kind = kind_of(method)
    if kind == PLAIN or format in (PREFERENCES if kind == PAIRS else _OF_LABELS):
        return
    takes = "pairs of a chosen and a rejected answer" if kind == PAIRS else "answers that are labelled good or bad"
    raise DatasetFormatError(
        f"{name} holds rows of the format {format}, and the method {method} takes {takes}, such as\n  "
        + (_PAIR_ROW if kind == PAIRS else _LABELLED_ROW),
        suggestion="Use --method sft for rows that only show what to say, or data with answers that are compared.",
    )


def canonical(name: str) -> str | None:
    """The format called `name`; None if there is no such format."""
    name = FORMAT_ALIASES.get(name, name)
    return name if name in _SHAPES else None


def detect(row: Columns, method: str = "sft") -> str | None:
    """The format of a row, by its columns; None if they fit none. A `label` that is not plainly a verdict is taken for one
    only where the method asks for verdicts, and two answers come before a conversation that stands beside them only where
    it asks for such, or where they are the conversation's last turn."""
    if _fits("labelled", row) and (method == "kto" or is_verdict(row["label"])):
        return "labelled"
    if _fits("preference", row) and (kind_of(method) != PLAIN or isinstance(row["chosen"], dict)):
        return "preference"
    if "conversations" in row or "messages" in row:
        return "sharegpt" if "conversations" in row else "messages"
    name = next((name for name in _TRIED if _fits(name, row)), None)
    text = row.get("text")
    return "chatml" if name == "text" and isinstance(text, str) and CHATML_MARK in text else name


def _fits(name: str, row: Columns) -> bool:
    return any(all(column in row for column in columns) for columns in _SHAPES[name].columns)


def convert(name: str, row: Columns, method: str = "sft") -> Example:
    """The row as an Example of the format `name`, as the method needs it; raises RowError.

    For preference methods it is a Pair or a Labelled; `check_serves` says whether the format can give them.
    """
    shape = _SHAPES[name]
    compare = None if kind_of(method) == PLAIN else shape.compare
    try:
        return (compare or shape.convert)(row)
    except RowError as error:
        if _fits(name, row):
            raise
        needed = " or ".join(" + ".join(columns) for columns in _SHAPES[name].columns)
        raise RowError(f"has the columns {columns_of(row)}; the format {name} needs {needed}") from error


def columns_of(row: Columns) -> str:
    """A row's columns for a message: at most eight of them, none longer than a glance."""
    names = [str(name)[:40] for name in row]
    return ", ".join(names[:8]) + (" …" if len(names) > 8 else "") if names else "none"
