"""The sensors: a scripted card behind the real pynvml, read through the real helper process."""

from __future__ import annotations

import json
import threading
from contextlib import aclosing
from pathlib import Path

import anyio
import pytest

from backpropagate.doors import helpers
from backpropagate.gpu_safety import Condition, GPUMonitor, GPUSafetyConfig, assess, check_gpu_safe, get_gpu_status
from backpropagate.sensors import gpu
from backpropagate.sensors.gpu import Sample


def card(folder: Path, celsius: list[int | None], **more: object) -> Path:
    path = folder / "card.json"
    path.write_text(json.dumps({"celsius": celsius, "interval": 0.01, **more}))
    return path


def read_all(script: Path | None) -> tuple[list[int], str]:
    """All temperatures, and why there are no more."""
    read: list[int] = []

    async def main() -> str:
        try:
            async with aclosing(gpu.samples("0", script)) as samples:
                async for sample in samples:
                    read.append(sample.celsius)
        except gpu.SensorError as error:
            return str(error)
        return ""

    return read, anyio.run(main)


def test_a_series_is_read_through_pynvml_until_the_card_cannot_be_read(tmp_path: Path) -> None:
    assert read_all(card(tmp_path, [60, 91, 96, None])) == ([60, 91, 96], "Unknown Error")


def test_a_machine_without_nvml_says_so(tmp_path: Path) -> None:
    if get_gpu_status() is not None:
        pytest.skip("there is a GPU here")
    read, why = read_all(None)
    assert not read
    assert "Not Found" in why


def test_a_helper_that_ends_without_a_word_is_an_error_and_not_a_wait(tmp_path: Path) -> None:
    assert read_all(tmp_path / "no-such-script.json") == ([], "the helper process ended")


def test_a_look_tells_what_the_card_says(tmp_path: Path) -> None:
    script = card(tmp_path, [83], memory_total=1000, memory_used=500, power=123.0)
    status = get_gpu_status(script=script)
    assert status is not None
    assert (status.name, status.temperature, status.memory_used, status.power) == ("Scripted GPU", 83, 500, 123.0)
    assert status.condition is Condition.WARNING
    assert check_gpu_safe(script=script)


def test_a_card_that_is_too_hot_is_not_safe(tmp_path: Path) -> None:
    assert not check_gpu_safe(script=card(tmp_path, [91]))


@pytest.mark.parametrize(
    ("sample", "condition"),
    [
        (Sample(celsius=79), Condition.SAFE),
        (Sample(celsius=80), Condition.WARNING),
        (Sample(celsius=90), Condition.CRITICAL),
        (Sample(celsius=95), Condition.EMERGENCY),
        (Sample(celsius=85, shutdown=88), Condition.EMERGENCY),
        (Sample(celsius=50, memory_used=91, memory_total=100), Condition.WARNING),
        (Sample(celsius=50, memory_used=96, memory_total=100), Condition.CRITICAL),
    ],
)
def test_the_worse_of_heat_and_memory_counts(sample: Sample, condition: Condition) -> None:
    assert assess(sample, GPUSafetyConfig()).condition is condition


def test_a_monitor_calls_back_when_the_condition_changes(tmp_path: Path) -> None:
    seen: list[Condition] = []
    critical = threading.Event()

    def changed(status: object) -> None:
        assert monitor.latest is not None
        seen.append(monitor.latest.condition)
        if seen[-1] is Condition.CRITICAL:
            critical.set()

    monitor = GPUMonitor(on_change=changed, script=card(tmp_path, [60, 61, 85, 86, 92]))
    with monitor:
        assert critical.wait(30)
    assert seen == [Condition.SAFE, Condition.WARNING, Condition.CRITICAL]


def test_a_helper_that_says_nothing_is_given_up() -> None:
    assert helpers.ask(["-c", "import time; time.sleep(600)"], 0.3) == b""


@pytest.mark.parametrize(
    ("setting", "device"), [(None, "0"), ("", ""), ("1,0", "1"), (" 2 ", "2"), ("GPU-abc,GPU-def", "GPU-abc")]
)
def test_a_run_sees_one_card(setting: str | None, device: str) -> None:
    assert process.visible_device(setting) == device
