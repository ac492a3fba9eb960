"""What a row says of a run's wishes: what decides its result is there, what belongs to other methods is not."""

from __future__ import annotations

import msgspec
import pytest

from backpropagate.events import ModelReady
from backpropagate.keep.hyperparameters import as_it_came_to, hyperparameters
from backpropagate_protocol.spec import DataSpec, ModelSpec, TrainSpec
from tests.supervisor.transcript import spec as scenario_spec

# Said in columns of their own, or of a campaign's runs only.
_ELSEWHERE = {"name", "path", "trust_remote_code", "source", "start", "part", "replay", "method"}


def of(train: TrainSpec | None = None, data: DataSpec | None = None) -> dict[str, object]:
    spec = scenario_spec()
    return hyperparameters(msgspec.structs.replace(spec, train=train or spec.train, data=data or spec.data))


def test_every_wish_about_model_and_data_is_told() -> None:
    told = of(data=DataSpec(source="me/rows", reasoning_trace=True))
    wishes = {field.name for part in (ModelSpec, DataSpec) for field in msgspec.structs.fields(part)}
    assert wishes - _ELSEWHERE <= set(told)


@pytest.mark.parametrize(
    ("train", "there", "not_there"),
    [
        (TrainSpec(), {"lora_r"}, {"beta", "gamma", "desirable_weight", "ceiling", "keep_best", "logging_steps"}),
        (TrainSpec(method="dpo", beta=0.1), {"beta"}, {"gamma", "desirable_weight"}),
        (TrainSpec(method="simpo", beta=2.0, gamma=1.0), {"beta", "gamma"}, {"undesirable_weight"}),
        (TrainSpec(method="kto", beta=0.1), {"beta", "desirable_weight", "undesirable_weight"}, {"gamma"}),
        (TrainSpec(mode="full"), {"ceiling"}, {"lora_r", "lora_targets"}),
    ],
)
def test_what_belongs_to_another_method_or_mode_is_not(train: TrainSpec, there: set[str], not_there: set[str]) -> None:
    told = set(of(train))
    assert there <= told
    assert not not_there & told


def test_what_goes_with_held_out_rows_is_told_where_there_are_any() -> None:
    assert {"eval_steps", "early_stopping", "keep_best"} <= set(of(data=DataSpec(source="/d.jsonl", holdout=10)))
    assert "split" not in of(data=DataSpec(source="/d.jsonl"))


def test_what_was_left_to_the_backend_is_told_as_it_came_to() -> None:
    ready = ModelReady(time=0.0, run_id="r", attempt=1, backend="cpu", device="cpu", step=0, total_steps=4, micro_batch=1, accumulation=1, trainable_parameters=1, parameters=2, precision="fp32", optimizer="adamw_torch")  # fmt: skip
    told = as_it_came_to({"optim": "auto"}, ready)
    assert told == {"optim": "auto", "precision": "fp32", "optimizer": "adamw_torch"}
