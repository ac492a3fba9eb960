"""The same fine-tuning by TRL alone, in one process: the measure that a supervised run is held against.

    python scripts/plain_trl.py MODEL DATA.jsonl STEPS BATCH RANK MAX_LENGTH

Prints one JSON object: for every optimizer step, when it ended (wall clock) and the CPU seconds used up to then.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def main() -> int:
    model_path, data_path, *numbers = sys.argv[1:]
    steps, batch, rank, max_length = map(int, numbers)

    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        PrinterCallback,
        TrainerCallback,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )
    from trl import SFTConfig, SFTTrainer

    ended: list[tuple[float, float]] = []

    class Stopwatch(TrainerCallback):  # type: ignore[misc]  # transformers has no types that we follow
        def on_step_end(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
        ) -> None:
            ended.append((time.time(), time.process_time()))

    rows = [json.loads(line) for line in Path(data_path).read_text(encoding="utf-8").splitlines()]
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32, local_files_only=True),
            args=SFTConfig(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=batch,
                learning_rate=2e-4,
                lr_scheduler_type="cosine",
                warmup_steps=10,
                weight_decay=0.01,
                max_length=max_length,
                assistant_only_loss=True,
                seed=42,
                data_seed=42,
                use_cpu=True,
                bf16=False,
                activation_checkpointing=False,
                dataloader_pin_memory=False,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(model_path, local_files_only=True),
            peft_config=LoraConfig(
                r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
            ),
            callbacks=[Stopwatch()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    print(json.dumps({"wall": [wall for wall, _ in ended], "cpu": [cpu for _, cpu in ended]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
