"""One row after the other becomes token ids and loss flags, or is dropped for a reason that is counted.

Where they go is another's business: to the folder of a prepared data set, or into statistics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Protocol, assert_never

from backpropagate_backends.base import Tokenizer
from backpropagate_protocol.errors import BackpropagateError
from backpropagate_protocol.prepared import LABELLED, Row
from backpropagate_protocol.spec import DataSpec
from backpropagate_runner.example import Answer, Chat, Completion, Example, Labelled, Pair, Text
from backpropagate_runner.formats import kind_of
from backpropagate_runner.traces import Traces, with_traces_apart, with_traces_inside


class Sink(Protocol):
    """Takes samples: see `prepared.PreparedWriter`."""

    def add(self, ids: list[int], trained: list[int]) -> None: ...

    def add_pair(self, chosen: Row, rejected: Row) -> None: ...

    def add_labelled(self, ids: list[int], trained: list[int], label: bool) -> None: ...


class Refused(Exception):
    """The model's chat template does not take the row; the message says why, for the user."""


class Tokeniser:
    """Counts as it goes: `dropped` by reason, `truncated` samples, tokens of conversations and those that carry loss."""

    def __init__(self, data: DataSpec, tokenizer: Tokenizer, notice: Callable[[str], None]) -> None:
        self._data, self._tokenizer, self._notice = data, tokenizer, notice
        self.length = length_of(data, tokenizer)
        self.kind = kind_of(data.method)
        self.train_on = data.train_on
        self.dropped: Counter[str] = Counter()
        self.truncated = self.truncated_tokens = 0
        self.chat_tokens = self.chat_trained = 0
        self.labels = [0, 0]  # bad, good
        self._traces = Traces(tokenizer, data.trace_tokens) if data.reasoning_trace else None
        self._tools_judged = False

    def take(self, example: Example, sink: Sink) -> None:
        """Hands the row's samples on, or drops it. Raises Refused, and what ends a run."""
        match example:
            case Pair(chosen, rejected):
                self._compare(chosen, rejected, sink)
            case Labelled(answer, good):
                self._one(answer, sink, good)
            case _:
                self._one(example, sink, None)

    def _compare(self, chosen: Answer, rejected: Answer, sink: Sink) -> None:
        rows = self._rows(chosen), self._rows(rejected)
        _check_prompt(*rows)
        if self.kind != LABELLED:
            if self._stays([ids for ids, _ in rows]) and (cut := self._cut(*rows)):
                sink.add_pair(*cut)
            return
        for row, good in zip(rows, (True, False), strict=True):
            if self._stays([row[0]]) and (cut := self._cut(row)):
                self._labelled(cut[0], good, sink)

    def _one(self, example: Answer | Text, sink: Sink, good: bool | None) -> None:
        if self._traces is not None:
            example = with_traces_inside(example)
        traces = self._traces.of(example) if self._traces is not None else []
        reason = self._traces.reason_against(example, traces) if self._traces is not None else None
        if reason is not None:
            self.dropped[reason] += 1
            return
        row = self._rows(example)
        if self._traces is not None and not self._traces.learnt(traces, *row):
            row = self._rows(with_traces_apart(example))
            if not self._traces.learnt(traces, *row):
                raise Refused(
                    "the model's chat template takes <think>…</think> out of what is learnt (many do so in all answers but "
                    "the last; else a model whose template keeps it is needed)"
                )
        if not self._stays([row[0]]):
            return
        cut = self._cut(row)
        if not cut:
            return
        if self._traces is not None and len(cut[0][0]) < len(row[0]) and not self._traces.learnt(traces, *cut[0]):
            self.dropped["cut_trace"] += 1
            return
        if self.kind == LABELLED:
            self._labelled(cut[0], good is True, sink)
        else:
            sink.add(*cut[0])

    def _labelled(self, row: Row, good: bool, sink: Sink) -> None:
        self.labels[good] += 1
        sink.add_labelled(*row, good)

    def _stays(self, rows: list[list[int]]) -> bool:
        """By --min-tokens and --max-tokens, before anything is cut."""
        data = self._data
        if min(map(len, rows)) < data.min_tokens:
            self.dropped["too_short"] += 1
        elif data.max_tokens and max(map(len, rows)) > data.max_tokens:
            self.dropped["too_long"] += 1
        else:
            return True
        return False

    def _cut(self, *rows: Row) -> list[Row]:
        """The rows of one sample within the length; nothing if nothing of one of them would be learnt."""
        found = [(ids[: self.length], trained[: self.length]) for ids, trained in rows]
        if not all(1 in trained for _, trained in found):
            self.dropped["unlearnable"] += 1
            return []
        lost = sum(max(0, len(ids) - self.length) for ids, _ in rows)
        self.truncated += lost > 0
        self.truncated_tokens += lost
        return found

    def _rows(self, example: Answer | Text) -> Row:
        try:
            ids, trained = self._tokens(example)
        except (BackpropagateError, MemoryError, OSError):
            raise
        except Exception as error:
            raise Refused(f"the model's chat template refuses it: {error}") from error
        if isinstance(example, Chat):
            self.chat_tokens += len(ids[: self.length])
            self.chat_trained += sum(trained[: self.length])
        if self._data.train_on == "all":
            trained = [1] * len(ids)
        return ids, trained

    def _tokens(self, example: Answer | Text) -> Row:
        match example:
            case Chat(messages, tools, unlearnt):
                ids, trained = self._tokenizer.chat(messages, tools)
                if not self._tools_judged:
                    self._judge_tools(example, ids)
                return ids, _without_runs(trained, unlearnt) if unlearnt else trained
            case Completion(prompt, completion):
                return self._tokenizer.completion(prompt, completion)
            case Text(text):
                return self._tokenizer.text(text)
            case _:
                assert_never(example)

    def _judge_tools(self, example: Chat, ids: list[int]) -> None:
        """Once, on the first row with tools: many templates leave them out without a word."""
        if not example.tools and not any("tool_calls" in message for message in example.messages):
            return
        self._tools_judged = True
        bare = [{key: value for key, value in turn.items() if key != "tool_calls"} for turn in example.messages]
        if self._tokenizer.chat(bare, None)[0] == ids:
            self._notice("the model's chat template shows neither tools nor tool calls: nothing of them is learnt")


def length_of(data: DataSpec, tokenizer: Tokenizer) -> int:
    """The most tokens of a row."""
    return min(data.max_length, tokenizer.max_length or data.max_length)


def _check_prompt(chosen: Row, rejected: Row) -> None:
    """Both rows of a pair begin with the same tokens, up to where one of them is learnt."""
    for mine, other, learnt, too in zip(chosen[0], rejected[0], chosen[1], rejected[1], strict=False):
        if learnt or too:
            return
        if mine != other:
            raise Refused("the model's chat template writes the prompt in another way before the rejected answer")


def _without_runs(trained: list[int], count: int) -> list[int]:
    """The flags with the first `count` runs of 1 set to 0: each run is one assistant turn."""
    found = list(trained)
    for index, flag in enumerate(trained):
        if flag and (index == 0 or not trained[index - 1]):
            count -= 1
        if count < 0:
            break
        found[index] = 0
    return found
