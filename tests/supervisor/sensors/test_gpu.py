"""The sensors: a scripted card behind the real pynvml, read through the real helper process."""

from __future__ import annotations

import json
import threading
from contextlib import aclosing
from pathlib import Path

import anyio
import pytest

from backpropagate.doors import line_helper, process
from backpropagate.gpu_safety import Condition, GPUMonitor, GPUSafetyConfig, assess, check_gpu_safe, get_gpu_status
from backpropagate.sensors import gpu
from backpropagate.sensors.gpu import Sample
from backpropagate_protocol.errors import GPUMonitoringError
from tests.waiting import eventually


def card(folder: Path, celsius: list[int | None], **more: object) -> Path:
    path = folder / "card.json"
    path.write_text(json.dumps({"celsius": celsius, "interval": 0.01, **more}))
    return path


def first(script: Path, device: str = "0") -> Sample:
    """Its first reading."""

    async def main() -> Sample:
        async with aclosing(gpu.samples(device, script)) as samples:
            return await anext(samples)

    return anyio.run(main)


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


def test_a_program_whose_name_is_no_utf8_costs_no_sensor(tmp_path: Path) -> None:
    script = card(tmp_path, [60], holders=[[[7, "/home/Jürgen/bin/blender", 100]]], encoding="cp1252")
    assert [holder.name for holder in first(script).holders or ()] == ["blender"]
    other = card(tmp_path, [60], holders=[[[7, "/bin/Jürgen", 100]]], encoding="cp1252")
    assert [holder.name for holder in first(other).holders or ()] == ["J\ufffdrgen"]


def test_of_many_programs_the_largest_are_told_and_those_without_memory_are_not(tmp_path: Path) -> None:
    many = [[100_000 + i, f"/usr/lib/some/where/deep/program-{i}", i] for i in range(900)]
    holders = first(card(tmp_path, [60], holders=[many])).holders
    assert holders is not None
    assert [holder.memory for holder in holders] == list(range(899, 849, -1))
    assert first(card(tmp_path, [60], holders=[[[7, "/bin/game", 0]]])).holders == ()


def test_where_the_driver_says_of_nobody_how_much_he_has_nobody_is_told(tmp_path: Path) -> None:
    assert first(card(tmp_path, [60], holders=[[[7, "/bin/game", -1], [8, "/bin/python", -1]]])).holders is None


def test_a_helper_that_says_more_than_a_line_holds_is_an_error_of_the_sensors(tmp_path: Path) -> None:
    with pytest.raises(gpu.SensorError, match="more than can be"):
        first(card(tmp_path, [60]), "x" * 70_000)  # it repeats a name that it does not know


def test_a_part_of_a_card_has_memory_of_its_own_and_the_cards_temperature(tmp_path: Path) -> None:
    script = card(tmp_path, [71], memory_total=80_000, memory_used=100, part=["MIG-1234", 9_728])
    part, whole = first(script, "MIG-1234"), first(script)
    assert (part.uuid, part.celsius, part.memory_total, part.error) == ("MIG-1234", 71, 9_728, "")
    assert (whole.celsius, whole.memory_total) == (71, 80_000)


def test_a_card_may_be_named_by_the_beginning_of_its_uuid(tmp_path: Path) -> None:
    script = card(tmp_path, [60], uuid="GPU-8932f937-d72c-4106-c12f-20bd9faed9f6")
    assert first(script, "GPU-8932f9").celsius == 60
    with pytest.raises(gpu.SensorError, match="no device called 'GPU-1'"):
        first(script, "GPU-1")


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


def test_a_monitor_may_be_stopped_from_its_own_callback(tmp_path: Path) -> None:
    seen: list[str] = []
    stopped = threading.Event()

    def once(status: object) -> None:
        seen.append(threading.current_thread().name)
        monitor.stop()
        stopped.set()

    monitor = GPUMonitor(on_status=once, on_change=once, script=card(tmp_path, [60, 85]))
    monitor.start()
    assert stopped.wait(30)
    eventually(lambda: "gpu-monitor" not in {thread.name for thread in threading.enumerate()}, "its thread ended")
    assert (seen, monitor.error) == (["gpu-monitor"], "")


def test_a_monitor_whose_helper_dies_says_so(tmp_path: Path) -> None:
    monitor = GPUMonitor(script=tmp_path / "no-such-script.json")
    with monitor:
        eventually(lambda: monitor.error, "it said why")
    assert monitor.error == "the helper process ended"


@pytest.mark.parametrize("setting", ["", "-1"])
def test_a_card_that_is_hidden_is_not_looked_at(setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
    script = card(tmp_path, [60])
    assert get_gpu_status(script=script) is None
    with pytest.raises(GPUMonitoringError, match="hides"):
        GPUMonitor(script=script).start()


def test_a_helper_that_says_nothing_is_given_up() -> None:
    assert line_helper.ask(["-c", "import time; time.sleep(600)"], 0.3) == b""


@pytest.mark.parametrize(
    ("setting", "device"), [(None, "0"), ("", ""), ("1,0", "1"), (" 2 ", "2"), ("GPU-abc,GPU-def", "GPU-abc")]
)
def test_a_run_sees_one_card(setting: str | None, device: str) -> None:
    assert process.visible_device(setting) == device
