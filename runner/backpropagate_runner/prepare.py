"""Rows become token ids, once: streamed through the model's tokenizer into a folder named by all that went into it.

The same data, tokenizer and options find the same folder again, so a second run prepares nothing and a resumed run
cannot see other data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import assert_never

import msgspec

from backpropagate_backends.base import Tokenizer
from backpropagate_protocol.errors import BackpropagateError, DatasetError
from backpropagate_protocol.messages import DataReady
from backpropagate_protocol.prepared import PreparedManifest, PreparedWriter, verify
from backpropagate_protocol.spec import DataSpec
from backpropagate_runner.examples import TRAIN, Examples
from backpropagate_runner.formats import Chat, Completion, Example, Text
from backpropagate_runner.readers import BadRow, open_source
from backpropagate_runner.replay import data_of
from backpropagate_runner.validate import MAX_ERRORS, PhaseReport, Scan, Ticker, bad_rows

# Raised whenever the same rows and tokenizer would give other tokens than before.
VERSION = 1

Row = tuple[list[int], list[int]]


def prepared_key(data: DataSpec, tokenizer: Tokenizer, scan: Scan) -> str:
    """The name of the folder: a digest of all that decides the tokens."""
    parts = [
        VERSION,
        scan.source_digest,
        tokenizer.digest,
        _length(data, tokenizer),
        scan.format,
        data.samples,
        data.on_bad_row,
        data.train_on,
        data.packing,
    ]
    mixed_in = [
        [found.source_digest, found.format, portion.start, portion.stop, portion.take, portion.seed]
        for portion, found in zip(data.replay, scan.portions, strict=True)
    ]
    selection = [data.start, data.holdout, data.part, mixed_in]
    if selection != [0, 0, TRAIN, []]:
        parts.append(selection)
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def _length(data: DataSpec, tokenizer: Tokenizer) -> int:
    return min(data.max_length, tokenizer.max_length or data.max_length)


def _no_notice(text: str) -> None:
    return


def prepare(
    data: DataSpec,
    tokenizer: Tokenizer,
    scan: Scan,
    cache: Path,
    phase: PhaseReport,
    notice: Callable[[str], None] = _no_notice,
) -> DataReady:
    """The prepared data set of these rows, made or found in `cache`. `phase` is told rows done and rows in all.

    Raises a coded DatasetError if nothing, or on chat data everything, would carry loss; if the template refuses rows
    (data.on_bad_row skip leaves those out); and if the file is no longer what `scan` saw.
    """
    if any(found.counts.get("chat") for found in (scan, *scan.portions)) and data.train_on == "assistant":
        tokenizer.check()
    key = prepared_key(data, tokenizer, scan)
    folder = cache / key
    try:
        manifest = verify(folder)
        phase(scan.taken, scan.taken, "prepared before")
    except ValueError:
        manifest = _Preparation(data, tokenizer, scan, folder, notice).run(key, phase)
    lost = manifest.skipped - scan.bad
    if lost:
        notice(f"rows left out, since nothing in them could be learnt within {_length(data, tokenizer)} tokens: {lost}")
    if manifest.truncated:
        notice(f"rows cut at {_length(data, tokenizer)} tokens: {manifest.truncated} of {manifest.rows}")
    return DataReady(
        path=str(folder),
        digest=manifest.digest,
        format=manifest.format,
        rows=manifest.rows,
        skipped=manifest.skipped,
        tokens=manifest.tokens,
        trained_tokens=manifest.trained_tokens,
        truncated=manifest.truncated,
        source_digest=manifest.source_digest,
    )


class _Preparation:
    """One pass from rows to tokens."""

    def __init__(
        self, data: DataSpec, tokenizer: Tokenizer, scan: Scan, folder: Path, notice: Callable[[str], None]
    ) -> None:
        self._data, self._tokenizer, self._scan, self._folder = data, tokenizer, scan, folder
        self._notice = notice
        self._tools_judged = False
        self._length = _length(data, tokenizer)
        self._chat_tokens = self._chat_trained = 0
        self._truncated = self._untrained = self._refused = 0
        self._refusals: list[str] = []
        self._done = 0
        self._reading = data.source

    def run(self, key: str, phase: PhaseReport) -> PreparedManifest:
        tick = Ticker(phase)
        phase(0, self._scan.taken, "")
        self._folder.parent.parent.mkdir(parents=True, exist_ok=True)
        self._folder.parent.mkdir(mode=0o700, exist_ok=True)  # the training data, for whoever has the tokenizer
        writer = PreparedWriter(self._folder)
        try:
            self._read(self._data, self._scan, writer, tick)
            for portion, found in zip(self._data.replay, self._scan.portions, strict=True):
                self._read(data_of(portion, self._data), found, writer, tick)
            self._judge(Path(self._data.source).name, writer)
            return writer.commit(
                key=key,
                skipped=self._scan.bad + self._untrained + self._refused,
                truncated=self._truncated,
                format=self._scan.format,
                source_digest=self._scan.digest,
            )
        except BaseException:
            writer.abandon()
            raise

    def _read(self, data: DataSpec, found: Scan, writer: PreparedWriter, tick: Ticker) -> None:
        """One source's rows: all that `data` names, or those of them that were chosen."""
        if found.chosen is not None and not found.chosen:
            return
        self._reading = data.source
        chosen = None if found.chosen is None else iter(found.chosen)
        wanted = None if chosen is None else next(chosen, None)

        def told() -> None:
            tick(self._done, self._scan.taken, "")

        with open_source(data) as source:
            for row in Examples(source, data, found.format, told):
                if isinstance(row, BadRow):
                    continue
                if chosen is not None:
                    if row.position != wanted:
                        continue
                    wanted = next(chosen, None)
                self._add(writer, row.line, row.example)
                self._done += 1
            if source.digest(told) != found.source_digest:
                raise DatasetError(f"{source.name} was changed while it was read; start again")

    def _add(self, writer: PreparedWriter, line: int, example: Example) -> None:
        try:
            ids, trained = self._tokens(example)
        except (BackpropagateError, MemoryError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - a chat template is a foreign program and raises what it likes
            self._refuse(line, error)
            return
        whole = len(ids)
        ids, trained = ids[: self._length], trained[: self._length]
        if isinstance(example, Chat):
            self._chat_tokens += len(ids)
            self._chat_trained += sum(trained)
        if self._data.train_on == "all":
            trained = [1] * len(ids)
        if 1 in trained:
            writer.add(ids, trained)
            self._truncated += whole > self._length
        else:
            self._untrained += 1

    def _tokens(self, example: Example) -> Row:
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

    def _refuse(self, line: int, error: Exception) -> None:
        self._refused += 1
        if len(self._refusals) < MAX_ERRORS:
            self._refusals.append(f"line {line}: the model's chat template refuses it: {error}")
        if self._data.on_bad_row != "skip" and self._refused == MAX_ERRORS:
            raise self._refusal()

    def _refusal(self) -> DatasetError:
        rows = max(self._scan.taken - self._refused, 0)
        return bad_rows(Path(self._reading).name, rows, self._refused, self._refusals, parse=False)

    def _judge(self, name: str, writer: PreparedWriter) -> None:
        """A data set from which nothing can be learnt, or whose loss mask cannot be right, is refused."""
        if self._refused and (self._data.on_bad_row != "skip" or writer.rows == 0):
            raise self._refusal()
        if self._data.train_on != "all" and self._chat_tokens and self._chat_trained == self._chat_tokens:
            raise DatasetError(
                f"{name}: every token of the conversations would carry loss, the user's turns too",
                suggestion="The model's chat template marks no assistant turns; use a model whose template does, "
                "or --train-on all if this is what you want.",
            )
        if writer.rows == 0:
            raise DatasetError(
                f"{name}: no token would carry loss within {self._length} tokens of any row",
                suggestion="Raise --max-length if the questions alone fill it; else the model's chat template marks no "
                "assistant turns, and another model or --train-on all is needed.",
            )


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
