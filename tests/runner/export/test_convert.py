"""Our converter: the same tensors as llama.cpp's own makes, to the bit, and the same answers as transformers gives."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from backpropagate_protocol.errors import UserInputError
from backpropagate_protocol.jobs import ConvertJob, MergeJob
from backpropagate_protocol.messages import Made, Phase
from backpropagate_protocol.spec import ModelSpec
from backpropagate_runner.export.convert import convert
from backpropagate_runner.export.llama import Llama
from backpropagate_runner.export.merge import merge
from tests.runner.export.gguf_models import GPT4O, LLAMA3, MARKS, MODELS, TEKKEN, TEXTS, save, save_tokenizer
from tests.runner.export.gguf_models import read as contents
from tests.runner.export.heard import Heard
from tests.runner.export.official import Officially
from tests.runner.export.peft_models import save_adapter

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
            np.testing.assert_allclose(data.astype(float), other.tensors[tensor][2].astype(float), rtol=1e-6)
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


ADAPTED = ("llama3", "qwen2", "phi3")
_ALL = {
    "llama3": "all-linear",
    "qwen2": ["q_proj", "v_proj", "down_proj", "embed_tokens"],
    "phi3": ["qkv_proj", "gate_up_proj"],
}


@pytest.fixture(scope="module")
def adapters(models: Path) -> Path:
    for name in ADAPTED:
        save_adapter(models / name, models / f"adapter-{name}", {"r": 4, "lora_alpha": 8, "target_modules": _ALL[name]})
    return models


@pytest.mark.slow
@pytest.mark.parametrize("name", ADAPTED)
def test_one_pass_makes_what_merging_and_then_converting_makes(adapters: Path, tmp_path: Path, name: str) -> None:
    base, adapter = adapters / name, adapters / f"adapter-{name}"
    job = MergeJob(
        model=ModelSpec(name=name, path=str(base)), adapter=str(adapter), out=str(tmp_path / "merged"), memory=64
    )
    merge(job, Heard(Phase.MERGE).stage)
    two = own(tmp_path / "merged", tmp_path / "two.gguf")
    one = own(base, tmp_path / "one.gguf", adapter=adapter, memory=1)
    assert one.digest == two.digest
    assert one.digest != own(base, tmp_path / "base.gguf").digest


@pytest.mark.slow
def test_the_official_converter_merges_on_the_way_too(adapters: Path, official: Officially, tmp_path: Path) -> None:
    pairs = [(adapters / name, adapters / f"adapter-{name}", "f16") for name in ADAPTED]
    folder = official.convert(pairs)
    for base, adapter, _ in pairs:
        own(base, tmp_path / "own.gguf", adapter=adapter)
        ours, other = contents(tmp_path / "own.gguf"), contents(folder / f"{base.name}+{adapter.name}.f16.gguf")
        for tensor, (_, _, data) in ours.tensors.items():
            assert tensor == "rope_freqs.weight" or np.array_equal(data, other.tensors[tensor][2]), tensor


@pytest.mark.slow
def test_an_output_that_an_adapter_parts_from_its_tie_is_written(models: Path, tmp_path: Path) -> None:
    adapter = save_adapter(models / "qwen2-tied", tmp_path / "adapter", {"r": 4, "target_modules": ["lm_head"]})
    own(models / "qwen2-tied", tmp_path / "own.gguf", "f32", adapter)
    own(models / "qwen2-tied", tmp_path / "base.gguf", "f32")
    ours, base = contents(tmp_path / "own.gguf").tensors, contents(tmp_path / "base.gguf").tensors
    assert ours.keys() - base.keys() == {"output.weight"}
    assert np.array_equal(ours["token_embd.weight"][2], base["token_embd.weight"][2])
    assert not np.array_equal(ours["output.weight"][2], base["token_embd.weight"][2])


@pytest.mark.slow
def test_the_tokenizer_beside_the_adapter_is_the_one_that_was_trained_with(adapters: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(adapters / "adapter-qwen2", adapter)
    save_tokenizer(adapter, LLAMA3, bos=True)
    (adapter / "chat_template.jinja").write_text("of the training")
    own(adapters / "qwen2", tmp_path / "own.gguf", adapter=adapter)
    said = contents(tmp_path / "own.gguf").said
    assert (said["tokenizer.chat_template"], said["tokenizer.ggml.pre"]) == ("of the training", "llama-bpe")
    assert said["tokenizer.ggml.add_bos_token"] is True


class Torn(Heard):
    """Is interrupted at a sign of progress, and has looked at a file at each one before."""

    def __init__(self, last: int, file: Path) -> None:
        super().__init__(Phase.CONVERT)
        self._last, self._file = last, file
        self.seen: set[bytes] = set()

    def _sign(self, number: int) -> None:
        super()._sign(number)
        self.seen.add(self._file.read_bytes())
        if number == self._last:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_nothing_but_the_whole_file_ever_has_the_final_name(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "own.gguf"
    out.write_bytes(b"of before")
    job = ConvertJob(
        model=ModelSpec(name="qwen2", path=str(models / "qwen2")),
        adapter=None,
        out=str(out),
        type="f16",
        name="x",
        memory=8,
    )
    heard = Torn(30, out)
    with pytest.raises(KeyboardInterrupt):
        convert(job, heard.stage)
    assert heard.seen == {b"of before"}
    assert [path.name for path in tmp_path.iterdir()] == ["own.gguf"]


def test_the_digest_is_that_of_the_file(models: Path, tmp_path: Path) -> None:
    made = own(models / "qwen3", tmp_path / "own.gguf", "q8_0")
    content = (tmp_path / "own.gguf").read_bytes()
    assert (made.digest, made.bytes) == (hashlib.sha256(content).hexdigest(), len(content))


def test_a_name_that_would_mislead_llama_cpp_is_spelt_otherwise(models: Path, tmp_path: Path) -> None:
    own(models / "phi3", tmp_path / "own.gguf", name="my-Phi-3-phi3")
    assert contents(tmp_path / "own.gguf").said["general.name"] == "my-Phi 3-phi 3"
    with Llama(tmp_path / "own.gguf", 32, threads=1) as llama:
        assert llama.vocabulary == 400


def test_progress_is_told_in_bytes_up_to_the_whole(models: Path, tmp_path: Path) -> None:
    heard = Heard(Phase.CONVERT)
    model = ModelSpec(name="qwen2", path=str(models / "qwen2"))
    job = ConvertJob(model=model, adapter=None, out=str(tmp_path / "own.gguf"), type="f16", name="x", memory=8)
    convert(job, heard.stage)
    assert heard.signs >= 51
