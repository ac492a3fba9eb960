"""A model's files: which are found, which are wanted, and what is said of those that cannot be used."""

from __future__ import annotations

import json
import shutil
from math import prod
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from backpropagate_protocol.errors import BackpropagateError, ModelLoadError, UserInputError
from backpropagate_protocol.spec import ModelSpec
from backpropagate_runner.export.model_files import open_model
from backpropagate_runner.export.tensor_file import TensorFile, header_of
from tests.house.source import ROOT
from tests.runner.export.hollow import hollow_model

TINY = ROOT / "fixtures" / "tiny-base"


def spec(folder: Path, *, trust_remote_code: bool = False) -> ModelSpec:
    return ModelSpec(name="mine", path=str(folder), trust_remote_code=trust_remote_code)


def copy(folder: Path) -> Path:
    shutil.copytree(TINY, folder)
    return folder


def refused(folder: Path) -> BackpropagateError:
    with pytest.raises(BackpropagateError) as caught:
        open_model(spec(folder))
    return caught.value


def test_a_folder_is_read_where_it_lies() -> None:
    files = open_model(spec(TINY))
    with safe_open(TINY / "model.safetensors", "np") as theirs:
        shapes = {name: tuple(theirs.get_slice(name).get_shape()) for name in theirs.keys()}  # noqa: SIM118
    assert {name: tensor.shape for name, tensor in files.tensors.items()} == shapes
    assert files.parameters == sum(prod(shape) for shape in shapes.values())
    assert files.weight_bytes == 2 * files.parameters
    assert files.config["model_type"] == json.loads((TINY / "config.json").read_text())["model_type"]
    assert (files.folder, files.commit, files.quantized) == (TINY, "", False)


def test_only_what_belongs_to_a_model_is_taken_along(tmp_path: Path) -> None:
    folder = copy(tmp_path / "base")
    for name in ("LICENSE", "modeling_mine.py", "README.md", "optimizer.pt", "model.gguf", "notes.txt"):
        (folder / name).write_text("x")
    expected = {"LICENSE", "config.json", "generation_config.json", "chat_template.jinja", "tokenizer.json"}
    expected |= {"tokenizer_config.json"}
    assert open_model(spec(folder)).side_files().keys() == expected
    assert open_model(spec(folder, trust_remote_code=True)).side_files().keys() == expected | {"modeling_mine.py"}


def test_a_torn_file_is_told_from_a_whole_one(tmp_path: Path) -> None:
    folder = copy(tmp_path / "base")
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for size in (0, 7, 20, 500, len(whole) - 1):
        path.write_bytes(whole[:size])
        error = refused(folder)
        assert error.code == "DEP_MODEL_LOAD_FAILED"
        assert "model.safetensors of mine is damaged" in error.message


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{\xff}",
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}',
        b'{"a": {"dtype": "F4", "shape": [1], "data_offsets": [0, 1]}}',
    ],
)
def test_a_header_that_makes_no_sense_is_an_error(header: bytes, tmp_path: Path) -> None:
    folder = copy(tmp_path / "base")
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    assert "damaged" in refused(folder).message


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    folder = copy(tmp_path / "base")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks 1 of its weight files: model-1.safetensors" in refused(folder).message
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    assert "outside" in refused(folder).message
    (folder / "model.safetensors.index.json").write_text("{")
    assert "cannot be read" in refused(folder).message


def test_a_tensor_in_two_files_is_an_error(tmp_path: Path) -> None:
    folder = copy(tmp_path / "base")
    save_file({"model.norm.weight": np.zeros(256, np.float32)}, folder / "more.safetensors")
    index = {"weight_map": {"a": "more.safetensors", "b": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model.norm.weight in two" in refused(folder).message


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    folder = copy(tmp_path / "base")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    error = refused(folder)
    assert error.code == "INPUT_MODEL_UNSUPPORTED"
    assert "save_pretrained" in error.suggestion


def test_a_quantized_model_is_refused_for_its_full_precision_twin(tmp_path: Path) -> None:
    about = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    folder = hollow_model(tmp_path / "base", quantization_config=about)
    with pytest.raises(UserInputError, match="bitsandbytes") as caught:
        open_model(spec(folder))
    assert caught.value.code == "INPUT_MODEL_UNSUPPORTED"
    assert "full-precision" in caught.value.suggestion
    assert open_model(spec(folder), weights=False).quantized


def test_what_is_no_model_is_said_to_be_none(tmp_path: Path) -> None:
    assert refused(tmp_path / "nothing").code == "INPUT_MODEL_NOT_FOUND"
    assert refused(tmp_path).code == "INPUT_MODEL_NOT_FOUND"
    folder = copy(tmp_path / "base")
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelLoadError, match=r"config\.json of mine cannot be read"):
        open_model(spec(folder))


def test_sizes_are_known_without_a_look_at_the_weights(tmp_path: Path) -> None:
    files = open_model(spec(hollow_model(tmp_path / "big", parameters=3_000_000)), weights=False)
    assert files.parameters == 3_000_000
    assert files.weight_bytes == 6_000_000


def test_a_header_is_one_that_safetensors_itself_reads(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    b, c, a = np.arange(6, dtype=np.float32).reshape(2, 3), np.full((), 1.5, np.float32), np.arange(3, dtype=np.float16)
    header = header_of([("b", "F32", (2, 3)), ("c", "F32", ()), ("a", "F16", (3,))])
    path.write_bytes(header + b.tobytes() + c.tobytes() + a.tobytes())
    theirs = load_file(path)
    assert np.array_equal(theirs["a"], a)
    assert np.array_equal(theirs["b"], b)
    assert np.array_equal(theirs["c"], c)
    ours = TensorFile(path)
    assert ours.metadata == {"format": "pt"}
    assert ours.tensors["c"].read().tolist() == [[1.5]]
