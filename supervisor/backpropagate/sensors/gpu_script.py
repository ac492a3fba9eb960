"""A card that is not there: plays a written series of temperatures behind the real pynvml, for drills and tests.

pynvml calls functions of a loaded C library and hands them ctypes pointers to fill. `install` puts an object in the
library's place whose functions fill them from a file; all of pynvml's own code runs as it does on a real card.

The file is JSON: {"celsius": [60, 91, ...], "interval": 0.05, ...}; the last temperature stays. A temperature of null is a
card that cannot be read any more. With "begin": PATH the first temperature (and list of processes) stays until that file exists, so that the series can
be played at an exact moment of a run.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Protocol, cast

import msgspec
import pynvml

from backpropagate.sensors.gpu_script_health import OK, AilingLibrary, Ailments, fill

_UNSAID = int(pynvml.NVML_VALUE_NOT_AVAILABLE_ulonglong.value)


class Script(msgspec.Struct, frozen=True):
    """What the card does. MiB, watts, seconds. `ails`: what is wrong with it."""

    celsius: list[int | None]
    interval: float = 0.05
    name: str = "Scripted GPU"
    uuid: str = "GPU-00000000-scripted"
    memory_total: int = 24_576
    memory_used: int = 1_024
    memory: tuple[int, ...] = ()  # in use, reading by reading; the last one stays
    power: float = 100.0
    slowdown: int = 0
    shutdown: int = 0
    begin: str = ""
    ails: Ailments = Ailments()
    holders: tuple[
        tuple[tuple[int, str, int], ...], ...
    ] = ()  # pid, path, MiB (-1: not said) of all; reading by reading, the last one stays
    encoding: str = "utf-8"  # of the paths
    part: tuple[str, int] | None = None  # of a MIG card: its UUID and MiB


class _Reference(Protocol):
    """What ctypes.byref gives."""

    _obj: object


class _Process(Protocol):
    """nvmlProcessInfo_t."""

    pid: int
    usedGpuMemory: int


class ScriptedLibrary(AilingLibrary):
    """Stands where pynvml expects the loaded C library. Each method is one C function: it returns a status code."""

    def __init__(self, script: Script) -> None:
        super().__init__(script.ails)
        self._script = script
        self._reads = 0
        self._looks = 0  # at the memory
        self._lists = 0  # of processes

    def nvmlInitWithFlags(self, flags: int) -> int:
        return OK

    def nvmlShutdown(self) -> int:
        return OK

    def nvmlDeviceGetCount_v2(self, out: object) -> int:
        return fill(out, 1)

    def nvmlDeviceGetHandleByIndex_v2(self, index: object, handle: object) -> int:
        return OK

    def nvmlDeviceGetHandleByUUID(self, uuid: ctypes.c_char_p, handle: object) -> int:
        if self._script.part is None or uuid.value != self._script.part[0].encode():
            return int(pynvml.NVML_ERROR_NOT_FOUND)
        # The card's own handle stays a null pointer.
        setattr(cast(_Reference, handle)._obj, "contents", pynvml.struct_c_nvmlDevice_t())  # noqa: B010 - no such member for mypy
        return OK

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, part: object, handle: object) -> int:
        return OK

    def nvmlDeviceGetTemperature(self, handle: object, sensor: object, out: object) -> int:
        if handle:  # a part has no sensor
            return int(pynvml.NVML_ERROR_NOT_SUPPORTED)
        celsius = self._script.celsius[min(self._reads, len(self._script.celsius) - 1)]
        if self._reads or not self._script.begin or Path(self._script.begin).exists():
            self._reads += 1
        begun = self.begin_reading(self._reads)
        if begun != OK:
            return begun
        return int(pynvml.NVML_ERROR_UNKNOWN) if celsius is None else fill(out, celsius)

    def nvmlDeviceGetTemperatureThreshold(self, handle: object, threshold: ctypes.c_uint, out: object) -> int:
        limits = {
            pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN: self._script.slowdown,
            pynvml.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN: self._script.shutdown,
            pynvml.NVML_TEMPERATURE_THRESHOLD_MEM_MAX: self._script.ails.memory_limit,
        }
        limit = limits.get(threshold.value, 0)
        return fill(out, limit) if limit else int(pynvml.NVML_ERROR_NOT_SUPPORTED)

    def nvmlDeviceGetMemoryInfo(self, handle: object, out: object) -> int:
        memory = cast(_Reference, out)._obj
        series = self._script.memory or (self._script.memory_used,)
        whole = self._script.part[1] if self._script.part and handle else self._script.memory_total
        total, used = whole << 20, series[min(self._looks, len(series) - 1)] << 20
        self._looks += 1
        for field, value in (("total", total), ("used", used), ("free", total - used)):
            setattr(memory, field, value)
        return OK

    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle: object, count: object, out: object) -> int:
        if not self._script.holders:
            return int(pynvml.NVML_ERROR_NOT_SUPPORTED)
        listed = self._script.holders[min(self._lists, len(self._script.holders) - 1)]
        if out is None:  # how many there are is asked first
            fill(count, len(listed))
            if listed:
                return int(pynvml.NVML_ERROR_INSUFFICIENT_SIZE)
        if self._lists or not self._script.begin or Path(self._script.begin).exists():
            self._lists += 1
        for slot, (pid, _, memory) in zip(cast(Sequence[_Process], out or ()), listed, strict=False):
            slot.pid, slot.usedGpuMemory = pid, _UNSAID if memory < 0 else memory << 20
        return fill(count, len(listed))

    def nvmlSystemGetProcessName(self, pid: ctypes.c_uint, buffer: ctypes.Array[ctypes.c_char], size: object) -> int:
        names = {number: path for listed in self._script.holders for number, path, _ in listed}
        buffer.value = names[pid.value].encode(self._script.encoding)
        return OK

    def nvmlDeviceGetUUID(self, handle: object, buffer: ctypes.Array[ctypes.c_char], size: object) -> int:
        uuid = self._script.part[0] if self._script.part and handle else self._script.uuid
        buffer.value = uuid.encode()
        return OK

    def nvmlDeviceGetName(self, handle: object, buffer: ctypes.Array[ctypes.c_char], size: object) -> int:
        buffer.value = self._script.name.encode()
        return OK

    def nvmlDeviceGetPowerUsage(self, handle: object, out: object) -> int:
        return fill(out, int(self._script.power * 1000))

    @property
    def nvmlErrorString(self) -> Callable[[int], bytes]:
        def name(code: int) -> bytes:
            return f"NVML error {code}".encode()

        return name


def install(path: Path) -> tuple[float, Callable[[Collection[int]], int | None]]:
    """From now on pynvml talks to the script. Returns the seconds between two samples, and what tells of shared memory."""
    script = msgspec.json.decode(path.read_bytes(), type=Script)
    library = ScriptedLibrary(script)
    pynvml.nvmlLib = library
    return script.interval, lambda pids: library.shared
