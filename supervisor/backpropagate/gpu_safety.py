"""Is the GPU well? For programs: one look, or a watch that calls back. NVML is read in a helper process, never here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path

import msgspec

from backpropagate.doors import line_helper, process
from backpropagate.doors.environ import environment
from backpropagate.judge.vitals import Recovery, Throttle, action_in_words, throttled_by
from backpropagate.sensors.gpu import FIRST_SAMPLE_SECONDS, Sample, helper_command
from backpropagate_protocol.errors import GPUMonitoringError


class Condition(StrEnum):
    """How well it is. Below `warning` it may work on; at `critical` a run is paused; at `emergency` it is killed."""

    SAFE = "safe"
    WARNING = "warning"
    CRITICAL = "critical"
    EMERGENCY = "emergency"


_ORDER = tuple(Condition)
_UNUSABLE = (Recovery.GPU_RESET, Recovery.BUS_RESET, Recovery.NODE_REBOOT, Recovery.SYSTEM_REBOOT)


class GPUSafetyConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Thresholds: degrees Celsius, percent of the card's memory, seconds between two looks."""

    temperature_warning: int = 80
    temperature_critical: int = 90
    temperature_emergency: int = 95
    memory_warning: float = 90.0
    memory_critical: float = 95.0
    interval: float = 5.0


class GPUStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One look at one card. Celsius, MiB, watts, percent; 0 where the card does not say."""

    name: str
    uuid: str
    condition: Condition
    temperature: int
    memory_used: int
    memory_total: int
    power: float
    power_limit: float
    utilization: int
    slowdown: int = 0  # it throttles from here
    shutdown: int = 0  # and switches itself off here
    to_slowdown: int | None = None  # degrees that its hottest part has left; None: it does not say
    throttled: tuple[str, ...] = ()  # why its clocks are low, as far as that is no good sign
    recovery: str = ""  # what the driver asks for; empty: nothing, or the driver is older than 570
    uncorrected_errors: int | None = None  # of memory, since the driver was loaded; None: no ECC
    corrected_errors: int | None = None


def assess(sample: Sample, config: GPUSafetyConfig) -> GPUStatus:
    """The worst of what temperature, memory and driver say; within 3 °C of the card's own limit is an emergency.

    So is a recovery action without which nothing should run on the card; hardware that throttles for heat is critical.
    """
    heat = (config.temperature_warning, config.temperature_critical, config.temperature_emergency)
    level = sum(sample.celsius >= threshold for threshold in heat)
    near_end = sample.to_shutdown is not None and sample.to_shutdown <= 3
    if near_end or (sample.shutdown and sample.celsius >= sample.shutdown - 3):
        level = 3
    if sample.vitals.recovery in _UNUSABLE:
        level = 3
    throttles = bool(sample.vitals.throttle & Throttle.HARD_HEAT)
    if throttles or (sample.to_slowdown is not None and sample.to_slowdown <= 0):
        level = max(level, 2)
    if sample.memory_total:
        used = 100.0 * sample.memory_used / sample.memory_total
        level = max(level, sum(used >= threshold for threshold in (config.memory_warning, config.memory_critical)))
    return GPUStatus(
        name=sample.name,
        uuid=sample.uuid,
        condition=_ORDER[level],
        temperature=sample.celsius,
        memory_used=sample.memory_used,
        memory_total=sample.memory_total,
        power=sample.power,
        power_limit=sample.power_limit,
        utilization=sample.utilization,
        slowdown=sample.slowdown,
        shutdown=sample.shutdown,
        to_slowdown=sample.to_slowdown,
        throttled=throttled_by(sample.vitals.throttle),
        recovery=action_in_words(sample.vitals.recovery),
        uncorrected_errors=sample.vitals.uncorrected,
        corrected_errors=sample.vitals.corrected,
    )


def _device(device: str | None) -> str | None:
    """None: CUDA_VISIBLE_DEVICES hides all cards."""
    seen = device or process.visible_device(environment().get("CUDA_VISIBLE_DEVICES"))
    return None if seen in ("", "-1") else seen


def get_gpu_status(
    device: str | None = None, *, config: GPUSafetyConfig | None = None, script: Path | None = None
) -> GPUStatus | None:
    """One look at the card that a run would use (or `device`: an index or a UUID); None if there is none to be seen.

    Takes a moment, and never longer than 15 s, even if the driver hangs. `script`: see gpu_script.py.
    """
    seen = _device(device)
    if seen is None:
        return None
    answer = line_helper.ask(helper_command(seen, 0.0, script, count=1), FIRST_SAMPLE_SECONDS)
    try:
        sample = msgspec.json.decode(answer.split(b"\n")[0], type=Sample)
    except msgspec.DecodeError:
        return None
    return None if sample.error else assess(sample, config or GPUSafetyConfig())


def check_gpu_safe(
    device: str | None = None, *, config: GPUSafetyConfig | None = None, script: Path | None = None
) -> bool:
    """Whether a run may begin: the card is there and in no worse condition than `warning`."""
    status = get_gpu_status(device, config=config, script=script)
    return status is not None and status.condition in (Condition.SAFE, Condition.WARNING)


class GPUMonitor:
    """Watches a card from a thread of its own, and calls back when its condition changes and at every look.

    The callbacks run in that thread, and may call `stop`. Use it as a context manager, or call `start` and `stop`. `error` says
    why there will be no more looks, if it was not `stop`.
    """

    def __init__(
        self,
        config: GPUSafetyConfig | None = None,
        device: str | None = None,
        *,
        on_status: Callable[[GPUStatus], None] | None = None,
        on_change: Callable[[GPUStatus], None] | None = None,
        script: Path | None = None,
    ) -> None:
        self._config, self._device, self._script = config or GPUSafetyConfig(), _device(device), script
        self._on_status, self._on_change = on_status, on_change
        self._helper: line_helper.LineHelper | None = None
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self.latest: GPUStatus | None = None
        self.error = ""

    def start(self) -> None:
        """Raises GPUMonitoringError if no card is visible, or the helper process cannot be started."""
        if self._device is None:
            raise GPUMonitoringError("no GPU is visible to CUDA: CUDA_VISIBLE_DEVICES hides all of them")
        try:
            self._helper = line_helper.LineHelper(helper_command(self._device, self._config.interval, self._script))
        except OSError as error:
            raise GPUMonitoringError(f"the sensors' helper process cannot be started: {error}") from error
        self._stopped, self.error = threading.Event(), ""
        watch = (self._helper, self._stopped)
        self._thread = threading.Thread(target=self._watch, args=watch, name="gpu-monitor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        if self._helper is not None and self._thread is not None:
            self._stopped.set()
            self._helper.close()
            if self._thread is not threading.current_thread():
                self._thread.join(timeout=5.0)
            self._helper = self._thread = None

    def __enter__(self) -> GPUMonitor:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _watch(self, helper: line_helper.LineHelper, stopped: threading.Event) -> None:
        for line in _until(stopped, helper.lines()):
            try:
                sample = msgspec.json.decode(line, type=Sample)
            except msgspec.DecodeError:
                continue
            if sample.error:
                self.error = sample.error
                return
            if sample.xids:  # errors, and no figures
                continue
            before, status = self.latest, assess(sample, self._config)
            self.latest = status
            if self._on_status is not None:
                self._on_status(status)
            if stopped.is_set():
                return
            if self._on_change is not None and (before is None or before.condition != status.condition):
                self._on_change(status)
        if not stopped.is_set():
            self.error = "the helper process ended"


def _until(stopped: threading.Event, lines: Iterator[bytes]) -> Iterator[bytes]:
    """Those before `stop`, which may close the pipe under who reads it."""
    while not stopped.is_set():
        try:
            yield next(lines)
        except StopIteration:
            return
        except ValueError:
            if not stopped.is_set():
                raise
