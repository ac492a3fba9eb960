"""Rows side by side are the rows they are alone, and whatever computes attention says the same; what cannot be had is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from backpropagate_backends.cpu import CpuBackend
from backpropagate_protocol.errors import InvalidSettingError
from backpropagate_protocol.jobs import TrainJob
from backpropagate_protocol.prepared import Prepared
from tests.backends.torch_runs import FOREIGN_WARNINGS, Run, distance, halved, resumed, run
from tests.backends.torch_session import make_job

pytestmark = [FOREIGN_WARNINGS, pytest.mark.usefixtures("cpu")]


def wished(model: Path, *, packing: bool | None = None, group_by_length: bool = False, **train: object) -> TrainJob:
    job = make_job(model, steps=8)
    spec = msgspec.structs.replace(
        job.spec,
        data=msgspec.structs.replace(job.spec.data, packing=packing),
        train=msgspec.structs.replace(job.spec.train, group_by_length=group_by_length, **train),
    )
    return msgspec.structs.replace(job, spec=spec)


@pytest.fixture(scope="module")
def packed(cpu: CpuBackend, tiny: Path, rows: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(cpu, wished(tiny), rows, tmp_path_factory.mktemp("packed"), save_at=[3])


def test_a_batch_side_by_side_has_every_token_and_no_padding(rows: Prepared) -> None:
    from backpropagate_backends.torch_data import CONSUMED, Collator, Consumed

    examples = [{"sample_id": 3}, {"sample_id": 0}, {"sample_id": 9}]
    padded, flat = Collator(rows, 0)(examples), Collator(rows, 0, side_by_side=True)(examples)
    lengths = [rows.length(index) for index in (3, 0, 9)]
    ids, labels, places = (np.asarray(flat[name])[0] for name in ("input_ids", "labels", "position_ids"))
    assert len(ids) == sum(lengths)
    assert np.asarray(flat["cu_seq_lens_q"]).tolist() == [0, *np.cumsum(lengths)]
    assert [place for length in lengths for place in range(length)] == places.tolist()
    cut = np.cumsum(lengths)[:-1]
    for at, (row, wanted) in enumerate(zip(np.split(ids, cut), np.split(labels, cut), strict=True)):
        assert row.tolist() == np.asarray(padded["input_ids"])[at, : len(row)].tolist()
        assert wanted.tolist() == np.asarray(padded["labels"])[at, : len(row)].tolist()
    one, other = flat[CONSUMED], padded[CONSUMED]
    assert isinstance(one, Consumed)
    assert one == other


def test_rows_of_one_length_stay_a_batch(rows: Prepared) -> None:
    from backpropagate_backends.torch_data import Collator

    assert "attention_mask" in Collator(rows, 0, side_by_side=True)([{"sample_id": 4}, {"sample_id": 4}])


@pytest.mark.slow
def test_rows_side_by_side_are_the_training_that_padding_is(
    cpu: CpuBackend, tiny: Path, rows: Prepared, packed: Run, tmp_path: Path
) -> None:
    begun = packed.session.begun
    assert begun is not None
    assert any("side by side" in note for note in begun.notes)
    padded = run(cpu, wished(tiny, packing=False), rows, tmp_path)
    assert padded.orders() == packed.orders()
    assert distance(padded, packed) < 1e-6


@pytest.mark.slow
def test_rows_side_by_side_resume_to_the_bit_and_halve_within_rounding(
    cpu: CpuBackend, tiny: Path, rows: Prepared, packed: Run, tmp_path: Path
) -> None:
    checkpoint = packed.session.checkpoint(3)
    again = run(cpu, resumed(wished(tiny), checkpoint), rows, tmp_path / "a")
    assert again.done.digest == packed.done.digest
    half = run(cpu, halved(resumed(wished(tiny), checkpoint)), rows, tmp_path / "b")
    assert half.done.order == packed.done.order
    assert distance(half, packed) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_attention_computes_the_same(
    cpu: CpuBackend, tiny: Path, rows: Prepared, packed: Run, tmp_path: Path, attention: str
) -> None:
    other = run(cpu, wished(tiny, packing=True, attention=attention), rows, tmp_path)
    assert distance(other, packed) < 1e-6


@pytest.mark.slow
def test_rows_of_a_length_go_together_and_a_halved_batch_sees_the_same(
    cpu: CpuBackend, tiny: Path, rows: Prepared, tmp_path: Path
) -> None:
    job = wished(tiny, group_by_length=True)
    whole = run(cpu, job, rows, tmp_path / "a", save_at=[5])
    half = run(cpu, halved(resumed(job, whole.session.checkpoint(5))), rows, tmp_path / "b")
    assert half.done.order == whole.done.order
    assert distance(half, whole) < 1e-6


@pytest.mark.parametrize(
    ("wish", "word"), [({"attention": "flash_attention_2"}, "CUDA card"), ({"liger": True}, "CUDA card")]
)
def test_what_needs_a_card_is_refused_without_one(cpu: CpuBackend, tiny: Path, wish: dict[str, Any], word: str) -> None:
    with pytest.raises(InvalidSettingError, match=word):
        cpu.check(wished(tiny, **wish))


def test_a_model_that_would_mix_its_rows_gets_padding_or_an_error(tiny: Path) -> None:
    """Stands for any architecture that looks beside the row by other means than attention."""
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    from backpropagate_backends.torch_kernels import fit_kernels

    config = Qwen3NextConfig(
        vocab_size=420,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    )
    model = Qwen3NextForCausalLM(config)
    said: list[str] = []
    kernels = fit_kernels(model, wished(tiny).spec, "cpu", (), lambda text, level: said.append(text))
    assert not kernels.side_by_side
    assert "linear_attention" in said[0]
    with pytest.raises(InvalidSettingError, match="--packing"):
        fit_kernels(model, wished(tiny, packing=True).spec, "cpu", (), lambda text, level: None)


def test_a_sliding_window_is_kept_side_by_side(tmp_path: Path) -> None:
    """Rows longer than the window, against transformers' own mask of each row."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    from backpropagate_backends.torch_attention import SEGMENTS, register
    from backpropagate_backends.torch_kernels import _states

    config = MistralConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=4,
    )
    torch.manual_seed(0)
    model = MistralForCausalLM(config).eval()
    lines = [[(at * 7 + row) % 100 for at in range(length)] for row, length in enumerate((9, 3, 13))]
    with torch.no_grad():
        alone = [model.model(input_ids=torch.tensor([line])).last_hidden_state[0] for line in lines]
        register()
        model.set_attn_implementation(SEGMENTS)
        together = _states(model, lines, torch.device("cpu"))
    for one, two in zip(together, alone, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_an_attention_that_looks_beside_the_row_is_found_out(tiny: Path) -> None:
    from transformers import AutoModelForCausalLM
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from backpropagate_backends.torch_attention import SEGMENTS, register
    from backpropagate_backends.torch_kernels import _alone, _contamination

    model = AutoModelForCausalLM.from_pretrained(tiny)
    alone = _alone(model)
    ALL_ATTENTION_FUNCTIONS.register("careless", sdpa_attention_forward)
    model.set_attn_implementation("careless")
    assert _contamination(model, alone) == "a row would see the one beside it"
    register()
    model.set_attn_implementation(SEGMENTS)
    assert _contamination(model, alone) is None


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # what torch says to itself
def test_each_layer_is_compiled_in_place(tiny: Path) -> None:
    from transformers import AutoModelForCausalLM

    from backpropagate_backends.torch_kernels import compile_layers

    model = AutoModelForCausalLM.from_pretrained(tiny)
    names = list(model.state_dict())
    assert compile_layers(model) == 2
    assert list(model.state_dict()) == names
    assert all(layer._compiled_call_impl is not None for layer in model.model.layers)
