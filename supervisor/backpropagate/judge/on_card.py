"""What a policy adds whose work needs a card: its heat, its health, and sensors that fall silent. Pure."""

from __future__ import annotations

from abc import ABC
from dataclasses import replace
from typing import assert_never

from backpropagate.judge import decisions as d
from backpropagate.judge import telling
from backpropagate.judge.child import ChildPolicy
from backpropagate.judge.health import HOT_FOR, Finding, Health, Spill
from backpropagate.judge.states import BLIND_COOLING, COOLING_PATIENCE, WITHOUT_CHILD, State
from backpropagate.judge.thermal import HeatLevel, Thermal
from backpropagate.judge.timers import Timer
from backpropagate.judge.verdict import Cause, Kind
from backpropagate.judge.xids import Deed
from backpropagate_protocol.messages import Phase
from backpropagate_protocol.spec import SafetySpec

CardNews = (
    d.CardLimits | d.Temperature | d.SensorLost | d.CardVitals | d.XidSeen | d.CardGone | d.MemorySpilled
)  # what the sensors tell
_OWN_MEMORY = ("cpu", "mlx", "metal")  # on these no card of NVIDIA's is in use, whatever is in the machine
_NOT_YET = frozenset({Phase.IMPORT, Phase.VALIDATE, Phase.TOKENIZE})  # a child has nothing on the card
_MAY_BE_THE_CARDS = frozenset({Kind.CUDA, Kind.DIED, Kind.HANG, Kind.GPU_BUSY, Kind.INTERNAL})


def is_on_card(device: str) -> bool:
    """Whether a child that works on `device` has to do with the card that the sensors tell of. Empty: it may."""
    return not device.startswith(_OWN_MEMORY)


