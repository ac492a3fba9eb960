"""Reads a data set from end to end before anything is loaded: what it is, how many rows, which of them are bad and why.

Needs no framework (parquet files and hub ids excepted), so it can run while the frameworks are still being imported.
"""

from __future__ import annotations

import hashlib
import time
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from backpropagate_protocol.errors import DatasetError, DatasetParseError, DatasetValidationError
from backpropagate_protocol.spec import DataSpec, Portion
from backpropagate_runner import sources
from backpropagate_runner.example import Chat, Completion, Example, Labelled, Pair
from backpropagate_runner.examples import HELD_OUT, TRAIN, Examples, GoodRow, check_selection
from backpropagate_runner.formats import PREFERENCES
from backpropagate_runner.readers import open_source
from backpropagate_runner.replay import Choice, data_of
from backpropagate_runner.sieve import Sieve

PhaseReport = Callable[[int, int, str], None]  # done, total, detail
MAX_ERRORS = 10


@dataclass(frozen=True, slots=True)
class Scan:
    """What one pass over a data set found. `rows` are the good ones; `errors` the first few of the `bad` ones.

    dropped     why → how many of the good ones are left out; `left_out`, their positions, ascending
    portions    the same of what is mixed in, each with the positions `chosen` of its rows, ascending
    """

    format: str
    rows: int
    bad: int
    errors: tuple[str, ...]
    counts: dict[str, int] = field(default_factory=dict)
    source_digest: str = ""
    notices: tuple[str, ...] = ()
    chosen: array[int] | None = None
    portions: tuple[Scan, ...] = ()
    dropped: dict[str, int] = field(default_factory=dict)
    left_out: array[int] = field(default_factory=lambda: array("q"))
    unparsed: int = 0  # of the bad ones

    @property
    def taken(self) -> int:
        """Rows that will be prepared."""
        own = self.rows - len(self.left_out) if self.chosen is None else len(self.chosen)
        return own + sum(portion.taken for portion in self.portions)

    @property
    def digest(self) -> str:
        """Of every source that was read."""
        if not self.portions:
            return self.source_digest
        digests = [self.source_digest, *(portion.digest for portion in self.portions)]
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()


class Ticker:
    """Passes progress on at most twice a second, however often it is told."""

    def __init__(self, phase: PhaseReport) -> None:
        self._phase = phase
        self._next = 0.0

    def __call__(self, done: int, total: int, detail: str) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + 0.5
            self._phase(done, total, detail)


def needs_frameworks(data: DataSpec) -> bool:
    """True if reading this data imports large packages: wait for the frameworks' own import first."""
    return any(sources.needs_frameworks(source) for source in (data.source, *(p.source for p in data.replay)))


def nothing_told(done: int, total: int, detail: str) -> None:
    return


def scan(
    data: DataSpec, phase: PhaseReport = nothing_told, *, max_errors: int = MAX_ERRORS, lenient: bool = False
) -> Scan:
    """One pass over all rows (or those that `data` chooses), and over those that are mixed in. `phase` is told bytes read
    and bytes in all.

    Raises a coded DatasetError if there is nothing to train on: no such file, no rows, an unknown shape, and (unless
    data.on_bad_row is skip) bad rows, the first ten of them with line and reason. `lenient` reports bad rows instead, and
    looks at nothing that is mixed in.
    """
    check_selection(data)
    found = _pass(data, phase, max_errors, lenient)
    if lenient:
        return found
    portions = tuple(_pass(data_of(portion, data), phase, max_errors, lenient, portion) for portion in data.replay)
    notices = [*found.notices, *(notice for portion in portions for notice in portion.notices)]
    return replace(found, portions=portions, notices=tuple(dict.fromkeys(notices)))


