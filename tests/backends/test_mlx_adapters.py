"""Adapters of any precision are worn by MLX, and what a quantised base is fused to is the model that was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from backpropagate_backends.cpu import CpuBackend
from backpropagate_backends.model_source import find
from backpropagate_protocol.errors import BackpropagateError
from backpropagate_protocol.jobs import FuseJob
from backpropagate_protocol.spec import LoraSpec, ModelSpec
from tests.backends.torch_runs import FOREIGN_WARNINGS

pytest.importorskip("mlx_lm")
import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model, quantize_model, save_config, save_model

from backpropagate_backends import mlx_lora
from backpropagate_backends.mlx_config import read_config
from backpropagate_backends.mlx_fuse import fuse
from backpropagate_backends.mlx_model import Base, load_base
from backpropagate_backends.rope_styles import both_styles

pytestmark = [pytest.mark.slow, FOREIGN_WARNINGS]

LORA = LoraSpec(r=4, alpha=8, targets=("q_proj",))
BARE = "model.layers.0.mlp.down_proj"  # a layer without an adapter


class _Silent:
    def advance(self, done: int = 0, total: int = 0, detail: str = "") -> None: ...

    def notice(self, text: str, level: str = "info") -> None: ...


def _base(folder: Path, dtype: str = "fp32") -> Base:
    model = ModelSpec(name="m", path=str(folder), dtype=dtype)
    return load_base(find(model), model, _Silent().notice)


def _tensors(folder: Path) -> dict[str, mx.array]:
    (file,) = folder.glob("model*.safetensors")
    return cast(dict[str, mx.array], mx.load(str(file)))


def _kept(tensors: dict[str, mx.array], config: dict[str, object], folder: Path) -> Path:
    """An adapter on the disk, in the precision that it has."""
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapter_model.safetensors"), tensors)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def learnt(cpu: CpuBackend, tiny: Path) -> tuple[dict[str, mx.array], dict[str, object]]:
    """PEFT's tensors, in bf16, and their config."""
    base = _base(tiny)
    mlx_lora.add_adapter(base, LORA, 1, "tiny")
    mx.random.seed(3)
    weights = {
        name: mx.random.normal(value.shape) * 0.1 for name, value in tree_flatten(base.model.trainable_parameters())
    }
    tensors = {name: mx.array(value).astype(mx.bfloat16) for name, value in mlx_lora.copied(weights).items()}
    return tensors, mlx_lora.about(base, LORA, str(tiny))


@pytest.fixture(scope="module")
def halves(cpu: CpuBackend, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in 4 bits with scales in fp16, as the older ones of mlx-community are."""
    folder = tmp_path_factory.mktemp("halves") / "tiny-4bit"
    net, config = load_model(tiny, model_config=both_styles(read_config(tiny, "tiny")))
    net, config = quantize_model(net, config, 32, 4)
    net.set_dtype(mx.float16)
    save_model(folder, net)
    save_config(config, folder / "config.json")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((tiny / name).read_bytes())
    return folder


def test_an_adapter_in_bf16_is_worn_and_begun_from(
    tiny: Path, learnt: tuple[dict[str, mx.array], dict[str, object]], tmp_path: Path
) -> None:
    tensors, config = learnt
    folder = _kept(tensors, config, tmp_path / "bf16")
    full = _kept({name: value.astype(mx.float32) for name, value in tensors.items()}, config, tmp_path / "fp32")
    said = []
    for place in (folder, full):
        base = _base(tiny)
        mlx_lora.wear(base, str(place))
        said.append(np.array(base.model(mx.array([[3, 17, 99]]))))
    assert np.array_equal(said[0], said[1])
    begun = _base(tiny)
    mlx_lora.add_adapter(begun, LORA, 1, "tiny")
    mlx_lora.begin_from(begun, LORA, folder)
    for name, value in mlx_lora.load(full).items():
        assert mx.array_equal(dict(tree_flatten(begun.model.trainable_parameters()))[name], value)


def test_an_adapter_that_is_cut_short_is_refused(
    tiny: Path, learnt: tuple[dict[str, mx.array], dict[str, object]], tmp_path: Path
) -> None:
    folder = _kept(*learnt, tmp_path / "short")
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-16])
    with pytest.raises(BackpropagateError) as caught:
        mlx_lora.wear(_base(tiny), str(folder))
    assert caught.value.code == "INPUT_ADAPTER_MISMATCH"


@pytest.mark.parametrize("trained_in", ["bf16", "fp32"])
def test_what_is_fused_is_the_base_that_was_trained(
    halves: Path, learnt: tuple[dict[str, mx.array], dict[str, object]], tmp_path: Path, trained_in: str
) -> None:
    """Scales in fp16 are rounded to bf16 for whoever loads them, so all see one model; nothing else is rounded off."""
    made = tmp_path / "made"
    made.mkdir()
    adapter = _kept(*learnt, tmp_path / "adapter")
    model = ModelSpec(name="m", path=str(halves), dtype=trained_in)
    fuse(FuseJob(model=model, adapter=str(adapter), out=str(made)), made, _Silent())
    trained = dict(_base(halves, trained_in).model.named_modules())[BARE]
    scales, biases = (part.astype(mx.float16) for part in (trained.scales, trained.biases))
    fused = _tensors(made)
    assert fused[f"{BARE}.weight"].dtype == mx.float16
    expected = mx.dequantize(trained.weight, scales, biases, group_size=32, bits=4)
    assert mx.array_equal(fused[f"{BARE}.weight"], expected)
    assert not mx.array_equal(_tensors(halves)[f"{BARE}.scales"], scales)  # else nothing was shown


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        (
            {
                "rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [4.0]},
                "rope_parameters": None,
            },
            "INPUT_MODEL_UNSUPPORTED",
        ),
        ({"model_type": "never_heard_of"}, "INPUT_MODEL_UNSUPPORTED"),
        ({"hidden_size": None}, "DEP_MODEL_LOAD_FAILED"),
    ],
)
def test_a_base_that_cannot_be_trained_is_not_fused_either(
    halves: Path, tmp_path: Path, changes: dict[str, object], code: str
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for file in halves.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    (base / "config.json").write_text(json.dumps(read_config(halves, "m") | changes))
    job = FuseJob(model=ModelSpec(name="m", path=str(base)), adapter=str(tmp_path), out=str(tmp_path))
    with pytest.raises(BackpropagateError) as caught:
        fuse(job, tmp_path, _Silent())
    assert caught.value.code == code
