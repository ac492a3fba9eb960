"""What a person sees of a run: numbers made from events, lines in a log, and a live view on a real terminal."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backpropagate import events
from backpropagate.events import Event
from backpropagate.watch.console import LiveSink, PlainSink, sink_for
from backpropagate.watch.view import RunView, duration, span, sparkline
from backpropagate.watch.wording import progress_line
from backpropagate_protocol.spec import DataSpec

RUN = "12345678-aaaa-bbbb-cccc-1234567890ab"


def step(number: int, *, time: float | None = None, loss: float | None = None, total: int = 100) -> events.Step:
    return events.Step(
        time=float(number) if time is None else time,
        run_id=RUN,
        step=number,
        total_steps=total,
        samples_seen=8 * number,
        order=0,
        loss=3.0 / number if loss is None else loss,
        tokens=100 * number,
        memory_used=2048,
        celsius=61,
        learning_rate=1.5e-4,
    )


def ready(attempt: int = 1, at_step: int = 0, micro_batch: int = 4) -> events.ModelReady:
    return events.ModelReady(
        time=0.0,
        run_id=RUN,
        attempt=attempt,
        backend="cuda",
        device="NVIDIA RTX",
        step=at_step,
        total_steps=100,
        micro_batch=micro_batch,
        accumulation=8 // micro_batch,
        trainable_parameters=1000,
        parameters=9000,
        precision="bf16",
        device_memory=16384,
    )


def story() -> Iterator[Event]:
    """A run with a fault at step 7 that goes on from step 5 with half the batch."""
    yield events.RunCreated(time=0.0, run_id=RUN)
    yield events.AttemptStarted(time=0.0, run_id=RUN, attempt=1, pid=2, micro_batch=4, accumulation=2)
    yield events.PhaseEntered(time=0.0, run_id=RUN, phase="load")
    yield events.PhaseEntered(time=0.5, run_id=RUN, phase="load", done=50, total=100)
    yield ready()
    for number in range(1, 7):
        yield step(number)
        if number == 5:
            yield events.CheckpointCommitted(time=5.0, run_id=RUN, name="step-00000005", step=5, samples_seen=40, order=0, seconds=0.1, bytes=9)  # fmt: skip
    yield events.FaultSeen(
        time=6.5, run_id=RUN, attempt=1, kind="oom", code="RUNTIME_GPU_OOM", message="no memory", step=6
    )
    yield events.Recovering(time=6.5, run_id=RUN, reason="oom", delay=0.0, micro_batch=2, accumulation=4, checkpoint="step-00000005", resume_step=5)  # fmt: skip
    yield events.AttemptStarted(time=7.0, run_id=RUN, attempt=2, pid=3, micro_batch=2, accumulation=4, checkpoint="step-00000005", resume_step=5)  # fmt: skip
    yield ready(attempt=2, at_step=5, micro_batch=2)
    for number in range(6, 101):
        yield step(number, time=number + 2.0)
    yield events.RunEnded(
        time=103.0, run_id=RUN, status="completed", exit_code=0, step=100, total_steps=100, seconds=103.0
    )


def log(story: Iterator[Event], interval: float = 30.0) -> list[str]:
    stream = io.StringIO()
    sink = PlainSink(stream, interval)
    for event in story:
        sink.event(event)
    sink.close()
    return stream.getvalue().splitlines()


def test_a_log_has_the_first_step_one_line_each_half_minute_and_what_matters() -> None:
    lines = log(story())

    assert all(line.startswith("12345678 ") for line in lines)
    assert [line[9:].split("  ")[0] for line in lines] == [
        f"run {RUN} started",
        "loading the model",
        "training on NVIDIA RTX in bf16, batch 4 × 2, 1,000 of 9,000 parameters",
        "step 1/100",
        "fault at step 6: RUNTIME_GPU_OOM: no memory",
        "recovering: from step 5, batch 2 × 4",
        "attempt 2 from step 5, batch 2 × 4",
        "training on NVIDIA RTX in bf16, batch 2 × 4, 1,000 of 9,000 parameters",
        "step 6/100",
        "step 36/100",
        "step 66/100",
        "step 96/100",
        "step 100/100",
        "completed at step 100/100 after 2 min",
    ]


def test_a_line_of_progress_has_loss_rate_speed_time_left_memory_and_temperature() -> None:
    line = next(line for line in log(story()) if "step 66/100" in line)

    assert line == "12345678 step 66/100  loss 0.0455  lr 1.5e-04  100 tokens/s  34 s left  2.0/16.0 GB  61 °C"


def test_a_line_of_progress_has_the_newest_held_out_loss_and_where_the_best_was() -> None:
    view = RunView()
    for step, loss, best in ((4, 1.5, True), (8, 1.25, True)):
        view.see(
            events.Evaluation(time=0.0, run_id=RUN, step=step, loss=loss, rows=3, tokens=9, seconds=1.0, best=best)
        )
    assert "  held-out 1.2500" in progress_line(view)
    assert "best" not in progress_line(view)
    view.see(events.Evaluation(time=0.0, run_id=RUN, step=12, loss=1.75, rows=3, tokens=9, seconds=1.0, best=False))
    assert "  held-out 1.7500, best at step 8" in progress_line(view)


def test_a_preference_method_shows_how_well_answers_are_told_apart() -> None:
    view = RunView()
    view.see(msgspec.structs.replace(step(3), extra={"accuracy": 0.75, "margin": 0.3125, "kl": 0.1}))
    assert "loss 1.0000  accuracy 75 %, margin +0.312" in progress_line(view)
    view.see(step(4))
    assert "accuracy" not in progress_line(view)


def test_a_log_has_no_secrets() -> None:
    token = "hf_" + "0123456789abcdef"
    lines = log(iter([events.Noticed(time=0.0, run_id=RUN, level="warning", text=f"the token {token} was refused")]))

    assert lines == ["12345678 warning: the token [redacted] was refused"]


def test_a_run_that_never_began_to_train_is_told_without_its_rows_and_its_steps() -> None:
    message = "d.jsonl: 1 of 2 rows cannot be used\n  line 2: is not JSON"
    fault = events.FaultSeen(
        time=0.0, run_id=RUN, attempt=1, kind="data", code="INPUT_DATASET_PARSE_FAILED", message=message, step=0
    )
    ended = events.RunEnded(
        time=0.0, run_id=RUN, status="failed", exit_code=1, step=0, total_steps=0, message=message, seconds=2.0
    )

    assert log(iter([fault, ended])) == [
        "12345678 fault at step 0: INPUT_DATASET_PARSE_FAILED: d.jsonl: 1 of 2 rows cannot be used",
        "12345678 failed before the first step, after 2 s",
    ]


def test_every_event_can_be_shown() -> None:
    """Each kind of event, with only the fields it must have, goes through the log without an error."""
    import msgspec

    rows = DataSpec(source="/data/x.jsonl")
    made = {"str": "x", "int": 1, "float": 1.0, "bool": True, "tuple": (), "DataSpec": rows}
    for kind in Event.__args__:
        fields = {f.name: made[f.type.__name__] for f in msgspec.structs.fields(kind) if f.required}
        log(iter([kind(**fields)]))


def test_steps_that_are_done_again_replace_what_they_did_before() -> None:
    view = RunView()
    for number in (1, 2, 3, 4):
        view.see(step(number, loss=9.0))
    for number in (3, 4, 5):
        view.see(step(number, loss=1.0))

    assert view.losses == [9.0, 9.0, 1.0, 1.0, 1.0]


def test_a_recovery_is_told_with_its_cause() -> None:
    view = RunView()
    for event in story():
        view.see(event)

    assert view.recoveries == ["RUNTIME_GPU_OOM at step 6 → went on from step 5, batch 2 × 4"]


def test_gradient_checkpointing_that_a_recovery_turned_on_is_told() -> None:
    view = RunView()
    lines = []
    for number, on in enumerate((None, None, True, True), start=1):
        attempt = events.AttemptStarted(time=0.0, run_id=RUN, attempt=number, pid=2, micro_batch=1, accumulation=8, gradient_checkpointing=on)  # fmt: skip
        lines += log(iter([attempt]))
        view.see(attempt)
        view.see(events.Recovering(time=0.0, run_id=RUN, reason="oom", delay=0.0, micro_batch=1, accumulation=8))

    assert [line.endswith(", with gradient checkpointing") for line in lines] == [False, True, True]
    assert [what.endswith(", with gradient checkpointing") for what in view.recoveries] == [False, True, False, False]


def killed(traceback: str = "") -> events.FaultSeen:
    return events.FaultSeen(
        time=6.5, run_id=RUN, attempt=1, kind="died", code="RUNTIME_CHILD_DIED", step=6, traceback=traceback,
        message="the training process was killed by SIGKILL", death="was killed by SIGKILL",
    )  # fmt: skip


def test_how_a_child_died_is_said_once() -> None:
    assert log(iter([killed()]))[0].endswith("RUNTIME_CHILD_DIED: the training process was killed by SIGKILL")


def test_a_fault_has_its_traceback_below_it_where_all_is_to_be_told() -> None:
    quiet, verbose = io.StringIO(), io.StringIO()
    for sink in (PlainSink(quiet), PlainSink(verbose, verbose=True)):
        sink.event(killed(traceback="Traceback\n  in the child\n"))

    assert "in the child" not in quiet.getvalue()
    assert verbose.getvalue() == quiet.getvalue() + "Traceback\n  in the child\n"


def test_time_left_is_a_range_of_the_quick_and_the_slow_steps() -> None:
    view = RunView()
    clock = 0.0
    for number in range(1, 41):
        clock += 1.0 if number % 2 else 3.0
        view.see(step(number, time=clock))

    assert view.remaining == (60.0, 180.0)
    assert span(60.0, 180.0) == "1–3 min"


@pytest.mark.parametrize(
    ("seconds", "words"), [(-1, "0 s"), (59.4, "59 s"), (60, "1 min"), (3599, "1 h 00 min"), (7500, "2 h 05 min")]
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_range_with_equal_ends_is_one_value() -> None:
    assert span(10.1, 10.2) == "10 s"
    assert span(58, 61) == "1 min"
    assert span(50, 70) == "50 s – 1 min"


@given(st.lists(st.floats(-1e9, 1e9), max_size=200), st.integers(1, 40))
def test_a_sparkline_is_never_longer_than_its_width(values: list[float], width: int) -> None:
    line = sparkline(values, width)

    assert len(line) == min(width, len(values))


def test_a_falling_loss_is_a_falling_line() -> None:
    assert sparkline([8, 7, 6, 5, 4, 3, 2, 1]) == "█▇▆▅▄▃▂▁"
    assert sparkline([5, 5, 5]) == "▁▁▁"


def test_off_a_terminal_and_on_a_dumb_one_the_view_is_plain(tmp_path: Path) -> None:
    with open(tmp_path / "log", "w") as stream:
        assert isinstance(sink_for(stream, {"TERM": "xterm"}), PlainSink)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no pseudo-terminal to open")
@pytest.mark.parametrize(("variables", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_live_view_on_a_real_terminal_shows_the_run_and_keeps_what_matters(
    variables: dict[str, str], coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40", **variables}.items():
        monkeypatch.setenv(name, value)
    ours, theirs = os.openpty()
    with ThreadPoolExecutor(1) as reader:  # reads all the while, or a full terminal would make the writer wait
        shown = reader.submit(_drain, ours)
        _tell(theirs)
        words = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.result())

    assert "fault at step 6: RUNTIME_GPU_OOM: no memory" in words
    assert "step 50/100" in words
    assert "saved at step 5, 47 s ago" in words
    assert "recovered: RUNTIME_GPU_OOM at step 6" in words
    assert "lr 1.5e-04" in words
    assert "61 °C" in words
    assert "completed at step 100/100" in words
    assert bool(re.search(r"\x1b\[(?:\d+;)*3[0-7]m", shown.result())) == coloured


def _tell(theirs: int) -> None:
    """The story on a terminal, redrawn at step 50."""
    with open(theirs, "w", encoding="utf-8") as terminal:
        assert isinstance(sink_for(terminal, {"TERM": "dumb"}), PlainSink)
        sink = sink_for(terminal, {"TERM": "xterm-256color"})
        assert isinstance(sink, LiveSink)
        for event in story():
            sink.event(event)
            if isinstance(event, events.Step) and event.step == 50:
                sink.redraw()
        sink.close()


def _drain(descriptor: int) -> str:
    data = b""
    while True:
        try:
            chunk = os.read(descriptor, 65536)
        except OSError:  # Linux says so when the other end is closed
            break
        if not chunk:
            break
        data += chunk
    os.close(descriptor)
    return data.decode()
