"""The helper process that reads NVML: one JSON line for each sample on standard output, until standard input ends."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Callable, Collection
from pathlib import Path, PurePath

import msgspec
import pynvml

from backpropagate.judge.xids import FINAL
from backpropagate.sensors.gpu import Sample
from backpropagate.sensors.holders import Holder
from backpropagate.sensors.nvml_health import Errors, is_lost, known, margins, vitals
from backpropagate.sensors.shared_memory import shared_memory

_MIB = 1 << 20


def _handle(device: str) -> object:
    """The card that CUDA_VISIBLE_DEVICES means by `device`; a part of a MIG card counts as the card."""
    if device.startswith(("GPU-", "MIG-")):
        return pynvml.nvmlDeviceGetHandleByUUID(device)
    return pynvml.nvmlDeviceGetHandleByIndex(int(device or 0))


def _known(read: Callable[[], int]) -> int:
    return known(read) or 0


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def read(handle: object, shared: Callable[[Collection[int]], int | None] = shared_memory) -> Sample:
    """One sample; raises NVMLError if the card cannot even say how warm it is."""
    celsius = int(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    limit = pynvml.nvmlDeviceGetTemperatureThreshold
    to_slowdown, to_shutdown = margins(handle)
    holders = _holders(handle)
    return Sample(
        uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
        name=_text(pynvml.nvmlDeviceGetName(handle)),
        celsius=celsius,
        slowdown=_known(lambda: limit(handle, pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN)),
        shutdown=_known(lambda: limit(handle, pynvml.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN)),
        memory_used=int(memory.used) // _MIB,
        memory_total=int(memory.total) // _MIB,
        power=_known(lambda: pynvml.nvmlDeviceGetPowerUsage(handle)) / 1000,
        power_limit=_known(lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(handle)) / 1000,
        holders=holders,
        utilization=_known(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        to_slowdown=to_slowdown,
        to_shutdown=to_shutdown,
        vitals=vitals(handle, shared({holder.pid for holder in holders or ()})),
    )


def _holders(handle: object) -> tuple[Holder, ...] | None:
    try:
        listed = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError:
        return None
    # On Windows the driver knows who is there, and not how much they have.
    return tuple(Holder(int(one.pid), _name(int(one.pid)), int(one.usedGpuMemory or 0) // _MIB) for one in listed)


def _name(pid: int) -> str:
    """The program's own name, without where it lies; empty for a process of another container."""
    try:
        return PurePath(_text(pynvml.nvmlSystemGetProcessName(pid))).name
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
        handle = _handle(options.device)
        taken = 0
        errors = Errors(handle, ended)
        while True:
            _say(read(handle, shared))
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
        _say(Sample(error=str(error) or "NVML failed", gone=is_lost(error)))
    except ValueError:
        _say(Sample(error=f"there is no device called {options.device!r}"))
    except BrokenPipeError:
        sys.exit(0)


if __name__ == "__main__":
    main()
