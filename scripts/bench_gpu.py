"""What one GPU does under supervision, in tokens per second and peak memory, beside TRL, Liger and Unsloth; prints a table.

    python scripts/bench_gpu.py                        every row, on a CUDA card: about an hour
    python scripts/bench_gpu.py --only 7b,1b           some rows
    python scripts/bench_gpu.py --unsloth-python PATH  Unsloth from an environment of its own (see `backprop setup --unsloth`)
    python scripts/bench_gpu.py --tiny                 the bench itself, tried out with tiny models on the CPU

Models have the real shapes and random weights, rows are made up: nothing is downloaded. Every training is a process of its
own; ours run under their real supervisor. "Bound to 16 GB" is a limit on what torch may allocate, half a GiB less than that
for the CUDA context: whether a training ends in it is judged, its peak is told. A step counts from the end of the one before
to its own end; the first ones are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from _bench_gpu_plain import Wish
from _bench_gpu_shapes import SHAPES, shrunk, write_model, write_pairs, write_rows
from backpropagate.events import AttemptStarted, FaultSeen, Recovering, RunEnded, Step
from backpropagate.keep import runs
from backpropagate.keep.journal import Follower
from backpropagate_protocol.spec import DataSpec, LoraSpec, ModelSpec, RunSpec, SafetySpec, TrainSpec

HERE = Path(__file__).resolve().parent
CARD, CONTEXT = 16.0, 0.5  # GiB
WARM = 3  # steps that are left out: compilers, allocators and caches settle
PATIENCE = 3600.0

# Found on PYTHONPATH by the runner's interpreter: bounds its memory when the framework is there, before anything is loaded.
_BOUND = """
import os, sys
class Bound:
    def find_spec(self, name, path=None, target=None):
        if name == "backpropagate_backends.torch_train":
            sys.meta_path.remove(self)
            import torch
            if torch.cuda.is_available():
                whole = torch.cuda.get_device_properties(0).total_memory / 2**30
                torch.cuda.set_per_process_memory_fraction(min(1.0, float(os.environ["BENCH_GPU_GIB"]) / whole))
