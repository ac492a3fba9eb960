"""Growth: does time stay linear and memory flat when the data, the history or the run becomes a hundred times larger?

    python scripts/bench_scale.py                    # the goals as they are stated: a few minutes
    python scripts/bench_scale.py --scale 0.01       # the same, a hundred times smaller
    python scripts/bench_scale.py --only data,history,steps

Prints a Markdown table of ratios with their goals. Every measurement is a fresh process; exits 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = (ROOT.parent / "shared" / "data" / "gsm8k.jsonl", ROOT / "fixtures" / "quickstart.jsonl")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    what: str
    found: str
    goal: str
    met: bool | None = None  # None: told for information


@dataclass(frozen=True, slots=True)
class Measured:
    """What a child said of itself: peak memory in MiB, seconds, and its own numbers."""

    peak: float
    seconds: float
    numbers: dict[str, float]


# What a measured child runs around the code under test: the peak is its own, whatever it started is not counted.
_FRAME = """
import json, sys, time
def peak():
    if sys.platform == "linux":
        for line in open("/proc/self/status"):
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    if sys.platform == "win32":
        import psutil
        return psutil.Process().memory_info().peak_wset / 2**20
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)
began = time.perf_counter()
numbers = {}
%s
print("MEASURED " + json.dumps({"peak": peak(), "seconds": time.perf_counter() - began, "numbers": numbers}))
"""


def measure(code: str, *arguments: object) -> Measured:
    """Runs `code` (which may fill `numbers`) in a fresh interpreter."""
    command = [sys.executable, "-P", "-c", _FRAME % code, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    answers = [line for line in done.stdout.splitlines() if line.startswith("MEASURED ")]
    if done.returncode or not answers:
        raise SystemExit(f"a measurement failed:\n{done.stdout}{done.stderr}")
    answer = json.loads(answers[-1].removeprefix("MEASURED "))
    return Measured(answer["peak"], answer["seconds"], answer["numbers"])


def ratio(what: str, large: float, small: float, goal: float, unit: str) -> Row:
    found = large / small
    return Row(what, f"{found:.2f}x ({small:,.2f} → {large:,.2f} {unit})", f"≤ {goal:g}x", found <= goal)


# --- rows ---------------------------------------------------------------------------------------------------------------

_DATA = """
from pathlib import Path
from backpropagate_protocol.spec import DataSpec, ModelSpec
from backpropagate_runner.prepare import prepare
from backpropagate_runner.validate import scan
source, cache, backend = sys.argv[1:]
if backend == "toy":
    from backpropagate_backends.toy_tokenizer import BytesTokenizer
    tokenizer = BytesTokenizer()
else:
    from backpropagate_backends import registry
    tokenizer = registry.load("cpu").tokenizer(ModelSpec(name="tiny", path=backend))
