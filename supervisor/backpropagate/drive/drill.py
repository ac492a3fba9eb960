"""`backprop drill`: real runs in a folder of their own go through one fault each, and every row has to hold.

Each run is supervised as any other, by a process of its own that belongs to this one; what it came to is compared with a run
to which nothing happened. Nothing of the user's is touched but a card's lock, where a real training needs the card.
"""

from __future__ import annotations

import json
import math
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from backpropagate.drive import drill_leftovers, drill_reading
from backpropagate.drive.drill_reading import Truth
from backpropagate.drive.drill_rows import REAL, TOY, End, Pace, Row
from backpropagate.drive.drill_scene import PlayedCard, Scene
from backpropagate.keep import locks, userstate
from backpropagate_protocol.errors import BackpropagateError, TrainingError
from backpropagate_protocol.rundir import OutputDir
from backpropagate_protocol.spec import DataSpec, LoraSpec, ModelSpec, RunSpec, SafetySpec, TrainSpec

_TOY_PATIENCE = 120.0
_REAL_PATIENCE = 300.0  # besides five times what the undisturbed run took
_FIRST_PATIENCE = 7200.0  # a download may be in it
_SLOW_STEP = 0.05
_UNMOVED_FLOOR = 30.0
_CARD_SECONDS = 0.05  # between two readings of a card that is played
_HOLDOUT = 10  # every tenth row: evaluations are where faults fall, too


@dataclass(frozen=True, slots=True)
class Result:
    """What one row came to. Seconds; None: there is no such moment. It holds if nothing is wrong."""

    key: str
    fault: str
    ended: str  # `completed`, or the code with which the run ended, where it had to
    noticed: float | None
    recovered: float | None
    steps_lost: int
    samples_exact: bool
    weights_identical: bool | None  # None: there is no result, or the batch was halved
    orphans: int
    wrong: tuple[str, ...] = field(default=())
    base: str | None = None  # of a real training; None: of the toy trainer

    @property
    def holds(self) -> bool:
        return not self.wrong


