"""A campaign's scores as a table of plain text: did it forget, and what did not forgetting cost?

One line for the merged adapter after each run, one for the newest run's own adapter, one for the base; one column for each
task. A table that is wider than the terminal goes on below, with the same lines and the next tasks.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

from backpropagate.events import LinkScored
from backpropagate.judge.forgetting import by_candidate, standing
from backpropagate_protocol.campaign_report import BASE, MERGED, NEWEST, CampaignReport, ScoreCell, Totals

_GAP = "  "
_NAME = 14  # the widest that a task's name may make its column
_NARROWEST = 24  # a terminal below this gets lines of this width
_MEAN = "mean"
_NONE = "-"
_UNMERGED = "none"  # the rule under which the newest run's adapter is the campaign's

Show = Callable[[float], str]
Value = Callable[[ScoreCell], float]


def lines(report: CampaignReport, width: int = 80) -> list[str]:
    """The whole story: accuracies, losses, and what they come to. Empty while nothing is scored. No line is wider than `width`,
    as long as that is at least 24."""
    if not report.scored_runs:
        return []
    width = max(width, _NARROWEST)
    said = ["accuracy on held-out rows, % of tokens", *_table(report, lambda cell: cell.accuracy, _percent, width), ""]
    said += ["loss on held-out rows, nats per token", *_table(report, lambda cell: cell.loss, _nats, width), ""]
    said += _summary(report)
    if report.rules:
        said += ["", *_rules(report)]
    return [part for line in said for part in _wrapped(line, width)]


def one_line(event: LinkScored, names: Sequence[str] = ()) -> str:
    """What a single evaluation says, for a log: `after run 3: 61.1 % on average of 3 tasks (loss 1.234); worst: …`.

    names: of the tasks, by number.
    """
    rows = by_candidate(event.scores)
    at = standing(rows.get(MERGED, {}))
    if at is None:
        return f"run {event.link} has no scores"
    averages = f"{_percent(at.average_accuracy)} % (loss {_nats(at.average_loss)})"
    if at.tasks == 1:
        said = f"after run {event.link}: {averages} on its held-out rows"
    else:
        worst = f"{_title(at.worst.task, names)} {_percent(at.worst.cell.accuracy)} %"
        said = f"after run {event.link}: {averages} on average of {at.tasks} tasks, worst: {worst}"
    base = standing(rows.get(BASE, {}))
    return said + (f"; the base: {_percent(base.average_accuracy)} % (loss {_nats(base.average_loss)})" if base else "")


# --- the table ------------------------------------------------------------------------------------------------------


def _table(report: CampaignReport, value: Value, show: Show, width: int) -> list[str]:
    """Label, one column for each task, and their mean at the end."""
    last = report.scored_runs[-1]
    rows = [(f"after run {run}", _row(report, MERGED, run, value)) for run in report.scored_runs]
    newest = _row(report, NEWEST, last, value)
    if newest and newest != rows[-1][1]:
        rows.append((f"run {last} unmerged", newest))
    base = _latest(report, BASE, value)
    if base:
        rows.append(("base", base))
    tasks = [task for task in report.held_out if any(task in row for _, row in rows)]
    labels = ["", *(label for label, _ in rows)]
    label_wide = max(map(_cells, labels))
    name_wide = min(_NAME, width - label_wide - len(_GAP))
    columns = [
        [_short(_title(task, report.tasks), name_wide), *(show(row[task]) if task in row else "" for _, row in rows)]
        for task in tasks
    ]
    columns.append([_MEAN, *(show(_mean(row.values())) if row else _NONE for _, row in rows)])
    said: list[str] = []
    for some in _pages(columns, width - label_wide):
        said += [] if not said else [""]
        for number, label in enumerate(labels):
            cells = [_right(column[number], max(map(_cells, column))) for column in some]
            said.append(_GAP.join([_left(label, label_wide), *cells]).rstrip())
    return said


def _pages(columns: Sequence[list[str]], room: int) -> list[list[list[str]]]:
    """The columns in groups that fit side by side; at least one in each."""
    pages: list[list[list[str]]] = [[]]
    left = room
    for column in columns:
        needed = len(_GAP) + max(map(_cells, column))
        if needed > left and pages[-1]:
            pages.append([])
            left = room
        pages[-1].append(column)
        left -= needed
    return pages


def _row(report: CampaignReport, candidate: str, run: int, value: Value) -> dict[int, float]:
    return {c.task: value(c) for c in report.scores if (c.candidate, c.run) == (candidate, run)}


def _latest(report: CampaignReport, candidate: str, value: Value) -> dict[int, float]:
    """Of one that does not change from run to run: each task's newest score."""
    cells = sorted((c for c in report.scores if c.candidate == candidate), key=lambda c: c.run)
    return {c.task: value(c) for c in cells}


