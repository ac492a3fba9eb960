"""The rows of the fault matrix that are too long for the tests: 4,000 files replaced under a scanner, a log of a gigabyte.

    python scripts/long_rows.py               both, about two minutes
    python scripts/long_rows.py --noise 100   a look: a hundredth of the log

Prints Markdown. Exit status 0: every file was whole at every look, and the run came to the same samples and weights.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from _bench_figure import machine
from backpropagate.events import Event, RunEnded
from backpropagate.keep import journal, runs
from backpropagate_protocol import durable
from backpropagate_protocol.rundir import RunDir
from backpropagate_protocol.spec import DataSpec, LoraSpec, ModelSpec, PlannedFault, RunSpec, TrainSpec

_REPLACES = 4_000
_NOISE = 17_000  # times 66,000 bytes
_FLOODS = 10  # of 100,000 messages each
_CONTENT = 4096


def replaced_under_a_scanner(folder: Path, times: int) -> tuple[int, int, int]:
    """Failures, looks of the scanner, and looks that found something else than one whole content."""
    path = folder / "scanned"
    durable.write_file(path, b"\0" * _CONTENT)
    over = threading.Event()
    looks, torn = 0, 0

    def scan() -> None:
        nonlocal looks, torn
        while not over.is_set():
            try:
                seen = path.read_bytes()
            except OSError:
                seen = b""
            looks += 1
            torn += len(seen) != _CONTENT or len(set(seen)) != 1

    scanner = threading.Thread(target=scan)
    scanner.start()
    failures = 0
    for number in range(times):
        try:
            durable.write_file(path, bytes([number % 256]) * _CONTENT)
        except OSError:
            failures += 1
    over.set()
    scanner.join()
    return failures, looks, torn


@dataclass(frozen=True)
class Flooded:
    order: int
    weights: bytes
    log: int
    peak: int  # of the supervisor's memory, bytes
    seconds: float


def trained(folder: Path, noise: int, steps: int) -> Flooded:
    """A toy run whose libraries print before each of so many steps, and that says a million things besides."""
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(50)))
    faults = [PlannedFault("print_noise", step) for step in range(1, noise + 1)]
    faults += [PlannedFault("flood", step) for step in range(1, _FLOODS + 1)] if noise else []
    spec = RunSpec(
        run_id=str(uuid.uuid4()),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        backend="toy",
        output=str(folder / ("noisy" if noise else "quiet")),
        model=ModelSpec(name="toy", path="toy", load_in_4bit=False),
        data=DataSpec(source=str(rows)),
        lora=LoraSpec(r=8, alpha=16),
        train=TrainSpec(steps=steps, effective_batch=8, batch_size=8, warmup_steps=0),
        faults=tuple(faults),
    )
    run = runs.create(spec)
    end, peak = _supervised(run)
    weights = (run.adapter / "adapter_model.safetensors").read_bytes()
    return Flooded(end.order, weights, run.log.stat().st_size, peak, end.seconds)


def _supervised(run: RunDir) -> tuple[RunEnded, int]:
    command = [sys.executable, "-P", "-m", "backpropagate", "_supervise", str(run.path)]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ}
    )
    watched, peak = psutil.Process(process.pid), 0
    while True:
        try:
            peak = max(peak, watched.memory_info().rss)
            process.wait(0.05)
            break
        except subprocess.TimeoutExpired:
            continue
    last: Event | None = None
    for event in journal.read(run.events):
        last = event
    if not isinstance(last, RunEnded) or last.status != "completed":
        raise RuntimeError(f"the run ended as {last}")
    return last, peak


def main() -> int:
    parser = argparse.ArgumentParser(description="the rows of the fault matrix that are too long for the tests")
    parser.add_argument("--replaces", type=int, default=_REPLACES, help="files replaced under a scanner")
    parser.add_argument("--noise", type=int, default=_NOISE, help="steps before which libraries print 66 kB")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="long-rows-") as temporary:
        folder = Path(temporary)
        failures, looks, torn = replaced_under_a_scanner(folder, options.replaces)
        steps = options.noise + 10
        quiet, noisy = trained(folder, 0, steps), trained(folder, options.noise, steps)
    same = (quiet.order, quiet.weights) == (noisy.order, noisy.weights)
    rows = [
        (f"{options.replaces:,} files replaced while another thread keeps reading them", f"{failures} failures", "0"),
        ("looks that found anything but one whole content", f"{torn} of {looks:,}", "0"),
        ("printed into the log", f"{noisy.log / 1e6:,.0f} MB", ""),
        ("messages besides", f"{_FLOODS * 100_000:,}", ""),
        ("the supervisor's memory, with it and without", f"{noisy.peak / 2**20:.1f}, {quiet.peak / 2**20:.1f} MiB", "≤ 8 MiB more"),
        ("samples and weights as without it", "yes" if same else "NO", "yes"),
        ("time of the run", f"{noisy.seconds:.0f} s", ""),
    ]  # fmt: skip
    print(f"{machine('when they began')}\n\n| what | measured | goal |\n|---|---|---|")
    print("\n".join(f"| {what} | {value} | {goal} |" for what, value, goal in rows))
    return int(bool(failures or torn or not same or noisy.peak - quiet.peak > 8 << 20))


if __name__ == "__main__":
    sys.exit(main())
