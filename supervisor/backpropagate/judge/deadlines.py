"""How long a child may be silent in each phase, and what its own steps have taught us about that. Pure; seconds."""

from __future__ import annotations

from collections import deque
from typing import assert_never

from backpropagate_protocol.messages import Phase
from backpropagate_protocol.spec import SafetySpec

HELLO = 120.0  # an interpreter starts, nothing else
IMPORT = 900.0  # frameworks from a cold or slow disk
DATA = 900.0  # between two reports of progress while rows are read
CHECKPOINT = 900.0  # until it is known what a save takes here
FINISH = 1800.0
STAGE = 900.0  # of an export, between two signs of progress
TEARDOWN = 15.0  # after Done: the result stands, the process need not

_WINDOW = 256  # step times remembered
_RELEARN = 32  # after how many new ones the percentile is taken again


class StepTimes:
    """The 99th percentile of the newest step times, cheap enough to be asked at every step."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=_WINDOW)
        self._p99 = 0.0
        self._new = 0
        self.known = False  # whether p99 says anything yet
        self._slowest_save: float | None = None

    def saved(self, seconds: float) -> None:
        """What a save took."""
        self._slowest_save = max(seconds, self._slowest_save or 0.0)

    def save_limit(self, floor: float) -> float:
        """Far above what saves take here: others may write to the same disk, and a save that is killed has to be done anew."""
        return CHECKPOINT if self._slowest_save is None else min(CHECKPOINT, max(4 * floor, 20 * self._slowest_save))

    def first(self, seconds: float) -> None:
        """An attempt's first step compiles, allocates and warms up: a bound, of use while nothing better is known."""
        if not self._times:
            self._p99, self.known = seconds, True

    def add(self, seconds: float) -> None:
        if not self._times:
            self._p99, self.known = 0.0, True  # what a first step was taken for is forgotten
        self._times.append(seconds)
        self._new += 1
        if self._new >= _RELEARN:
            ordered = sorted(self._times)
            self._p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
            self._new = 0
        elif seconds > self._p99:
            self._p99 = seconds

    @property
    def p99(self) -> float:
        return self._p99


def limit(phase: Phase, safety: SafetySpec, steps: StepTimes) -> float:
    """Seconds from the start of the phase, or from its last sign of progress, until the child counts as hung."""
    match phase:
        case Phase.IMPORT:
            return IMPORT
        case Phase.VALIDATE | Phase.TOKENIZE:
            return DATA
        case Phase.LOAD | Phase.GENERATE | Phase.REFERENCE | Phase.PREFLIGHT | Phase.FETCH:
            return safety.load_deadline  # a download may be in it
        case Phase.EVALUATE:
            # Amid a training the model is there, and every few rows are a sign of progress; the first few may compile.
            return safety.first_step_deadline if steps.known else safety.load_deadline
        case Phase.MERGE | Phase.CONVERT | Phase.QUANTIZE | Phase.PROVE | Phase.REGISTER | Phase.PLACE | Phase.PUSH:
            return min(STAGE, safety.load_deadline)
        case Phase.COMBINE | Phase.PLOT:
            return min(STAGE, safety.load_deadline)
        case Phase.FIRST_STEP:
            return safety.first_step_deadline
        case Phase.TRAIN:
            # Before any step's time is known: the slowest step of all is the first.
            return max(5 * steps.p99, safety.hang_floor) if steps.known else safety.first_step_deadline
        case Phase.CHECKPOINT:
            return steps.save_limit(safety.hang_floor)
        case Phase.FINISH:
            return FINISH
        case Phase.TEARDOWN:
            return TEARDOWN
        case _:
            assert_never(phase)
