"""What trackers are told of a run's events: curves, notes without secrets, and one count of steps for a campaign."""

from __future__ import annotations

from backpropagate import events
from backpropagate.events import Event
from backpropagate.measured import LinkScore
from backpropagate.track.telling import Ended, Entry, Facts, Note, Telling, Values
from backpropagate.track.told import Told


def told(*seen: Event) -> list[Entry]:
    telling = Telling()
    return [entry for event in seen for entry in telling.see(event)]


def points(entries: list[Entry], name: str) -> list[tuple[int, float]]:
    return [(e.step, e.values[name]) for e in entries if isinstance(e, Values) and name in e.values]


def step(number: int, loss: float | None = 1.0, **more: object) -> events.Step:
    return events.Step(
        time=100.0 + number, run_id="r", step=number, total_steps=10, samples_seen=8 * number, order=0, loss=loss,
        **more,  # type: ignore[arg-type]
    )  # fmt: skip


def link(number: int) -> events.LinkStarted:
    return events.LinkStarted(time=1.0, run_id="c", link=number, links=2, link_run=f"l{number}", name=f"week-{number}")


def test_a_step_is_a_point_of_every_curve_that_it_knows() -> None:
    (point,) = told(step(3, 0.5, learning_rate=1e-4, grad_norm=2.0, memory_used=512, extra={"margin": 0.25}))
    assert isinstance(point, Values)
    assert (point.step, point.time) == (3, 103.0)
    wanted = {"train/loss": 0.5, "train/learning_rate": 1e-4, "train/grad_norm": 2.0, "gpu/memory_mib": 512, "train/margin": 0.25}  # fmt: skip
    assert {name: value for name, value in point.values.items() if name in wanted} == wanted
    assert "gpu/celsius" not in point.values


def test_a_loss_that_is_no_number_is_a_gap_in_its_curve() -> None:
    entries = told(step(1, float("nan")), step(2, None), step(3, float("inf")), step(4, 0.5))
    assert points(entries, "train/loss") == [(4, 0.5)]
    assert len(points(entries, "train/samples")) == 4


def test_an_evaluation_is_told_at_its_own_step() -> None:
    scored = events.Evaluation(
        time=1.0, run_id="r", step=5, loss=0.75, rows=4, tokens=40, seconds=0.5, best=True, extra={"accuracy": 0.5}
    )
    entries = told(step(6), scored)
    assert points(entries, "eval/loss") == [(5, 0.75)]
    assert points(entries, "eval/accuracy") == [(5, 0.5)]


def test_faults_and_recoveries_are_notes_and_a_curve() -> None:
    fault = events.FaultSeen(time=1.0, run_id="r", attempt=1, kind="oom", code="RUNTIME_GPU_OOM", message="no room", step=4)  # fmt: skip
    again = events.Recovering(time=1.0, run_id="r", reason="oom", delay=0.0, micro_batch=4, accumulation=2)
    entries = told(step(4), fault, again)
    assert points(entries, "run/recoveries") == [(4, 1.0)]
    notes = [entry.text for entry in entries if isinstance(entry, Note)]
    assert notes == ["fault at step 4: RUNTIME_GPU_OOM: no room", "recovering: from the start, batch 4 × 2"]


def test_no_secret_reaches_a_tracker() -> None:
    said = events.Noticed(time=1.0, run_id="r", level="info", text="used hf_abcdefghijklmnop to load")
    assert [entry.text for entry in told(said) if isinstance(entry, Note)] == ["used [redacted] to load"]


def test_the_steps_of_a_campaign_are_counted_on() -> None:
    over = events.LinkEnded(time=1.0, run_id="c", link=1, link_run="l1", name="week-1", adapter="a", steps=10)
    score = LinkScore("merged", 0, 0.5, 0.5, 10, 1)
    base = LinkScore("base", 0, 2.5, 0.5, 10, 1)
    scored = events.LinkScored(time=1.0, run_id="c", link=1, scores=(score, base), names=("week-1",))
    entries = told(link(1), step(10), over, scored, link(2), step(1))
    assert points(entries, "train/loss") == [(10, 1.0), (11, 1.0)]
    assert points(entries, "campaign/loss_run_1") == [(10, 0.5)]


def test_the_end_says_how_it_ended_after_what_there_is_to_know() -> None:
    ended = events.RunEnded(time=1.0, run_id="r", status="failed", exit_code=1, step=3, total_steps=10, code="RUNTIME_GPU_OOM")  # fmt: skip
    *_, facts, last = told(ended)
    assert last == Ended("failed", 1)
    assert isinstance(facts, Facts)
    assert facts.facts["code"] == "RUNTIME_GPU_OOM"


def test_a_step_that_is_done_again_is_told_once() -> None:
    known = Told()
    first = known.fresh(Values(3, 1.0, {"train/loss": 0.5, "train/grad_norm": 1.0}))
    again = known.fresh(Values(3, 2.0, {"train/loss": 0.5, "train/tokens_per_second": 9.0}))
    earlier = known.fresh(Values(2, 2.0, {"train/loss": 0.7}))
    assert first.values == {"train/loss": 0.5, "train/grad_norm": 1.0}
    assert again.values == {"train/tokens_per_second": 9.0}
    assert earlier.values == {}
