"""What those who watch a run want to see, made from its events: pure, without a screen or a clock.

Times are those of the events (seconds since 1970); memory is MiB.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from backpropagate import events
from backpropagate.events import Event
from backpropagate.judge.held_out import Scores
from backpropagate.watch.campaigns import where
from backpropagate.watch.stages import StageView

_WINDOW = 64  # steps that speed and ETA are judged by
BARS = "▁▂▃▄▅▆▇█"
_NEARLY = 1.1  # times: two ends so close are one
_LOSSES = 512  # points kept for the sparkline


@dataclass(slots=True)
class RunView:
    """The state of one run as far as its events have told. Feed every event to `see`, in order."""

    run_id: str = ""  # of the first event: a campaign's, when its runs are told of, too
    phase: str = "starting"
    phase_done: int = 0
    phase_total: int = 0
    attempt: int = 0
    device: str = ""
    device_memory: int = 0
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    learning_rate: float | None = None
    memory_used: int = 0
    celsius: int = 0
    micro_batch: int = 0
    accumulation: int = 0
    scores: Scores = field(default_factory=Scores)  # of the held-out rows
    measures: Mapping[str, float] = field(default_factory=dict)  # of the last step, beside its loss
    checkpoint_step: int | None = None
    checkpoint_time: float = 0.0
    now: float = 0.0
    recoveries: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    link: str = ""  # `run 2 of 5 (week-02)`; empty: no campaign
    stage: StageView = field(default_factory=StageView)  # beside the training
    proof: events.ExportProved | None = None
    ended: events.RunEnded | None = None
    _losses: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=_LOSSES))
    _steps: deque[tuple[float, int, int]] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    _fault: str = ""
    _checkpointing: bool = False  # of gradients, as the last attempt had it

    def see(self, event: Event) -> None:
        self.run_id, self.now = self.run_id or event.run_id, event.time
        self.stage.see(event)
        self.scores.see(event)
        match event:
            case events.Step():
                self._step(event)
            case events.PhaseEntered():
                self.phase, self.phase_done, self.phase_total = event.phase, event.done, event.total
            case events.AttemptStarted():
                if event.gradient_checkpointing and not self._checkpointing and self.recoveries:
                    self.recoveries[-1] += ", with gradient checkpointing"
                self._checkpointing = event.gradient_checkpointing is True
                self.attempt, self.phase = event.attempt, "starting"
                self.micro_batch, self.accumulation = event.micro_batch, event.accumulation
                self._steps.clear()
            case events.ModelReady():
                self.device, self.device_memory = event.device, event.device_memory
                self.step, self.total_steps = event.step, event.total_steps
                self.micro_batch, self.accumulation = event.micro_batch, event.accumulation
            case events.BatchHalved():
                self.micro_batch, self.accumulation = event.micro_batch, event.accumulation
                self.recoveries.append(in_place(event))
            case events.MemoryAwaited():
                self.phase = "waiting for memory"
            case events.CheckpointCommitted():
                self.checkpoint_step, self.checkpoint_time = event.step, event.time
            case events.FaultSeen():
                self._fault = f"{event.code} {f'in {event.stage}' if event.stage else f'at step {event.step}'}"
            case events.Recovering():
                self.recoveries.append(_recovery(event, self._fault))
            case events.Heat():
                self.celsius = event.celsius
                self.notices.append(heat_in_words(event))
            case events.CardTrouble():
                self.notices.append(trouble_in_words(event))
            case events.Noticed():
                self.notices.append(event.text)
            case events.LinkStarted():
                self._begin(event)
            case events.LinkEnded():
                self.phase = "starting"
            case events.ExportProved():
                self.proof = event
            case events.RunEnded():
                self.ended = event
            case _:
                pass

    def _begin(self, event: events.LinkStarted) -> None:
        """A run of a campaign: what is shown of a training begins anew. That its loss is higher at first is expected."""
        self.link = where(event)
        self.phase, self.step, self.total_steps, self.loss, self.checkpoint_step = "starting", 0, 0, None, None
        self._losses.clear()
        self._steps.clear()
        self.scores = Scores()

    def _step(self, event: events.Step) -> None:
        self.phase = "train"
        self.step, self.total_steps = event.step, event.total_steps
        self.learning_rate, self.measures = event.learning_rate, event.extra
        self.memory_used = event.memory_used or self.memory_used
        self.celsius = event.celsius or self.celsius
        if event.loss is not None and math.isfinite(event.loss):
            self.loss = event.loss
            while self._losses and self._losses[-1][0] >= event.step:
                self._losses.pop()  # these steps are being done again after a fault
            self._losses.append((event.step, event.loss))
        self._steps.append((event.time, event.step, event.tokens))

    # Not every step is seen (progress is coalesced and thinned), so speed is judged by the time between those that are.

    @property
    def tokens_per_second(self) -> float | None:
        """Over the last steps of this attempt; None while it cannot be known."""
        steps = list(self._steps)
        if len(steps) < 2:
            return None
        seconds, tokens = steps[-1][0] - steps[0][0], steps[-1][2] - steps[0][2]
        return tokens / seconds if seconds > 0 and tokens > 0 else None

    @property
    def remaining(self) -> tuple[float, float] | None:
        """Seconds to the last step, from the quick and from the slow quarter of the last steps; None before 4 steps."""
        steps = list(self._steps)
        pace = sorted((b[0] - a[0]) / (b[1] - a[1]) for a, b in pairwise(steps) if b[1] > a[1])
        if len(pace) < 3 or self.total_steps <= 0:
            return None
        left = max(0, self.total_steps - self.step)
        return left * max(0.0, pace[len(pace) // 4]), left * max(0.0, pace[-1 - len(pace) // 4])

    @property
    def losses(self) -> list[float]:
        return [loss for _, loss in list(self._losses)]  # copied first: another thread may be drawing


def in_place(event: events.BatchHalved) -> str:
    where = f"at step {event.step}" if event.step else "before the first step"
    return f"RUNTIME_GPU_OOM {where} → went on there, batch {event.micro_batch} × {event.accumulation}"


def _recovery(event: events.Recovering, fault: str) -> str:
    if event.stage:
        return f"{fault or event.reason} → did {event.stage} once more"
    where = f"from step {event.resume_step}" if event.checkpoint else "from the start"
    return f"{fault or event.reason} → went on {where}, batch {event.micro_batch} × {event.accumulation}"


def heat_in_words(event: events.Heat) -> str:
    words = {
        "warning": "the GPU is at {} °C",
        "pause": "the GPU is at {} °C: saving, then waiting until it is cool",
        "kill": "the GPU is at {} °C: stopped at once",
        "cool": "the GPU is cool again: {} °C",
    }
    return words.get(event.level, event.level + ": {} °C").format(event.celsius)


def trouble_in_words(event: events.CardTrouble) -> str:
    text = f"the GPU's driver reported {event.text}" if event.source == "xid" else event.text
    return f"{text}. {event.advice}" if event.advice else text


def sparkline(values: Sequence[float], width: int = 24, bars: str = BARS) -> str:
    """`values` in at most `width` characters, each the mean of its share, from the lowest bar to the highest."""
    if not values or width < 1:
        return ""
    width = min(width, len(values))
    means = [_mean(values[i * len(values) // width : (i + 1) * len(values) // width]) for i in range(width)]
    low, high = min(means), max(means)
    if high == low:
        return bars[0] * width
    return "".join(bars[round((mean - low) / (high - low) * (len(bars) - 1))] for mean in means)


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)


def duration(seconds: float) -> str:
    """`45 s`, `3 min`, `2 h 05 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes = round(whole / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def span(low: float, high: float) -> str:
    """A range of durations: `3–5 min`, or one value where both ends read the same or nearly so."""
    first, last = duration(low), duration(high)
    if first == last or 0 < low <= high < _NEARLY * low:
        return last
    first_number, _, first_unit = first.partition(" ")
    last_number, _, last_unit = last.partition(" ")
    return f"{first_number}–{last_number} {last_unit}" if first_unit == last_unit else f"{first} – {last}"


def learning_rate(view: RunView) -> str:
    """`lr 1.5e-04`, or nothing where it is not known."""
    return "" if view.learning_rate is None else f"lr {view.learning_rate:.1e}"


def held_out(view: RunView) -> str:
    """`held-out 1.2345, best at step 40`, or nothing before the first score."""
    if not view.scores.points:
        return ""
    step, loss = view.scores.points[-1]
    best = view.scores.best
    return f"held-out {loss:.4f}" + (f", best at step {best[0]}" if best is not None and best[0] != step else "")


def measured(view: RunView) -> str:
    """`accuracy 75 %, margin +0.312`: of a preference method's last step, or nothing."""
    accuracy, margin = view.measures.get("accuracy"), view.measures.get("margin")
    said = [] if accuracy is None else [f"accuracy {100 * accuracy:.0f} %"]
    return ", ".join([*said, *([] if margin is None else [f"margin {margin:+.3f}"])])


def memory(view: RunView) -> str:
    """`5.1/15.9 GB`, or nothing where no device memory is known."""
    if not view.memory_used:
        return ""
    used = f"{view.memory_used / 1024:.1f}"
    return f"{used}/{view.device_memory / 1024:.1f} GB" if view.device_memory else f"{used} GB"
