"""Our converter: the same tensors as llama.cpp's own makes, to the bit, and the same answers as transformers gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from backpropagate_protocol.errors import UserInputError
from backpropagate_protocol.jobs import ConvertJob
from backpropagate_protocol.messages import Made, Phase
from backpropagate_protocol.spec import ModelSpec
from backpropagate_runner.export.convert import convert
from backpropagate_runner.export.llama import Llama
from tests.runner.export.gguf_models import GPT4O, MARKS, MODELS, TEKKEN, TEXTS, save
from tests.runner.export.gguf_models import read as contents
from tests.runner.export.heard import Heard
from tests.runner.export.official import Officially

# Every one in half precision; one of each kind of source in every type.
COMPARED = [(name, "f16") for name in MODELS] + [
    (name, type_) for name in ("qwen2", "mistral", "llama3") for type_ in ("f32", "bf16", "q8_0")
]
# What only one of the two says, with no effect on any answer.
_SAID_BY_ONE = {
    "general.size_label",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.add_eos_token",
    "tokenizer.ggml.add_sep_token",
}


def own(
    model: Path, out: Path, type_: str = "f16", adapter: Path | None = None, memory: int = 64, name: str = "tiny"
) -> Made:
    job = ConvertJob(
        model=ModelSpec(name=str(model), path=str(model)),
        adapter=str(adapter) if adapter else None,
        out=str(out),
        type=type_,
        name=name,
        memory=memory,
    )
    return convert(job, Heard(Phase.CONVERT).stage)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in MODELS:
        save(name, folder / name, {"qwen2": torch.bfloat16, "mistral": torch.float16}.get(name, torch.float32))
    return folder


@pytest.fixture(scope="module")
def theirs(models: Path, official: Officially) -> Path:
    """What llama.cpp's converter makes of them."""
    return official.convert([(models / name, None, type_) for name, type_ in COMPARED])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "type_"), COMPARED)
def test_the_tensors_are_those_of_the_official_converter(
    models: Path, theirs: Path, tmp_path: Path, name: str, type_: str
) -> None:
    own(models / name, tmp_path / "own.gguf", type_, memory=1)
    ours, other = contents(tmp_path / "own.gguf"), contents(theirs / f"{name}.{type_}.gguf")
    assert ours.tensors.keys() == other.tensors.keys()
    for tensor, (kind, shape, data) in ours.tensors.items():
        assert (kind, shape) == other.tensors[tensor][:2], tensor
        if tensor == "rope_freqs.weight":  # computed there in float32, here in float64
            np.testing.assert_allclose(data, other.tensors[tensor][2], rtol=1e-6)
        else:
            assert np.array_equal(data, other.tensors[tensor][2]), tensor


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_metadata_are_those_of_the_official_converter(
    models: Path, theirs: Path, tmp_path: Path, name: str
) -> None:
    own(models / name, tmp_path / "own.gguf")
    ours, other = contents(tmp_path / "own.gguf").said, contents(theirs / f"{name}.f16.gguf").said
    lengths = {f"{ours['general.architecture']}.attention.{part}_length" for part in ("key", "value")}
    for key in (ours.keys() | other.keys()) - _SAID_BY_ONE - (lengths - other.keys()):
        assert ours.get(key) == other.get(key), key


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_answers_are_those_of_transformers(models: Path, tmp_path: Path, name: str) -> None:
    """In float32 on both sides, so that nothing but a mistake can make a difference."""
    own(models / name, tmp_path / "own.gguf", "f32")
    model = AutoModelForCausalLM.from_pretrained(models / name, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(models / name / "tokenizer.json"))
    with Llama(tmp_path / "own.gguf", 256, threads=1) as llama:
        for text in TEXTS if MODELS[name].rule in (TEKKEN, GPT4O) else (*TEXTS, MARKS):
            ids = tokenizer(text)["input_ids"]
            assert llama.tokenize(text, add_special=True) == ids, text
            with torch.inference_mode():
                wanted = model(torch.tensor([ids])).logits[0].numpy()
            assert np.abs(llama.logits(ids, 0, len(ids)) - wanted).max() < 1e-4


@pytest.mark.slow
def test_a_long_text_takes_the_long_factors(models: Path, tmp_path: Path) -> None:
    own(models / "phi3", tmp_path / "own.gguf", "f32")
    model = AutoModelForCausalLM.from_pretrained(models / "phi3", dtype=torch.float32).eval()
    ids = [int(index) for index in np.random.default_rng(3).integers(0, 380, 300)]
    with Llama(tmp_path / "own.gguf", 512, threads=1) as llama, torch.inference_mode():
        wanted = model(torch.tensor([ids])).logits[0].numpy()
        assert np.abs(llama.logits(ids, 0, len(ids)) - wanted).max() < 2e-4


def test_a_model_that_is_not_covered_is_refused_with_the_reason(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in (models / "qwen2").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("Qwen2ForCausalLM", "GemmaForCausalLM"))
    with pytest.raises(UserInputError, match="the architecture GemmaForCausalLM") as raised:
        own(folder, tmp_path / "own.gguf")
    assert raised.value.code == "INPUT_MODEL_UNSUPPORTED"
    assert not (tmp_path / "own.gguf").exists()
