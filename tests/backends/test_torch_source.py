"""A model that is not there is said to be missing before anything is loaded, and in the right words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from backpropagate_backends.cpu import CpuBackend
from backpropagate_protocol.errors import ModelLoadError, UserInputError
from backpropagate_protocol.spec import ModelSpec


def find(cpu: CpuBackend, path: str) -> None:
    from backpropagate_backends import torch_source

    torch_source.find(ModelSpec(name="mine", path=path))


def test_a_folder_that_is_not_there_is_not_found(cpu: CpuBackend, tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="there is no folder") as caught:
        find(cpu, str(tmp_path / "nothing"))
    assert caught.value.code == "INPUT_MODEL_NOT_FOUND"


@pytest.mark.parametrize("path", ["./nothing", "a/b/c", "not a model!"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_not_found(cpu: CpuBackend, path: str) -> None:
    with pytest.raises(UserInputError) as caught:
        find(cpu, path)
    assert caught.value.code == "INPUT_MODEL_NOT_FOUND"


def test_a_folder_without_a_configuration_is_not_a_model(cpu: CpuBackend, tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match=r"no config\.json") as caught:
        find(cpu, str(tmp_path))
    assert caught.value.code == "INPUT_MODEL_NOT_FOUND"


def test_an_adapter_is_told_from_a_model(cpu: CpuBackend, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserInputError, match="give the base model"):
        find(cpu, str(tmp_path))


def test_a_folder_without_weights_cannot_be_loaded(cpu: CpuBackend, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="no weights"):
        find(cpu, str(tmp_path))


def test_a_hub_that_does_not_answer_is_noticed_at_once(cpu: CpuBackend, tmp_path: Path) -> None:
    """A closed port stands for the hub. Its own client would try for half a minute; the child would not live as long."""
    program = (
        "from backpropagate_backends.torch_source import find\n"
        "from backpropagate_protocol.errors import ModelLoadError\n"
        "from backpropagate_protocol.spec import ModelSpec\n"
        "try: find(ModelSpec(name='mine', path='nobody/has-this-model'))\n"
        "except ModelLoadError as error: print(error)\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "no_proxy": "127.0.0.1"}
    child = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=20)
    assert "[DEP_MODEL_LOAD_FAILED]: mine is neither a folder nor in the local cache" in child.stdout, child.stderr


def test_broken_weights_are_a_model_that_cannot_be_loaded(cpu: CpuBackend, tiny: Path, tmp_path: Path) -> None:
    from backpropagate_backends.torch_model import choose_precision, load_model
    from backpropagate_backends.torch_source import find as find_source
    from backpropagate_backends.torch_tokenizer import load_tokenizer

    for file in tiny.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    spec = ModelSpec(name="mine", path=str(tmp_path))
    source = find_source(spec)
    precision = choose_precision(spec, "cpu", lambda text, level: None)
    with pytest.raises(ModelLoadError, match="mine cannot be loaded"):
        load_model(source, precision, load_tokenizer(source), lambda text, level: None)
