"""The helper process that reads NVML: one JSON line for each sample on standard output, until standard input ends."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath

import msgspec
import pynvml

from backpropagate.judge.xids import FINAL
from backpropagate.sensors.gpu import Sample
from backpropagate.sensors.holders import Holder
from backpropagate.sensors.nvml_health import Errors, is_absent, is_lost, known, margins, vitals
from backpropagate.sensors.shared_memory import shared_memory

_MIB = 1 << 20
_HOLDERS = 50  # on Windows every program with a window is one


@dataclass(frozen=True, slots=True)
class Device:
    """What CUDA calls a device, as NVML's handles. `part`: of a MIG card, or the card itself: whose memory it is, and who uses it.

    `card`: what has a temperature, clocks and errors; a part has none of its own.
    """

    card: object
    part: object


def _device(named: str) -> Device:
    """The one that CUDA_VISIBLE_DEVICES means. Raises ValueError if there is none."""
    if named.startswith("MIG-"):
        part = pynvml.nvmlDeviceGetHandleByUUID(named)
        return Device(pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(part), part)
    card = _of_uuid(named) if named.startswith("GPU-") else pynvml.nvmlDeviceGetHandleByIndex(int(named or 0))
    return Device(card, card)


def _of_uuid(named: str) -> object:
    """CUDA takes the beginning of one, too, as long as it means one card."""
    meant = [card for uuid, card in _cards() if uuid.startswith(named)]
    if len(meant) != 1:
        raise ValueError(named)
    return meant[0]


def _cards() -> Iterator[tuple[str, object]]:
    """With their UUIDs, without those that cannot say it."""
    for index in range(pynvml.nvmlDeviceGetCount()):
        with suppress(pynvml.NVMLError):
            card = pynvml.nvmlDeviceGetHandleByIndex(index)
            yield pynvml.nvmlDeviceGetUUID(card), card


def _known(read: Callable[[], int]) -> int:
    return known(read) or 0


def _text(read: Callable[[], str]) -> str:
    try:
        return read()
    except UnicodeDecodeError as error:  # pynvml takes all for UTF-8; the driver writes as the machine does
        return error.object.decode(errors="replace")


def read(device: Device, shared: Callable[[Collection[int]], int | None] = shared_memory) -> Sample:
    """One sample; raises NVMLError if the card cannot even say how warm it is."""
    handle = device.card
    celsius = int(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))
    memory = pynvml.nvmlDeviceGetMemoryInfo(device.part)
    limit = pynvml.nvmlDeviceGetTemperatureThreshold
    to_slowdown, to_shutdown = margins(handle)
    listed = _listed(device.part)
    return Sample(
        uuid=_text(lambda: pynvml.nvmlDeviceGetUUID(device.part)),
        name=_text(lambda: pynvml.nvmlDeviceGetName(device.part)),
        celsius=celsius,
        slowdown=_known(lambda: limit(handle, pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN)),
        shutdown=_known(lambda: limit(handle, pynvml.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN)),
        memory_used=int(memory.used) // _MIB,
        memory_total=int(memory.total) // _MIB,
        power=_known(lambda: pynvml.nvmlDeviceGetPowerUsage(handle)) / 1000,
        power_limit=_known(lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(handle)) / 1000,
        holders=_holders(listed),
        utilization=_known(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        to_slowdown=to_slowdown,
        to_shutdown=to_shutdown,
        vitals=vitals(handle, shared({pid for pid, _ in listed or ()})),
    )


def _listed(handle: object) -> list[tuple[int, int | None]] | None:
    """Who computes on it: pid, and MiB as far as the driver says; None if it does not even list them."""
    try:
        listed = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError:
        return None
    return [(int(one.pid), None if one.usedGpuMemory is None else int(one.usedGpuMemory) // _MIB) for one in listed]


def _holders(listed: list[tuple[int, int | None]] | None) -> tuple[Holder, ...] | None:
    """The largest of those that hold memory. On Windows the driver knows who is there, and of nobody how much he has."""
    if listed is None or (listed and all(memory is None for _, memory in listed)):
        return None
    largest = sorted(((memory, pid) for pid, memory in listed if memory), reverse=True)[:_HOLDERS]
    return tuple(Holder(pid, _name(pid), memory) for memory, pid in largest)


def _name(pid: int) -> str:
    """The program's own name, without where it lies; empty for a process of another container."""
    try:
        return PurePath(_text(lambda: pynvml.nvmlSystemGetProcessName(pid))).name
    except pynvml.NVMLError:
        return ""


def _say(sample: Sample) -> None:
    os.write(1, msgspec.json.encode(sample) + b"\n")


def _end_with_owner(ended: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    ended.set()
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="0")
    parser.add_argument("--interval", type=float, default=2.0)
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--script", type=Path)
    options = parser.parse_args()
    ended = threading.Event()
    threading.Thread(target=_end_with_owner, args=(ended,), daemon=True).start()
    interval, shared = options.interval, shared_memory  # type: float, Callable[[Collection[int]], int | None]
    if options.script:
        from backpropagate.sensors.gpu_script import install

        interval, shared = install(options.script)
    try:
        pynvml.nvmlInit()
        try:
            device = _device(options.device)
        except ValueError:
            _say(Sample(error=f"there is no device called {options.device!r}", absent=True))
            return
        taken = 0
        errors = Errors(device.card, ended)
        while True:
            _say(read(device, shared))
            taken += 1
            if taken == options.count:
                return
            seen = errors.wait(interval)
            if seen:
                _say(Sample(xids=seen))
                if FINAL.intersection(seen):
                    return  # the driver itself may hang at the next question
                errors.rest(interval)
    except pynvml.NVMLError as error:
        _say(Sample(error=str(error) or "NVML failed", gone=is_lost(error), absent=is_absent(error)))
    except BrokenPipeError:
        sys.exit(0)


if __name__ == "__main__":
    main()