def _pass(data: DataSpec, phase: PhaseReport, max_errors: int, lenient: bool, portion: Portion | None = None) -> Scan:
    tick = Ticker(phase)
    counts: Counter[str] = Counter()
    errors: list[str] = []
    rows = bad = unparsed = 0
    choice = None if portion is None else Choice(portion.take, portion.seed)
    sieve = Sieve(data)
    with open_source(data) as source:
        unit = "row" if source.kind in ("parquet", "hub") else "line"
        examples = Examples(
            source, data, each=lambda: tick(source.done, source.size, source.name), both=sieve.compares_parts
        )
        for row in examples:
            if isinstance(row, GoodRow):
                dropped = sieve.drops(row.example, row.position, wanted=row.wanted)
                if not row.wanted:
                    continue
                rows += 1
                _count(row.example, counts)
                if choice is not None and not dropped:
                    choice.offer(row.position)
            else:
                bad += 1
                unparsed += row.parse
                if len(errors) < max_errors:
                    errors.append(f"{unit} {row.line}: {row.reason}")
        digest = source.digest(lambda: tick(source.done, source.size, source.name))
    if rows + bad == 0 and choice is None:
        raise DatasetError(
            f"{source.name} has no {_wanted_rows(data)}",
            suggestion="Raise --eval-split to at least 1 divided by the rows, or take more rows with --samples."
            if data.part == HELD_OUT and data.holdout
            else None,
        )
    if bad and not lenient and (rows == 0 or data.on_bad_row != "skip"):
        raise bad_rows(source.name, rows, bad, errors, parse=unparsed > 0)
    phase(rows + bad, rows + bad, f"{rows} rows")
    notices = _notices(source.name, examples.format, data, bad, counts)
    chosen = None if choice is None else choice.positions()
    if portion is not None and rows < portion.take:
        notices += (f"{source.name}: {rows} earlier rows can be mixed in, of {portion.take} that were wanted",)
    return Scan(
        examples.format,
        rows,
        bad,
        tuple(errors),
        {name: count for name, count in counts.items() if count},
        digest,
        notices,
        chosen,
        dropped=dict(sieve.dropped),
        left_out=sieve.positions,
        unparsed=unparsed,
    )


def _wanted_rows(data: DataSpec) -> str:
    what = "rows" if data.part == TRAIN else f"rows that are held out (every {data.holdout}th is)"
    return f"{what} from row {data.start} on" if data.start else what


def bad_rows(name: str, rows: int, bad: int, errors: list[str], *, parse: bool) -> DatasetError:
    """The error for rows that cannot be used."""
    kind = DatasetParseError if parse else DatasetValidationError
    if rows:
        some = f"{bad} of {rows + bad} rows cannot be used"
    else:
        some = "its only row cannot be used" if bad == 1 else f"none of its {bad} rows can be used"
    more = [f"… and {bad - len(errors)} more"] if bad > len(errors) else []
    suggestion = None if rows else "Repair the rows; docs/data.md shows one row of every accepted format."
    return kind("\n  ".join([f"{name}: {some}", *errors, *more]), suggestion=suggestion)


def _count(example: Example, counts: Counter[str]) -> None:
    match example:
        case Pair(chosen, rejected):
            counts["pairs"] += 1
            counts["chat"] += isinstance(chosen, Chat)
            counts["unanswered"] += any(isinstance(side, Chat) and side.dropped > 0 for side in (chosen, rejected))
        case Labelled(answer, good):
            counts["labelled_good" if good else "labelled_bad"] += 1
            _count(answer, counts)
        case Chat():
            counts["chat"] += 1
            counts["turns"] += len(example.messages)
            counts["with_tools"] += bool(example.tools)
            counts["unanswered"] += example.dropped > 0
        case Completion():
            counts["completion"] += 1
        case _:
            counts["text"] += 1


def _notices(name: str, format: str, data: DataSpec, bad: int, counts: Counter[str]) -> tuple[str, ...]:
    found = []
    if format in PREFERENCES and data.method == "sft" and data.part == TRAIN:
        found.append(
            f"{name}: only prompt and chosen answer of each row are trained on; the rejected one is left out. "
            "The methods that learn from both: --method orpo, simpo, dpo or kto"
        )
    if bad:
        found.append(f"{name}: bad rows left out: {bad}")
    if counts["unanswered"]:
        found.append(f"{name}: rows whose turns after the last answer are left out: {counts['unanswered']}")
    return tuple(found)
