"""The same fine-tuning by mlx-lm alone, in one process: the measure that a supervised run on MLX is held against.

    python scripts/plain_mlx.py MODEL DATA_FOLDER STEPS BATCH RANK MAX_LENGTH

DATA_FOLDER holds the train.jsonl that mlx-lm wants. mlx-lm's own trainer does the training, with the settings of
`scripts/bench_mlx.py`. Prints one JSON object: when each optimizer step ended, by the clock and in processor time, in seconds.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import mlx.optimizers as optim
from mlx_lm.tuner.callbacks import TrainingCallback
from mlx_lm.tuner.datasets import CacheDataset, load_local_dataset
from mlx_lm.tuner.trainer import TrainingArgs, train
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load


class Stopwatch(TrainingCallback):  # type: ignore[misc]  # mlx-lm has no types
    """mlx-lm reports each step; what lies between two reports is a step."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def on_train_loss_report(self, train_info: dict[str, float]) -> None:
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())


def main() -> int:
    model_path, data, *numbers = sys.argv[1:]
    steps, batch, rank, max_length = map(int, numbers)
    model, tokenizer = load(model_path)
    if not mx.metal.is_available():
        model.set_dtype(mx.float32)
    model.freeze()
    mx.random.seed(42)
    linear_to_lora_layers(model, -1, {"rank": rank, "scale": 2.0, "dropout": 0.0})
    config = SimpleNamespace(mask_prompt=True)
    loaded, _, _ = load_local_dataset(Path(data), tokenizer, config)
    rows = CacheDataset(loaded)
    if not mx.metal.is_available():
        # Off Metal our own loop pads to the longest row, and mlx-lm to the next 32: the same shapes for both.
        max_length = min(max_length, max(len(rows[row][0]) for row in range(len(rows))))
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        train(
            model,
            optim.AdamW(learning_rate=2e-4, weight_decay=0.01),
            rows,
            None,
            TrainingArgs(
                batch_size=batch,
                iters=steps,
                val_batches=0,
                steps_per_report=1,
                steps_per_eval=10**9,
                steps_per_save=10**9,
                max_seq_length=max_length,
                adapter_file=str(Path(folder) / "adapters.safetensors"),
            ),
            training_callback=watch,
        )
    print("\n" + json.dumps({"wall": watch.wall, "cpu": watch.cpu}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
