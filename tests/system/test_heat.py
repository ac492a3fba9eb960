"""An overheating card, played behind the real pynvml: warned of, paused for, resumed after, and given up when it must be."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import anyio
import msgspec
import pytest

from backpropagate.drive.supervise import supervise
from backpropagate.events import AttemptStarted, FaultSeen, Heat, Noticed, RunCreated, Step
from backpropagate.judge.decisions import Input
from backpropagate.keep import history, locks, runs, userstate
from backpropagate.outcome import Outcome
from backpropagate.sensors.card import Card
from backpropagate_protocol.errors import BusyError
from backpropagate_protocol.rundir import OutputDir
from backpropagate_protocol.spec import RunSpec
from tests.conftest import Oracle
from tests.system.supervised import Story, run_here, toy_spec

pytestmark = pytest.mark.slow

SLOW = "toy?step_seconds=0.05"  # so that the series plays while it trains


def series(folder: Path, celsius: list[int | None], **card: object) -> Path:
    script = folder / "card.json"
    script.write_text(json.dumps({"celsius": celsius, "interval": 0.1, **card}))
    return script


def training_on(oracle: Oracle, celsius: list[int], **card: object) -> tuple[RunSpec, Path]:
    """A run, and a card whose series begins in the midst of it: the child waits there until it is ended."""
    spec = toy_spec(oracle.output(), "hold:12")
    shortly_before = oracle.output().run(spec.run_id).checkpoint(10)
    return spec, series(oracle.home, [60, *celsius], begin=str(shortly_before), **card)


def test_a_hot_card_is_rested_and_the_run_goes_on_halved_with_the_same_samples(
    oracle: Oracle, undisturbed: Outcome
) -> None:
    outcome, story = run_here(*training_on(oracle, [82, 85, 91, 91, 85, 70]))
    assert (outcome.status, outcome.order, outcome.recoveries) == ("completed", undisturbed.order, 1)
    assert [heat.level for heat in story.of(Heat)][:3] == ["warning", "pause", "cool"]
    first, second = story.of(AttemptStarted)
    assert second.micro_batch * 2 == first.micro_batch
    assert second.resume_step >= 10


def test_a_card_near_its_end_is_saved_by_killing_at_once(oracle: Oracle, undisturbed: Outcome) -> None:
    outcome, story = run_here(*training_on(oracle, [96, 96, 70]))
    assert (outcome.status, outcome.order) == ("completed", undisturbed.order)
    assert "kill" in [heat.level for heat in story.of(Heat)]
    assert [fault.kind for fault in story.of(FaultSeen)] == ["overheat"]


def test_the_cards_own_limits_come_before_ours(oracle: Oracle) -> None:
    outcome, story = run_here(*training_on(oracle, [86, 60], slowdown=85, shutdown=90))
    assert outcome.status == "completed"
    assert [heat.celsius for heat in story.of(Heat) if heat.level == "pause"] == [86]


def test_a_sensor_that_falls_silent_costs_one_warning(oracle: Oracle, undisturbed: Outcome) -> None:
    script = series(oracle.home, [60, 60, None])
    outcome, story = run_here(toy_spec(oracle.output(), toy=SLOW), gpu_script=script)
    assert (outcome.status, outcome.order, outcome.recoveries) == ("completed", undisturbed.order, 0)
    warnings = [notice for notice in story.of(Noticed) if "sensors cannot be read" in notice.text]
    assert len(warnings) == 1


def test_what_fitted_on_a_card_is_remembered_for_the_next_run(oracle: Oracle) -> None:
    script = series(oracle.home, [60], memory_total=24_000)
    _, first = run_here(toy_spec(oracle.output(), "oom:7"), gpu_script=script)
    _, second = run_here(toy_spec(oracle.output()), gpu_script=script)
    assert [attempt.micro_batch for attempt in first.of(AttemptStarted)] == [4, 2]
    assert [attempt.micro_batch for attempt in second.of(AttemptStarted)] == [2]
    assert userstate.fitted(userstate.fit_key("Scripted GPU", toy_spec(oracle.output()))) == 2


def test_what_a_user_wished_or_a_first_guess_got_through_is_not_remembered(oracle: Oracle) -> None:
    script = series(oracle.home, [60], memory_total=24_000)
    spec = toy_spec(oracle.output(), "oom:7")
    run_here(toy_spec(oracle.output()), gpu_script=script)
    assert userstate.fitted(userstate.fit_key("Scripted GPU", spec)) is None
    wished = msgspec.structs.replace(spec, train=msgspec.structs.replace(spec.train, batch_size=2))
    _, story = run_here(wished, gpu_script=script)
    assert [attempt.micro_batch for attempt in story.of(AttemptStarted)] == [2, 1]
    assert userstate.fitted(userstate.fit_key("Scripted GPU", spec)) is None


def test_each_step_says_how_warm_the_card_was(oracle: Oracle) -> None:
    _, story = run_here(toy_spec(oracle.output(), toy=SLOW), gpu_script=series(oracle.home, [61]))
    assert {step.celsius for step in story.of(Step)} == {61}


@pytest.mark.skipif(sys.platform != "linux", reason="it takes a folder that nobody can write into")
def test_a_card_that_cannot_be_reserved_is_used_with_a_warning(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    outcome, story = run_here(toy_spec(oracle.output(), "oom:7"), gpu_script=series(oracle.home, [60]))
    assert (outcome.status, outcome.recoveries) == ("completed", 1)
    assert len([notice for notice in story.of(Noticed) if "cannot be reserved" in notice.text]) == 1


def test_a_dead_childs_memory_is_waited_for_until_it_is_back_or_gets_no_freer(tmp_path: Path) -> None:
    async def until_back(*memory: int) -> int:
        """What the card says is in use when `memory_back` returns, called when it was most."""
        script = series(tmp_path, [60], interval=0.02, memory=[1_000, *memory])
        card = Card(toy_spec(OutputDir(tmp_path / "out")), script, None)
        fed = anyio.Event()

        def feed(input: Input) -> None:
            if card.latest is not None and card.latest.memory_used == max(memory):
                fed.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(card.watch, feed, lambda: "cuda:0", lambda text: None)
            await fed.wait()
            await card.memory_back()
            assert card.latest is not None
            used = card.latest.memory_used
            tasks.cancel_scope.cancel()
        card.release()
        return used

    assert anyio.run(until_back, 9_000, 9_000, 5_000, 1_100) == 1_100
    assert anyio.run(until_back, 9_000, 5_000, 5_000, 5_000) == 5_000


def test_a_run_whose_card_another_one_holds_never_began(oracle: Oracle) -> None:
    script = series(oracle.home, [60])
    spec, story = toy_spec(oracle.output()), Story()
    run_dir = runs.create(spec)
    with (
        locks.hold(locks.gpu_lock("GPU-00000000-scripted"), "another-run", "the GPU"),
        pytest.raises(BusyError, match="another-run"),
    ):
        supervise(run_dir, [story], gpu_script=script)
    assert not story.events
    assert not run_dir.events.exists()
    assert not history.list_rows(oracle.output())
    assert supervise(run_dir, [story], gpu_script=script).status == "completed"
    assert len(story.of(RunCreated)) == 1
