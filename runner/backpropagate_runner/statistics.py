"""What a training would see of a data set: how long the rows are, how much of them is learnt, what is there twice; and some of
them token by token. Nothing is written; 12 bytes of memory for each row, and what the search for duplicates takes."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from backpropagate_backends.base import Tokenizer
from backpropagate_protocol.about_data import DataStatistics, ShownRow, Spread
from backpropagate_protocol.prepared import LABELLED, Row
from backpropagate_protocol.redact import redact
from backpropagate_protocol.spec import DataSpec
from backpropagate_runner.duplicates import NEAR, Duplicates
from backpropagate_runner.example import Example, Labelled, Pair
from backpropagate_runner.kept_rows import kept_rows
from backpropagate_runner.learnable import check_learnable, one_sided
from backpropagate_runner.tokenise import Refused, Tokeniser
from backpropagate_runner.traces import Traces, with_traces_inside
from backpropagate_runner.validate import PhaseReport, Scan, Ticker


@dataclass(frozen=True, slots=True)
class Measured:
    """refused: `line N: reason` of rows that the model's template does not take, at most as many as were asked for."""

    statistics: DataStatistics
    shown: tuple[ShownRow, ...]
    dropped: Counter[str]
    refused: tuple[str, ...]
    notices: tuple[str, ...]


def measure(
    data: DataSpec, tokenizer: Tokenizer, scan: Scan, phase: PhaseReport, *, samples: int, max_errors: int
) -> Measured:
    """Of the rows that `scan` kept. Raises what preparing them would raise, but for rows that are refused."""
    notices: list[str] = []
    tokeniser, sizes = Tokeniser(data, tokenizer, notices.append), _Sizes(tokenizer, samples)
    traces = Traces(tokenizer, data.trace_tokens)
    twice, traced, tick = Duplicates(NEAR), array("i"), Ticker(phase)
    repeated: Counter[str | None] = Counter()
    refused: list[str] = []
    done = refusals = 0

    def told() -> None:
        tick(done, scan.taken, "")

    for row in kept_rows(data, scan, told):
        sizes.line = row.line
        before = sizes.samples
        try:
            tokeniser.take(row.example, sizes)
        except Refused as refusal:
            refusals += 1
            refused += [f"line {row.line}: {refusal}"] if len(refused) < max_errors else []
        done += 1
        if sizes.samples > before:
            repeated[twice.seen(row.example)] += 1
            reasoning = _reasoning(traces, row.example)
            if reasoning:
                traced.append(reasoning)
    name = Path(data.source).name
    dropped = Counter(scan.dropped) + tokeniser.dropped + Counter({"refused": refusals})
    if not refusals:
        check_learnable(name, tokeniser, sizes.samples, dropped)
    notices += [notice for notice in (one_sided(name, tokeniser),) if notice]
    bad, good = tokeniser.labels
    found = DataStatistics(
        kind=tokeniser.kind,
        samples=sizes.samples,
        tokens=sum(sizes.lengths),
        trained_tokens=sum(sizes.learnt),
        max_length=tokeniser.length,
        truncated=tokeniser.truncated,
        truncated_tokens=tokeniser.truncated_tokens,
        lengths=spread(sizes.lengths),
        learnt=spread(sizes.learnt),
        duplicates=repeated["duplicate"],
        near_duplicates=repeated["near_duplicate"],
        traces=spread(traced) if traced else None,
        traced=len(traced),
        good=good if tokeniser.kind == LABELLED else 0,
        bad=bad if tokeniser.kind == LABELLED else 0,
    )
    return Measured(found, tuple(sizes.shown), dropped, tuple(refused), tuple(notices))


def _reasoning(traces: Traces, example: Example) -> int:
    """Tokens of a row's reasoning; of a pair, of the chosen answer."""
    if isinstance(example, Pair):
        example = example.chosen
    elif isinstance(example, Labelled):
        example = example.answer
    return sum(map(len, traces.of(with_traces_inside(example))))


def spread(sizes: array[int]) -> Spread:
    """Percentiles by nearest rank; of nothing, all are 0."""
    ordered = sorted(sizes)
    if not ordered:
        return Spread(0, 0.0, 0, 0, 0, 0, 0)
    p50, p90, p95, p99 = (ordered[-(-len(ordered) * percent // 100) - 1] for percent in (50, 90, 95, 99))
    return Spread(ordered[0], round(sum(ordered) / len(ordered), 1), p50, p90, p95, p99, ordered[-1])


class _Sizes:
    """A sink that keeps how long rows are, and what the first few of them look like."""

    def __init__(self, tokenizer: Tokenizer, show: int) -> None:
        self._tokenizer, self._show = tokenizer, show
        self.line = self.samples = 0
        self.lengths, self.learnt = array("i"), array("i")
        self.shown: list[ShownRow] = []

    def add(self, ids: list[int], trained: list[int]) -> None:
        self._add("", (ids, trained))

    def add_pair(self, chosen: Row, rejected: Row) -> None:
        self._add("chosen", chosen, rejected)

    def add_labelled(self, ids: list[int], trained: list[int], label: bool) -> None:
        self._add("good" if label else "bad", (ids, trained))

    def _add(self, what: str, *rows: Row) -> None:
        self.samples += 1
        for number, (ids, trained) in enumerate(rows):
            self.lengths.append(len(ids))
            self.learnt.append(sum(trained))
            if self.samples <= self._show:
                pieces = pieces_of(self._tokenizer, ids, trained)
                self.shown.append(ShownRow(self.line, "rejected" if number else what, pieces, len(ids), sum(trained)))


def pieces_of(tokenizer: Tokenizer, ids: list[int], trained: list[int]) -> tuple[tuple[str, bool], ...]:
    """The text of a row, cut where learning begins and ends.

    Each piece is what the row's text grows by: some tokenizers leave out the space before a piece that is decoded alone.
    """
    found = []
    end, text = 0, ""
    for flag, run in groupby(trained):
        end += sum(1 for _ in run)
        longer = tokenizer.decode(ids[:end])
        piece = longer.removeprefix(text)
        text = longer
        found.append((redact(piece), flag != 0))
    return tuple(found)