numbers["before"] = peak()
data = DataSpec(source=source)
began = time.perf_counter()
found = scan(data)
numbers["validate"] = time.perf_counter() - began
ready = prepare(data, tokenizer, found, Path(cache), lambda done, total, detail: None)
numbers["prepare"] = time.perf_counter() - began - numbers["validate"]
numbers["rows"], numbers["tokens"] = ready.rows, ready.tokens
"""


def repeated(rows: int, folder: Path) -> Path:
    """A .jsonl of so many rows, the real ones over and over."""
    sample = next(path for path in SAMPLES if path.exists())
    lines = sample.read_bytes().splitlines(keepends=True)
    path = folder / f"{rows}.jsonl"
    with open(path, "wb", 1024 * 1024) as file:
        for index in range(rows):
            file.write(lines[index % len(lines)])
    return path


def prepared(rows: int, folder: Path, backend: str = "toy") -> Measured:
    source, cache = repeated(rows, folder), folder / "cache"
    found = measure(_DATA, source, cache, backend)
    assert found.numbers["rows"] == rows, found.numbers
    shutil.rmtree(cache)
    source.unlink()
    return found


def bench_data(scale: float, folder: Path) -> Iterable[Row]:
    few, many = int(100_000 * scale), int(1_000_000 * scale)
    small, large = prepared(few, folder), prepared(many, folder)
    title = f"{many:,} rows against {few:,}"
    yield ratio(f"{title}: peak memory", large.peak, small.peak, 1.3, "MiB")
    for part in ("validate", "prepare"):
        yield ratio(f"{title}: {part}", large.numbers[part], small.numbers[part], 11.5, "s")
    rate = many / (large.numbers["validate"] + large.numbers["prepare"])
    yield Row("rows/s validated and prepared, bytes as tokens", f"{rate:,.0f}", "told")
    tiny = ROOT / "fixtures" / "tiny-base"
    few = int(20_000 * scale)
    if not (ROOT / "backends" / "backpropagate_backends" / "cpu.py").exists():
        return
    real = prepared(few, folder, str(tiny))
    rate = few / real.numbers["prepare"]
    yield Row(f"rows/s prepared with the tiny base's tokenizer and template ({few:,} rows)", f"{rate:,.0f}", "told")
    added = real.peak - real.numbers["before"]
    yield Row("memory that this took on top of the loaded tokenizer", f"{added:,.0f} MiB", "told")


# --- history ------------------------------------------------------------------------------------------------------------

_ONE_RUN = """
import uuid
from backpropagate.keep import history
from backpropagate.keep.record import RunRow
losses = [(step, 3.0 / step) for step in range(1, 101)]
history.record(sys.argv[1], RunRow(
    run_id=str(uuid.UUID(int=0)), status="completed", model_name="tiny", dataset_info="/data/my_data.jsonl",
    hyperparameters={"steps": 100, "learning_rate": 2e-4, "effective_batch": 8}, started_at="2026-01-01T00:00:00Z",
    completed_at="2026-01-01T01:00:00Z", steps=100, total_steps=100, final_loss=0.03, loss_history=losses,
))
"""


def history_of(runs: int, output: Path) -> Path:
    """An output folder whose history has so many rows: one that was recorded, again under other ids."""
    output.mkdir()
    measure(_ONE_RUN, output)
    path = output / "run_history.json"
    head, line, tail = path.read_bytes().split(b"\n", 2)
    zero = str(uuid.UUID(int=0)).encode()
    rows = (line.replace(zero, str(uuid.UUID(int=index + 1)).encode()) for index in range(runs))
    path.write_bytes(head + b"\n" + b",\n".join(rows) + b"\n" + tail)
    return output


def listed(output: Path) -> float:
    """Seconds that `backprop list-runs --json` takes, the best of seven."""
    command = [sys.executable, "-P", "-m", "backpropagate", "list-runs", "--output", str(output), "--json"]
    best = float("inf")
    for _ in range(7):
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, check=True)
        best = min(best, time.perf_counter() - began)
        assert len(json.loads(done.stdout)["runs"]) == 20, "list-runs shows the newest twenty"
    return best


def bench_history(scale: float, folder: Path) -> Iterable[Row]:
    few, many = 100, max(int(10_000 * scale), 100)
    small, large = (listed(history_of(runs, folder / f"history-{index}")) for index, runs in enumerate((few, many)))
    yield ratio(f"`list-runs` over {many:,} runs against {few:,}", large * 1000, small * 1000, 2.0, "ms")


# --- steps --------------------------------------------------------------------------------------------------------------

_STEPS = """
import uuid
from pathlib import Path
from backpropagate.keep import runs
from backpropagate.drive.supervise import supervise
from backpropagate_protocol.spec import DataSpec, ModelSpec, RunSpec, TrainSpec
source, output, steps = sys.argv[1:]
spec = RunSpec(
    run_id=str(uuid.uuid4()), created="2026-01-01T00:00:00Z", backend="toy", output=output,
    model=ModelSpec(name="toy", path="toy"), data=DataSpec(source=source),
    train=TrainSpec(steps=int(steps), effective_batch=1, batch_size=1),
)
run_dir = runs.create(spec)
numbers["exit"] = supervise(run_dir).exit_code
numbers["events"] = run_dir.events.stat().st_size / 2**20
numbers["lines"] = sum(1 for line in open(run_dir.events, "rb"))
"""


# The toy is faster than the pipe, so most of its progress is rightly dropped on the way; here every step arrives.
_JOURNAL = """
from pathlib import Path
from backpropagate.events import Step
from backpropagate.keep.journal import Journal
path, steps = Path(sys.argv[1]), int(sys.argv[2])
with Journal(path) as journal:
    for n in range(1, steps + 1):
        journal.append(Step(run_id="r" * 36, time=float(n), step=n, total_steps=steps, samples_seen=8 * n, order=n, loss=1 / n,
                            learning_rate=2e-4, grad_norm=1.0, tokens=4000 * n, step_seconds=0.25))