# --- in words -------------------------------------------------------------------------------------------------------


def _summary(report: CampaignReport) -> list[str]:
    at = report.totals[-1]
    said = [
        f"average accuracy   {_share(at.average_accuracy)}",
        f"backward transfer  {_points(at.backward_transfer)}{_more_or_less(at)}",
        f"forgetting         {_points(at.forgetting)}",
        f"learning           {_share(at.learning)}",
    ]
    if at.worst_task is not None and at.worst_accuracy is not None:
        said.append(f"worst task         {_percent(at.worst_accuracy)} %  {_title(at.worst_task, report.tasks)}")
    said += _price(report)
    if at.missing:
        said.append(f"not scored: {_holes(at)}")
    return said


def _more_or_less(at: Totals) -> str:
    return "" if at.backward_loss is None else f"  (loss {at.backward_loss:+.3f})"


def _price(report: CampaignReport) -> list[str]:
    """What the merge costs the newest task, which is what it gives the older ones."""
    last = report.scored_runs[-1]
    own, merged = report.cell(NEWEST, last, last - 1), report.cell(MERGED, last, last - 1)
    part = next((part for part in report.runs if part.run == last), None)
    weight = part.coefficient if part is not None and last > 1 and part.rule != _UNMERGED else None
    said = []
    if weight is not None:
        said.append(f"newest run         merged in with a weight of {weight:.2f}")
    if own is not None and merged is not None and (own.accuracy, own.loss) != (merged.accuracy, merged.loss):
        before, after = _percent(own.accuracy), _percent(merged.accuracy)
        said.append(f"on its own task    {before} % unmerged, {after} % merged")
    return said


def _holes(at: Totals) -> str:
    return ", ".join(f"task {task + 1} after run {run}" for run, task in at.missing)


def _rules(report: CampaignReport) -> list[str]:
    """`* ties  61.0 %  loss 1.234  worst 48.0 %`: the chosen one has the star."""
    wide = max(_cells(each.rule) for each in report.rules)
    said = ["merges tried, by average accuracy"]
    for each in report.rules:
        mark = "*" if each.chosen else " "
        worst = f"worst {_percent(each.worst_accuracy)} %"
        said.append(
            f"{mark} {_left(each.rule, wide)}  {_percent(each.average_accuracy)} %  loss {_nats(each.average_loss)}  {worst}"
        )
    return said


# --- numbers and text -----------------------------------------------------------------------------------------------


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _share(value: float | None) -> str:
    return _NONE if value is None else f"{_percent(value)} %"


def _points(value: float | None) -> str:
    return _NONE if value is None else f"{100 * value + 0.0:+.1f} points"


def _nats(value: float) -> str:
    return f"{value:.3f}"


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)


def _title(task: int, names: Sequence[str]) -> str:
    """`3 tickets`: numbered as the runs are, so that a name that is cut short, or twice there, still says which."""
    name = _plain(names[task]) if task < len(names) else ""
    return f"{task + 1} {name}".rstrip()


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


def _plain(text: str) -> str:
    """A name without anything that moves a cursor."""
    return _CONTROL.sub(" ", text).strip()


def _cells(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _short(text: str, room: int) -> str:
    if _cells(text) <= room:
        return text
    while _cells(text) > room - 1:
        text = text[:-1]
    return text.rstrip() + "…"


def _left(text: str, room: int) -> str:
    return text + " " * (room - _cells(text))


def _right(text: str, room: int) -> str:
    return " " * (room - _cells(text)) + text


def _wrapped(line: str, width: int) -> list[str]:
    """Only words are ever broken off: the lines of the table fit already."""
    if _cells(line) <= width:
        return [line]
    first, *words = [_short(word, width - 2) for word in line.split()]
    said = [first]
    for word in words:
        if _cells(f"{said[-1]} {word}") <= width:
            said[-1] += f" {word}"
        else:
            said.append(f"  {word}")
    return said
