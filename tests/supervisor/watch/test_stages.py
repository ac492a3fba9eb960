"""The stages of an export in the view and in words: how far, how quick, how long still, and how it came out."""

from __future__ import annotations

import io

import pytest

from backpropagate import events
from backpropagate.measured import Check
from backpropagate.watch.console import PlainSink
from backpropagate.watch.stages import StageView, size
from backpropagate.watch.view import RunView
from backpropagate.watch.wording import in_phase, in_words

RUN = "12345678-0000"


def started(stage: str, attempt: int = 1, time: float = 0.0) -> events.StageStarted:
    return events.StageStarted(time=time, run_id=RUN, stage=stage, attempt=attempt, pid=1)


def phase(name: str, done: int, total: int, time: float) -> events.PhaseEntered:
    return events.PhaseEntered(time=time, run_id=RUN, phase=name, done=done, total=total)


def test_speed_and_time_left_are_those_of_the_phase_that_moves_bytes() -> None:
    view = StageView()
    for event in (
        started("convert"),
        phase("convert", 0, 10_000_000, 1.0),
        phase("convert", 4_000_000, 10_000_000, 3.0),
    ):
        view.see(event)
    assert view.speed == pytest.approx(2_000_000)
    assert view.remaining == pytest.approx(3.0)
    assert str(view) == "converting 40 %  4.0 MB of 10.0 MB  2.0 MB/s"


def test_a_stage_that_counts_prompts_has_a_share_and_no_speed() -> None:
    view = StageView()
    for event in (started("prove"), phase("prove", 0, 20, 1.0), phase("prove", 5, 20, 9.0)):
        view.see(event)
    assert (view.speed, view.remaining) == (None, None)
    assert str(view) == "comparing the export with the trained model 25 %"


def test_what_is_done_anew_is_measured_anew() -> None:
    view = StageView()
    for event in (
        started("convert"),
        phase("convert", 9_000, 10_000, 1.0),
        started("convert", attempt=2, time=5.0),
        phase("convert", 0, 10_000, 5.0),
        phase("convert", 1_000, 10_000, 6.0),
    ):
        view.see(event)
    assert view.speed == pytest.approx(1_000)


def test_the_view_of_the_run_shows_the_stage_until_it_is_done() -> None:
    view = RunView()
    for event in (started("convert"), phase("convert", 0, 100, 0.0), phase("convert", 50, 100, 10.0)):
        view.see(event)
    assert in_phase(view) == "converting 50 %  50 B of 100 B  5 B/s  10 s left"
    view.see(events.StageEnded(time=11.0, run_id=RUN, stage="convert"))
    assert view.stage.name == ""


def test_a_log_has_one_line_for_each_stage_that_begins_and_one_for_each_that_is_done() -> None:
    stream = io.StringIO()
    sink = PlainSink(stream)
    for event in (
        started("convert"),
        phase("import", 0, 0, 0.1),
        phase("convert", 0, 100, 0.2),
        phase("convert", 50, 100, 1.0),
        started("convert", attempt=2),
        events.StageEnded(time=3.0, run_id=RUN, stage="convert", bytes=16_200_000, seconds=3.1),
    ):
        sink.event(event)
    assert stream.getvalue().splitlines() == ["12345678 converting", "12345678 convert            16.2 MB  3 s"]


def test_a_proof_is_a_short_table() -> None:
    checks = (Check("tokens", True, detail="15 prompts"), Check("kl", False, 0.5, 0.01, "nats"))
    proved = events.ExportProved(time=0.0, run_id=RUN, passed=False, verifier="llama", checks=checks, prompts=15)
    assert in_words(proved).splitlines() == [
        "proof FAILED (run, 15 prompts)",
        "  tokens           yes  15 prompts",
        "  kl               0.5 (bound 0.01) FAILED  nats",
    ]


def test_the_way_an_export_goes_is_told_in_one_line() -> None:
    route = events.RouteFound(
        time=0.0,
        run_id=RUN,
        architecture="Qwen2ForCausalLM",
        parameters=1,
        converter="official",
        converter_folder="/llama.cpp",
        type="f16",
        quantizer="ollama",
        verifier="llama",
        bytes=4_100_000_000,
        work_bytes=1,
        free_bytes=1,
    )
    assert in_words(route) == "export: Qwen2ForCausalLM, converted to f16 by llama.cpp's converter, quantized by Ollama, about 4.1 GB"  # fmt: skip


def test_a_fault_and_a_new_try_name_the_stage() -> None:
    fault = events.FaultSeen(
        time=0.0, run_id=RUN, attempt=1, kind="died", code="RUNTIME_CHILD_DIED", message="it died", stage="merge"
    )
    again = events.Recovering(
        time=0.0, run_id=RUN, reason="it died", delay=2.0, micro_batch=0, accumulation=0, stage="merge"
    )
    assert in_words(fault) == "fault in merge: RUNTIME_CHILD_DIED: it died"
    assert in_words(again) == "recovering in 2 s: merge, once more"
    view = RunView()
    view.see(fault)
    view.see(again)
    assert view.recoveries == ["RUNTIME_CHILD_DIED in merge → did merge once more"]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (16_200_000, "16.2 MB"), (4.1e9, "4.1 GB"), (2e12, "2000.0 GB")]
)
def test_sizes_are_told_in_powers_of_a_thousand(count: float, text: str) -> None:
    assert size(count) == text
