"""What we changed of TRL's trainer changes no number: the same run on a plain SFTTrainer has the same losses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from backpropagate_backends.cpu import CpuBackend
from backpropagate_protocol.prepared import Prepared
from tests.backends.torch_runs import FOREIGN_WARNINGS, run
from tests.backends.torch_session import make_job

pytestmark = [pytest.mark.slow, FOREIGN_WARNINGS]


def test_a_plain_sft_trainer_has_the_same_losses(cpu: CpuBackend, tiny: Path, rows: Prepared, tmp_path: Path) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    # the field has a new name from transformers 5.23 on
    names = {field.name for field in dataclasses.fields(SFTConfig)}
    checkpointing = next(name for name in ("activation_checkpointing", "gradient_checkpointing") if name in names)
    losses: list[float] = []

    class Listen(TrainerCallback):  # type: ignore[misc]  # transformers has no types
        def on_log(self, *args: object, logs: dict[str, float], **kwargs: object) -> None:
            if "loss" in logs:
                losses.append(logs["loss"])

    examples = [rows.row(index) for index in range(len(rows))]
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny),
        args=SFTConfig(
            output_dir=str(tmp_path / "plain"),
            max_steps=12,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            learning_rate=2e-3,
            lr_scheduler_type="cosine",
            warmup_steps=2,
            weight_decay=0.01,
            logging_steps=1,
            save_strategy="no",
            seed=7,
            use_cpu=True,
            bf16=False,
            **{checkpointing: False},
            disable_tqdm=True,
            dataloader_pin_memory=False,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=Dataset.from_dict(
            {
                "input_ids": [list(tokens) for tokens, _ in examples],
                "labels": [
                    [token if flag else -100 for token, flag in zip(tokens, trained, strict=True)]
                    for tokens, trained in examples
                ],
            }
        ),
        processing_class=AutoTokenizer.from_pretrained(tiny),
        peft_config=LoraConfig(
            r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=[Listen()],
    )
    trainer.train()

    ours = run(cpu, make_job(tiny, micro_batch=2, accumulation=2), rows, tmp_path / "ours")
    assert losses == pytest.approx([progress.loss for progress in ours.session.progress], abs=1e-6)