class OnCard(ChildPolicy, ABC):
    """A judgement on work that a card does. `device`: what the newest child works on, as far as it is known."""

    device: str

    def __init__(self, run_id: str, safety: SafetySpec, *, attempts: int = 0) -> None:
        self._thermal = Thermal(safety)
        self._health = Health()
        self._blind = False
        self._silent = False  # the driver did not answer
        self._now = 0.0
        self._user = 0  # the newest child that got as far as using the card
        super().__init__(run_id, safety, attempts=attempts)

    def _forget_attempt(self) -> None:
        super()._forget_attempt()
        self._spill = Spill()

    def _enter(self, now: float, phase: Phase) -> None:
        super()._enter(now, phase)
        if phase not in _NOT_YET:
            self._user = self.attempt

    def handle(self, input: d.Input) -> list[d.Action]:
        self._now = input.now
        return super().handle(input)

    def _card_said(self, now: float, news: CardNews) -> None:
        if not is_on_card(self.device):
            return
        match news:
            case d.CardLimits():
                self._thermal.limits(news.slowdown, news.shutdown)
            case d.Temperature():
                self._temperature(now, news)
            case d.SensorLost():
                self._sensor_lost(now, news)
            case d.CardVitals():
                self._vitals(now, news)
            case d.XidSeen():
                self._found(now, self._health.xid(now, news.code, self._user))
            case d.CardGone():
                self._end_of_card(now, f"the GPU is gone: {news.text}", "", 0)
            case d.MemorySpilled():
                self._spilled(now, news)
            case _:
                assert_never(news)

    def _pause(self, now: float, cause: Cause, reason: str, to_save: float | None) -> None:
        """Ends the child politely for a cause of ours; `_exited` then judges the cause."""
        self._blame(cause)
        self._ask(now, reason, to_save)

    # --- heat -------------------------------------------------------------------------------------------------------

    def _temperature(self, now: float, read: d.Temperature) -> None:
        self._blind = self._silent = False
        level = self._thermal.read(read.celsius, read.to_slowdown, read.to_shutdown)
        if self.state is State.COOLING and self._is_cool(now):
            self._emit(self._tell.heat(HeatLevel.COOL, read.celsius))
            self._spawn(now)
            return
        if level is not None:
            self._heat(now, level, f"the GPU reached {read.celsius} °C")

    def _heat(self, now: float, level: HeatLevel, text: str) -> None:
        if self.state not in (State.READYING, State.WORKING, State.STOPPING):
            return
        if self.state is State.STOPPING and level is HeatLevel.PAUSE:
            return
        self._emit(self._tell.heat(level, self._thermal.celsius))
        cause = self._own_cause(Kind.OVERHEAT, "RUNTIME_GPU_TEMPERATURE_CRITICAL", text)
        if level is HeatLevel.KILL:
            self._fault(now, cause)
        elif level is HeatLevel.PAUSE:
            self._pause(now, cause, "heat", self._time_to_save)

    def _sensor_lost(self, now: float, lost: d.SensorLost) -> None:
        self._silent = lost.hung
        if not self._blind:
            self._blind = True
            self._emit(self._tell.blind(lost.text))
        if self.state is State.COOLING:
            self._timers.set(Timer.COOL, now + BLIND_COOLING)

    def _cool_down(self, now: float) -> bool:
        """Whether the next child has to wait for the card."""
        if self._is_cool(now):
            return False
        self.state = State.COOLING
        self._timers.set(Timer.COOL, now + (BLIND_COOLING if self._blind else COOLING_PATIENCE))
        return True

    def _is_cool(self, now: float) -> bool:
        """By its temperature, and by its own account: a card that throttles for heat is not."""
        return self._thermal.is_cool(now) and not self._health.is_hot

    def _not_cooling(self, now: float) -> None:
        if self._blind:
            self._spawn(now)
        else:
            self._finish(telling.still_hot(self._thermal.celsius, COOLING_PATIENCE / 60))

    # --- health -----------------------------------------------------------------------------------------------------

    def _vitals(self, now: float, read: d.CardVitals) -> None:
        for finding in self._health.read(now, read.vitals):
            self._found(now, finding)
        if self._health.hot_for(now) >= HOT_FOR and self.state is State.WORKING:
            self._health.rested()
            self._thermal.rest(now)
            text = f"the GPU slowed itself down for heat, for {HOT_FOR:.0f} s without a break"
            self._heat(now, HeatLevel.PAUSE, text)

    def _found(self, now: float, finding: Finding | None) -> None:
        if finding is None:
            return
        self._emit(self._tell.card(finding))
        match finding.deed:
            case Deed.RESET | Deed.REBOOT:
                self._end_of_card(now, finding.text, finding.advice, finding.code if finding.source == "xid" else 0)
            case Deed.SAVE:
                self._save_and_end(now, finding)
            case _:
                pass

    def _save_and_end(self, now: float, finding: Finding) -> None:
        cause = self._lost_cause(finding.text, finding.advice, finding.code)
        if self.state is State.WORKING:
            self._pause(now, cause, "a failing GPU", self._time_to_save)
        elif self.state is State.STOPPING:  # it saves already, for something less grave
            self._blame(cause)
            self._cause = cause
        else:
            self._end_of_card(now, finding.text, finding.advice, finding.code)

    def _lost_cause(self, text: str, advice: str, xid: int) -> Cause:
        return replace(self._own_cause(Kind.GPU_LOST, "RUNTIME_GPU_LOST", text), suggestion=advice, xid=xid)

    def _end_of_card(self, now: float, text: str, advice: str, xid: int) -> None:
        """No child is of use any more, neither this one nor the next."""
        cause = self._lost_cause(text, advice, xid)
        if self.state is State.NEW:
            return
        if self.state in WITHOUT_CHILD:
            self._emit(self._tell.fault(cause))
            self._judge(now, cause)
        elif self.state is State.KILLING:
            self._cause = cause  # graver than what it is being ended for
        else:
            self._fault(now, cause)

    def _explained(self, cause: Cause) -> Cause:
        """With what the card said of itself just before."""
        if cause.kind not in _MAY_BE_THE_CARDS:
            return cause
        if cause.kind is Kind.HANG and self._silent:
            cause = replace(cause, message=f"{cause.message}; the GPU's driver does not answer either")
        blame = self._health.blame(self._now)
        if blame is None or not is_on_card(self.device):
            return cause
        if blame.fatal:
            return replace(
                cause,
                kind=Kind.GPU_LOST,
                code="RUNTIME_GPU_LOST",
                message=f"{blame.text}; {cause.message}",
                suggestion=blame.advice,
                xid=blame.code,
            )
        return replace(cause, message=f"{cause.message}; the driver reported {blame.text}", xid=blame.code)

    def _spilled(self, now: float, read: d.MemorySpilled) -> None:
        if self.state is not State.WORKING or self._phase in _NOT_YET:
            return
        spilled = self._spill.read(read.shared, read.used, read.total)
        if spilled is not None and self._phase is Phase.TRAIN:
            text = f"{spilled:,} MiB of the GPU's memory spilled into the host's, where steps take many times as long"
            self._fault(now, self._own_cause(Kind.OOM, "RUNTIME_GPU_OOM", text))
