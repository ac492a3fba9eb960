"""Who else is on the card."""

from __future__ import annotations

from backpropagate.sensors.holders import Holder, in_words, others

OURS, GAME, DESKTOP = Holder(10, "python", 8_000), Holder(20, "game", 6_000), Holder(30, "", 500)


def test_our_child_is_not_among_the_others() -> None:
    assert others((OURS, GAME), child=10) == [GAME]
    assert others((OURS,), child=10) == []


def test_all_are_others_where_no_child_lives_and_nobody_is_where_nobody_computes() -> None:
    assert others((GAME, DESKTOP), child=None) == (GAME, DESKTOP)
    assert others((), child=10) == []


def test_a_child_that_is_not_listed_by_its_number_may_be_any_of_them() -> None:
    assert others((GAME, DESKTOP), child=10) is None


def test_the_largest_are_named() -> None:
    small = [Holder(pid, "small", 1) for pid in (41, 42)]
    assert in_words((DESKTOP, GAME, *small)) == (
        "game (pid 20, 6,000 MiB), a process (pid 30, 500 MiB), small (pid 41, 1 MiB) and 1 more"
    )
