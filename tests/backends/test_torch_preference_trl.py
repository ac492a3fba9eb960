"""TRL as the oracle: where no batch is cut, its own preference trainers have our losses, step for step.

Each step's loss hangs on the gradients of all steps before it, so equal losses over a run are equal gradients too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest

from backpropagate_backends.cpu import CpuBackend
from backpropagate_protocol.prepared import LABELLED, PAIRS, Prepared, PreparedWriter, Row
from tests.backends.preferences import LEARNING_RATE, preference_job
from tests.backends.torch_runs import FOREIGN_WARNINGS, run

pytestmark = [
    pytest.mark.slow,
    FOREIGN_WARNINGS,
    pytest.mark.filterwarnings("ignore::UserWarning:trl"),
    pytest.mark.filterwarnings("ignore::FutureWarning:trl"),
]

ROWS, STEPS, SEED = 10, 3, 7  # two whole steps, and one of 2 samples: what ends an epoch

# Not our defaults, and not TRL's: a knob that is not wired shows.
KNOBS: dict[str, dict[str, object]] = {
    "orpo": {"beta": 0.3},
    "simpo": {"beta": 1.5, "gamma": 0.7},
    "dpo": {"beta": 0.25},
    "kto": {"beta": 0.35, "desirable_weight": 1.5, "undesirable_weight": 0.8},
}


@pytest.mark.parametrize("method", KNOBS)
def test_trls_own_trainer_has_the_same_losses(cpu: CpuBackend, tiny: Path, tmp_path: Path, method: str) -> None:
    losses, data = _plain(method, tiny, tmp_path)
    job = preference_job(tiny, method, {"steps": STEPS, "warmup_steps": 0, **KNOBS[method]})
    ours = run(cpu, job, data, tmp_path / "ours")
    assert [step.loss for step in ours.session.progress] == pytest.approx(losses, abs=2e-5)
    assert len(set(losses)) == STEPS  # the model did move


def _plain(method: str, tiny: Path, folder: Path) -> tuple[list[float], Prepared]:
    """TRL's losses, and the very tokens that it made of its rows."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    from backpropagate_backends.torch_data import EpochOrder

    kinds: dict[str, tuple[type, type, dict[str, object]]] = {
        "orpo": (ORPOTrainer, ORPOConfig, {"max_length": 256}),
        "simpo": (CPOTrainer, CPOConfig, {"loss_type": "simpo", "cpo_alpha": 0.0, "max_length": 256}),
        "dpo": (DPOTrainer, DPOConfig, {"max_length": 256}),
        "kto": (KTOTrainer, KTOConfig, {"max_length": 256}),
    }
    kind, config, options = kinds[method]
    names = {"gamma": "simpo_gamma"}
    options = options | {names.get(name, name): value for name, value in KNOBS[method].items()}
    fields = {field.name for field in dataclasses.fields(config)}
    options[next(n for n in ("activation_checkpointing", "gradient_checkpointing") if n in fields)] = False
    losses: list[float] = []

    class Listen(TrainerCallback):  # type: ignore[misc]  # transformers has no types
        def on_log(self, *args: object, logs: dict[str, float], **kwargs: object) -> None:
            if "loss" in logs:
                losses.append(logs["loss"])

    order: list[int] = EpochOrder(ROWS, SEED).permutation().tolist()
    rows = [_row(method, index) for index in range(ROWS)]
    if method == "kto":  # TRL takes them as they come, since its KL pairs are neighbours of the data set
        rows = [rows[index] for index in order]
    trainer = kind(
        model=AutoModelForCausalLM.from_pretrained(tiny),
        args=config(
            output_dir=str(folder / "plain"),
            max_steps=STEPS,
            per_device_train_batch_size=4,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="cosine",
            warmup_steps=0,
            weight_decay=0.01,
            logging_steps=1,
            save_strategy="no",
            seed=SEED,
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            report_to="none",
            dataloader_pin_memory=False,
            **options,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(tiny),
        peft_config=LoraConfig(
            r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=[Listen()],
    )
    made = list(trainer.train_dataset)
    if method == "kto":
        made = [made[order.index(index)] for index in range(ROWS)]
    trainer.train()
    return losses, _prepared(method, made, folder / "data")


def _row(method: str, index: int) -> dict[str, object]:
    prompt = " ".join(["The capital of France"] * (1 + index * 5 % 4))
    good = "".join(f" is Paris {index}" for _ in range(1 + index * 7 % 5))
    bad = "".join(f" was cold {index}" for _ in range(1 + index * 3 % 7))
    if method == "kto":
        label = index % 3 != 0
        return {"prompt": prompt + "?", "completion": good if label else bad, "label": label}
    return {"prompt": prompt + "?", "chosen": good, "rejected": bad}


def _prepared(method: str, made: list[Mapping[str, object]], folder: Path) -> Prepared:
    writer = PreparedWriter(folder, kind=LABELLED if method == "kto" else PAIRS)
    for row in made:
        if method == "kto":
            writer.add_labelled(*_joined(row["prompt_ids"], row["completion_ids"]), bool(row["label"]))
        elif method == "dpo":
            writer.add_pair(*(_joined(row["prompt_ids"], row[f"{name}_ids"]) for name in ("chosen", "rejected")))
        else:
            writer.add_pair(*(_masked(row[f"{n}_input_ids"], row[f"{n}_labels"]) for n in ("chosen", "rejected")))
    writer.commit(key="test", skipped=0, truncated=0, format="preference", source_digest="test")
    return Prepared(folder)


def _joined(prompt: object, answer: object) -> Row:
    assert isinstance(prompt, list)
    assert isinstance(answer, list)
    return prompt + answer, [0] * len(prompt) + [1] * len(answer)


def _masked(ids: object, labels: object) -> Row:
    assert isinstance(ids, list)
    assert isinstance(labels, list)
    return ids, [int(label != -100) for label in labels]
