"""What a card that is seen for the first time decides: the batch to begin with, a doubt, or that the run is not begun."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import anyio
import msgspec
import pytest

from backpropagate.drive.supervise import supervise
from backpropagate.judge.decisions import CardKnown, Input, StopAsked
from backpropagate.judge.estimate import Gpu, Sizing
from backpropagate.keep import runs, userstate
from backpropagate.sensors.card import Card
from backpropagate.wishes.estimating import sizing_of
from backpropagate.wishes.preset_configs import CONFIGS
from backpropagate_protocol.errors import BackpropagateError
from backpropagate_protocol.rundir import OutputDir
from backpropagate_protocol.spec import DataSpec, ModelSpec, RunSpec, TrainSpec

# On Windows the driver lends the host's memory.
_REFUSING = pytest.mark.skipif(sys.platform == "win32", reason="nothing is refused there")


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_STATE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "state"))


def spec(folder: Path, **train: object) -> RunSpec:
    """Of a base that is nothing but its config.json: that of a model of 7 B parameters, or with `small` of 1 B."""
    base = folder / "base"
    base.mkdir(exist_ok=True)
    (base / "config.json").write_text(json.dumps(CONFIGS["Qwen/Qwen2.5-7B-Instruct"]))
    (folder / "d.jsonl").write_text('{"text": "a row"}\n')
    return RunSpec(
        run_id="11111111-1111-4111-8111-111111111111",
        created="",
        backend="cuda",
        output=str(folder / "out"),
        model=ModelSpec(name="base", path=str(base), load_in_4bit=True),
        data=DataSpec(source=str(folder / "d.jsonl")),
        train=msgspec.convert({"optim": "paged_adamw_8bit", **train}, TrainSpec),
    )


def script(folder: Path, memory: int) -> Path:
    path = folder / "card.json"
    path.write_text(json.dumps({"celsius": [50], "interval": 0.05, "memory_total": memory}))
    return path


def first_look(wish: RunSpec, memory: int, folder: Path, environ: Mapping[str, str]) -> tuple[Card, list[Input], list[str]]:  # fmt: skip
    """The card after its first reading, what it told the policy, and what it told the user."""

    def sizing(gpu: Gpu) -> Sizing | None:
        return sizing_of(wish, gpu, environ)

    card = Card(wish, script(folder, memory), None, sizing=sizing)
    fed: list[Input] = []
    said: list[str] = []

    async def look() -> None:
        async with anyio.create_task_group() as tasks:

            def feed(input: Input) -> None:
                fed.append(input)
                if isinstance(input, CardKnown | StopAsked):
                    tasks.cancel_scope.cancel()

            tasks.start_soon(card.watch, feed, lambda: "", said.append)

    anyio.run(look)
    card.release()
    return card, fed, said


def begun_with(fed: list[Input]) -> int | None:
    return next(input.micro_batch for input in fed if isinstance(input, CardKnown))


@pytest.mark.parametrize(("memory", "micro_batch"), [(16_376, 2), (24_564, 8)])
def test_the_batch_to_begin_with_is_the_largest_that_the_estimate_says_fits(
    tmp_path: Path, memory: int, micro_batch: int
) -> None:
    _, fed, said = first_look(spec(tmp_path), memory, tmp_path, {})
    assert begun_with(fed) == micro_batch
    assert said == []


def test_what_fitted_before_wins_over_the_estimate(tmp_path: Path) -> None:
    wish = spec(tmp_path)
    userstate.remember(userstate.fit_key("Scripted GPU", wish), 1)
    _, fed, _ = first_look(wish, 24_564, tmp_path, {})
    assert begun_with(fed) == 1


def test_a_batch_that_was_asked_for_and_may_not_fit_is_tried_with_a_word(tmp_path: Path) -> None:
    card, fed, said = first_look(spec(tmp_path, batch_size=8), 16_376, tmp_path, {})
    assert begun_with(fed) == 8
    assert card.refused is None
    assert len(said) == 1
    assert "if it does not fit, it is halved" in said[0]


def test_of_a_base_that_is_not_here_nothing_is_told_and_the_guess_stays(tmp_path: Path) -> None:
    wish = spec(tmp_path)
    wish = msgspec.structs.replace(wish, model=ModelSpec(name="a/b", path="a/b"))
    _, fed, said = first_look(wish, 24_564, tmp_path, {"HF_HUB_CACHE": str(tmp_path)})
    assert begun_with(fed) == 4
    assert said == []


@_REFUSING
def test_a_run_that_cannot_fit_is_not_begun_and_leaves_nothing(tmp_path: Path) -> None:
    run_dir = runs.create(spec(tmp_path))
    with pytest.raises(BackpropagateError) as caught:
        supervise(run_dir, gpu_script=script(tmp_path, 4_000))
    assert caught.value.code == "RUNTIME_GPU_OOM"
    assert int(caught.value.exit_code) == 1
    assert not run_dir.events.exists()
    assert OutputDir(tmp_path / "out").path == run_dir.output.path