class Drill:
    """Runs of one kind. `undisturbed` first."""

    def __init__(self, folder: Path, model: ModelSpec, backend: str, runner_python: str | None = None) -> None:
        """Raises OSError if the folder cannot be written."""
        self._folder, self._model, self._backend, self._python = folder, model, backend, runner_python
        toy = backend == "toy"
        self._pace: Pace = TOY if toy else REAL
        self._patience = _TOY_PATIENCE if toy else _FIRST_PATIENCE
        self._tolerance = 1e-9 if toy else 0.05
        self._rows = folder / f"{backend}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        self._rows.write_text(
            "".join(json.dumps(row) + "\n" for row in (_texts() if toy else _talks())), encoding="utf-8"
        )
        self._uuid = f"GPU-drill-{uuid.uuid4()}"
        self._truth: Truth | None = None
        self._weights: dict[str, bytes] = {}

    def undisturbed(self) -> None:
        """The run that all others are held against.

        Raises TrainingError if it does not come to its end, or what kept it from beginning: a card that is taken, say.
        """
        began = time.monotonic()
        row = Row("undisturbed", "nothing", end=End.UNMOVED, slow=True)  # so that every step is told
        scene = self._scene(row)
        scene.play()
        if scene.refused is not None:
            raise scene.refused
        self._truth = drill_reading.truth(scene.events)
        if self._truth is None:
            wrong = [*scene.problems, *drill_reading.not_as_expected(row, scene.events)]
            raise TrainingError(
                f"the run to which nothing is done did not come to its end: {'; '.join(wrong) or 'it had a fault'}",
                suggestion=f"Look into {scene.run_dir.log}; `backprop doctor` tries out what a training stands on.",
            )
        self._weights = _weights(scene.run_dir.adapter)
        if not self._weights:
            raise TrainingError(
                "the run to which nothing is done left no weights", suggestion=f"Look into {scene.run_dir.path}."
            )
        if self._backend != "toy":
            self._patience = _REAL_PATIENCE + 5 * (time.monotonic() - began)

    def drill(self, row: Row) -> Result:
        """Plays the row and looks at all that is left of it. Raises OSError if the disk does not take it."""
        assert self._truth is not None
        scene = self._scene(row)
        scene.play()
        self._forget_card()
        events = scene.events
        others = drill_reading.other_samples(events, self._truth, self._tolerance)
        orphans = drill_leftovers.orphans(scene.run_dir, {*drill_reading.children(events), *scene.supervisors})
        wrong = [
            *scene.problems,
            *drill_reading.not_struck(row, events, scene.blow),
            *drill_reading.not_as_expected(row, events),
            *others,
            *self._wrong_weights(row, scene),
            *(f"process {pid} was left" for pid in orphans),
            *drill_leftovers.on_disk(scene.run_dir),
        ]
        times = drill_reading.times(row, events, scene.blow)
        return Result(
            key=row.key,
            fault=row.name,
            ended=drill_reading.in_a_word(events),
            noticed=_rounded(times.noticed),
            recovered=_rounded(times.recovered),
            steps_lost=drill_reading.steps_lost(events),
            samples_exact=not others,
            weights_identical=self._same_weights(row, scene),
            orphans=len(orphans),
            wrong=tuple(wrong),
            base=None if self._backend == "toy" else self._model.name,
        )

    def forget(self, row: Row) -> None:
        """What the row left on the disk goes: nobody has to look at it."""
        shutil.rmtree(self._folder / row.key, ignore_errors=True)

    def _forget_card(self) -> None:
        """Of a card that is not there nothing stays with the user."""
        userstate.forget(self._uuid)
        locks.gpu_lock(self._uuid).unlink(missing_ok=True)

    def _same_weights(self, row: Row, scene: Scene) -> bool | None:
        if row.end is End.GIVEN_UP or drill_reading.was_halved(scene.events):
            return None
        return _weights(scene.run_dir.adapter) == self._weights

    def _wrong_weights(self, row: Row, scene: Scene) -> list[str]:
        """What was trained has to be where the user looks for it; the toy repeats every bit, and so it must."""
        if row.end is End.GIVEN_UP:
            return []
        trained = _weights(scene.run_dir.adapter)
        wrong = [] if trained and _weights(scene.run_dir.output.lora) == trained else ["the weights are not in lora/"]
        if self._backend == "toy" and self._same_weights(row, scene) is False:
            wrong.append("the weights are not those of the undisturbed run")
        return wrong

    def _scene(self, row: Row) -> Scene:
        spec = self._spec(row)
        rival = msgspec.structs.replace(spec, run_id=str(uuid.uuid4()), faults=())
        return Scene(row, spec, self._pace.at, self._patience, lambda: rival, self._card(row, spec.run_id))

    def _card(self, row: Row, run_id: str) -> PlayedCard | None:
        """Its files bear the run's id, by which the process that reads them is known as one of the run."""
        if not row.celsius:
            return None
        card = PlayedCard(self._folder / f"{run_id}.card.json", self._folder / f"{run_id}.card.begin")
        ails = {"xids": {"2": [row.xid]}} if row.xid else {}
        script = {
            "celsius": [60, *row.celsius],
            "interval": _CARD_SECONDS,
            "uuid": self._uuid,
            "begin": str(card.begin),
        }
        card.script.write_text(json.dumps({**script, "ails": ails}), encoding="utf-8")
        return card

    def _spec(self, row: Row) -> RunSpec:
        pace, model = self._pace, self._model
        if self._backend == "toy" and row.slow:
            model = msgspec.structs.replace(model, path=f"{model.path}?step_seconds={_SLOW_STEP}")
        return RunSpec(
            run_id=str(uuid.uuid4()),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            backend=self._backend,
            output=str(OutputDir(self._folder / row.key).path),
            model=model,
            data=DataSpec(source=str(self._rows), max_length=128, holdout=_HOLDOUT),
            lora=LoraSpec(r=8, alpha=16),
            # The micro-batch is said, so that nothing of this is remembered for the user's own runs.
            train=TrainSpec(
                steps=pace.steps, effective_batch=pace.batch, batch_size=pace.batch, warmup_steps=0, eval_steps=pace.at
            ),
            safety=SafetySpec(
                save_steps=pace.save_steps,
                hang_floor=pace.hang_floor if row.hangs else _UNMOVED_FLOOR,
                standby="on" if row.standby else "off",
            ),
            runner_python=self._python,
            faults=row.faults,
        )


def drilled(
    drill: Drill, rows: Sequence[Row], say: Callable[[str], None], full: Callable[[], BackpropagateError | None]
) -> Iterator[Result]:
    """All rows, one after the other: side by side they would spoil each other's times. `say` hears of each as it ends.

    full: what is to be said if the disk is. On one that is, nothing is judged: it is raised.
    """
    drill.undisturbed()
    for number, row in enumerate(rows, start=1):
        result = drill.drill(row)
        if result.holds:
            drill.forget(row)
        elif (error := full()) is not None:
            raise error
        say(f"{number}/{len(rows)} {row.name}: {'holds' if result.holds else 'does not hold'}")
        yield result


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None or math.isnan(seconds) else round(seconds, 3)


def _weights(adapter: Path) -> dict[str, bytes]:
    """The content of the files that hold weights, by name."""
    if not adapter.is_dir():
        return {}
    return {
        path.name: path.read_bytes() for path in adapter.iterdir() if path.suffix in (".safetensors", ".bin", ".npz")
    }


def _texts() -> list[dict[str, object]]:
    """50 rows: seven steps of eight in an epoch, the last of them smaller."""
    return [{"text": f"row {number} " + "x" * (number % 7)} for number in range(50)]


def _talks() -> list[dict[str, object]]:
    """26 rows of uneven length, so that a step in other pieces would show."""
    return [
        {
            "messages": [
                {"role": "user", "content": " ".join(["how", "many"] * (1 + number * 5 % 6)) + f" {number}?"},
                {"role": "assistant", "content": " ".join(f"w{number + at}" for at in range(1 + number * 7 % 13))},
            ]
        }
        for number in range(26)
    ]
