"""A campaign as those who watch it see it, in words. Pure."""

from __future__ import annotations

from typing import assert_never

from backpropagate import events
from backpropagate.watch.forgetting_table import one_line

CampaignEvent = events.CampaignExtended | events.LinkStarted | events.LinkEnded | events.LinkMerged | events.LinkScored


def in_words(event: CampaignEvent) -> str:
    match event:
        case events.CampaignExtended():
            return f"one more run: {event.name}"
        case events.LinkStarted():
            return f"{where(event)} begins" if not event.offset else f"{where(event)} goes on"
        case events.LinkEnded():
            loss = "" if event.final_loss is None else f", loss {event.final_loss:.4f}"
            faults = f"{event.recoveries} {'fault' if event.recoveries == 1 else 'faults'}"
            again = f", recovered from {faults}" if event.recoveries else ""
            return f"run {event.link} ({event.name}) is trained: {event.steps} steps{loss}{again}"
        case events.LinkMerged():
            if event.chosen:
                return f"{event.rule} scores best: that is what the runs are merged by"
            return f"merged by {event.rule}, the newest run with coefficient {event.coefficient:.3f}"
        case events.LinkScored():
            return one_line(event, event.names)
        case _:
            assert_never(event)


def where(event: events.LinkStarted) -> str:
    """`run 2 of 5 (week-02.jsonl)`."""
    return f"run {event.link} of {event.links} ({event.name})"
