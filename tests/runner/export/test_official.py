"""llama.cpp's own converter behind its door: what it cannot do is said in our words, and nothing half-made stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import Olmo2Config, Olmo2ForCausalLM

from backpropagate_protocol.errors import DependencyError, UserInputError
from backpropagate_protocol.jobs import ConvertJob
from backpropagate_protocol.messages import Phase
from backpropagate_runner.export.convert import convert
from backpropagate_runner.export.official import find_converter, knows
from tests.runner.export.gguf_models import LLAMA3, save, save_tokenizer
from tests.runner.export.gguf_models import read as contents
from tests.runner.export.heard import Heard
from tests.runner.export.official import Officially
from tests.runner.export.peft_models import save_adapter, spec


def officially(model: Path, out: Path, folder: Path, adapter: Path | None = None) -> None:
    job = ConvertJob(
        model=spec(model),
        adapter=str(adapter) if adapter else None,
        out=str(out),
        type="f16",
        name="tiny",
        converter="official",
        converter_folder=str(folder),
        memory=64,
    )
    convert(job, Heard(Phase.CONVERT).stage)


def test_the_converter_is_found_only_where_it_is_whole(llama_sources: Path, tmp_path: Path) -> None:
    assert find_converter(str(llama_sources)) == llama_sources
    (tmp_path / "convert_hf_to_gguf.py").write_text("")
    assert find_converter(str(tmp_path)) is None


def test_what_it_knows_is_read_without_running_it(llama_sources: Path) -> None:
    assert knows(llama_sources, "Gemma3ForCausalLM")
    assert knows(llama_sources, "Qwen2ForCausalLM")
    assert not knows(llama_sources, "QwenForCausalLMFromTheFuture")


def test_without_a_converter_one_error_names_the_ways_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(DependencyError, match=r"no llama\.cpp converter") as raised:
        officially(tmp_path, tmp_path / "out.gguf", tmp_path)
    assert raised.value.code == "DEP_EXPORT_TOOL_MISSING"
    assert "LLAMA_CPP_DIR" in raised.value.suggestion


@pytest.mark.slow
def test_an_architecture_of_its_own_is_converted(official: Officially, tmp_path: Path) -> None:
    """One that our converter does not cover, with a vocabulary that its list of hashes does not know."""
    torch.manual_seed(0)
    config = Olmo2Config(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=400,
        pad_token_id=None,
    )
    Olmo2ForCausalLM(config).save_pretrained(tmp_path / "olmo2")
    save_tokenizer(tmp_path / "olmo2", LLAMA3)
    made = contents(official.convert([(tmp_path / "olmo2", None, "f16")]) / "olmo2.f16.gguf")
    assert (made.said["general.architecture"], made.said["tokenizer.ggml.pre"]) == ("olmo2", "llama-bpe")


_ANOTHER_READER = """
import pathlib, sys
pathlib.Path(sys.argv[sys.argv.index("--outfile") + 1]).write_bytes(b"made of the base's own bytes")
"""


@pytest.mark.slow
def test_a_converter_that_reads_by_another_way_loses_no_adapter_in_silence(tmp_path: Path) -> None:
    """In a process of its own: whoever imported a `gguf` cannot convert with another."""
    model = save("qwen2", tmp_path / "model")
    adapter = save_adapter(model, tmp_path / "adapter", {"r": 4, "target_modules": ["q_proj"]})
    sources = tmp_path / "llama.cpp"
    (sources / "conversion").mkdir(parents=True)
    (sources / "gguf-py" / "gguf").mkdir(parents=True)
    (sources / "convert_hf_to_gguf.py").write_text(_ANOTHER_READER)
    reads = "class SafetensorsLocal:\n    def __enter__(self): ...\nclass LocalTensor:\n    def mmap_bytes(self): ...\n"
    for path, text in {
        "conversion/__init__.py": "def get_model_class(name): return object\n",
        "conversion/base.py": "class TextModel:\n    def get_vocab_base_pre(self, tokenizer): ...\n",
        "gguf-py/gguf/__init__.py": "",
        "gguf-py/gguf/utility.py": reads,
        "tqdm.py": "class tqdm: ...\n",
    }.items():
        (sources / path).write_text(text)
    own = Officially(sources, tmp_path / "out")
    with pytest.raises(AssertionError, match=r"would have lost the adapter: 4 that it changes"):
        own.convert([(model, adapter, "f16")])
    assert not list(tmp_path.glob("out/*.gguf*"))


@pytest.mark.slow
def test_what_it_gives_up_on_is_said_in_its_words(official: Officially, tmp_path: Path) -> None:
    model = save("qwen2", tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "architectures": ["NobodysForCausalLM"]}))
    with pytest.raises(AssertionError, match=r"Model NobodysForCausalLM is not supported"):
        official.convert([(model, None, "f16")])
    assert not list(official.results.glob("model.f16.gguf*"))


@pytest.mark.slow
def test_an_adapter_that_makes_other_tensors_is_refused_before_it_starts(llama_sources: Path, tmp_path: Path) -> None:
    model = save("qwen2-tied", tmp_path / "model")
    adapter = save_adapter(model, tmp_path / "adapter", {"r": 4, "target_modules": ["lm_head"]})
    with pytest.raises(UserInputError, match="other tensors than without it") as raised:
        officially(model, tmp_path / "out.gguf", llama_sources, adapter)
    assert raised.value.code == "INPUT_ADAPTER_UNSUPPORTED"