if "BENCH_GPU_GIB" in os.environ:
    sys.meta_path.insert(0, Bound())
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bench works and on what."""

    folder: Path
    device: str
    tiny: bool
    steps: int | None
    unsloth_python: str | None

    @property
    def dtype(self) -> str:
        return "bfloat16" if self.device == "cuda" else "float32"

    def model(self, name: str) -> str:
        """Made when it is first asked for; the others go, since a disk is no larger than it is."""
        folder = self.folder / f"model-{name}"
        if not folder.is_dir():
            for other in self.folder.glob("model-*"):
                shutil.rmtree(other)
            shape = shrunk(SHAPES[name]) if self.tiny else SHAPES[name]
            write_model(shape, folder, device=self.device, dtype=self.dtype)
        return str(folder)

    def count(self, steps: int) -> int:
        return self.steps or (6 if self.tiny else steps)

    def length(self, tokens: int) -> int:
        return max(32, tokens // 16) if self.tiny else tokens


@dataclass(slots=True)
class Figures:
    """What was measured of one training; `halvings`: out-of-memory faults that were recovered from."""

    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    peak: int = 0  # MiB
    halvings: int = 0
    micro_batch: int = 0
    failed: str = ""

    @property
    def speed(self) -> float:
        """Tokens in a second, over all steps but the first."""
        skip = min(WARM, max(0, len(self.seconds) - 2))
        spent = sum(self.seconds[skip:])
        return sum(self.tokens[skip:]) / spent if spent else 0.0

    @property
    def loss(self) -> float:
        return statistics.fmean(self.losses[-5:]) if self.losses else float("nan")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    what: str
    found: Figures
    goal: str = ""
    met: bool | None = None

    def line(self) -> str:
        if self.found.failed:
            verdict = "**short**" if self.met is False else ""
            return f"| {self.what} | - | - | - | {self.found.failed} | {self.goal} | {verdict} |"
        more = (
            f"{self.found.halvings} × out of memory, then batch {self.found.micro_batch}" if self.found.halvings else ""
        )
        verdict = {None: "", True: "met", False: "**short**"}[self.met]
        f = self.found
        return (
            f"| {self.what} | {f.speed:,.0f} | {f.peak / 1024:.1f} | {f.loss:.4f} | {more} | {self.goal} | {verdict} |"
        )


# ----- ours ----------------------------------------------------------------------------------------------------------


def ours(place: Place, model: str, rows: Path, *, memory: float = 0.0, rank: int = 16, length: int = 2048, four_bit: bool = False, packing: bool | None = None, **train: object) -> Figures:  # fmt: skip
    """One supervised training, watched by its journal."""
    method = str(train.get("method", "sft"))
    spec = RunSpec(
        run_id=str(uuid.uuid4()),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        backend=place.device,
        output=str(place.folder / "output"),
        model=ModelSpec(name=model, path=model, load_in_4bit=four_bit),
        data=DataSpec(source=str(rows), max_length=place.length(length), packing=packing, method=method),
        lora=LoraSpec(preset="custom", r=rank, alpha=2 * rank),
        train=TrainSpec(**train),  # type: ignore[arg-type]
        safety=SafetySpec(save_steps=10),
    )
    run = runs.create(spec)
    bound = place.folder / "bound"
    bound.mkdir(exist_ok=True)
    (bound / "sitecustomize.py").write_text(_BOUND, encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(bound), os.environ.get("PYTHONPATH", "")])}
    if memory:
        env["BENCH_GPU_GIB"] = str(memory - CONTEXT)
    found = Figures()
    with open(place.folder / "supervisor.log", "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "backpropagate", "_supervise", str(run.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=env,
        )
        try:
            _follow(process, Follower(run.events), found)
        finally:
            process.kill()
            process.wait()
    shutil.rmtree(run.path, ignore_errors=True)
    return found


def _follow(process: subprocess.Popen[bytes], follower: Follower, found: Figures) -> None:
    deadline = time.monotonic() + PATIENCE
    before, ended = 0, False
    while not ended:
        gone = process.poll() is not None
        for event in follower.poll():
            if isinstance(event, AttemptStarted):
                before, found.micro_batch = 0, event.micro_batch
                found.seconds, found.tokens = [], []
            elif isinstance(event, Step):
                found.seconds.append(event.step_seconds)
                found.tokens.append(event.tokens - before)
                before = event.tokens
                found.peak = max(found.peak, event.memory_used)
                if event.loss is not None:
                    found.losses.append(event.loss)
            elif isinstance(event, FaultSeen):
                found.failed = f"{event.code}: {event.message[:80]}"
                found.halvings += event.kind == "oom"
            elif isinstance(event, Recovering):
                found.failed = ""
            elif isinstance(event, RunEnded):
                found.failed = "" if event.status == "completed" else f"{event.code}: {event.message[:120]}"
                ended = True
        if gone and not ended:
            found.failed = "the supervisor went without a word"
            return
        if time.monotonic() > deadline:
            found.failed = "it did not end"
            return
        time.sleep(0.2)


# ----- the others ----------------------------------------------------------------------------------------------------


def others(place: Place, way: str, wish: Wish) -> Figures:
    """The same by somebody else's means, in a process of its own."""
    python = place.unsloth_python if way == "unsloth" and place.unsloth_python else sys.executable
    path = place.folder / "wish.json"
    path.write_text(json.dumps(asdict(wish)), encoding="utf-8")
    done = subprocess.run(
        [python, str(HERE / "_bench_gpu_plain.py"), way, str(path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        cwd=place.folder,
    )
    if done.returncode != 0:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        return Figures(failed=f"{way}: {last[0][:120] if last else done.returncode}")
    said = json.loads(done.stdout.splitlines()[-1])
    return Figures(said["seconds"], said["tokens"], said["losses"], said["peak"], micro_batch=wish.batch)


# ----- the rows of the table -----------------------------------------------------------------------------------------


def headline(place: Place) -> list[Row]:
    rows = write_rows(place.folder / "rows.jsonl", 400, place.length(200), place.length(2000))
    steps = place.count(100)
    found = ours(
        place, place.model("7b"), rows, memory=CARD, four_bit=place.device == "cuda", steps=steps, effective_batch=32,
        batch_size=32,
    )  # fmt: skip
    met = None if place.tiny else not found.failed and found.halvings > 0
    return [
        Row("Qwen2.5 7B, QLoRA, bound to 16 GB, 100 steps from a batch too large", found, "ends, after an OOM", met)
    ]


def whole_model(place: Place) -> list[Row]:
    rows = write_rows(place.folder / "rows.jsonl", 200, place.length(200), place.length(1000))
    found = ours(
        place, place.model("3b"), rows, memory=CARD, length=1024, mode="full", steps=place.count(30), effective_batch=8,
        batch_size=2, learning_rate=2e-5,
    )  # fmt: skip
    met = None if place.tiny else not found.failed
    return [Row("Qwen2.5 3B, every weight, bound to 16 GB", found, "ends", met)]


def long_rows(place: Place) -> list[Row]:
    length = place.length(4096)
    rows = write_rows(place.folder / "rows.jsonl", 200, 2 * length, 2 * length)  # cut at exactly the length
    found = ours(
        place, place.model("8b"), rows, length=4096, steps=place.count(30), effective_batch=8, batch_size=2,
        gradient_checkpointing=True,
    )  # fmt: skip
    goal = 12_473 * 0.9
    met = None if place.tiny else not found.failed and found.speed >= goal
    return [Row("Llama 3.1 8B, LoRA, length 4096", found, "≥ 90 % of 12,473 on an H100", met)]


def beside_others(place: Place) -> list[Row]:
    rows = write_rows(place.folder / "rows.jsonl", 1500, place.length(100), place.length(2000))
    model, steps, batch, accumulation = place.model("1b"), place.count(40), 8, 2
    ways: dict[str, Callable[[], Figures]] = {
        "ours, supervised": lambda: ours(
            place, model, rows, steps=steps, effective_batch=batch * accumulation, batch_size=batch,
            gradient_checkpointing=True,
        ),
        "ours, supervised, by length": lambda: ours(
            place, model, rows, steps=steps, effective_batch=batch * accumulation, batch_size=batch,
            gradient_checkpointing=True, group_by_length=True,
        ),
    }  # fmt: skip
    wish = Wish(
        model=model, rows=str(rows), steps=steps, batch=batch, accumulation=accumulation, rank=16,
        length=place.length(2048), learning_rate=2e-4, four_bit=False, checkpointing=True, device=place.device,
    )  # fmt: skip
    for way in ("trl", "liger", "unsloth"):
        ways[way] = lambda way=way: others(place, way, wish)  # type: ignore[misc]
    found = {way: run() for way, run in ways.items()}
    rivals = {way: found[way] for way in ("trl", "liger", "unsloth")}
    best = max(figures.speed for figures in rivals.values())
    absent = [way for way, figures in rivals.items() if figures.failed]
    first = found["ours, supervised"]
    same = abs(first.loss - found["trl"].loss) < 0.02
    won = not first.failed and first.speed >= best and same
    goal = "≥ the best, at TRL's loss" + (f"; not judged without {', '.join(absent)}" if won and absent else "")
    lines = []
    for way, figures in found.items():
        ratio = f"{first.speed / figures.speed:.2f} ×" if figures.speed and way not in ("ours, supervised",) else ""
        mine = way == "ours, supervised"
        met = None if place.tiny or not mine or (won and absent) else won
        lines.append(Row(f"Llama 3.2 1B, LoRA: {way}", figures, goal if mine else f"ours {ratio}", met))
    return lines


def eight_bits(place: Place) -> list[Row]:
    rows = write_rows(place.folder / "rows.jsonl", 400, place.length(2048), place.length(2048))
    lines = []
    for fp8 in (False, True):
        found = ours(
            place, place.model("8b"), rows, steps=place.count(30), effective_batch=8, batch_size=4, fp8=fp8,
            gradient_checkpointing=True,
        )  # fmt: skip
        lines.append(Row(f"Llama 3.1 8B, LoRA, {'FP8' if fp8 else 'bf16'}", found))
    return lines


def preferences(place: Place) -> list[Row]:
    pairs = write_pairs(place.folder / "pairs.jsonl", 400, place.length(400))
    found = ours(
        place, place.model("1b"), pairs, method="orpo", beta=0.1, learning_rate=8e-6, steps=place.count(30),
        effective_batch=8, batch_size=4,
    )  # fmt: skip
    return [Row("Llama 3.2 1B, ORPO", found, "ends", None if place.tiny else not found.failed)]


CASES: dict[str, Callable[[Place], list[Row]]] = {
    "1b": beside_others,
    "orpo": preferences,
    "8b": long_rows,
    "fp8": eight_bits,
    "3b": whole_model,
    "7b": headline,
}


def _device(tiny: bool) -> str:
    import torch

    if tiny:
        torch.set_num_threads(1)
        return "cpu"
    if not torch.cuda.is_available():
        sys.exit("This bench needs a CUDA card; --tiny tries it out without one.")
    return "cuda"


def _where(device: str) -> str:
    import torch
    import transformers

    name = torch.cuda.get_device_name(0) if device == "cuda" else "CPU, tiny models: no figure means anything"
    return f"{name}; torch {torch.__version__}, transformers {transformers.__version__}; {datetime.now(UTC):%Y-%m-%d}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(CASES), help=f"rows, separated by commas: {', '.join(CASES)}")
    parser.add_argument("--steps", type=int, help="optimizer steps of every training, instead of the row's own")
    parser.add_argument("--tiny", action="store_true", help="try the bench out: tiny models on the CPU")
    parser.add_argument("--unsloth-python", help="interpreter that has Unsloth")
    parser.add_argument("--keep", type=Path, help="folder to work in; default: a temporary one that goes")
    given = parser.parse_args(arguments)
    wanted = given.only.split(",")
    if unknown := set(wanted) - set(CASES):
        parser.error(f"there is no row {sorted(unknown)[0]!r}")
    device = _device(given.tiny)
    print(f"{_where(device)}\n", flush=True)
    print("| what | tokens/s | peak GiB | loss | recovered | goal | |\n|---|---|---|---|---|---|---|", flush=True)
    short = False
    with tempfile.TemporaryDirectory() as temporary:
        place = Place(given.keep or Path(temporary), device, given.tiny, given.steps, given.unsloth_python)
        for name in CASES:
            for row in CASES[name](place) if name in wanted else ():
                print(row.line(), flush=True)
                short = short or row.met is False
    return int(short)


if __name__ == "__main__":
    sys.exit(main())
