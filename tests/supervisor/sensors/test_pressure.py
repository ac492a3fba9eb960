"""How short the machine's memory is, as its kernel tells it."""

from __future__ import annotations

import sys
from pathlib import Path

import anyio
import pytest

from backpropagate.judge.decisions import Input, MemoryShort
from backpropagate.sensors.pressure import concerns, expected, shortage, watch
from backpropagate_protocol.mlx_rules import apple_silicon

linux = pytest.mark.skipif(sys.platform != "linux", reason="PSI")


def machine(root: Path, full: float, group: str | None = None) -> Path:
    text = f"some avg10=99.00 avg60=1.00 avg300=0.00 total=1\nfull avg10={full:.2f} avg60=0.00 avg300=0.00 total=1\n"
    place = root / "proc/pressure/memory" if group is None else root / f"sys/fs/cgroup{group}/memory.pressure"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/self/cgroup").write_text(f"0::{group or '/'}\n")
    return root


@linux
def test_memory_is_short_when_every_program_waits_for_it(tmp_path: Path) -> None:
    assert shortage(machine(tmp_path, 12.0)) is None
    said = shortage(machine(tmp_path, 61.0))
    assert said is not None
    assert "61 %" in said


@linux
def test_the_pressure_of_our_own_group_counts_before_the_machines(tmp_path: Path) -> None:
    machine(tmp_path, 5.0)
    assert shortage(machine(tmp_path, 80.0, "/job")) is not None


def test_a_machine_that_does_not_say_is_not_short(tmp_path: Path) -> None:
    assert sys.platform == "darwin" or shortage(tmp_path) is None


def test_only_memory_that_a_gpu_shares_concerns_it() -> None:
    assert [concerns(name) for name in ("metal Apple M2", "mlx-cpu", "cuda:0 NVIDIA", "cpu", "")] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_before_a_training_says_where_it_is_the_wish_tells_whose_memory_it_takes() -> None:
    assert [concerns(expected(backend)) for backend in ("mlx", "cuda", "cpu", "toy")] == [True, False, False, False]
    assert concerns(expected("auto")) == apple_silicon()


@linux
def test_a_shortage_is_told_once_it_lasts(tmp_path: Path) -> None:
    machine(tmp_path, 90.0)
    told: list[Input] = []

    async def until_told() -> None:
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:

                def feed(input: Input) -> None:
                    told.append(input)
                    tasks.cancel_scope.cancel()

                await watch(feed, lambda: "mlx-cpu", lambda: 7.0, root=tmp_path, interval=0.001)

    anyio.run(until_told)
    [short] = told
    assert isinstance(short, MemoryShort)
    assert short.now == 7.0
