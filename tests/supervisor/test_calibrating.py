"""A few real steps in a real child: on the longest rows, with nothing left behind, and with a smaller batch if they do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from backpropagate.doors.calibrating import calibrated
from backpropagate_protocol.errors import BackpropagateError
from backpropagate_protocol.messages import Hello, ToParent
from backpropagate_protocol.spec import DataSpec, ModelSpec, PlannedFault, RunSpec, TrainSpec


def spec(folder: Path, *faults: PlannedFault) -> RunSpec:
    data = folder / "d.jsonl"
    data.write_text("".join(f'{{"text": "{"word " * (at % 7 + 1)}"}}\n' for at in range(30)))
    return RunSpec(
        run_id="c",
        created="",
        backend="toy",
        output=str(folder / "out"),
        model=ModelSpec(name="toy", path="toy"),
        data=DataSpec(source=str(data), holdout=5),
        train=TrainSpec(effective_batch=4, early_stopping=2, keep_best=True),
        faults=faults,
    )


@pytest.fixture
def heard() -> tuple[list[ToParent], Callable[[ToParent], None]]:
    messages: list[ToParent] = []
    return messages, messages.append


def test_ten_steps_are_made_on_the_longest_rows_and_only_prepared_data_stay(tmp_path: Path) -> None:
    found = calibrated(spec(tmp_path), 2)
    assert (found.steps, found.micro_batch, found.device) == (10, 2, "toy")
    assert found.tokens_per_second > 0
    assert found.mean_tokens < found.longest
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cache"]


def test_a_batch_that_does_not_fit_is_halved_until_none_is_left(
    tmp_path: Path, heard: tuple[list[ToParent], Callable[[ToParent], None]]
) -> None:
    messages, hear = heard
    with pytest.raises(BackpropagateError) as caught:
        calibrated(spec(tmp_path, PlannedFault("oom", 3, attempt=0)), 4, on_message=hear)
    assert caught.value.code == "RUNTIME_GPU_OOM"
    assert sum(isinstance(message, Hello) for message in messages) == 3  # 4, 2, 1
