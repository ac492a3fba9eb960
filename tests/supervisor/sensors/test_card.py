"""The run's card: sensors that answer late, and a run that turns out to be on no card."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from backpropagate.events import ModelReady
from backpropagate.judge.decisions import CardKnown, CardLimits, Input, Temperature
from backpropagate.keep import locks
from backpropagate.sensors.card import Card
from backpropagate_protocol.rundir import OutputDir
from tests.system.supervised import toy_spec

_LOCK = "GPU-00000000-scripted"


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_STATE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "state"))


def play(path: Path, *celsius: int | None) -> Path:
    path.write_text(json.dumps({"celsius": celsius, "interval": 0.02, "slowdown": 85}))
    return path


def watched(folder: Path, react: Callable[[Card, Input], bool], *celsius: int | None) -> tuple[list[str], list[str]]:
    """What the card told the policy, by name, up to where `react` says that it is enough, and what it told the user."""
    fed: list[str] = []
    said: list[str] = []
    card = Card(toy_spec(OutputDir(folder / "out")), play(folder / "card.json", *celsius), None, retry=(0.01,))

    async def main() -> None:
        async with anyio.create_task_group() as tasks:

            def feed(input: Input) -> None:
                fed.append(type(input).__name__)
                if react(card, input):
                    tasks.cancel_scope.cancel()

            await card.watch(feed, lambda: "", said.append)

    anyio.run(main)
    card.release()
    return fed, said


def ready(device: str) -> ModelReady:
    return ModelReady(
        time=0.0,
        run_id="run",
        attempt=1,
        backend="toy",
        device=device,
        step=0,
        total_steps=9,
        micro_batch=1,
        accumulation=1,
        trainable_parameters=1,
        parameters=1,
        precision="fp32",
    )


def is_free() -> bool:
    return locks.holder_of(locks.gpu_lock(_LOCK)) is None


def test_sensors_that_fail_at_the_first_look_let_the_job_go_and_are_asked_again(tmp_path: Path) -> None:
    held: list[bool] = []

    def react(card: Card, input: Input) -> bool:
        if isinstance(input, CardKnown):
            assert input.micro_batch is None
            play(tmp_path / "card.json", 70)
        held.append(not is_free())
        return isinstance(input, Temperature)

    fed, said = watched(tmp_path, react, None)
    assert fed[:4] == ["CardKnown", "CardLimits", "CardVitals", "Temperature"]
    assert (held[0], held[1], said) == (False, True, [])


def test_a_card_that_answers_late_and_is_anothers_is_watched_with_a_warning(tmp_path: Path) -> None:
    def react(card: Card, input: Input) -> bool:
        if isinstance(input, CardKnown):
            play(tmp_path / "card.json", 70)
        return isinstance(input, Temperature)

    with locks.hold(locks.gpu_lock(_LOCK), "another-run", "the GPU"):
        fed, said = watched(tmp_path, react, None)
    assert fed[:4] == ["CardKnown", "CardLimits", "CardVitals", "Temperature"]
    assert "another-run" in said[0]


def test_a_run_that_is_on_no_card_lets_go_of_it_and_looks_at_it_no_more(tmp_path: Path) -> None:
    held: list[bool] = []

    def react(card: Card, input: Input) -> bool:
        if isinstance(input, CardLimits):
            held.append(not is_free())
        if isinstance(input, Temperature):
            card.event(ready("cpu"))
            assert (card.latest, card.fit_key) == (None, None)
            held.append(not is_free())
        return False

    fed, _ = watched(tmp_path, react, 60)
    assert held == [True, False]
    assert fed.count("Temperature") == 1


def test_where_there_is_no_such_card_nobody_asks_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-unknown")
    assert watched(tmp_path, lambda card, input: False, 60) == (["CardKnown"], [])
