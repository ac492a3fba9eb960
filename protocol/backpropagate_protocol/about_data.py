"""What a child says of the rows that it was given: two messages, whose rules are those of `messages.py`."""

from __future__ import annotations

import msgspec


class DataReady(msgspec.Struct, frozen=True, array_like=True, tag="data"):
    """Sent once the rows are validated and tokenised on disk. The parent records it and hands path and digest to every
    later attempt."""

    path: str
    digest: str
    format: str
    rows: int
    skipped: int
    tokens: int
    trained_tokens: int  # tokens that carry loss
    truncated: int  # rows cut at max_length
    source_digest: str = ""
    held_out_path: str = ""  # of the held-out rows, if the run is evaluated
    held_out_digest: str = ""
    held_out_rows: int = 0
    dropped: dict[str, int] = {}  # why → how many rows: duplicate, too_short, too_long, no_trace, …


class DataReport(msgspec.Struct, frozen=True, array_like=True, tag="report"):
    """Carried by Done after a ValidateJob. `errors` holds up to max_errors of `line N: reason`."""

    format: str
    rows: int
    bad: int
    errors: tuple[str, ...]
    counts: dict[str, int] = {}
    dropped: dict[str, int] = {}  # as in DataReady; of the good rows, and of those that the template refuses
    notices: tuple[str, ...] = ()
    statistics: DataStatistics | None = None  # with a model only
    shown: tuple[ShownRow, ...] = ()
    unparsed: int = 0  # of the bad ones: could not even be read


class Spread(msgspec.Struct, frozen=True, array_like=True):
    """How large something is in one row: the least, the mean, percentiles, the most."""

    least: int
    mean: float
    p50: int
    p90: int
    p95: int
    p99: int
    most: int


class DataStatistics(msgspec.Struct, frozen=True, array_like=True):
    """What a training would see of the rows that stay, in tokens of the model. A sample is a row; of pairs, both its rows."""

    kind: str  # of prepared data
    samples: int
    tokens: int
    trained_tokens: int
    max_length: int  # what rows are cut at
    truncated: int  # samples that are cut
    truncated_tokens: int  # what they lose by it
    lengths: Spread  # of rows, after cutting
    learnt: Spread  # tokens that carry loss, of rows
    duplicates: int  # rows that --dedup exact would drop; and near, above those
    near_duplicates: int
    traces: Spread | None = None  # reasoning, of the rows that have some
    traced: int = 0  # rows with a reasoning trace
    good: int = 0  # labelled answers
    bad: int = 0


class ShownRow(msgspec.Struct, frozen=True, array_like=True):
    """A row as the model sees it: pieces of text, each with whether it carries loss. `what`: chosen, rejected, good, bad, or
    nothing."""

    line: int
    what: str
    pieces: tuple[tuple[str, bool], ...]
    tokens: int
    trained_tokens: int
