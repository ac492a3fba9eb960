"""Rows become token ids, once: streamed through the model's tokenizer into a folder named by all that went into it.

The same data, tokenizer and options find the same folder again, so a second run prepares nothing and a resumed run
cannot see other data.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec

from backpropagate_backends.base import Tokenizer
from backpropagate_protocol.data_formats import CURRICULUM
from backpropagate_protocol.errors import DatasetError
from backpropagate_protocol.messages import DataReady
from backpropagate_protocol.prepared import WIDTH, PreparedManifest, PreparedWriter, verify
from backpropagate_protocol.spec import DataSpec
from backpropagate_runner.curriculum import Rows, easy_first
from backpropagate_runner.dropped import in_words
from backpropagate_runner.examples import TRAIN
from backpropagate_runner.formats import kind_of
from backpropagate_runner.kept_rows import kept_rows
from backpropagate_runner.learnable import check_learnable, one_sided
from backpropagate_runner.tokenise import Refused, Tokeniser, length_of
from backpropagate_runner.validate import MAX_ERRORS, PhaseReport, Scan, Ticker, bad_rows

# Raised whenever the same rows and tokenizer would give other tokens than before.
VERSION = 3


def prepared_key(data: DataSpec, tokenizer: Tokenizer, scan: Scan) -> str:
    """The name of the folder: a digest of all that decides the tokens."""
    parts = [
        VERSION,
        scan.source_digest,
        tokenizer.digest,
        length_of(data, tokenizer),
        scan.format,
        data.samples,
        data.on_bad_row,
        data.train_on,
        kind_of(data.method),
    ]
    mixed_in = [
        [found.source_digest, found.format, portion.start, portion.stop, portion.take, portion.seed]
        for portion, found in zip(data.replay, scan.portions, strict=True)
    ]
    selection = [data.start, data.holdout, data.part, mixed_in]
    if selection != [0, 0, TRAIN, []]:
        parts.append(selection)
    choices = [data.dedup, data.min_tokens, data.max_tokens, data.order == CURRICULUM]
    if choices != ["none", 0, 0, False]:
        parts.append(choices)
    if data.reasoning_trace:
        parts.append(["traces", *data.trace_tokens])
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def all_dropped(scan: Scan) -> Counter[str]:
    """Why → how many good rows are left out, of whatever is mixed in, too."""
    return sum((Counter(found.dropped) for found in scan.portions), Counter(scan.dropped))


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
    dropped = {reason: count for reason, count in manifest.dropped.items() if reason != "bad_row"}  # those are told of
    if dropped:
        notice(f"rows left out: {in_words(dropped)}")
    if manifest.truncated:
        notice(f"rows cut at {length_of(data, tokenizer)} tokens: {manifest.truncated} of {manifest.rows}")
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
        dropped=manifest.dropped,
    )


class _Preparation:
    """One pass from rows to tokens."""

    def __init__(
        self, data: DataSpec, tokenizer: Tokenizer, scan: Scan, folder: Path, notice: Callable[[str], None]
    ) -> None:
        self._data, self._scan, self._folder, self._notice = data, scan, folder, notice
        self._tokeniser = Tokeniser(data, tokenizer, notice)
        self._refusals: list[str] = []
        self._refused = self._done = 0
        self._reading = Path(data.source).name

    def run(self, key: str, phase: PhaseReport) -> PreparedManifest:
        phase(0, self._scan.taken, "")
        self._folder.parent.parent.mkdir(parents=True, exist_ok=True)
        self._folder.parent.mkdir(mode=0o700, exist_ok=True)  # the training data, for whoever has the tokenizer
        tokeniser, curriculum = self._tokeniser, self._data.order == CURRICULUM
        writer = PreparedWriter(self._folder, kind=tokeniser.kind)
        try:
            tick = Ticker(phase)
            self._fill(writer, tick)
            dropped = Counter({"bad_row": self._scan.bad}) + all_dropped(self._scan) + tokeniser.dropped
            dropped["refused"] += self._refused
            self._judge(Path(self._data.source).name, writer, +dropped)
            return writer.commit(
                key=key,
                skipped=dropped.total(),
                truncated=tokeniser.truncated,
                format=self._scan.format,
                source_digest=self._scan.digest,
                dropped=dict(+dropped),
                easy=self._easy_first(writer, tick) if curriculum else None,
            )
        except BaseException:
            writer.abandon()
            raise

    def _easy_first(self, writer: PreparedWriter, tick: Ticker) -> array[int]:
        def rows() -> Rows:
            for row in writer.written():
                tick(self._done, self._scan.taken, "the order from easy to hard")
                yield row

        return easy_first(rows, WIDTH[self._tokeniser.kind])

    def _fill(self, writer: PreparedWriter, tick: Ticker) -> None:
        def told() -> None:
            tick(self._done, self._scan.taken, "")

        for row in kept_rows(self._data, self._scan, told):
            self._reading = row.source
            try:
                self._tokeniser.take(row.example, writer)
            except Refused as refusal:
                self._refuse(row.line, refusal)
            self._done += 1

    def _refuse(self, line: int, refusal: Refused) -> None:
        self._refused += 1
        if len(self._refusals) < MAX_ERRORS:
            self._refusals.append(f"line {line}: {refusal}")
        if self._data.on_bad_row != "skip" and self._refused == MAX_ERRORS:
            raise self._refusal()

    def _refusal(self) -> DatasetError:
        rows = max(self._scan.taken - self._refused, 0)
        return bad_rows(self._reading, rows, self._refused, self._refusals, parse=False)

    def _judge(self, name: str, writer: PreparedWriter, dropped: Counter[str]) -> None:
        """A data set from which nothing can be learnt, or whose loss mask cannot be right, is refused."""
        if self._refused and (self._data.on_bad_row != "skip" or writer.rows == 0):
            raise self._refusal()
        check_learnable(name, self._tokeniser, writer.rows, dropped)
        notice = one_sided(name, self._tokeniser)
        if notice is not None:
            self._notice(notice)
