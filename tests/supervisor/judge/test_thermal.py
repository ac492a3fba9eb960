"""Temperatures to levels: the stricter of ours and the card's own limits, and no flapping at a threshold."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backpropagate.judge.thermal import REST, HeatLevel, Thermal
from backpropagate_protocol.spec import SafetySpec


def levels(thermal: Thermal, *celsius: int) -> list[HeatLevel | None]:
    return [thermal.read(degrees) for degrees in celsius]


def test_a_level_is_left_only_well_below_where_it_was_entered() -> None:
    cool, warning = HeatLevel.COOL, HeatLevel.WARNING
    assert levels(Thermal(SafetySpec()), 79, 80, 79, 80, 76, 75, 80) == [None, warning, None, None, None, cool, warning]


def test_the_cards_limits_lower_ours_and_never_raise_them() -> None:
    low, high = Thermal(SafetySpec()), Thermal(SafetySpec())
    low.limits(85, 90)
    high.limits(100, 110)
    assert (low.warn, low.pause, low.kill) == (80, 85, 87)
    assert (high.warn, high.pause, high.kill) == (80, 90, 95)


def test_a_card_that_counts_down_is_believed_where_it_is_stricter() -> None:
    thermal = Thermal(SafetySpec())
    assert thermal.read(60, 20, 23) is None
    assert thermal.read(70, 3, 6) is HeatLevel.WARNING
    assert thermal.read(70, 0, 5) is HeatLevel.PAUSE
    assert not thermal.is_cool(0.0)
    assert thermal.read(70, 0, 3) is HeatLevel.KILL
    assert thermal.read(70, 8, 11) is None
    assert thermal.read(70, 9, 12) is HeatLevel.COOL
    assert thermal.is_cool(0.0)
    assert thermal.read(90, 9, 12) is HeatLevel.PAUSE


def test_a_sensor_that_says_what_cannot_be_is_not_believed() -> None:
    thermal = Thermal(SafetySpec())
    assert levels(thermal, 60, 255, 0, -1) == [None, None, None, None]
    assert thermal.celsius == 60


def test_a_rest_lasts_however_cool_it_is() -> None:
    thermal = Thermal(SafetySpec())
    thermal.read(50)
    thermal.rest(100.0)
    assert not thermal.is_cool(100.0 + REST - 1)
    assert thermal.is_cool(100.0 + REST)


@given(st.lists(st.integers(1, 75)), st.integers(0, 120), st.integers(0, 120))
def test_no_series_below_the_thresholds_ever_pauses(series: list[int], slowdown: int, shutdown: int) -> None:
    thermal = Thermal(SafetySpec())
    thermal.limits(slowdown, shutdown)
    below = [degrees for degrees in series if degrees < thermal.warn]
    assert levels(thermal, *below) == [None] * len(below)
