"""What an adapter's folder may hold, what is made of it, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from backpropagate_protocol import durable
from backpropagate_protocol.errors import UserInputError
from backpropagate_protocol.rundir import FileEntry, Manifest
from backpropagate_protocol.spec import ModelSpec
from backpropagate_runner.export.adapter import as_float, open_adapter
from backpropagate_runner.export.model_files import open_model
from backpropagate_runner.export.tensors import open_weights
from tests.house.source import ROOT
from tests.runner.export import hollow

TINY = ModelSpec(name="tiny", path=str(ROOT / "fixtures" / "tiny-base"))
UP = "base_model.model.model.layers.0.mlp.up_proj"
UP_WEIGHT = "model.layers.0.mlp.up_proj.weight"

Tensors = dict[str, np.ndarray]


def lora_adapter(folder: Path, **config: object) -> Path:
    """Of the tiny base, of zeros, with other entries in its configuration."""
    hollow.lora_adapter(folder, use_dora=config.get("use_dora", False))
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def rewritten(folder: Path, **tensors: np.ndarray | None) -> Path:
    """The adapter with other tensors (None: without that one); a dash in a name stands for a dot."""
    path = folder / "adapter_model.safetensors"
    found: dict[str, np.ndarray | None] = {**load_file(path)}
    found.update({name.replace("-", "."): value for name, value in tensors.items()})
    save_file({name: value for name, value in found.items() if value is not None}, path)
    return folder


def finished(staged: Path, final: Path) -> Path:
    """As a training publishes it: with a manifest."""

    def manifest(files: dict[str, FileEntry]) -> bytes:
        about = Manifest(
            run_id="r", step=1, total_steps=1, samples_seen=1, order=0, micro_batch=1, accumulation=1,
            data_digest="", spec_digest="", backend="cpu", files=files,
        )  # fmt: skip
        return msgspec.json.encode(about)

    durable.commit_dir(staged, final, manifest)
    return final


def refusal(folder: Path, code: str = "INPUT_ADAPTER_UNSUPPORTED") -> str:
    """What is said about an adapter that cannot be merged into the tiny base."""
    with pytest.raises(UserInputError) as caught:
        open_weights(open_model(TINY), open_adapter(str(folder)))
    assert caught.value.code == code
    assert "--format" not in caught.value.suggestion  # no other format would read it
    return caught.value.message


def test_a_module_has_its_name_its_matrices_and_its_scale(tmp_path: Path) -> None:
    (module,) = open_adapter(str(lora_adapter(tmp_path / "a"))).modules()
    assert (module.name, module.kind, module.r, module.scale) == ("model.layers.0.mlp.up_proj", "linear", 4, 2.0)
    assert as_float(module.A).shape == (4, 256)
    assert as_float(module.B).shape == (512, 4)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 8 / math.sqrt(4)),
        ({"alpha_pattern": {"up_proj": 3}}, 0.75),
        ({"alpha_pattern": {"p_proj": 3}}, 2.0),  # no part of a name, but its end after a dot
        ({"alpha_pattern": {r"layers\.\d+\.mlp\.up_proj": 6, "up_proj": 3}}, 1.5),  # the first that matches
        ({"rank_pattern": {"up_proj": 4}, "lora_alpha": 2}, 0.5),
    ],
)
def test_the_scale_is_pefts(config: dict[str, object], scale: float, tmp_path: Path) -> None:
    (module,) = open_adapter(str(lora_adapter(tmp_path / "a", **config))).modules()
    assert module.scale == scale


def test_a_folder_that_is_no_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match=r"no adapter_config\.json"):
        open_adapter(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(UserInputError, match=r"no adapter_model\.safetensors"):
        open_adapter(str(tmp_path))
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(UserInputError, match="pickled"):
        open_adapter(str(tmp_path))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(UserInputError, match="damaged"):
        open_adapter(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(UserInputError, match="cannot be read"):
        open_adapter(str(tmp_path))


@pytest.mark.parametrize(
    "config",
    [
        {"peft_type": "LOHA"},
        {"target_parameters": ["mlp.experts.gate_up_proj"]},
        {"layer_replication": [[0, 2]]},
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "mica"},
        {"alora_invocation_tokens": [1]},
        {"use_qalora": True},
        {"use_bdlora": {"nblocks": 2}},
    ],
    ids=str,
)
def test_what_would_be_merged_wrongly_is_refused(config: dict[str, object], tmp_path: Path) -> None:
    assert "cannot be used" in refusal(lora_adapter(tmp_path / "a", **config))


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    folder = lora_adapter(tmp_path / "a")
    rewritten(folder, **{f"{UP}.lora_A.weight": np.full((4, 256), np.nan, np.float32)})
    assert "NaN" in refusal(folder, "INPUT_ADAPTER_INVALID")


def test_numbers_that_no_training_makes_are_refused(tmp_path: Path) -> None:
    folder = lora_adapter(tmp_path / "a")
    far = np.zeros((4, 256), np.float32)
    far[1, 7] = -3e20
    rewritten(folder, **{f"{UP}.lora_A.weight": far})
    assert "beyond all measure" in refusal(folder, "INPUT_ADAPTER_INVALID")


def test_an_adapter_that_is_not_what_its_training_wrote_is_refused(tmp_path: Path) -> None:
    folder = finished(lora_adapter(tmp_path / "a"), tmp_path / "adapter")
    assert open_adapter(str(folder)).lora
    content = bytearray((folder / "adapter_model.safetensors").read_bytes())
    content[-2] ^= 1  # still a finite number
    (folder / "adapter_model.safetensors").write_bytes(content)
    assert "adapter_model.safetensors has other content" in refusal(folder, "INPUT_ADAPTER_INVALID")
    (folder / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors is missing" in refusal(folder, "INPUT_ADAPTER_INVALID")


def test_a_manifest_of_somebody_else_says_nothing(tmp_path: Path) -> None:
    folder = lora_adapter(tmp_path / "a")
    (folder / "manifest.json").write_text('{"name": "my-addon"}')
    assert open_adapter(str(folder)).lora


def test_a_tensor_without_a_place_in_the_base_is_refused(tmp_path: Path) -> None:
    extra = np.zeros(8, np.float32)
    assert "no model.layers.9.extra.weight" in refusal(
        rewritten(lora_adapter(tmp_path / "a"), **{"base_model.model.model.layers.9.extra.weight": extra})
    )
    assert "not known" in refusal(rewritten(lora_adapter(tmp_path / "b"), **{f"{UP}.lora_E": extra}))
    other = {f"{UP}.lora_A.weight".replace("layers.0", "layers.99"): np.zeros((4, 256), np.float32)}
    other[f"{UP}.lora_B.weight".replace("layers.0", "layers.99")] = np.zeros((512, 4), np.float32)
    assert "layers.99" in refusal(rewritten(lora_adapter(tmp_path / "c"), **other))


def test_half_a_module_is_refused(tmp_path: Path) -> None:
    assert "do not belong together" in refusal(rewritten(lora_adapter(tmp_path / "a"), **{f"{UP}.lora_B.weight": None}))


def test_an_adapter_of_another_size_is_refused(tmp_path: Path) -> None:
    wide = {f"{UP}.lora_A.weight": np.zeros((4, 300), np.float32)}
    assert "maps 300 to 512" in refusal(rewritten(lora_adapter(tmp_path / "a"), **wide))
    assert "disagree on the rank" in refusal(lora_adapter(tmp_path / "c", rank_pattern={"up_proj": 9}))
    ranks = {f"{UP}.lora_A.weight": np.zeros((5, 256), np.float32)}
    assert "do not fit each other" in refusal(rewritten(lora_adapter(tmp_path / "b"), **ranks))


def test_dora_of_which_half_is_missing_is_refused(tmp_path: Path) -> None:
    folder = lora_adapter(tmp_path / "a", use_dora=True)
    assert "disagree" in refusal(rewritten(folder, **{f"{UP}.lora_magnitude_vector": None}))
    short = rewritten(lora_adapter(tmp_path / "b", use_dora=True), **{f"{UP}.lora_magnitude_vector": np.ones(5, "f4")})
    assert "5 magnitudes" in refusal(short)


def test_a_saved_module_takes_the_place_of_the_bases(tmp_path: Path) -> None:
    norm = np.full(256, 3.0, np.float32)
    folder = rewritten(lora_adapter(tmp_path / "a"), **{"base_model.model.model.norm.weight": norm})
    weights = open_weights(open_model(TINY), open_adapter(str(folder)))
    assert weights.touched("model.norm.weight")
    assert (weights.rows("model.norm.weight", 0, 256) == 3).all()
    assert not weights.touched("model.layers.0.input_layernorm.weight")


def test_no_tensor_of_the_base_is_changed_twice(tmp_path: Path) -> None:
    norm = np.ones(256, np.float32)
    names = ("model.norm.weight", "model.norm.base_layer.weight", "model.language_model.norm.weight")
    first, second, third = (f"base_model.model.{name}" for name in names)
    assert "twice" in refusal(rewritten(lora_adapter(tmp_path / "a"), **{first: norm, second: norm}))
    assert "two of its tensors" in refusal(rewritten(lora_adapter(tmp_path / "b"), **{first: norm, third: norm}))
    other = UP.replace("model.layers", "model.language_model.layers")
    again = {
        f"{other}.lora_A.weight": np.zeros((4, 256), np.float32),
        f"{other}.lora_B.weight": np.zeros((512, 4), np.float32),
    }
    assert "two of its modules" in refusal(rewritten(lora_adapter(tmp_path / "c"), **again))


def test_a_wrapped_model_finds_its_tensors_under_their_longer_names(tmp_path: Path) -> None:
    """transformers has moved text models under `language_model` between versions."""
    folder = lora_adapter(tmp_path / "a")
    inner = {
        name.replace(".model.layers", ".model.language_model.layers"): value for name, value in _read(folder).items()
    }
    save_file(inner, folder / "adapter_model.safetensors")
    weights = open_weights(open_model(TINY), open_adapter(str(folder)))
    assert [name for name in weights.names if weights.touched(name)] == [UP_WEIGHT]


def test_only_a_plain_adapter_can_stay_an_adapter(tmp_path: Path) -> None:
    plain = open_adapter(str(lora_adapter(tmp_path / "plain")))
    assert plain.kind_problems("lora-gguf") == []
    dora = open_adapter(str(lora_adapter(tmp_path / "dora", use_dora=True)))
    assert "DoRA" in dora.kind_problems("lora-gguf")[0]
    saved = {"base_model.model.model.norm.weight": np.ones(256, np.float32)}
    whole = open_adapter(str(rewritten(lora_adapter(tmp_path / "whole"), **saved)))
    assert "model.norm.weight" in whole.kind_problems("lora-gguf")[0]
    assert all(adapter.kind_problems(kind) == [] for adapter in (plain, dora, whole) for kind in ("gguf", "merged"))


def test_trained_tokens_without_their_numbers_are_refused(tmp_path: Path) -> None:
    rows = {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": np.ones((2, 256), np.float32)}
    for name, config in {
        "none": {},
        "few": {"trainable_token_indices": [1]},
        "far": {"trainable_token_indices": [1, 10**6]},
    }.items():
        assert "token" in refusal(rewritten(lora_adapter(tmp_path / name, **config), **rows))


def _read(folder: Path) -> Tensors:
    found: Tensors = load_file(folder / "adapter_model.safetensors")
    return found
