"""A card's health, as NVML tells it: a scripted library behind the real pynvml, read through the real helper process."""

from __future__ import annotations

import json
from contextlib import aclosing
from pathlib import Path

import anyio
import msgspec

from backpropagate.commands.system import gpu_in_words
from backpropagate.gpu_safety import Condition, check_gpu_safe, get_gpu_status
from backpropagate.judge.vitals import Vitals
from backpropagate.sensors import gpu
from backpropagate.sensors.gpu import Sample, SensorError
from backpropagate.sensors.shared_memory import Use, lent, shared_memory, whose


def card(folder: Path, **ails: object) -> Path:
    path = folder / "card.json"
    path.write_text(json.dumps({"celsius": [60], "interval": 0.01, "ails": ails}))
    return path


def lines(script: Path, count: int, silence: float = 20.0) -> tuple[list[Sample], SensorError | None]:
    """So many lines of the helper's, or those before its end, and how that came."""
    read: list[Sample] = []

    async def main() -> SensorError | None:
        try:
            async with aclosing(gpu.samples("0", script, 0.01, silence)) as samples:
                async for sample in samples:
                    read.append(sample)
                    if len(read) == count:
                        break
        except SensorError as error:
            return error
        return None

    return read, anyio.run(main)


def test_a_healthy_card_that_knows_none_of_it_says_nothing(tmp_path: Path) -> None:
    [sample], _ = lines(card(tmp_path), 1)
    assert (sample.vitals, sample.to_slowdown, sample.to_shutdown, sample.xids) == (Vitals(), None, None, ())


def test_what_the_card_tells_of_itself_is_read_in_step(tmp_path: Path) -> None:
    script = card(
        tmp_path,
        throttle=[4, 100],
        recovery=[0, 4],
        uncorrected=[0, 3],
        remap=[1, 0],
        margin=[20, -3],
        shared=[100, 900],
    )
    (first, second), _ = lines(script, 2)
    assert first.vitals == Vitals(4, 0, 0, None, True, False, 100)
    assert second.vitals == Vitals(100, 4, 3, None, True, False, 900)
    assert (first.to_slowdown, first.to_shutdown) == (22, 25)
    assert (second.to_slowdown, second.to_shutdown) == (-1, 2)


def test_a_driver_from_before_its_renaming_tells_of_throttling_too(tmp_path: Path) -> None:
    [sample], _ = lines(card(tmp_path, throttle=[0x40], old=True), 1)
    assert sample.vitals.throttle == 0x40


def test_hot_memory_counts_like_a_hot_chip(tmp_path: Path) -> None:
    (first, second), _ = lines(card(tmp_path, margin=[20], memory_celsius=[60, 93], memory_limit=95), 2)
    assert (first.to_slowdown, second.to_slowdown) == (22, 2)
    [alone], _ = lines(card(tmp_path, memory_celsius=[97]), 1)
    assert (alone.to_slowdown, alone.to_shutdown) == (-2, None)


def test_errors_come_at_once_in_one_line_and_the_readings_go_on(tmp_path: Path) -> None:
    read, _ = lines(card(tmp_path, xids={"2": [31, 31, 43]}), 4)
    assert [(sample.celsius, sample.xids) for sample in read] == [(60, ()), (60, ()), (0, (31, 43)), (60, ())]


def test_after_a_card_fell_off_the_bus_its_driver_is_asked_nothing(tmp_path: Path) -> None:
    read, error = lines(card(tmp_path, xids={"1": [79]}, hangs=2), 9)
    assert [sample.xids for sample in read] == [(), (79,)]
    assert error is not None
    assert not error.hung


def test_a_lost_card_is_told_from_one_that_cannot_be_read(tmp_path: Path) -> None:
    read, error = lines(card(tmp_path, lost=3), 9)
    assert len(read) == 2
    assert error is not None
    assert (error.gone, str(error)) == (True, "GPU is lost")


def test_a_driver_that_never_answers_is_given_up(tmp_path: Path) -> None:
    read, error = lines(card(tmp_path, hangs=3), 9, silence=0.3)
    assert len(read) == 2
    assert error is not None
    assert (error.hung, error.gone) == (True, False)


def test_a_look_at_a_sick_card_says_what_it_has(tmp_path: Path) -> None:
    script = card(tmp_path, throttle=[0x68], recovery=[1], uncorrected=[2], margin=[10])
    status = get_gpu_status(script=script)
    assert status is not None
    assert status.condition is Condition.EMERGENCY
    assert status.throttled == ("slowed down hard by heat", "slowed down by heat")
    assert (status.recovery, status.uncorrected_errors, status.to_slowdown) == ("a reset of the GPU", 2, 12)
    assert not check_gpu_safe(script=script)


def test_only_windows_lends_memory_and_says_to_whom() -> None:
    assert whose("pid_1234_luid_0x00000000_0x0000C4F1_phys_0") == (1234, "0x00000000_0x0000C4F1")
    assert whose("luid_0x00000000_0x0000C4F1_phys_0") == (0, "")
    assert shared_memory({1}) in (None, 0)


def test_what_is_used_of_another_adapter_and_by_others_is_not_lent_to_the_card() -> None:
    card, laptops = "luid_0x0_0xC4F1_phys_0", "luid_0x0_0xA000_phys_0"
    uses = [
        Use(f"pid_7_{card}", 8_000, 600),
        Use(f"pid_7_{laptops}", 0, 5_000),
        Use(f"pid_8_{card}", 500, 20),
        Use(f"pid_8_{laptops}", 100, 9_000),
        Use(f"pid_9_{card}", 99_000, 7_000),
    ]
    assert lent(uses, {7, 8}) == 620
    assert lent(uses, {1}) == lent([], {7}) == 0


def test_info_says_it_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    ails = {"throttle": [0x40], "recovery": [4], "uncorrected": [2], "margin": [10]}
    path.write_text(json.dumps({"celsius": [60], "slowdown": 92, "shutdown": 97, "ails": ails}))
    said = gpu_in_words(msgspec.to_builtins(get_gpu_status(script=path)))
    for part in ("off at 97 °C", "12 °C left", "hard by heat", "once nothing runs on it", "2 memory errors"):
        assert part in said
