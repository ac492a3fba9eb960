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
