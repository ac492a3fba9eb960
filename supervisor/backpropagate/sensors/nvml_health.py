"""What NVML tells of a card's health, read inside the helper process: its vitals, its own margins, its error events."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pynvml

from backpropagate.judge.vitals import Vitals

_EVENTS_AT_ONCE = 64
_AFTER_EVENTS = 0.2  # seconds: a storm of them is one line


def known(read: Callable[[], int]) -> int | None:
    """A figure that this card or driver may not have. What says that the card is lost is raised."""
    try:
        return int(read())
    except pynvml.NVMLError as error:
        if is_lost(error):
            raise
        return None


def is_lost(error: pynvml.NVMLError) -> bool:
    """Whether there is no card any more, or none that can be used before a reset."""
    return error.value in (pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED)


def is_absent(error: pynvml.NVMLError) -> bool:
    """Whether there is no driver, or no such card; one that comes up slowly says something else, or nothing yet."""
    return error.value in (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_NOT_FOUND)


def vitals(handle: object, shared: int | None) -> Vitals:
    """`shared`: of the host's memory, from who knows of it."""
    fields = _fields(handle, (pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION,))
    pending, failed = _remapped(handle)
    return Vitals(
        throttle=_throttle(handle),
        recovery=fields[0],
        uncorrected=known(lambda: _errors(handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED)),
        corrected=known(lambda: _errors(handle, pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED)),
        remap_pending=pending,
        remap_failed=failed,
        shared=shared,
    )


def margins(handle: object) -> tuple[int | None, int | None]:
    """Degrees that the hottest part has left before the card slows itself down, and before it switches itself off.

    From Ada on a card counts down to its limits, which are not in degrees of any one sensor; the memory of data-centre cards
    has a sensor and a limit of its own. None where the card does neither.
    """
    left = known(lambda: pynvml.nvmlDeviceGetMarginTemperature(handle))
    slowdown, shutdown, memory = _fields(
        handle,
        (
            pynvml.NVML_FI_DEV_TEMPERATURE_SLOWDOWN_TLIMIT,
            pynvml.NVML_FI_DEV_TEMPERATURE_SHUTDOWN_TLIMIT,
            pynvml.NVML_FI_DEV_MEMORY_TEMP,
        ),
    )
    # The limits are where the countdown stands when they are reached: -2 is two degrees past its end.
    to_slowdown = left - slowdown if left is not None and slowdown is not None else None
    to_shutdown = left - shutdown if left is not None and shutdown is not None else None
    limit = pynvml.NVML_TEMPERATURE_THRESHOLD_MEM_MAX
    most = known(lambda: pynvml.nvmlDeviceGetTemperatureThreshold(handle, limit)) if memory else None
    if memory and most:
        to_slowdown = most - memory if to_slowdown is None else min(to_slowdown, most - memory)
    return to_slowdown, to_shutdown


class Errors:
    """The driver's error events of one card; where it reports none, just a wait between two readings."""

    def __init__(self, handle: object, ended: threading.Event) -> None:
        self._ended = ended
        self._set: object | None = None
        wanted = pynvml.nvmlEventTypeXidCriticalError
        try:
            if pynvml.nvmlDeviceGetSupportedEventTypes(handle) & wanted:
                events = pynvml.nvmlEventSetCreate()
                pynvml.nvmlDeviceRegisterEvents(handle, wanted, events)
                self._set = events
        except pynvml.NVMLError:
            pass  # a part of a card, a container without the right, Windows before it learned this

    def wait(self, seconds: float) -> tuple[int, ...]:
        """Their numbers, as soon as there are any; none after so many seconds."""
        if self._set is None:
            self._ended.wait(seconds)
            return ()
        seen: dict[int, None] = {}
        patience = max(1, round(seconds * 1000))
        for _ in range(_EVENTS_AT_ONCE):
            try:
                event = pynvml.nvmlEventSetWait_v2(self._set, patience)
            except pynvml.NVMLError as error:
                if error.value != pynvml.NVML_ERROR_TIMEOUT:
                    if is_lost(error):
                        raise
                    self._set = None
                break
            if event.eventType == pynvml.nvmlEventTypeXidCriticalError:
                seen[int(event.eventData)] = None
            patience = 0
        return tuple(seen)

    def rest(self, seconds: float) -> None:
        """After some, before the next are waited for."""
        self._ended.wait(min(seconds, _AFTER_EVENTS))


def _throttle(handle: object) -> int:
    reasons = known(lambda: pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
    if reasons is None:  # its name before driver 535
        reasons = known(lambda: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
    return reasons or 0


def _errors(handle: object, kind: int) -> int:
    return int(pynvml.nvmlDeviceGetTotalEccErrors(handle, kind, pynvml.NVML_VOLATILE_ECC))


def _remapped(handle: object) -> tuple[bool, bool]:
    """Whether memory waits to be replaced, and whether some could not be."""
    try:
        _, _, pending, failed = pynvml.nvmlDeviceGetRemappedRows(handle)
    except pynvml.NVMLError as error:
        if is_lost(error):
            raise
        return False, False
    return bool(pending), bool(failed)


def _fields(handle: object, ids: Sequence[int]) -> tuple[int | None, ...]:
    """Each by itself may be one that the card or the driver does not know."""
    try:
        values = pynvml.nvmlDeviceGetFieldValues(handle, list(ids))
    except pynvml.NVMLError as error:
        if is_lost(error):
            raise
        return (None,) * len(ids)
    return tuple(_number(value) if value.nvmlReturn == pynvml.NVML_SUCCESS else None for value in values)


def _number(field: pynvml.c_nvmlFieldValue_t) -> int:
    members = {
        pynvml.NVML_VALUE_TYPE_DOUBLE: "dVal",
        pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
        pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
        pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
        pynvml.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
        pynvml.NVML_VALUE_TYPE_UNSIGNED_SHORT: "usVal",
    }
    return int(getattr(field.value, members.get(field.valueType, "uiVal")))
