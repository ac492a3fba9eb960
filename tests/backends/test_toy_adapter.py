"""The toy's adapter is a LoRA that other programs read, and keeps every bit of what it is given."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import pytest

from backpropagate_backends import toy_adapter
from backpropagate_backends.base import ADAPTER_WEIGHTS
from backpropagate_protocol.errors import UserInputError
from backpropagate_protocol.spec import LoraSpec
from backpropagate_runner.export.adapter import as_float, open_adapter

LORA = LoraSpec(r=3, alpha=6)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    factors = toy_adapter.fresh(LORA, 7).trained([0.5, -0.25, 2.0], [1.0, 0.125, -0.5])
    toy_adapter.save(tmp_path, factors, toy_adapter.config(LORA, "toy"))
    return tmp_path


def test_a_fresh_one_is_zero_and_hangs_on_its_seed_alone() -> None:
    one, same, other = (toy_adapter.fresh(LORA, seed) for seed in (1, 1, 2))
    assert one == same
    assert one.a != other.a
    assert one.number == 0.0
    assert math.hypot(*one.column) == pytest.approx(1.0)


def test_the_number_is_the_corner_of_the_product(saved: Path) -> None:
    assert toy_adapter.load(saved).number == 0.5 * 1.0 - 0.25 * 0.125 - 2.0 * 0.5


def test_it_is_read_as_any_adapter_is(saved: Path) -> None:
    [module] = open_adapter(str(saved)).modules()
    assert (module.A.shape, module.B.shape, module.scale) == ((3, 6), (4, 3), 2.0)
    assert (as_float(module.B) @ as_float(module.A))[0, 0] == toy_adapter.load(saved).number


def test_what_is_read_is_what_was_written(saved: Path) -> None:
    begun = toy_adapter.begin_from(saved, LORA, "toy")
    assert begun == toy_adapter.load(saved)
    assert begun.column == [0.5, -0.25, 2.0]
    assert toy_adapter.from_bytes(begun.to_bytes(), LORA) == begun


def test_weights_that_are_not_finite_are_not_begun_from(saved: Path) -> None:
    weights = (saved / ADAPTER_WEIGHTS).read_bytes()
    (saved / ADAPTER_WEIGHTS).write_bytes(weights[:-4] + struct.pack("<f", math.nan))
    with pytest.raises(UserInputError, match="not finite"):
        toy_adapter.begin_from(saved, LORA, "toy")


@pytest.mark.parametrize("content", [b"", b"\0" * 8, struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 99) + b"{}"])
def test_a_file_that_is_none_is_refused(saved: Path, content: bytes) -> None:
    (saved / ADAPTER_WEIGHTS).write_bytes(content)
    with pytest.raises(UserInputError) as caught:
        toy_adapter.load(saved)
    assert caught.value.code == "INPUT_ADAPTER_MISMATCH"


def test_a_torn_file_is_refused(saved: Path) -> None:
    (saved / ADAPTER_WEIGHTS).write_bytes((saved / ADAPTER_WEIGHTS).read_bytes()[:-5])
    with pytest.raises(UserInputError, match="cannot be read"):
        toy_adapter.load(saved)
