"""Held-out preference rows: scored without a trace, and the same to the bit whatever the micro-batch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backpropagate_backends.cpu import CpuBackend
from backpropagate_protocol.prepared import PAIRS, Prepared
from tests.backends.preferences import make_preferences
from tests.backends.torch_runs import FOREIGN_WARNINGS

if TYPE_CHECKING:
    from backpropagate_backends.torch_preference import PreferenceTrainer

pytestmark = [pytest.mark.slow, FOREIGN_WARNINGS]

# What a fresh model says: with its adapter at 0 it is its own reference.
AT_THE_START = {"dpo": 0.6931, "kto": 0.5}


@pytest.mark.parametrize("method", ["orpo", "simpo", "dpo", "kto"])
def test_held_out_rows_are_scored_by_the_methods_own_loss_and_leave_no_trace(
    cpu: CpuBackend, tiny: Path, tmp_path: Path, method: str
) -> None:
    import torch

    data = make_preferences(method, tmp_path / "data")
    asked: list[tuple[int, int]] = []

    def go_on(done: int, total: int) -> bool:
        asked.append((done, total))
        return True

    scores = []
    for micro_batch in (4, 2):
        trainer = _trainer(tiny, method, data, tmp_path, micro_batch)
        trainer.model.train()
        before = torch.get_rng_state()
        scores.append(trainer.held_out_loss(data, go_on))
        assert torch.equal(torch.get_rng_state(), before)
        assert trainer.model.training
    assert scores[0] == scores[1]
    score = scores[0]
    assert score is not None
    assert score.rows == len(data)
    assert score.tokens == data.manifest.trained_tokens
    assert asked[-1][0] < len(data) == asked[-1][1]
    if method in AT_THE_START:
        assert score.loss == pytest.approx(AT_THE_START[method], abs=1e-4)
    assert trainer.held_out_loss(data, lambda done, total: False) is None


@pytest.mark.parametrize("method", ["orpo", "kto"])
def test_no_batch_of_held_out_rows_is_larger_than_the_longest_sample(tmp_path: Path, method: str) -> None:
    from backpropagate_backends.torch_pairs import batches_by_length

    data = make_preferences(method, tmp_path / "data")
    batches = list(batches_by_length(data))
    assert sorted(index for batch in batches for index in batch) == list(range(len(data)))
    assert any(len(batch) > 1 for batch in batches)
    assert max(len(batch) * max(_longest(data, i) for i in batch) for batch in batches) == max(
        _longest(data, i) for i in range(len(data))
    )


def _longest(data: Prepared, index: int) -> int:
    return max(len(ids) for ids, _ in (data.pair(index) if data.kind == PAIRS else (data.row(index),)))


def _trainer(tiny: Path, method: str, data: Prepared, folder: Path, micro_batch: int) -> PreferenceTrainer:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig

    from backpropagate_backends.torch_data import ids_dataset
    from backpropagate_backends.torch_model import add_adapter
    from backpropagate_backends.torch_preference import PreferenceTrainer, preference_collator
    from backpropagate_backends.torch_preference_loss import preference_of
    from backpropagate_protocol.spec import LoraSpec, TrainSpec

    # the field has a new name from transformers 5.23 on
    names = {field.name for field in dataclasses.fields(SFTConfig)}
    checkpointing = next(name for name in ("activation_checkpointing", "gradient_checkpointing") if name in names)
    preference = preference_of(TrainSpec(method=method))
    assert preference is not None
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    trainer = PreferenceTrainer(
        model=add_adapter(AutoModelForCausalLM.from_pretrained(tiny), LoraSpec(r=8, alpha=16), 7),
        args=SFTConfig(
            output_dir=str(folder / "out"),
            per_device_train_batch_size=micro_batch,
            use_cpu=True,
            bf16=False,
            report_to="none",
            dataloader_pin_memory=False,
            **{checkpointing: False},
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
            max_length=None,
        ),
        train_dataset=ids_dataset(data),
        data_collator=preference_collator(preference, data, tokenizer, 2048),
        processing_class=tokenizer,
    )
    trainer.prefer(preference, data, 2048)
    return trainer