numbers["events"] = path.stat().st_size / 2**20
"""


def stepped(steps: int, folder: Path) -> Measured:
    source = folder / f"steps-{steps}.jsonl"
    source.write_text("".join(json.dumps({"text": "word " * (n + 1)}) + "\n" for n in range(100)))
    found = measure(_STEPS, source, folder / f"steps-{steps}", steps)
    assert found.numbers["exit"] == 0, found.numbers
    return found


def bench_steps(scale: float, folder: Path) -> Iterable[Row]:
    few, many = max(int(10_000 * scale), 10), max(int(1_000_000 * scale), 10)
    small, large = stepped(few, folder), stepped(many, folder)
    title = f"a toy run of {many:,} steps"
    yield Row(f"{title}: the parent's peak memory", f"{large.peak:.1f} MiB", "≤ 40 MiB", large.peak <= 40)
    yield ratio(f"{title} against {few:,}: the parent's peak memory", large.peak, small.peak, 1.3, "MiB")
    events = large.numbers["events"]
    found = (
        f"{events:.2f} MiB in {large.numbers['lines']:,.0f} lines (at {few:,} steps: {small.numbers['events']:.2f} MiB)"
    )
    yield Row(f"{title}: events.jsonl", found, "≤ 16 MiB", events <= 16)
    every = measure(_JOURNAL, folder / "events.jsonl", many)
    events = every.numbers["events"]
    yield Row(f"events.jsonl where each of {many:,} steps arrives", f"{events:.2f} MiB", "≤ 16 MiB", events <= 16)
    yield Row(f"{title}: steps/s", f"{many / large.seconds:,.0f}", "told")


BENCHES: dict[str, Callable[[float, Path], Iterable[Row]]] = {
    "data": bench_data,
    "history": bench_history,
    "steps": bench_steps,
}


def main() -> int:
    parser = argparse.ArgumentParser(description="growth: data, history and steps, a hundred times larger")
    parser.add_argument("--scale", type=float, default=1.0, help="1 is what the goals are stated for")
    parser.add_argument("--only", default=",".join(BENCHES), help=f"some of {','.join(BENCHES)}")
    parser.add_argument(
        "--folder", type=Path, help="where to write the data (a few GiB at scale 1); default: temporary"
    )
    options = parser.parse_args()
    began = time.perf_counter()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for name in options.only.split(","):
            rows += BENCHES[name](options.scale, Path(folder))
    print("| what | measured | goal | |\n|---|---|---|---|")
    for row in rows:
        verdict = "" if row.met is None else "pass" if row.met else "**short**"
        print(f"| {row.what} | {row.found} | {row.goal} | {verdict} |")
    print(
        f"\n{time.perf_counter() - began:.0f} s on {os.cpu_count()} cores, {sys.platform}, Python {sys.version.split()[0]}"
    )
    return 0 if all(row.met is not False for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
