"""A report of a data set in words: its counts, its statistics, and rows in which what carries loss stands out."""

from __future__ import annotations

import re

import click
import msgspec

from backpropagate_protocol.about_data import DataReport, DataStatistics, ShownRow, Spread

# A data set is foreign text: none of its control characters reach the terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def document(report: DataReport) -> dict[str, object]:
    """The same with the names of its fields."""
    found = msgspec.structs.asdict(report)
    if report.statistics is not None:
        parts = msgspec.structs.asdict(report.statistics)
        found["statistics"] = {
            name: msgspec.structs.asdict(part) if isinstance(part, Spread) else part for name, part in parts.items()
        }
    found["shown"] = [msgspec.structs.asdict(row) for row in report.shown]
    return found


def words(report: DataReport) -> str:
    lines = [_line(name.replace("_", " "), str(count)) for name, count in report.counts.items()]
    lines += [_line(f"left out: {reason.replace('_', ' ')}", str(count)) for reason, count in report.dropped.items()]
    if report.statistics is not None:
        lines += _statistics(report.statistics)
    lines += [notice for notice in report.notices if "bad rows left out" not in notice]
    if report.shown:
        lines += ["", f"What carries loss stands out, like {_learnt('this')}."]
        lines += [part for row in report.shown for part in _row(row)]
    return "\n".join(lines)


def _line(name: str, value: str) -> str:
    return f"{name:28} {value}"


def _statistics(found: DataStatistics) -> list[str]:
    share = 100 * found.trained_tokens / found.tokens if found.tokens else 0.0
    what = {"pairs": "pairs that stay", "labelled": "labelled answers"}.get(found.kind, "rows that stay")
    lines = [
        _line(what, f"{found.samples:,}"),
        _line("tokens", f"{found.tokens:,}, of which {found.trained_tokens:,} carry loss ({share:.1f} %)"),
        _line("tokens in a row", _spread(found.lengths)),
        _line("tokens learnt in a row", _spread(found.learnt)),
        _line(f"cut at {found.max_length:,} tokens", f"{found.truncated:,}, losing {found.truncated_tokens:,} tokens"),
        _line("there twice", f"{found.duplicates:,}; nearly, another {found.near_duplicates:,}"),
    ]
    if found.traces is not None:
        lines.append(_line("tokens of reasoning in a row", f"{_spread(found.traces)}; in {found.traced:,} rows"))
    if found.kind == "labelled":
        lines.append(_line("good and bad answers", f"{found.good:,} and {found.bad:,}"))
    return lines


def _spread(of: Spread) -> str:
    return f"{of.least:,} to {of.most:,}, mean {of.mean:,.0f}; half up to {of.p50:,}, 90 % {of.p90:,}, 95 % {of.p95:,}, 99 % {of.p99:,}"


def _row(row: ShownRow) -> list[str]:
    what = f", {row.what}" if row.what else ""
    head = f"line {row.line}{what}: {row.tokens:,} tokens, {row.trained_tokens:,} of them carry loss"
    text = "".join(_learnt(_plain(piece)) if learnt else _plain(piece) for piece, learnt in row.pieces)
    return ["", click.style(head, bold=True), text]


def _learnt(text: str) -> str:
    """In colour on a terminal, in brackets everywhere."""
    return "«" + click.style(text, fg="green") + "»"


def _plain(text: str) -> str:
    return _CONTROL.sub("\ufffd", text)
