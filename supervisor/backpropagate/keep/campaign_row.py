"""A campaign's row of the history: its runs one by one, and what they add up to. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, assert_never

import msgspec

from backpropagate.events import CampaignExtended, LinkEnded, LinkMerged, LinkScored, LinkStarted

if TYPE_CHECKING:
    from backpropagate.keep.record import RunRow

_DIGITS = 4  # of scores: the whole of them is in campaign.json
CampaignEvent = CampaignExtended | LinkStarted | LinkEnded | LinkMerged | LinkScored


def with_event(row: RunRow, event: CampaignEvent) -> RunRow:
    """The row with one more fact about a run of the campaign."""
    about: dict[str, object]
    match event:
        case CampaignExtended():  # a finished campaign is no longer finished
            status = "interrupted" if row.status == "completed" else row.status
            return msgspec.structs.replace(row, status=status)
        case LinkStarted():
            about = {"run_id": event.link_run, "name": event.name}
        case LinkEnded():
            row = msgspec.structs.replace(row, backend=event.backend or row.backend, device=event.device or row.device)
            about = {
                "run_id": event.link_run,
                "name": event.name,
                "steps": event.steps,
                "samples": event.samples_seen,
                "loss": _finite(event.final_loss),
                "recoveries": event.recoveries,
                "seconds": event.seconds,
            }
        case LinkMerged():
            about = {"rule": event.rule, "coefficient": event.coefficient, "merged_digest": event.digest}
        case LinkScored():
            about = _means(event)
        case _:
            assert_never(event)
    return _added_up(row, event.link, about)


def _means(event: LinkScored) -> dict[str, object]:
    """The merged adapter on the held-out rows of all tasks so far."""
    merged = [score for score in event.scores if score.candidate == "merged" and math.isfinite(score.loss)]
    if not merged:
        return {}
    return {
        "held_out_loss": round(sum(score.loss for score in merged) / len(merged), _DIGITS),
        "held_out_accuracy": round(sum(score.accuracy for score in merged) / len(merged), _DIGITS),
    }


def _added_up(row: RunRow, link: int, about: dict[str, object]) -> RunRow:
    by_link = {int(str(run["link"])): run for run in row.runs}
    before = by_link.get(link, {"link": link})
    again = _number(before, "recoveries")
    by_link[link] = {**before, **about}
    runs = [by_link[number] for number in sorted(by_link)]
    return msgspec.structs.replace(
        row,
        runs=runs,
        steps=int(sum(_number(run, "steps") for run in runs)),
        samples_seen=int(sum(_number(run, "samples") for run in runs)),
        recoveries=row.recoveries + int(_number(by_link[link], "recoveries") - again),
    )


def losses(row: RunRow) -> list[tuple[int, float]]:
    """The last loss of each run, at the step that the campaign had come to."""
    points, step = [], 0
    for run in row.runs:
        step += int(_number(run, "steps"))
        loss = run.get("loss")
        if isinstance(loss, float):
            points.append((step, loss))
    return points


def _number(run: dict[str, object], name: str) -> float:
    value = run.get(name, 0)
    return value if isinstance(value, int | float) else 0


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
