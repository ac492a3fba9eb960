"""The driver's own error numbers (Xid), and what each asks for: NVIDIA's catalogue by its column of immediate actions. Pure.

The catalogue is made for data-centre cards from Ampere on; consumer cards report the same numbers. A number that is not in
it, or that has no action there, is told and nothing is done: the driver's recovery action and the fate of the process say more.
"""

from __future__ import annotations

from enum import Enum


class Deed(Enum):
    """What follows for a run."""

    NOTE = "note"  # nothing
    ADVISE = "advise"  # nothing; the user should see to it when there is time
    RESTART = "restart"  # the process it struck is lost, the card is well
    RESTART_ONCE = "restart once"  # and when it comes again, the card is not
    LINK = "link"  # of no concern to one card, unless the process dies of it
    VERDICT = "verdict"  # the driver's recovery action decides; without one: RESET
    SAVE = "save"  # save, then RESET
    RESET = "reset"  # nothing runs on the card before it is reset
    REBOOT = "reboot"


_DEEDS = {
    Deed.RESTART: (
        8, 11, 13, 25, 31, 32, 39, 40, 41, 60, 68, 69, 70, 71, 72, 75, 76, 77, 80, 82, 83, 84, 85, 86, 88, 89,
        *range(96, 106), *range(126, 136), 139,
    ),
    Deed.RESTART_ONCE: (94,),
    Deed.ADVISE: (54, 63, 78, 92, 93, 142, 157, 159, 161),
    Deed.LINK: (74, *range(144, 151)),
    Deed.VERDICT: (48,),
    Deed.SAVE: (64,),
    Deed.RESET: (46, 62, 95, 109, 110, 119, 120, 136, 140, 143, 155, 156, 158),
    Deed.REBOOT: (79, 151),
}  # fmt: skip
_DEED = {code: deed for deed, codes in _DEEDS.items() for code in codes}

_TEXTS = {
    8: "the GPU stopped processing", 13: "an illegal access or instruction in a kernel", 31: "an illegal address was accessed",
    43: "the GPU stopped the process after an error of its own", 45: "a process was cleaned up", 46: "the GPU timed out",
    48: "memory lost data", 54: "a power plug is not connected", 62: "a controller on the GPU halted",
    63: "broken memory was marked to be replaced at the next reset", 64: "broken memory could not be replaced",
    74: "a link between GPUs failed", 79: "the GPU has fallen off the bus", 92: "many memory errors were corrected",
    94: "memory lost data of one process", 95: "memory lost data of any process", 109: "the GPU could not switch between processes",
    110: "a security fault", 119: "the GPU's own processor does not answer", 120: "the GPU's own processor failed",
    140: "memory lost data", 143: "the GPU could not be initialised", 151: "a key could not be renewed",
    154: "the driver changed what has to be done with the GPU", 158: "the GPU timed out for good",
}  # fmt: skip

# The driver itself may be stuck from then on: it is asked nothing more.
FINAL = frozenset({79})
# They follow from the end of a process, however it ended, and explain none.
CONSEQUENCES = frozenset({43, 45})


def deed(code: int) -> Deed:
    return _DEED.get(code, Deed.NOTE)


def in_words(code: int) -> str:
    """`Xid 79, the GPU has fallen off the bus`."""
    text = _TEXTS.get(code)
    return f"Xid {code}, {text}" if text else f"Xid {code}"
