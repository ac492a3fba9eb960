"""RunSpec: what is written can be read again, and its digest changes exactly with what must not change in a run."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from backpropagate_protocol.spec import DataSpec, ModelSpec, Portion, RunSpec, spec_digest
from tests.protocol.samples import SPEC


def changed(part: str, /, **fields: Any) -> RunSpec:
    """SPEC with other values in one of its parts."""
    return msgspec.structs.replace(SPEC, **{part: msgspec.structs.replace(getattr(SPEC, part), **fields)})


def test_a_spec_survives_json() -> None:
    assert msgspec.json.decode(msgspec.json.encode(SPEC), type=RunSpec) == SPEC


def test_a_spec_of_an_older_version_gets_the_defaults() -> None:
    bare = {
        "run_id": "r",
        "created": "2026-01-01T00:00:00Z",
        "output": "/o",
        "model": {"name": "m", "path": "/m"},
        "data": {"source": "/d"},
    }
    spec = msgspec.json.decode(msgspec.json.encode(bare), type=RunSpec)
    assert spec.model == ModelSpec(name="m", path="/m")
    assert spec.data == DataSpec(source="/d")
    assert spec.train.effective_batch == 8


def test_a_spec_of_a_newer_version_can_be_read() -> None:
    future = {**msgspec.to_builtins(SPEC), "a_field_of_the_future": 1}
    assert msgspec.json.decode(msgspec.json.encode(future), type=RunSpec) == SPEC


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        SPEC.run_id = "another"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("model", "path", "/another"),
        ("model", "revision", "v2"),
        ("model", "load_in_4bit", True),
        ("data", "source", "/another"),
        ("data", "samples", 5),
        ("data", "max_length", 64),
        ("data", "train_on", "all"),
        ("data", "start", 5),
        ("data", "holdout", 20),
        ("data", "part", "held-out"),
        ("data", "replay", (Portion(source="/d", take=3),)),
        ("lora", "r", 8),
        ("lora", "targets", ("all-linear",)),
        ("train", "effective_batch", 16),
        ("train", "learning_rate", 1e-3),
        ("train", "seed", 7),
        ("train", "steps", 21),
        ("train", "scheduler", "linear"),
    ],
)
def test_what_decides_the_weights_is_in_the_digest(part: str, field: str, value: object) -> None:
    assert spec_digest(changed(part, **{field: value})) != spec_digest(SPEC)


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("train", "batch_size", 1),
        ("train", "gradient_checkpointing", True),
        ("train", "logging_steps", 10),
        ("safety", "save_steps", 1),
        ("safety", "max_halvings", 0),
    ],
)
def test_what_may_change_between_attempts_is_not_in_the_digest(part: str, field: str, value: object) -> None:
    assert spec_digest(changed(part, **{field: value})) == spec_digest(SPEC)


def test_the_digest_is_the_same_for_the_same_wishes_in_another_run() -> None:
    again = msgspec.structs.replace(SPEC, run_id="other", created="later", name=None, output="/elsewhere", faults=())
    assert spec_digest(again) == spec_digest(SPEC)


def test_the_digest_of_a_run_that_chooses_no_rows_is_the_one_of_older_versions() -> None:
    """Their checkpoints can still be resumed."""
    assert spec_digest(SPEC) == "6e7db09af3ed9c0a74c3f5f4df0cc08c97b4feae6b03402fbc9ea644349fa789"
