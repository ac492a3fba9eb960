"""Temperature to heat level, with hysteresis, and with the card's own limits where it tells them. Pure; Celsius."""

from __future__ import annotations

from enum import StrEnum

from backpropagate_protocol.spec import SafetySpec

_COOLER_BY = 5  # a level is left only this far below its threshold
_BEFORE_SHUTDOWN = 3


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
        self._warned = False

    def limits(self, slowdown: int, shutdown: int) -> None:
        """The card throttles at `slowdown` and switches off at `shutdown`; 0 = it does not say."""
        if slowdown > 0:
            self.pause = min(self.pause, slowdown)
        if shutdown > 0:
            self.kill = min(self.kill, shutdown - _BEFORE_SHUTDOWN)
            self.pause = min(self.pause, self.kill - 1)
        self.warn = min(self.warn, self.pause - 1)

    def read(self, celsius: int) -> HeatLevel | None:
        """The level if this reading calls for something; `cool` and `warning` are said once per crossing."""
        self.celsius = celsius
        if celsius >= self.kill:
            self._warned = True
            return HeatLevel.KILL
        if celsius >= self.pause:
            self._warned = True
            return HeatLevel.PAUSE
        if celsius >= self.warn and not self._warned:
            self._warned = True
            return HeatLevel.WARNING
        if self._warned and self.is_cool:
            self._warned = False
            return HeatLevel.COOL
        return None

    @property
    def is_cool(self) -> bool:
        """Cool enough to go on after a pause."""
        return self.celsius <= self.warn - _COOLER_BY
