"""Reasoning traces: the `<think>…</think>` that answers begin with, kept as plain text and learnt like the rest of the answer.

A row's traces are those of the turns that are learnt; their tokens are added up. Some chat templates take traces out of what
the assistant said: a row whose traces would not be learnt is never trained on.
"""

from __future__ import annotations

import re
from typing import assert_never

import msgspec

from backpropagate_backends.base import Tokenizer
from backpropagate_runner.example import Answer, Chat, Completion, Text

_OPEN, _CLOSE = "<think>", "</think>"
_TRACE = re.compile(f"{_OPEN}(.*?){_CLOSE}", re.DOTALL)
_APART = ("reasoning_content", "thinking")  # of a turn: its reasoning, where it stands beside the content


def with_traces_inside(example: Answer | Text) -> Answer | Text:
    """Reasoning that stands beside a turn's content is written into it: most templates leave a field of its own out."""
    if not isinstance(example, Chat):
        return example
    return msgspec.structs.replace(example, messages=[_inside(message) for message in example.messages])


def _inside(message: dict[str, object]) -> dict[str, object]:
    apart = next((str(message[name]).strip() for name in _APART if message.get(name)), "")
    if message["role"] != "assistant" or not apart:
        return message
    rest = {name: value for name, value in message.items() if name not in _APART}
    if _OPEN in str(rest["content"]):
        return rest
    return {**rest, "content": f"{_OPEN}\n{apart}\n{_CLOSE}\n\n{str(rest['content']).lstrip()}"}


def with_traces_apart(example: Answer | Text) -> Answer | Text:
    """The other way round, for templates that write the marks themselves around a turn's `reasoning_content`."""
    if not isinstance(example, Chat):
        return example
    return msgspec.structs.replace(example, messages=[_apart(message) for message in example.messages])


def _apart(message: dict[str, object]) -> dict[str, object]:
    found = _TRACE.match(str(message["content"]).lstrip()) if message["role"] == "assistant" else None
    if found is None:
        return message
    rest = found.string[found.end() :].lstrip()
    return {**message, "reasoning_content": found[1].strip(), "content": rest}


class Traces:
    """Judges rows by their traces. band: the least and the most tokens."""

    def __init__(self, tokenizer: Tokenizer, band: tuple[int, int]) -> None:
        self._tokenizer = tokenizer
        self._least, self._most = band
        self._added: list[int] | None = None

    def of(self, example: Answer | Text) -> list[list[int]]:
        """The tokens of each trace of the row, without its marks."""
        return [self._tokens(trace) for text in learnt_texts(example) for trace in _TRACE.findall(text)]

    def reason_against(self, example: Answer | Text, traces: list[list[int]]) -> str | None:
        """Why a row with these traces is dropped; None if it is not."""
        texts = learnt_texts(example)
        if not any(mark in text for text in texts for mark in (_OPEN, _CLOSE)):
            return "no_trace"
        if any(text.count(_OPEN) != text.count(_CLOSE) or _OPEN in _TRACE.sub("", text) for text in texts):
            return "open_trace"
        tokens = sum(len(trace) for trace in traces)
        if tokens < self._least:
            return "empty_trace" if tokens == 0 else "short_trace"
        return "long_trace" if tokens > self._most else None

    def learnt(self, traces: list[list[int]], ids: list[int], trained: list[int]) -> bool:
        """Whether the tokens that carry loss have every trace in them, with the mark that ends it, and none has an empty one
        before it. White space is not compared: templates write their own around traces."""
        text = _squeezed(self._tokenizer.decode([token for token, flag in zip(ids, trained, strict=True) if flag]))
        if _OPEN + _CLOSE + _OPEN in text:
            return False
        at = 0
        for trace in traces:
            wanted = _squeezed(self._tokenizer.decode(trace)) + _CLOSE
            at = text.find(wanted, at)
            if at < 0:
                return False
            at += len(wanted)
        return True

    def _tokens(self, text: str) -> list[int]:
        if self._added is None:  # to any text: a token that begins it, perhaps, and the one that ends it
            self._added = self._tokenizer.text("")[0]
        ids = self._tokenizer.text(text)[0][len(self._added) - 1 :]
        return ids[:-1] if ids and ids[-1] == self._added[-1] else ids


def learnt_texts(example: Answer | Text) -> list[str]:
    """What of a row is learnt, as it stands there."""
    match example:
        case Chat(messages, _, unlearnt):
            return [str(turn["content"]) for turn in messages if turn["role"] == "assistant"][unlearnt:]
        case Completion(_, completion):
            return [completion]
        case Text(text):
            return [text]
        case _:
            assert_never(example)


def _squeezed(text: str) -> str:
    return "".join(text.split())
