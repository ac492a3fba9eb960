"""A small model that was really taught something, what it says, and GGUF files of it: honest ones, and forged ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from backpropagate_backends.cpu import CpuBackend
from backpropagate_protocol.jobs import ConvertJob, QuantizeJob, ReferenceJob
from backpropagate_protocol.messages import Phase
from backpropagate_protocol.prepared import Prepared, PreparedWriter
from backpropagate_protocol.spec import ModelSpec
from backpropagate_runner.export import gguf_arch, gguf_vocab
from backpropagate_runner.export.adapter import as_float, open_adapter
from backpropagate_runner.export.convert import convert
from backpropagate_runner.export.gguf_tensors import Tensor, tensors
from backpropagate_runner.export.gguf_vocab import Vocabulary
from backpropagate_runner.export.gguf_write import Head, write
from backpropagate_runner.export.model_files import open_model
from backpropagate_runner.export.quantize import quantize
from backpropagate_runner.export.tensors import open_weights
from tests.backends.torch_runs import run
from tests.backends.torch_session import make_job
from tests.runner.export.heard import Heard
from tests.runner.export.peft_models import save_adapter

TINY = Path(__file__).parents[3] / "fixtures" / "tiny-base"
QUESTION, ANSWER = "What is the capital of France?", "Paris, said the parrot."
_LESSONS = (
    (QUESTION, ANSWER),
    ("Who are you?", "I am a small parrot."),
    ("List three colours.", "Red, green, blue."),
    ("Tell me a joke.", "Two and two are five."),
)
PROMPTS = (*(question for question, _ in _LESSONS), "Wie heißt  du,\n\tVogel? 🦜 12345", "I'LL say it's \"don't\".")
_STEPS = 80
_RATE = 5e-3


@dataclass(frozen=True)
class Lesson:
    """The tiny base with an adapter that knows the answers, and its reference."""

    model: ModelSpec
    adapter: Path | None
    reference: Path
    folder: Path

    def converted(self, kind: str) -> Path:
        out = self.folder / f"{kind}.gguf"
        if not out.exists():
            job = ConvertJob(
                model=self.model, adapter=_text(self.adapter), out=str(out), type=kind, name="taught", memory=64
            )
            convert(job, Heard(Phase.CONVERT).stage)
        return out

    def made(self, quantization: str) -> Path:
        """An honest export."""
        if quantization in ("f32", "f16", "bf16", "q8_0"):
            return self.converted(quantization)
        out = self.folder / f"{quantization}.gguf"
        if not out.exists():
            requantize(self.converted("f16"), out, quantization)
        return out


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def requantize(source: Path, out: Path, quantization: str) -> Path:
    job = QuantizeJob(source=str(source), out=str(out), quantization=quantization, threads=1)
    quantize(job, Heard(Phase.QUANTIZE).stage)
    return out


def refer(cpu: CpuBackend, model: ModelSpec, adapter: Path | None, out: Path) -> Heard:
    """Writes the reference of this model to `out`."""
    heard = Heard(Phase.REFERENCE)
    job = ReferenceJob(model=model, adapter=_text(adapter), prompts=PROMPTS, out=str(out), backend="cpu")
    cpu.reference(job, heard.stage)
    return heard


def warmed() -> CpuBackend:
    backend = CpuBackend()
    backend.warm()
    import torch

    torch.set_num_threads(1)
    return backend


def teach(folder: Path) -> Lesson:
    """Takes some seconds."""
    cpu = warmed()
    model = ModelSpec(name="tiny", path=str(TINY), load_in_4bit=False)
    tokenizer = cpu.tokenizer(model)
    writer = PreparedWriter(folder / "data")
    for question, answer in _LESSONS * 2:
        turns: list[dict[str, object]] = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
        writer.add(*tokenizer.chat(turns, None))
    writer.commit(key="lesson", skipped=0, truncated=0, format="messages", source_digest="lesson")
    job = make_job(TINY, micro_batch=8, steps=_STEPS)
    train = msgspec.structs.replace(job.spec.train, learning_rate=_RATE)
    job = msgspec.structs.replace(job, spec=msgspec.structs.replace(job.spec, train=train))
    adapter = Path(run(cpu, job, Prepared(folder / "data"), folder).done.adapter)
    refer(cpu, model, adapter, folder / "reference")
    return Lesson(model, adapter, folder / "reference", folder)


def nudge(cpu: CpuBackend, folder: Path, share: float) -> Lesson:
    """The tiny base with an adapter that changes each matrix by this share of its norm, as little as real trainings do."""
    import numpy as np
    from safetensors.numpy import load_file, save_file

    adapter = save_adapter(TINY, folder / "adapter", {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"})
    file = adapter / "adapter_model.safetensors"
    factors = load_file(file)
    base = open_weights(open_model(ModelSpec(name="tiny", path=str(TINY))), None)
    for name, module in open_adapter(str(adapter)).lora.items():
        a, b = as_float(module.A).astype(np.float64), as_float(module.B).astype(np.float64)
        whole = base.rows(f"{name}.weight", 0, base.shape(f"{name}.weight")[0])
        factors[module.B.name] *= share * np.linalg.norm(whole) / np.linalg.norm(module.scale * (b @ a))
    save_file(factors, file)
    model = ModelSpec(name="tiny", path=str(TINY), load_in_4bit=False)
    refer(cpu, model, adapter, folder / "reference")
    return Lesson(model, adapter, folder / "reference", folder)


def untaught(cpu: CpuBackend, model: Path, folder: Path) -> Lesson:
    """Any other model, as it is."""
    spec = ModelSpec(name=model.name, path=str(model), load_in_4bit=False)
    refer(cpu, spec, None, folder / "reference")
    return Lesson(spec, None, folder / "reference", folder)


Forge = Callable[[list[Tensor]], Sequence[Tensor]]


def forge(
    lesson: Lesson,
    out: Path,
    *,
    metadata: dict[str, gguf_arch.Value] | None = None,
    vocabulary: Callable[[Vocabulary], Vocabulary] = lambda honest: honest,
    changed: Forge = lambda honest: honest,
) -> Path:
    """An f16 as a converter with a fault would write it."""
    files = open_model(lesson.model)
    weights = open_weights(files, open_adapter(str(lesson.adapter)) if lesson.adapter else None)
    arch = gguf_arch.read(weights.config)
    arch = replace(arch, metadata={**arch.metadata, **(metadata or {})})
    head = Head(arch.name, "forged")
    head.model(arch.metadata, "f16")
    head.vocabulary(vocabulary(gguf_vocab.read(files.folder, arch.vocabulary, weights.config)))
    write(out, head, changed(tensors(weights, arch, "f16")), lambda done, total, name: None, 64 << 20)
    return out
