"""What follows from a card's own reports: its error numbers, its recovery action, its clocks and its memory. Pure; seconds.

The strongest word is the driver's recovery action, where it has one; then the error numbers; then figures that only a user
can act on. Each thing is said once, and again only after it had gone away.
"""

from __future__ import annotations

from dataclasses import dataclass

from backpropagate.judge import xids
from backpropagate.judge.vitals import Recovery, Throttle, Vitals, action_in_words
from backpropagate.judge.xids import Deed

HOT_FOR = 60.0  # of hard throttling, until it is treated as a temperature that is too high
EXPLAINS = 60.0  # for so long an error number may be why a process ends
_AGAIN = 60.0  # for so long a thing has to be away to be news again: one error may come as a storm
_SPILLED = 512  # MiB beyond what was there while the card was not full
_FULL = 0.95  # of the card's memory
_RESET = "Reset the GPU (`nvidia-smi --gpu-reset`, as root) or reboot the machine, then `backprop resume RUN`."
_REBOOT = "Reboot the machine, then `backprop resume RUN`."
_LATER = "The run goes on; reset the GPU or reboot when it is done."


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to be told, and what it asks for. `source`: xid, recovery, throttle, memory. `code`: its number, if it has one."""

    source: str
    code: int
    text: str
    deed: Deed
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Blame:
    """Why a process may have ended. `fatal`: with it the card has, too."""

    code: int
    text: str
    fatal: bool
    advice: str = ""


class Health:
    """One card's."""

    def __init__(self) -> None:
        self._said: dict[str, float] = {}
        self._seen: dict[int, tuple[float, int]] = {}  # error numbers: when last, and upon which child
        self._contained = 0
        self._undecided: int | None = None
        self._recovery: int | None = None
        self._errors: int | None = None
        self._hot_since: float | None = None
        self.is_hot = False  # the hardware slows it down for heat at this moment

    def xid(self, now: float, code: int, child: int = 0) -> Finding | None:
        """None: it was told a moment ago. `child`: the newest one that used the card, by its number; no storm outlives one."""
        before, self._seen[code] = self._seen.get(code), (now, child)
        asked = xids.deed(code)
        if before is not None and now - before[0] < _AGAIN and before[1] == child:
            return None
        if asked is Deed.RESTART_ONCE:
            self._contained += 1
            asked = Deed.RESTART if self._contained == 1 else Deed.RESET
        elif asked is Deed.VERDICT:
            self._undecided, asked = code, Deed.NOTE
        return Finding("xid", code, xids.in_words(code), asked, _advice(asked))

    def read(self, now: float, vitals: Vitals) -> list[Finding]:
        """What is new in a reading."""
        found = [*self._recovered(vitals.recovery), *self._throttled(now, vitals.throttle), *self._memory(now, vitals)]
        if self._undecided is not None:
            code, self._undecided = self._undecided, None
            if vitals.recovery is None:
                found.append(Finding("xid", code, xids.in_words(code), Deed.RESET, _RESET))
        return found

    def blame(self, now: float) -> Blame | None:
        """What may have ended a process just now, the gravest first; None if the card said nothing."""
        if self._recovery == Recovery.DRAIN_AND_RESET:
            return Blame(0, f"the driver asks for {action_in_words(self._recovery)}", True, _RESET)
        at_last = ((code, at) for code, (at, _) in self._seen.items() if code not in xids.CONSEQUENCES)
        recent = [code for code, at in at_last if now - at <= EXPLAINS]
        fatal = [code for code in recent if xids.deed(code) in (Deed.LINK, Deed.SAVE, Deed.RESET, Deed.REBOOT)]
        fatal += [code for code in recent if code == self._undecided]
        if fatal:
            asked = xids.deed(fatal[0])
            return Blame(fatal[0], xids.in_words(fatal[0]), True, _REBOOT if asked is Deed.REBOOT else _RESET)
        restart = [code for code in recent if xids.deed(code) in (Deed.RESTART, Deed.RESTART_ONCE)]
        return Blame(restart[0], xids.in_words(restart[0]), False) if restart else None

    def _recovered(self, action: int | None) -> list[Finding]:
        before, self._recovery = self._recovery, action
        if action is None or action == before or action == Recovery.NONE:
            return []
        text = f"the driver asks for {action_in_words(action)}"
        if action in (Recovery.NODE_REBOOT, Recovery.SYSTEM_REBOOT):
            return [Finding("recovery", action, text, Deed.REBOOT, _REBOOT)]
        if action in (Recovery.GPU_RESET, Recovery.BUS_RESET):
            return [Finding("recovery", action, text, Deed.RESET, _RESET)]
        return [Finding("recovery", action, text, Deed.ADVISE, _LATER)]

    def _throttled(self, now: float, reasons: int) -> list[Finding]:
        found: list[Finding] = []
        self.is_hot = bool(reasons & Throttle.HARD_HEAT)
        if not self.is_hot:
            self._hot_since = None
        elif self._hot_since is None:
            self._hot_since = now
        for bit, name, text, advice in (
            (Throttle.HARD_HEAT, "hard", "the GPU slows itself down hard for heat", "Look after the cooling."),
            (
                Throttle.SOFT_HEAT,
                "soft",
                "the GPU slows itself down for heat",
                "Steps take longer; better cooling helps.",
            ),
            (Throttle.POWER_BRAKE, "brake", "the power supply slows the GPU down", "Look after the power supply."),
        ):
            if reasons & bit and self._is_new(name, now):
                found.append(Finding("throttle", int(bit), text, Deed.ADVISE, advice))
        return found

    def hot_for(self, now: float) -> float:
        """Seconds of hard throttling without a break."""
        return 0.0 if self._hot_since is None else now - self._hot_since

    def rested(self) -> None:
        """A pause was made for it: it counts anew."""
        self._hot_since = None

    def _memory(self, now: float, vitals: Vitals) -> list[Finding]:
        found: list[Finding] = []
        if vitals.uncorrected is not None:
            lost = vitals.uncorrected - self._known_errors(vitals.uncorrected)
            if lost > 0:
                text = f"the GPU's memory lost data {'once' if lost == 1 else f'{lost} times'}"
                found.append(Finding("memory", vitals.uncorrected, text, Deed.ADVISE, _LATER))
        if vitals.remap_failed and "remap failed" not in self._said:
            self._said["remap failed"] = now
            found.append(Finding("memory", 0, "broken memory of the GPU cannot be replaced", Deed.ADVISE, _LATER))
        elif vitals.remap_pending and "remap" not in self._said:
            self._said["remap"] = now
            text = "broken memory of the GPU is replaced at its next reset"
            found.append(Finding("memory", 0, text, Deed.ADVISE, _LATER))
        return found

    def _known_errors(self, count: int) -> int:
        """How many there were at the last reading; what was there before the run is nobody's news."""
        before, self._errors = self._errors, count
        return count if before is None else before

    def _is_new(self, name: str, now: float) -> bool:
        """Whether it was not there for a while."""
        last, self._said[name] = self._said.get(name), now
        return last is None or now - last > _AGAIN


class Spill:
    """Whether the host's memory stands in for the card's: no error then, but steps that take many times as long."""

    def __init__(self) -> None:
        # Pinned buffers and the like, which are there with a card half empty, too; None before the first look.
        self._harmless: int | None = None
        self._in_a_row = 0

    def read(self, shared: int, used: int, total: int) -> int | None:
        """MiB that spilled, once it is sure. What is there at the first look is no spill, however full the card is."""
        if self._harmless is None or total <= 0 or used < _FULL * total:
            self._harmless, self._in_a_row = max(self._harmless or 0, shared), 0
            return None
        spilled = shared - self._harmless
        self._in_a_row = self._in_a_row + 1 if spilled >= _SPILLED else 0
        return spilled if self._in_a_row >= 2 else None


def _advice(asked: Deed) -> str:
    match asked:
        case Deed.RESET | Deed.SAVE:
            return _RESET
        case Deed.REBOOT:
            return _REBOOT
        case Deed.ADVISE:
            return _LATER
        case _:
            return ""
