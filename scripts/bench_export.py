"""What an export costs: time and memory against PEFT's merge, llama.cpp's converter and its quantizer, on the same model.

    python scripts/bench_export.py                     0.48 B random parameters; some minutes, 4 GB of disk
    python scripts/bench_export.py --small --rounds 1  a look whether it runs

Base and adapter (r=16 on all linear layers) to Q4_K_M. Ours are the real children of the stages `convert` and `quantize`;
the others are processes of plain_export.py. Both are made in turns, so that a machine that slows down slows both; of each
step the median counts. Memory is the peak of anonymous pages (RssAnon), looked at every 5 ms: mapped files, which the
system can drop, are not counted. Ours waits until each file is on the disk; the others do not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psutil
from safetensors.numpy import save_file

from backpropagate.doors.oneshot import run_job
from backpropagate_protocol.jobs import ConvertJob, QuantizeJob
from backpropagate_protocol.messages import Hello, Made, ToParent
from backpropagate_protocol.spec import ModelSpec
from backpropagate_runner.export.official import find_converter

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "fixtures" / "tiny-base"
RANK = 16
PATIENCE = 1800.0
_LOOK = 0.005


@dataclass(frozen=True)
class Shape:
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int


LARGE = Shape(hidden=1024, inner=3584, layers=24, heads=16, kv_heads=4, vocabulary=151_936)
SMALL = Shape(hidden=256, inner=512, layers=2, heads=4, kv_heads=2, vocabulary=1_280)


# ----- what is exported ----------------------------------------------------------------------------------------------


def _linears(shape: Shape) -> Iterator[tuple[str, int, int]]:
    """Name, outputs and inputs of every linear layer."""
    width = shape.hidden // shape.heads * shape.kv_heads
    for layer in range(shape.layers):
        for name, outputs, inputs in (
            ("self_attn.q_proj", shape.hidden, shape.hidden),
            ("self_attn.k_proj", width, shape.hidden),
            ("self_attn.v_proj", width, shape.hidden),
            ("self_attn.o_proj", shape.hidden, shape.hidden),
            ("mlp.gate_proj", shape.inner, shape.hidden),
            ("mlp.up_proj", shape.inner, shape.hidden),
            ("mlp.down_proj", shape.hidden, shape.inner),
        ):
            yield f"model.layers.{layer}.{name}", outputs, inputs


def write_base(folder: Path, shape: Shape) -> int:
    """A Qwen2 of random float16 weights with the tiny base's tokenizer; returns the size of its weights."""
    folder.mkdir()
    for file in TINY.iterdir():
        if file.suffix != ".safetensors":
            shutil.copyfile(file, folder / file.name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {
        "hidden_size": shape.hidden, "intermediate_size": shape.inner, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "vocab_size": shape.vocabulary,
        "layer_types": ["full_attention"] * shape.layers, "max_window_layers": shape.layers, "dtype": "float16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    random = np.random.default_rng(0)

    def some(*size: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
        return (random.standard_normal(size, dtype=np.float32) * np.float32(0.02)).astype(np.float16)

    tensors = {
        "model.embed_tokens.weight": some(shape.vocabulary, shape.hidden),
        "model.norm.weight": some(shape.hidden),
    }
    for layer in range(shape.layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = some(shape.hidden)
    for name, outputs, inputs in _linears(shape):
        tensors[f"{name}.weight"] = some(outputs, inputs)
        if name.endswith(("q_proj", "k_proj", "v_proj")):
            tensors[f"{name}.bias"] = some(outputs)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return (folder / "model.safetensors").stat().st_size


def write_adapter(folder: Path, shape: Shape, base: Path) -> None:
    folder.mkdir()
    random = np.random.default_rng(1)
    tensors = {}
    for name, outputs, inputs in _linears(shape):
        tensors[f"base_model.model.{name}.lora_A.weight"] = random.standard_normal((RANK, inputs), dtype=np.float32)
        tensors[f"base_model.model.{name}.lora_B.weight"] = (
            random.standard_normal((outputs, RANK), dtype=np.float32) * 1e-3
        )
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "r": RANK,
        "lora_alpha": 2 * RANK, "target_modules": sorted({name.rpartition(".")[2] for name, _, _ in _linears(shape)}),
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


# ----- how it is measured --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Of one step. seconds: by the clock. cpu: of processor time, all threads. anonymous: bytes at the peak."""

    seconds: float
    cpu: float
    anonymous: int


class Watch:
    """Looks at one process until it is gone, or until the block ends."""

    def __init__(self) -> None:
        self.anonymous = 0
        self.cpu = 0.0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def look_at(self, pid: int) -> None:
        self._thread = threading.Thread(target=self._look, args=(pid,), daemon=True)
        self._thread.start()

    def _look(self, pid: int) -> None:
        try:
            process = psutil.Process(pid)
        except psutil.Error:
            return
        while not self._over.wait(_LOOK):
            try:
                self.anonymous = max(self.anonymous, anonymous_bytes(pid))
                times = process.cpu_times()
                self.cpu = max(self.cpu, times.user + times.system)  # nothing more is told of one that has ended
            except (OSError, psutil.Error):
                return

    def stop(self) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()


def anonymous_bytes(pid: int) -> int:
    """Where the system does not tell them apart: all that is resident and the process' own."""
    if sys.platform == "linux":
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
        return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon")), 0)
    memory = psutil.Process(pid).memory_info()
    return int(getattr(memory, "private", memory.rss))


@contextmanager
def timed(watch: Watch, costs: dict[str, list[Cost]], step: str) -> Iterator[None]:
    began = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - began
        watch.stop()
    costs.setdefault(step, []).append(Cost(seconds, watch.cpu, watch.anonymous))


def our_stage(job: ConvertJob | QuantizeJob, costs: dict[str, list[Cost]], step: str) -> None:
    watch = Watch()

    def heard(message: ToParent) -> None:
        if isinstance(message, Hello):
            watch.look_at(message.pid)

    with timed(watch, costs, step):
        run_job(job, Made, backend="none", on_message=heard)


def plain_step(costs: dict[str, list[Cost]], step: str, *arguments: object) -> None:
    watch = Watch()
    command = [sys.executable, "-P", str(ROOT / "scripts" / "plain_export.py"), *map(str, arguments)]
    with timed(watch, costs, step), tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        watch.look_at(process.pid)
        if process.wait(PATIENCE):
            said.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{said.read()[-2000:]}")


def ours(folder: Path, base: Path, adapter: Path, costs: dict[str, list[Cost]]) -> None:
    """Base and adapter to f16 in one pass, then quantized."""
    between, out = folder / "ours-f16.gguf", folder / "ours-q4_k_m.gguf"
    model = ModelSpec(name="bench", path=str(base))
    job = ConvertJob(model=model, adapter=str(adapter), out=str(between), type="f16", name="bench", memory=256)
    our_stage(job, costs, "convert")
    our_stage(QuantizeJob(source=str(between), out=str(out), quantization="q4_k_m"), costs, "quantize")
    between.unlink()


def theirs(folder: Path, base: Path, adapter: Path, converter: Path, costs: dict[str, list[Cost]]) -> None:
    merged, between, out = folder / "merged", folder / "plain-f16.gguf", folder / "plain-q4_k_m.gguf"
    plain_step(costs, "merge", "merge", base, adapter, merged)
    plain_step(costs, "convert", "convert", merged, between, converter)
    shutil.rmtree(merged)
    plain_step(costs, "quantize", "quantize", between, out)
    between.unlink()


# ----- what is told --------------------------------------------------------------------------------------------------


def middle(costs: list[Cost]) -> Cost:
    """Of several rounds: the median times, and the highest peak."""
    seconds, cpu = (statistics.median(getattr(cost, name) for cost in costs) for name in ("seconds", "cpu"))
    return Cost(seconds, cpu, max(cost.anonymous for cost in costs))


def total(costs: dict[str, list[Cost]]) -> Cost:
    """A whole round: all steps one after another."""
    rounds = [
        Cost(sum(cost.seconds for cost in turn), sum(cost.cpu for cost in turn), max(cost.anonymous for cost in turn))
        for turn in zip(*costs.values(), strict=True)
    ]
    return middle(rounds)


def row(what: str, cost: Cost, size: int) -> str:
    speed, share = size / cost.seconds / 1e6, cost.anonymous / size
    return f"| {what} | {cost.seconds:.1f} s | {cost.cpu:.1f} s | {speed:.0f} MB/s | {cost.anonymous / 1e6:.0f} MB | {share:.2f} |"


def ratio(what: str, found: float, goal: float | None) -> str:
    if goal is None:
        return f"| {what} | {found:.2f} | told | |"
    return f"| {what} | {found:.2f} | ≤ {goal:.2f} | {'met' if found <= goal else '**short**'} |"


STEPS: dict[str, str] = {"merge": "PEFT merge and save", "convert": "llama.cpp's converter, f16", "quantize": "llama.cpp's quantizer, Q4_K_M"}  # fmt: skip
OURS: dict[str, str] = {"convert": "merge and convert in one pass, f16", "quantize": "quantize, Q4_K_M"}


def report(size: int, mine: dict[str, list[Cost]], plain: dict[str, list[Cost]]) -> Iterator[str]:
    yield "| step | time | processor time | of the input | peak memory | over the model's size |"
    yield "|---|---|---|---|---|---|"
    for step, what in OURS.items():
        yield row(f"ours: {what}", middle(mine[step]), size)
    for step, what in STEPS.items():
        if step in plain:
            yield row(f"plain: {what}", middle(plain[step]), size)
    whole = total(mine)
    yield row("**ours, in all**", whole, size)
    if not plain:
        return
    other = total(plain)
    yield row("**plain, in all**", other, size)
    yield ""
    yield "| ours : plain | measured | goal | |"
    yield "|---|---|---|---|"
    yield ratio("time", whole.seconds / other.seconds, 0.75)
    yield ratio("processor time, which other programs disturb less", whole.cpu / other.cpu, None)
    yield ratio("peak memory", whole.anonymous / other.anonymous, 0.25)


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a model of a few megabytes, to see whether it runs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write the models; default: temporary")
    parser.add_argument("--llama-cpp", help="folder with llama.cpp's converter; default: where `backprop setup` put it")
    options = parser.parse_args()
    converter = find_converter(options.llama_cpp)
    shape = SMALL if options.small else LARGE
    mine: dict[str, list[Cost]] = {}
    plain: dict[str, list[Cost]] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        base, adapter = folder / "base", folder / "adapter"
        size = write_base(base, shape)
        write_adapter(adapter, shape, base)
        sides: list[Callable[[], None]] = [lambda: ours(folder, base, adapter, mine)]
        if converter is not None:
            sides.append(lambda: theirs(folder, base, adapter, converter, plain))
        for turn in range(options.rounds):
            for side in sides if turn % 2 == 0 else reversed(sides):
                side()
    for line in report(size, mine, plain):
        print(line)
    if converter is None:
        print("\nThe plain way was not run: llama.cpp's converter is not here (--llama-cpp FOLDER).")
    print(
        f"\n{size / 1e6:,.0f} MB of weights, {options.rounds} rounds, {os.cpu_count()} cores, {platform.system()} "
        f"{platform.machine()}, Python {platform.python_version()}, {datetime.now(UTC):%Y-%m-%d}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
