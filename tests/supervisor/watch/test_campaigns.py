"""What a person sees of a campaign: which run it is in, what the newest one counts for, and no alarm where a run begins."""

from __future__ import annotations

import io

import pytest

from backpropagate import events
from backpropagate.events import Event
from backpropagate.measured import LinkScore
from backpropagate.watch.console import PlainSink
from backpropagate.watch.stages import begun
from backpropagate.watch.view import RunView
from backpropagate.watch.wording import in_words

CAMPAIGN, FIRST, SECOND = "0b0e5a52-8d5f", "11111111-aaaa", "22222222-bbbb"


def step(run: str, number: int, loss: float) -> events.Step:
    return events.Step(time=float(number), run_id=run, step=number, total_steps=4, samples_seen=8, order=0, loss=loss)


def begins(link: int, run: str, offset: int = 0) -> events.LinkStarted:
    return events.LinkStarted(
        time=0.0, run_id=CAMPAIGN, link=link, links=5, link_run=run, name=f"week-0{link}.jsonl", offset=offset
    )


def trained(link: int, run: str) -> events.LinkEnded:
    return events.LinkEnded(
        time=9.0, run_id=CAMPAIGN, link=link, link_run=run, name="week-01.jsonl", adapter="/a", steps=4, final_loss=0.5, recoveries=2
    )  # fmt: skip


def story() -> list[Event]:
    return [
        events.RunCreated(time=0.0, run_id=CAMPAIGN),
        begins(1, FIRST),
        step(FIRST, 1, 3.0),
        step(FIRST, 4, 0.5),
        trained(1, FIRST),
        events.LinkMerged(time=9.0, run_id=CAMPAIGN, link=1, folder="/m", rule="slao", coefficient=1.0),
        begins(2, SECOND),
        step(SECOND, 1, 8.0),
    ]


def test_the_view_is_in_the_run_that_trains_and_keeps_the_campaigns_id() -> None:
    view = RunView()
    for event in story():
        view.see(event)
    assert (view.run_id, view.link) == (CAMPAIGN, "run 2 of 5 (week-02.jsonl)")
    assert (view.step, view.loss, view.losses) == (1, 8.0, [8.0])  # a new curve: higher at first, as expected
    assert (view.notices, view.recoveries) == ([], [])


def test_a_log_names_the_campaign_on_every_line_and_each_run_once() -> None:
    stream = io.StringIO()
    sink = PlainSink(stream)
    for event in story():
        sink.event(event)
    lines = stream.getvalue().splitlines()
    assert all(line.startswith(CAMPAIGN[:8]) for line in lines)
    said = [line.removeprefix(f"{CAMPAIGN[:8]} ") for line in lines]
    assert said[1] == "run 1 of 5 (week-01.jsonl) begins"
    assert said[2].startswith("step 1/4")
    assert said[4:7] == [
        "run 1 (week-01.jsonl) is trained: 4 steps, loss 0.5000, recovered from 2 faults",
        "merged by slao, the newest run with coefficient 1.000",
        "run 2 of 5 (week-02.jsonl) begins",
    ]
    assert said[7].startswith("step 1/4  loss 8.0000")  # every run says its first step


def test_a_run_that_is_taken_up_again_goes_on() -> None:
    assert in_words(begins(2, SECOND, offset=4711)) == "run 2 of 5 (week-02.jsonl) goes on"


def test_the_scores_name_the_tasks() -> None:
    scores = tuple(LinkScore("merged", task, 1.0, share, 10, 2) for task, share in enumerate((0.5, 0.25)))
    told = in_words(events.LinkScored(time=0.0, run_id=CAMPAIGN, link=2, scores=scores, names=("one", "two")))
    assert "after run 2" in told
    assert "two 25" in told


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("combine-002", "merging the runs"),
        ("combine-002-ties", "merging the runs by ties"),
        ("combine-002-slao-product", "merging the runs by slao-product"),
        ("evaluate-010", "scoring on held-out rows"),
        ("choose-003", "choosing among the merges"),
        ("plot", "plotting the scores"),
        ("merged-reference", "asking the merged model"),
    ],
)
def test_the_stages_of_a_campaign_are_told_in_words(stage: str, words: str) -> None:
    assert begun(events.StageStarted(time=0.0, run_id=CAMPAIGN, stage=stage, attempt=1, pid=1)) == words
