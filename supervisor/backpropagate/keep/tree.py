"""The history as a tree: each campaign with its runs below it, the newest first, as `list-runs` shows it."""

from __future__ import annotations

from collections.abc import Iterator

from backpropagate.keep import history
from backpropagate.keep.record import RunRow
from backpropagate.keep.runs import Output, as_output
from backpropagate_protocol.errors import BackpropagateError

_MORE, _LAST = "├ ", "└ "
Branch = tuple[RunRow, str]  # a row, and what is drawn before it


def tree(output: Output, limit: int | None = None) -> list[Branch]:
    """limit: how many there are at most, a campaign with all its runs counting as one.

    A campaign stands where its newest run would: one that was appended after weeks brings it back to the top.
    """
    rows = history.list_rows(output, limit=limit, counted_as=_group)
    by_id = {row.run_id: row for row in rows}
    found: list[Branch] = []
    for group in dict.fromkeys(map(_group, rows)):
        top = by_id.get(group) or _row(output, group)
        if top is None:  # the campaign's directory was deleted, its runs were not
            found += [(row, "") for row in rows if _group(row) == group]
            continue
        found.append((top, ""))
        below = list(_runs(output, top, by_id))
        found += [(row, _LAST if row is below[-1] else _MORE) for row in below]
    return found


def _group(row: RunRow) -> str:
    return row.parent or row.run_id


def _runs(output: Output, campaign: RunRow, known: dict[str, RunRow]) -> Iterator[RunRow]:
    """In their order; also those that are older than what was read of the history, or newer than the campaign's row."""
    named = [str(run.get("run_id", "")) for run in campaign.runs]
    others = [row for row in known.values() if row.parent == campaign.run_id and row.run_id not in named]
    for run_id in [*named, *(row.run_id for row in sorted(others, key=lambda row: row.link))]:
        row = known.get(run_id) or _row(output, run_id)
        if row is not None:
            yield row


def _row(output: Output, run_id: str) -> RunRow | None:
    try:
        return history.show(as_output(output).run(run_id))
    except BackpropagateError:
        return None
