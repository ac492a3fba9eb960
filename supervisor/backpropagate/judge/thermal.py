"""Temperature to heat level, with hysteresis, and with the card's own limits where it tells them. Pure; Celsius."""

from __future__ import annotations

from enum import StrEnum

from backpropagate_protocol.spec import SafetySpec

_COOLER_BY = 5  # a level is left only this far below its threshold
_BEFORE_SHUTDOWN = 3
_BEFORE_SLOWDOWN = 3
_POSSIBLE = range(1, 150)  # a sensor that says anything else is broken, not hot
REST = 60.0  # seconds, after the hardware throttled for heat at a temperature that was well


class HeatLevel(StrEnum):
    COOL = "cool"
    WARNING = "warning"
    PAUSE = "pause"
    KILL = "kill"


class Thermal:
    """Feed it temperatures; it says when a level is newly reached."""

    def __init__(self, safety: SafetySpec) -> None:
        self.warn, self.pause, self.kill = safety.temperature_warn, safety.temperature_pause, safety.temperature_kill
        self.celsius = 0
        self._to_slowdown: int | None = None
        self._warned = False
        self._rests_until = 0.0

    def limits(self, slowdown: int, shutdown: int) -> None:
        """The card throttles at `slowdown` and switches off at `shutdown`; 0 = it does not say."""
        if slowdown > 0:
            self.pause = min(self.pause, slowdown)
        if shutdown > 0:
            self.kill = min(self.kill, shutdown - _BEFORE_SHUTDOWN)
            self.pause = min(self.pause, self.kill - 1)
        self.warn = min(self.warn, self.pause - 1)

    def read(self, celsius: int, to_slowdown: int | None = None, to_shutdown: int | None = None) -> HeatLevel | None:
        """The level if this reading calls for something; `cool` and `warning` are said once per crossing.

        to_slowdown, to_shutdown: how much warmer the hottest part may get, by the card's own account, which counts where it is
        the stricter one; None: it does not say.
        """
        if celsius not in _POSSIBLE:
            return None
        self.celsius, self._to_slowdown = celsius, to_slowdown
        near_end = to_shutdown is not None and to_shutdown <= _BEFORE_SHUTDOWN
        if celsius >= self.kill or near_end:
            self._warned = True
            return HeatLevel.KILL
        too_hot = to_slowdown is not None and to_slowdown <= 0
        if celsius >= self.pause or too_hot:
            self._warned = True
            return HeatLevel.PAUSE
        if (celsius >= self.warn or self._spare(_BEFORE_SLOWDOWN)) and not self._warned:
            self._warned = True
            return HeatLevel.WARNING
        if self._warned and self._below_all:
            self._warned = False
            return HeatLevel.COOL
        return None

    def _spare(self, degrees: int) -> bool:
        """Whether no more than this is left to the card's own limit."""
        return self._to_slowdown is not None and self._to_slowdown <= degrees

    @property
    def _below_all(self) -> bool:
        return self.celsius <= self.warn - _COOLER_BY and not self._spare(_BEFORE_SLOWDOWN + _COOLER_BY)

    def rest(self, now: float) -> None:
        """It needs a while, whatever its temperature says."""
        self._rests_until = now + REST

    def is_cool(self, now: float) -> bool:
        """Cool enough to go on after a pause."""
        return self._below_all and now >= self._rests_until
