"""The micro-batch divides the effective batch and never goes below what the method can be trained with."""

from __future__ import annotations

import msgspec
import pytest

from backpropagate.judge.halving import halved, largest_divisor, least_batch
from backpropagate.judge.start import first_micro_batch
from backpropagate.judge.verdict import Again, Cause, GiveUp, Kind, Rules, Standing, judge
from tests.supervisor.transcript import spec

KTO = least_batch("kto")


def test_kto_alone_needs_two_rows() -> None:
    assert {method: least_batch(method) for method in ("sft", "orpo", "simpo", "dpo", "kto")} == {
        "sft": 1, "orpo": 1, "simpo": 1, "dpo": 1, "kto": 2,
    }  # fmt: skip


@pytest.mark.parametrize(("micro", "effective", "least", "smaller"), [
    (8, 8, 1, 4), (2, 8, 1, 1), (1, 8, 1, None), (9, 9, 1, 3), (7, 7, 1, 1),
    (8, 8, 2, 4), (4, 8, 2, 2), (2, 8, 2, None), (3, 9, 2, None), (7, 7, 2, None),
    (3, 6, 2, 2), (5, 15, 2, 3), (2, 6, 2, None),
])  # fmt: skip
def test_half_is_the_largest_divisor_that_is_at_most_half_and_not_below_the_floor(
    micro: int, effective: int, least: int, smaller: int | None
) -> None:
    assert halved(micro, effective, least) == smaller


@pytest.mark.parametrize(("effective", "at_most", "size"), [(8, 1, 2), (9, 1, 3), (7, 6, 7), (8, 5, 4), (2, 8, 2)])
def test_a_card_that_is_small_begins_at_the_floor(effective: int, at_most: int, size: int) -> None:
    assert largest_divisor(effective, at_most, 2) == size


def test_the_first_micro_batch_of_a_kto_run_is_two_on_a_card_that_would_begin_with_one() -> None:
    plain = spec(8)
    kto = msgspec.structs.replace(plain, train=msgspec.structs.replace(plain.train, method="kto"))
    assert (first_micro_batch(plain, card_memory=8_192), first_micro_batch(kto, card_memory=8_192)) == (1, 2)


def test_out_of_memory_at_the_floor_turns_gradient_checkpointing_on_and_then_gives_up() -> None:
    cause = Cause(Kind.OOM, "RUNTIME_GPU_OOM", "no memory")
    rules = Rules(oom_recovery=True, max_halvings=3, max_respawns=3, least_batch=KTO)
    at = Standing(micro=2, effective=8, halvings=1, respawns=0, checkpointing_can_help=True)
    assert judge(cause, at, rules) == Again(2, counts=False, gradient_checkpointing=True)
    last = Standing(micro=2, effective=8, halvings=1, respawns=0, checkpointing_can_help=False)
    assert isinstance(judge(cause, last, rules), GiveUp)
