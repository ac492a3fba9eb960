"""When a second runner is kept ready: not for a short run, not where memory is short, and not for ever again."""

from __future__ import annotations

from backpropagate.judge.standby import FIRST_AFTER, LOOK, PATIENCE, REST, ROOM, SHORT, Readiness
from backpropagate_protocol.host_memory import Memory

PLENTY = Memory(65536, 32768)


def test_a_run_of_a_minute_gets_none_and_a_longer_one_does() -> None:
    rules = Readiness("auto", "cuda")
    rules.advanced(100.0)
    assert rules.delay(100.0, PLENTY) == FIRST_AFTER
    assert rules.delay(100.0 + FIRST_AFTER, PLENTY) == 0.0


def test_after_a_fault_the_next_one_is_made_ready_at_once() -> None:
    rules = Readiness("auto", "cuda")
    rules.advanced(0.0)
    rules.failed()
    rules.advanced(100.0)
    assert rules.delay(100.0, PLENTY) == 0.0


def test_who_asks_for_one_waits_for_neither_time_nor_memory() -> None:
    rules = Readiness("on", "toy")
    rules.advanced(0.0)
    assert rules.delay(0.0, Memory(1024, 10)) == 0.0
    assert rules.is_kept(Memory(1024, 10))


def test_it_is_off_by_wish_and_where_there_is_nothing_to_import() -> None:
    for rules in (Readiness("off", "cuda"), Readiness("auto", "toy")):
        rules.advanced(0.0)
        assert rules.delay(1000.0, PLENTY) is None


def test_it_waits_for_room_and_goes_again_before_memory_is_short() -> None:
    rules = Readiness("auto", "cpu")
    assert rules.delay(0.0, Memory(16384, ROOM - 1)) == LOOK
    assert rules.delay(0.0, Memory(131072, ROOM)) == LOOK  # of much memory much must be there
    assert rules.delay(0.0, None) == LOOK
    assert rules.delay(0.0, Memory(16384, ROOM)) == 0.0
    assert rules.is_kept(Memory(16384, SHORT))
    assert not rules.is_kept(Memory(16384, SHORT - 1))
    rules.let_go(10.0)
    assert rules.delay(10.0, PLENTY) == REST


def test_one_that_dies_is_replaced_later_and_later_and_then_no_more() -> None:
    rules, now = Readiness("on", "cuda"), 0.0
    for pause in PATIENCE:
        assert rules.died(now)
        assert rules.delay(now, PLENTY) == pause
        now += pause
        assert rules.delay(now, PLENTY) == 0.0
    assert not rules.died(now)
    assert rules.delay(now + 10_000, PLENTY) is None


def test_a_run_that_ends_wants_no_more() -> None:
    rules = Readiness("on", "cuda")
    rules.end()
    assert rules.delay(0.0, PLENTY) is None
