"""Each family that an export is promised for, small and random, through the real children: proved against transformers.

The base gets an adapter on all its linear layers, so that what is proved is the merge and the conversion in one pass. With
random weights next to no position is clear, so the numbers are what counts here: tensors, tokens, relative error.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3_5TextConfig

from backpropagate.doors.oneshot import run_job
from backpropagate_backends.cpu import CpuBackend
from backpropagate_protocol.jobs import ConvertJob, PreflightJob, ProveJob
from backpropagate_protocol.measured import Proof
from backpropagate_protocol.messages import ExportRoute, Made
from backpropagate_protocol.spec import ExportSpec, ModelSpec
from tests.runner.export.gguf_models import QWEN2, TEMPLATE, save, save_tokenizer
from tests.runner.export.lesson import refer, warmed
from tests.runner.export.peft_models import quietly, save_adapter
from tests.runner.export.real_vocabulary import rebuild

pytestmark = pytest.mark.slow

FAMILIES = ("llama3", "mistral", "qwen2", "qwen3", "smollm3", "phi3")


@pytest.fixture(scope="module")
def cpu() -> CpuBackend:
    return warmed()


def routed(model: ModelSpec, adapter: Path | None, folder: Path, converter: Path | None = None) -> ExportRoute:
    export = ExportSpec(
        format="gguf",
        quantization="f16",
        destination=str(folder),
        name="family",
        converter_folder=str(converter) if converter else None,
    )
    job = PreflightJob(model=model, export=export, adapter=_text(adapter), work=str(folder / "work"))
    return run_job(job, ExportRoute, backend="none")


def exported(model: ModelSpec, adapter: Path | None, folder: Path, converter: Path | None = None) -> Path:
    route = routed(model, adapter, folder, converter)
    assert route.converter == ("official" if converter else "own")
    job = ConvertJob(
        model=model,
        adapter=_text(adapter),
        out=str(folder / "family.gguf"),
        type=route.type,
        name="family",
        converter=route.converter,
        converter_folder=route.converter_folder or None,
        memory=64,
    )
    return Path(run_job(job, Made, backend="none").path)


def proof(model: ModelSpec, adapter: Path | None, target: Path, reference: Path) -> Proof:
    job = ProveJob(
        reference=str(reference),
        target=str(target),
        kind="gguf",
        quantization="f16",
        model=model,
        adapter=_text(adapter),
        verifier="llama",
    )
    return run_job(job, Proof, backend="none")


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def measured(found: Proof) -> dict[str, tuple[bool, float | None]]:
    return {check.name: (check.passed, check.value) for check in found.checks}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_with_an_adapter_answers_as_transformers_does(cpu: CpuBackend, tmp_path: Path, family: str) -> None:
    base = save(family, tmp_path / family, torch.bfloat16)
    adapter = save_adapter(base, tmp_path / "lora", {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}, "BF16")
    model = ModelSpec(name=family, path=str(base), load_in_4bit=False)
    quietly(refer)(cpu, model, adapter, tmp_path / "reference")
    found = proof(model, adapter, exported(model, adapter, tmp_path), tmp_path / "reference")
    assert found.passed, found
    assert {"tokens", "template", "relative_error"} <= measured(found).keys()


def test_a_file_without_the_adapter_is_not_what_was_trained(cpu: CpuBackend, tmp_path: Path) -> None:
    base = save("qwen2", tmp_path / "qwen2")
    adapter = save_adapter(base, tmp_path / "lora", {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"})
    model = ModelSpec(name="qwen2", path=str(base), load_in_4bit=False)
    quietly(refer)(cpu, model, adapter, tmp_path / "reference")
    found = proof(model, adapter, exported(model, None, tmp_path), tmp_path / "reference")
    assert not found.passed
    assert measured(found)["tensors"][0] is False


@pytest.mark.parametrize(("family", "vocabulary"), [("qwen2", "qwen2"), ("llama3", "llama-bpe")])
def test_the_published_vocabulary_of_a_family_makes_the_same_tokens(
    cpu: CpuBackend, llama_sources: Path, tmp_path: Path, family: str, vocabulary: str
) -> None:
    """152,000 and 128,000 tokens, as they lie in llama.cpp's own sources."""
    base = save(family, tmp_path / family)
    tokens = rebuild(llama_sources / "models" / f"ggml-vocab-{vocabulary}.gguf", base)
    (base / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(len(tokens), mean_resizing=False)
    model.save_pretrained(base)
    spec = ModelSpec(name=family, path=str(base), load_in_4bit=False)
    quietly(refer)(cpu, spec, None, tmp_path / "reference")
    found = proof(spec, None, exported(spec, None, tmp_path), tmp_path / "reference")
    assert measured(found)["tokens"][0], found
    assert found.passed, found


def test_a_family_that_ours_does_not_cover_goes_through_the_official_converter(
    cpu: CpuBackend, llama_sources: Path, tmp_path: Path
) -> None:
    """Qwen3.5: three of four layers have linear attention, whose tensors are turned and reordered on the way."""
    base = tmp_path / "qwen35"
    torch.manual_seed(7)
    config = Qwen3_5TextConfig(
        vocab_size=400, hidden_size=128, intermediate_size=192, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=512, linear_num_key_heads=2, linear_num_value_heads=4,
        linear_key_head_dim=32, linear_value_head_dim=32, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
    save_tokenizer(base, QWEN2)
    model = ModelSpec(name="qwen35", path=str(base), load_in_4bit=False)
    quietly(refer)(cpu, model, None, tmp_path / "reference")
    found = proof(model, None, exported(model, None, tmp_path, llama_sources), tmp_path / "reference")
    assert found.passed, found
