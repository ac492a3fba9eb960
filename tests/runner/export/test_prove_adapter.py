"""The proof of a GGUF adapter: whatever scales its modules have it passes, and each kind of fault is caught by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from backpropagate_protocol.jobs import ConvertAdapterJob, ProveJob
from backpropagate_protocol.measured import Proof
from backpropagate_protocol.messages import Phase
from backpropagate_runner.export import gguf_arch
from backpropagate_runner.export.adapter import open_adapter
from backpropagate_runner.export.convert_adapter import convert_adapter, pieces
from backpropagate_runner.export.gguf_tensors import Computed, Tensor
from backpropagate_runner.export.gguf_write import Head, write
from backpropagate_runner.export.model_files import open_model
from backpropagate_runner.export.prove import prove
from tests.runner.export.gguf_models import save
from tests.runner.export.heard import Heard
from tests.runner.export.peft_models import save_adapter, spec

pytestmark = pytest.mark.slow

KINDS: dict[str, tuple[str, dict[str, object]]] = {
    "plain": ("llama3", {"target_modules": "all-linear"}),
    "rslora": ("llama3", {"target_modules": "all-linear", "use_rslora": True}),
    "rank and alpha for some": (
        "llama3",
        {
            "target_modules": "all-linear",
            "rank_pattern": {"k_proj": 2},
            "alpha_pattern": {"q_proj": 32, "down_proj": 2},
        },
    ),
    "the embedding": ("llama3", {"target_modules": ["embed_tokens", "k_proj"]}),
    "fused": ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj", "o_proj"]}),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    for name in ("llama3", "phi3"):
        save(name, folder / name)
    return folder


@pytest.fixture(scope="module")
def adapter(bases: Path) -> Path:
    return save_adapter(bases / "llama3", bases / "adapter", {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"})


def proof(base: Path, adapter: Path, target: Path) -> Proof:
    job = ProveJob(
        reference="",
        target=str(target),
        kind="lora-gguf",
        quantization="f32",
        model=spec(base),
        adapter=str(adapter),
        verifier="",
    )
    return prove(job, Heard(Phase.PROVE).stage)


def failed(made: Proof) -> dict[str, str]:
    assert made.passed == all(check.passed for check in made.checks)
    return {check.name: check.detail for check in made.checks if not check.passed}


def forged(
    base: Path,
    adapter: Path,
    out: Path,
    *,
    alpha: float | None = None,
    arch: str | None = None,
    without: str = "",
    other: dict[str, np.ndarray] | None = None,
) -> Path:
    """A GGUF adapter as a converter with a fault would write it."""
    honest = gguf_arch.read(open_model(spec(base), weights=False).config)
    said, tensors = pieces(open_adapter(str(adapter)), honest)
    head = Head(arch or honest.name, "forged")
    head.adapter(said if alpha is None else alpha)
    kept = [tensor for tensor in tensors if tensor.name != without]
    for name, values in (other or {}).items():
        kept = [tensor for tensor in kept if tensor.name != name]
        kept.append(Tensor(name, values.shape, "F32", Computed(values)))
    write(out, head, kept, lambda done, total, name: None, 64 << 20)
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_an_honest_adapter_passes_whatever_its_scales(bases: Path, tmp_path: Path, kind: str) -> None:
    name, lora = KINDS[kind]
    adapter = save_adapter(bases / name, tmp_path / "adapter", {"r": 4, "lora_alpha": 8, **lora})
    job = ConvertAdapterJob(model=spec(bases / name), adapter=str(adapter), out=str(tmp_path / "a.gguf"), name="tiny")
    convert_adapter(job, Heard(Phase.CONVERT).stage)
    made = proof(bases / name, adapter, tmp_path / "a.gguf")
    assert failed(made) == {}
    assert (made.verifier, {check.name for check in made.checks}) == ("weights", {"adapter", "metadata"})


@pytest.mark.parametrize("alpha", [4.0, 8.01, 0.0])
def test_a_wrong_alpha_is_caught(bases: Path, adapter: Path, tmp_path: Path, alpha: float) -> None:
    made = forged(bases / "llama3", adapter, tmp_path / "a.gguf", alpha=alpha)
    assert "adapter" in failed(proof(bases / "llama3", adapter, made))


def test_a_missing_half_and_one_too_many_are_caught(bases: Path, adapter: Path, tmp_path: Path) -> None:
    name = "blk.1.attn_v.weight.lora_b"
    short = forged(bases / "llama3", adapter, tmp_path / "short.gguf", without=name)
    assert name in failed(proof(bases / "llama3", adapter, short))["adapter"]
    extra = {"blk.9.attn_v.weight.lora_b": np.ones((4, 4), np.float32)}
    long = forged(bases / "llama3", adapter, tmp_path / "long.gguf", other=extra)
    assert "blk.9" in failed(proof(bases / "llama3", adapter, long))["adapter"]


def test_heads_in_the_order_of_another_family_are_caught(bases: Path, adapter: Path, tmp_path: Path) -> None:
    from backpropagate_runner.export.adapter import as_float

    module = open_adapter(str(adapter)).lora["model.layers.0.self_attn.q_proj"]
    name = "blk.0.attn_q.weight.lora_b"
    made = forged(bases / "llama3", adapter, tmp_path / "a.gguf", other={name: as_float(module.B).copy()})
    assert "blk.0.attn_q.weight" in failed(proof(bases / "llama3", adapter, made))["adapter"]


def test_zeros_are_caught(bases: Path, adapter: Path, tmp_path: Path) -> None:
    module = open_adapter(str(adapter)).lora["model.layers.1.mlp.up_proj"]
    zeros = {"blk.1.ffn_up.weight.lora_b": np.zeros(module.B.shape, np.float32)}
    made = forged(bases / "llama3", adapter, tmp_path / "a.gguf", other=zeros)
    assert "blk.1.ffn_up.weight" in failed(proof(bases / "llama3", adapter, made))["adapter"]


def test_the_adapter_of_another_architecture_is_caught(bases: Path, adapter: Path, tmp_path: Path) -> None:
    made = forged(bases / "llama3", adapter, tmp_path / "a.gguf", arch="qwen2")
    assert failed(proof(bases / "llama3", adapter, made)) == {"metadata": "general.architecture is qwen2, not llama"}


def test_a_whole_model_is_no_adapter(bases: Path, adapter: Path, tmp_path: Path) -> None:
    honest = forged(bases / "llama3", adapter, tmp_path / "a.gguf")
    content = honest.read_bytes()
    assert content.count(b"adapter.type") == 1
    honest.write_bytes(content.replace(b"adapter.type", b"adapter.kind"))
    assert failed(proof(bases / "llama3", adapter, honest)) == {"metadata": "adapter.type is None, not lora"}
