"""What MLX makes of a base model and of an adapter is what torch makes of them, or it is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import PeftModel
from transformers import AutoModelForCausalLM, Phi3Config

from backpropagate_backends.cpu import CpuBackend
from backpropagate_backends.model_source import find
from backpropagate_protocol.errors import BackpropagateError
from backpropagate_protocol.jobs import TrainJob
from backpropagate_protocol.prepared import Prepared
from backpropagate_protocol.spec import LoraSpec, ModelSpec
from tests.backends.torch_runs import FOREIGN_WARNINGS

pytest.importorskip("mlx_lm")
import mlx.core as mx
from mlx_lm.utils import load_model, quantize_model, save_config, save_model

from backpropagate_backends import mlx_lora
from backpropagate_backends.mlx_config import check_config, read_config
from backpropagate_backends.mlx_model import Base, load_base
from backpropagate_backends.mlx_twin import distance
from backpropagate_backends.rope_styles import both_styles
from tests.backends.mlx_runs import mlx_job, run

pytestmark = [pytest.mark.slow, FOREIGN_WARNINGS]

IDS = [[3, 17, 99, 250, 301, 8, 44, 12, 5, 390, 21, 7]]


def _quiet(text: str, level: str) -> None: ...


def _base(folder: Path, **wishes: object) -> Base:
    model = msgspec.structs.replace(ModelSpec(name="m", path=str(folder)), **wishes)
    return load_base(find(model), model, _quiet)


def _said(base: Base) -> NDArray[np.float32]:
    return np.array(base.model(mx.array(IDS))[0], dtype=np.float32)


def _said_by_torch(folder: Path, adapter: str | None = None) -> NDArray[np.float32]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        found: NDArray[np.float32] = model.eval()(torch.tensor(IDS)).logits[0].numpy()
    return found


def _with(job: TrainJob, lora: LoraSpec) -> TrainJob:
    return msgspec.structs.replace(job, spec=msgspec.structs.replace(job.spec, lora=lora))


def _refused(call: Callable[[], object]) -> str:
    with pytest.raises(BackpropagateError) as caught:
        call()
    return caught.value.code


@pytest.fixture(scope="module")
def quantised(cpu: CpuBackend, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in 4 bits, as mlx-community lays such models out."""
    folder = tmp_path_factory.mktemp("quantised") / "tiny-4bit"
    net, config = load_model(tiny, model_config=both_styles(read_config(tiny, "tiny")))
    net, config = quantize_model(net, config, 32, 4)
    save_model(folder, net)
    save_config(config, folder / "config.json")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((tiny / name).read_bytes())
    return folder


@pytest.mark.parametrize(
    "lora",
    [
        LoraSpec(r=4, alpha=16),
        LoraSpec(r=4, alpha=8, use_rslora=True, targets=("q_proj", "down_proj"), init="gaussian"),
        LoraSpec(r=4, alpha=8, use_dora=True),
    ],
    ids=["lora", "rslora-some", "dora"],
)
def test_an_adapter_from_mlx_says_in_peft_what_it_says_in_mlx(
    cpu: CpuBackend, tiny: Path, rows: Prepared, tmp_path: Path, lora: LoraSpec
) -> None:
    job = _with(mlx_job(tiny, steps=4), lora)
    _, result = run(job, rows, tmp_path)
    assert result is not None
    expected = _said_by_torch(tiny, result.adapter)
    base = _base(tiny)
    bare = _said(base)
    mlx_lora.wear(base, result.adapter)
    assert np.abs(_said(base) - expected).max() < 1e-4
    assert np.abs(bare - expected).max() > 1e-2
    mlx_lora.take_off(base)
    assert np.array_equal(_said(base), bare)


