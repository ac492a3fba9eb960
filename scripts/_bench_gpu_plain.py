"""The same fine-tuning without us, in this process: by TRL, by TRL with Liger's kernels, or by Unsloth.

    python scripts/_bench_gpu_plain.py trl|liger|unsloth WISH.json

WISH.json is a `Wish`. Prints one JSON object: seconds and tokens of every step (from the end of the one before), losses, and the peak of allocated memory.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@dataclass(frozen=True, slots=True)
class Wish:
    """What is trained. `memory`: GiB that may be allocated; 0: all."""

    model: str
    rows: str
    steps: int
    batch: int
    accumulation: int
    rank: int
    length: int
    learning_rate: float
    four_bit: bool
    checkpointing: bool
    device: str
    memory: float = 0.0


def main() -> int:
    way, wish = sys.argv[1], Wish(**json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
    if way == "unsloth":
        import unsloth  # noqa: F401 - before everything that it patches
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PrinterCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    cuda = wish.device == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    if cuda and wish.memory:
        whole = torch.cuda.get_device_properties(0).total_memory / 2**30
        torch.cuda.set_per_process_memory_fraction(min(1.0, wish.memory / whole))
    tokenizer = AutoTokenizer.from_pretrained(wish.model)
    if way == "unsloth":
        from unsloth import FastLanguageModel

        base, _ = FastLanguageModel.from_pretrained(
            wish.model, max_seq_length=wish.length, load_in_4bit=wish.four_bit, dtype=dtype, use_exact_model_name=True
        )
        model = FastLanguageModel.get_peft_model(
            base,
            r=wish.rank,
            lora_alpha=2 * wish.rank,
            lora_dropout=0.0,
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            use_gradient_checkpointing="unsloth" if wish.checkpointing and cuda else wish.checkpointing,
            random_state=42,
        )
        adapter = None
    else:
        from peft import LoraConfig

        four = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        model = AutoModelForCausalLM.from_pretrained(
            wish.model,
            dtype=dtype,
            device_map={"": 0 if cuda else "cpu"},
            quantization_config=four if wish.four_bit else None,
        )
        adapter = LoraConfig(r=wish.rank, lora_alpha=2 * wish.rank, target_modules="all-linear", task_type="CAUSAL_LM")
        if way == "liger":
            from liger_kernel.transformers import _apply_liger_kernel_to_instance

            _apply_liger_kernel_to_instance(model=model, fused_linear_cross_entropy=False, cross_entropy=False)

    ended: list[float] = []
    losses: list[float] = []
    tokens: list[int] = []

    class Stopwatch(TrainerCallback):  # type: ignore[misc]  # transformers has no types that we follow
        def on_log(self, *_: object, logs: dict[str, float] | None = None, **__: object) -> None:
            if logs and "loss" in logs:
                ended.append(time.perf_counter())  # to read the loss was to wait for the device
                losses.append(float(logs["loss"]))
                tokens.append(int(logs.get("num_tokens", 0)))

    rows = [json.loads(line) for line in Path(wish.rows).read_text(encoding="utf-8").splitlines()]
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=folder,
                max_steps=wish.steps,
                per_device_train_batch_size=wish.batch,
                gradient_accumulation_steps=wish.accumulation,
                gradient_checkpointing=wish.checkpointing,
                learning_rate=wish.learning_rate,
                lr_scheduler_type="cosine",
                warmup_steps=10,
                weight_decay=0.01,
                max_length=wish.length,
                optim="adamw_torch_fused" if cuda else "adamw_torch",
                bf16=cuda,
                use_cpu=not cuda,
                dataloader_pin_memory=cuda,
                seed=42,
                data_seed=42,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=adapter,
            callbacks=[Stopwatch()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    peak = torch.cuda.max_memory_allocated() >> 20 if cuda else 0
    each = [now - before for before, now in pairwise([0, *tokens])]
    seconds = [0.0, *(now - before for before, now in pairwise(ended))]
    print(json.dumps({"seconds": seconds, "tokens": each, "losses": losses, "peak": peak}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
