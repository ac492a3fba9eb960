"""What a card says of its health besides its temperature: the figures, and their names for people. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag


class Throttle(IntFlag):
    """Why the clocks are below what was asked for, as NVML's bits have it; only those that say something of health."""

    POWER_CAP = 0x4  # every card under load
    SLOWDOWN = 0x8  # by hardware, for any reason
    SOFT_HEAT = 0x20  # the driver keeps the card below its limit
    HARD_HEAT = 0x40  # the hardware halves the clocks, or worse, to survive
    POWER_BRAKE = 0x80  # the power supply asks for it


class Recovery(IntEnum):
    """What the driver says has to be done with the card, from version 570 on."""

    NONE = 0
    GPU_RESET = 1
    NODE_REBOOT = 2
    DRAIN_P2P = 3  # concerns several cards alone
    DRAIN_AND_RESET = 4  # what runs may end; nothing new is to begin
    RECOVER_IMEX_DOMAIN = 5  # the same as DRAIN_P2P
    BUS_RESET = 6
    SYSTEM_REBOOT = 7


@dataclass(frozen=True, slots=True)
class Vitals:
    """One reading. None: the card or its driver does not say. Counts are since the driver was loaded; memory is MiB."""

    throttle: int = 0
    recovery: int | None = None
    uncorrected: int | None = None  # memory errors that lost data
    corrected: int | None = None
    remap_pending: bool = False  # memory is to be replaced by spare one at the next reset
    remap_failed: bool = False  # there is no spare one any more
    shared: int | None = None  # of the host's memory, that the processes on the card use as if it were the card's


def throttled_by(reasons: int) -> tuple[str, ...]:
    """In words, without what is usual under load."""
    words = {
        Throttle.HARD_HEAT: "slowed down hard by heat",
        Throttle.SOFT_HEAT: "slowed down by heat",
        Throttle.POWER_BRAKE: "slowed down by the power supply",
    }
    return tuple(text for bit, text in words.items() if reasons & bit)


def action_in_words(recovery: int | None) -> str:
    """What the driver asks for; empty if nothing."""
    if recovery is None or recovery == Recovery.NONE:
        return ""
    words = {
        Recovery.GPU_RESET: "a reset of the GPU",
        Recovery.BUS_RESET: "a reset of the GPU",
        Recovery.DRAIN_AND_RESET: "a reset of the GPU once nothing runs on it",
        Recovery.NODE_REBOOT: "a reboot",
        Recovery.SYSTEM_REBOOT: "a reboot",
        Recovery.DRAIN_P2P: "an end of traffic between GPUs",
        Recovery.RECOVER_IMEX_DOMAIN: "a recovery of the links between machines",
    }
    known = {int(action): text for action, text in words.items()}
    return known.get(recovery, f"something unknown (action {recovery})")