def test_rotary_positions_are_read_whichever_way_they_are_written(cpu: CpuBackend, tiny: Path, tmp_path: Path) -> None:
    """transformers 5 writes them where mlx-lm does not look: alone, it takes a default and is wrong."""
    config = read_config(tiny, "tiny")
    assert isinstance(config["rope_parameters"], dict)
    config["rope_parameters"]["rope_theta"] = 123.0
    config.pop("rope_theta", None)
    folder = tmp_path / "other"
    folder.mkdir()
    for file in tiny.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "config.json").write_text(json.dumps(config))
    expected = _said_by_torch(folder)
    assert np.abs(_said(_base(folder)) - expected).max() < 1e-4
    alone, _ = load_model(folder)
    assert np.abs(np.array(alone(mx.array(IDS))[0]) - expected).max() > 1e-3


def test_a_kind_of_model_that_mlx_lm_gets_wrong_is_refused_and_its_twin_shows_it(cpu: CpuBackend) -> None:
    long = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 16, "long_factor": [4.0] * 16}
    config = json.loads(
        Phi3Config(
            hidden_size=128,
            num_attention_heads=4,
            num_key_value_heads=4,
            num_hidden_layers=2,
            intermediate_size=64,
            vocab_size=100,
            pad_token_id=0,
            max_position_embeddings=4096,
            original_max_position_embeddings=512,
            rope_parameters={**long, "original_max_position_embeddings": 512},
        ).to_json_string(use_diff=False)
    )
    assert _refused(lambda: check_config(config, "phi")) == "INPUT_MODEL_UNSUPPORTED"
    assert distance(config) > 0.5
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4}
    check_config(config, "phi")
    assert distance(config) < 0.01


def test_a_base_that_mlx_quantised_trains_resumes_and_answers(
    cpu: CpuBackend, quantised: Path, rows: Prepared, tmp_path: Path
) -> None:
    job = mlx_job(quantised, steps=4)
    session, result = run(job, rows, tmp_path / "whole", save_at=(2,))
    assert session.begun is not None
    assert session.begun.precision == "q4g32+fp32"
    assert any("quantised by MLX" in note for note in session.begun.notes)
    again = msgspec.structs.replace(job, resume_from=str(session.checkpoint(2)))
    _, resumed = run(again, rows, tmp_path / "again")
    assert result is not None
    assert resumed is not None
    assert resumed.digest == result.digest
    assert _refused(lambda: _base(quantised, load_in_4bit=False)) == "CONFIG_INVALID_SETTING"
    dora = _with(mlx_job(quantised, steps=2), LoraSpec(r=4, alpha=8, use_dora=True))
    assert run(dora, rows, tmp_path / "dora")[1] is not None


def test_a_full_precision_base_is_held_in_four_bits_where_that_is_wished(
    cpu: CpuBackend, tiny: Path, rows: Prepared, tmp_path: Path
) -> None:
    session, result = run(mlx_job(tiny, steps=3, four_bit=True), rows, tmp_path / "q", save_at=(2,))
    assert session.begun is not None
    assert session.begun.precision == "q4g64+fp32"
    assert result is not None
    full = mlx_job(tiny, steps=3)
    full = msgspec.structs.replace(full, resume_from=str(session.checkpoint(2)))
    assert _refused(lambda: run(full, rows, tmp_path / "full")) == "STATE_RUN_MISMATCH"


def test_a_target_that_no_layer_is_called_is_refused_with_those_there_are(
    cpu: CpuBackend, tiny: Path, rows: Prepared, tmp_path: Path
) -> None:
    job = _with(mlx_job(tiny, steps=2), LoraSpec(r=4, alpha=8, targets=("query",)))
    with pytest.raises(BackpropagateError, match="q_proj") as caught:
        run(job, rows, tmp_path)
    assert caught.value.code == "CONFIG_INVALID_SETTING"


def test_layers_that_the_files_call_otherwise_are_refused(cpu: CpuBackend, tiny: Path, tmp_path: Path) -> None:
    base = _base(tiny)
    odd = Base(base.model, base.config, tmp_path, base.precision, False, base.stored)  # a folder without any files
    assert (
        _refused(lambda: mlx_lora.add_adapter(odd, LoraSpec(targets=("k_proj",)), 1, "m")) == "INPUT_MODEL_UNSUPPORTED"
    )
