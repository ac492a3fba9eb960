"""The shapes a row can have: told apart by its columns, and converted to what a tokenizer takes.

A file has one format, that of its first row whose columns are known; a later row of another shape is a bad row. One
sample of each format stands in docs/data.md.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from backpropagate_protocol.data_formats import FORMAT_ALIASES
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

Columns = dict[str, object]


class Chat(msgspec.Struct, frozen=True, tag="chat"):
    """A conversation for the model's own template. It ends with an assistant turn.

    unlearnt   how many of its first assistant turns belong to the prompt and carry no loss
    dropped    turns after the last assistant turn that were left out
    """

    messages: list[Message]
    tools: list[object] | None = None
    unlearnt: int = 0
    dropped: int = 0


class Completion(msgspec.Struct, frozen=True, tag="completion"):
    """A text and how it goes on; no template."""

    prompt: str
    completion: str


class Text(msgspec.Struct, frozen=True, tag="text"):
    """Plain text, all of it to be learnt."""

    text: str


Example = Chat | Completion | Text


def _sharegpt(row: Columns) -> Chat:
    return _conversation(row, "conversations" if "conversations" in row else "messages")


def _messages(row: Columns) -> Chat:
    return _conversation(row, "messages" if "messages" in row else "conversations")


def _conversation(row: Columns, column: str) -> Chat:
    messages, dropped = answered(_led_by_system(row, messages_of(row.get(column), column)))
    return Chat(messages, tools_of(row.get("tools")), dropped=dropped)


def _led_by_system(row: Columns, messages: list[Message]) -> list[Message]:
    """With a `system` column of its own, where the turns have no system turn."""
    system = row.get("system")
    if system is None or system == "" or (messages and messages[0]["role"] == "system"):
        return messages
    return [{"role": "system", "content": text_of(system, "system")}, *messages]


def _asked(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _alpaca(row: Columns) -> Chat:
    question = filled(row.get("instruction"), "instruction")
    for column in ("input", "context"):
        if row.get(column):
            question = f"{question}\n\n{text_of(row[column], column)}"
    column = "response" if row.get("output") is None and "response" in row else "output"
    return Chat(_led_by_system(row, [*_history(row), *_asked(question, filled(row.get(column), column))]))


def _history(row: Columns) -> list[Message]:
    """Earlier turns, as some Alpaca files have them: pairs of instruction and answer."""
    turns: list[Message] = []
    history = row.get("history") or []
    if not isinstance(history, list):
        raise RowError("history is not a list of pairs")
    for pair in history:
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError("history is not a list of pairs")
        turns += _asked(filled(pair[0], "history"), filled(pair[1], "history"))
    return turns


def _question_answer(row: Columns) -> Chat:
    asked = _asked(filled(row.get("question"), "question"), filled(row.get("answer"), "answer"))
    return Chat(_led_by_system(row, asked))


def _prompt_completion(row: Columns) -> Chat | Completion:
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        return Completion(text_of(prompt, "prompt"), filled(completion, "completion"))
    return _continued(row, prompt, completion, "completion")


def _continued(row: Columns, prompt: object, answer: object, column: str) -> Chat:
    """A prompt and what follows it, either of them text or turns; only what follows is learnt."""
    if isinstance(prompt, str):
        first: list[Message] = [{"role": "user", "content": filled(prompt, "prompt")}]
    else:
        first = messages_of(prompt, "prompt")
    if isinstance(answer, str):
        after: list[Message] = [{"role": "assistant", "content": filled(answer, column)}]
    else:
        after = messages_of(answer, column)
    messages, dropped = answered(_led_by_system(row, [*first, *after]))
    if _assistants(after) == 0:
        raise RowError(f"{column} has no assistant turn, so there is nothing to learn")
    return Chat(messages, tools_of(row.get("tools")), _assistants(first), dropped)


def _preference(row: Columns) -> Chat | Text:
    chosen = row.get("chosen")
    if row.get("rejected") is None:
        raise RowError("rejected is missing")
    if row.get("prompt") is None:
        if isinstance(chosen, str):
            return Text(filled(chosen, "chosen"))
        messages, dropped = answered(_led_by_system(row, messages_of(chosen, "chosen")))
        return Chat(messages, tools_of(row.get("tools")), dropped=dropped)
    if isinstance(row["prompt"], str) and isinstance(chosen, list):
        whole = messages_of(chosen, "chosen")
        if whole[0]["role"] != "assistant":  # the prompt is in there already, as in the datasets of the hub
            messages, dropped = answered(_led_by_system(row, whole))
            return Chat(messages, tools_of(row.get("tools")), _assistants(messages) - 1, dropped)
    return _continued(row, row["prompt"], chosen, "chosen")


def _assistants(messages: list[Message]) -> int:
    return sum(message["role"] == "assistant" for message in messages)


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
    """A format: the sets of columns of which a row must have one, and what makes an Example of such a row."""

    columns: tuple[tuple[str, ...], ...]
    convert: Callable[[Columns], Example]


_SHAPES = {
    "sharegpt": _Shape((("conversations",), ("messages",)), _sharegpt),
    "messages": _Shape((("messages",), ("conversations",)), _messages),
    "preference": _Shape((("chosen", "rejected"),), _preference),
    "alpaca": _Shape((("instruction", "output"), ("instruction", "response")), _alpaca),
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
    "prompt + chosen + rejected"
)


def canonical(name: str) -> str | None:
    """The format called `name`; None if there is no such format."""
    name = FORMAT_ALIASES.get(name, name)
    return name if name in _SHAPES else None


def detect(row: Columns) -> str | None:
    """The format of a row, by its columns; None if they fit none."""
    if "conversations" in row or "messages" in row:
        return "sharegpt" if "conversations" in row else "messages"
    name = next((name for name in _TRIED if _fits(name, row)), None)
    text = row.get("text")
    return "chatml" if name == "text" and isinstance(text, str) and CHATML_MARK in text else name


def _fits(name: str, row: Columns) -> bool:
    return any(all(column in row for column in columns) for columns in _SHAPES[name].columns)


def convert(name: str, row: Columns) -> Example:
    """The row as an Example of the format `name`; raises RowError."""
    try:
        return _SHAPES[name].convert(row)
    except RowError as error:
        if _fits(name, row):
            raise
        needed = " or ".join(" + ".join(columns) for columns in _SHAPES[name].columns)
        raise RowError(f"has the columns {columns_of(row)}; the format {name} needs {needed}") from error


def columns_of(row: Columns) -> str:
    """A row's columns for a message: at most eight of them, none longer than a glance."""
    names = [str(name)[:40] for name in row]
    return ", ".join(names[:8]) + (" …" if len(names) > 8 else "") if names else "none"
