"""The scripted card's health: margins, throttling, the driver's errors and verdicts, a card that is lost, a driver that hangs.

Every series is played reading by reading, in step with the temperatures; its last value stays.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Sequence
from typing import Protocol, cast

import msgspec
import pynvml


class Ailments(msgspec.Struct, frozen=True):
    """What is wrong with the card, if anything. Degrees, MiB."""

    throttle: tuple[int, ...] = ()  # NVML's bits
    old: bool = False  # its driver is older than 535
    recovery: tuple[int, ...] = ()  # the driver's recovery action; none: a driver that has none
    uncorrected: tuple[int, ...] = ()  # memory errors since the driver was loaded; none: a card without ECC
    remap: tuple[int, int] | None = None  # pending, failed
    margin: tuple[int, ...] = ()  # degrees left, of a card that counts down
    slowdown_margin: int = -2
    shutdown_margin: int = -5
    memory_celsius: tuple[int, ...] = ()
    memory_limit: int = 95
    shared: tuple[int, ...] = ()  # of the host's memory, as Windows says it
    xids: dict[int, tuple[int, ...]] | None = None  # after which reading which errors come; None: no such events here
    lost: int = 0  # the reading at which the card is lost
    hangs: int = 0  # the reading at which the driver never answers


class _Value(Protocol):
    uiVal: int
    siVal: int


class _Field(Protocol):
    fieldId: int
    valueType: int
    nvmlReturn: int
    value: _Value


class _Pointer(Protocol):
    _obj: ctypes.Structure


OK = int(pynvml.NVML_SUCCESS)
UNSUPPORTED = int(pynvml.NVML_ERROR_NOT_SUPPORTED)


def fill(reference: object, value: int) -> int:
    """Writes through what ctypes.byref gave."""
    setattr(cast(_Pointer, reference)._obj, "value", value)  # noqa: B010 - a structure has no such member, a c_uint has
    return OK


class AilingLibrary:
    """The C functions that tell of health. Each returns a status code."""

    def __init__(self, ailments: Ailments) -> None:
        self._ailments = ailments
        self._reading = 0
        self._told = 0  # events of this reading

    def begin_reading(self, number: int) -> int:
        """What the first call of a reading answers to; it may never do so. `number`: from 1, or 0 before the series begins."""
        self._reading, self._told = number, 0
        if 0 < self._ailments.hangs <= number:
            threading.Event().wait()
        return int(pynvml.NVML_ERROR_GPU_IS_LOST) if 0 < self._ailments.lost <= number else OK

    def _now(self, series: Sequence[int]) -> int | None:
        return series[min(max(self._reading, 1), len(series)) - 1] if series else None

    def _answer(self, out: object, series: Sequence[int]) -> int:
        value = self._now(series)
        return UNSUPPORTED if value is None else fill(out, value)

    @property
    def shared(self) -> int | None:
        """What Windows would say; no part of NVML."""
        return self._now(self._ailments.shared)

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: object, out: object) -> int:
        if self._ailments.old:
            return int(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        return self._answer(out, self._ailments.throttle)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: object, out: object) -> int:
        return self._answer(out, self._ailments.throttle)

    def nvmlDeviceGetTotalEccErrors(self, handle: object, kind: ctypes.c_uint, counter: object, out: object) -> int:
        lost_data = kind.value == pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
        return self._answer(out, self._ailments.uncorrected if lost_data else ())

    def nvmlDeviceGetRemappedRows(
        self, handle: object, right: object, wrong: object, pending: object, failed: object
    ) -> int:
        if self._ailments.remap is None:
            return UNSUPPORTED
        fill(pending, self._ailments.remap[0])
        return fill(failed, self._ailments.remap[1])

    def nvmlDeviceGetMarginTemperature(self, handle: object, out: object) -> int:
        margin = self._now(self._ailments.margin)
        if margin is None:
            return UNSUPPORTED
        setattr(cast(_Pointer, out)._obj, "marginTemperature", margin)  # noqa: B010 - as above
        return OK

    def nvmlDeviceGetFieldValues(self, handle: object, count: object, out: object) -> int:
        a = self._ailments
        answers = {
            pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION: self._now(a.recovery),
            pynvml.NVML_FI_DEV_TEMPERATURE_SLOWDOWN_TLIMIT: a.slowdown_margin if a.margin else None,
            pynvml.NVML_FI_DEV_TEMPERATURE_SHUTDOWN_TLIMIT: a.shutdown_margin if a.margin else None,
            pynvml.NVML_FI_DEV_MEMORY_TEMP: self._now(a.memory_celsius),
        }
        for field in cast(Sequence[_Field], cast(_Pointer, out)._obj):
            value = answers.get(field.fieldId)
            field.nvmlReturn = OK if value is not None else UNSUPPORTED
            field.valueType = pynvml.NVML_VALUE_TYPE_SIGNED_INT
            field.value.siVal = value or 0
        return OK

    def nvmlDeviceGetSupportedEventTypes(self, handle: object, out: object) -> int:
        return fill(out, 0 if self._ailments.xids is None else pynvml.nvmlEventTypeXidCriticalError)

    def nvmlEventSetCreate(self, out: object) -> int:
        return OK

    def nvmlDeviceRegisterEvents(self, handle: object, types: object, events: object) -> int:
        return OK

    def nvmlEventSetWait_v2(self, events: object, out: object, milliseconds: ctypes.c_uint) -> int:
        due = (self._ailments.xids or {}).get(self._reading, ())
        if self._told >= len(due):
            time.sleep(milliseconds.value / 1000)
            return int(pynvml.NVML_ERROR_TIMEOUT)
        event = cast(_Pointer, out)._obj
        for name, value in (("eventType", pynvml.nvmlEventTypeXidCriticalError), ("eventData", due[self._told])):
            setattr(event, name, value)
        self._told += 1
        return OK
