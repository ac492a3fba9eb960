"""The first micro-batch: asked for, remembered, or guessed from the card; always a divisor of the effective batch."""

from __future__ import annotations

import msgspec
import pytest

from backpropagate.judge.plan import first_micro_batch
from backpropagate_protocol.spec import RunSpec
from tests.supervisor.transcript import spec


def asking(batch_size: int | None, effective: int = 8) -> RunSpec:
    plain = spec(effective)
    return msgspec.structs.replace(plain, train=msgspec.structs.replace(plain.train, batch_size=batch_size))


@pytest.mark.parametrize(("memory", "micro"), [(None, 8), (81_559, 4), (24_564, 4), (16_380, 2), (8_192, 1)])
def test_without_a_wish_the_cards_memory_decides(memory: int | None, micro: int) -> None:
    assert first_micro_batch(asking(None), card_memory=memory) == micro


def test_what_fitted_before_is_better_than_a_guess_and_a_wish_is_better_than_both() -> None:
    assert first_micro_batch(asking(None), fitted=2, card_memory=81_559) == 2
    assert first_micro_batch(asking(4), fitted=2, card_memory=8_192) == 4


@pytest.mark.parametrize(("wish", "effective", "micro"), [(5, 12, 4), (100, 8, 8), (3, 8, 2), (7, 7, 7), (6, 7, 1)])
def test_it_divides_the_effective_batch(wish: int, effective: int, micro: int) -> None:
    assert first_micro_batch(asking(wish, effective)) == micro
