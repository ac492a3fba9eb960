"""An adapter alone to a GGUF adapter, which llama.cpp and Ollama lay over the base model's own GGUF.

llama.cpp knows one alpha for the whole file and divides it by each module's rank. What PEFT knows beyond that (rsLoRA, an
alpha or a rank for some modules) is folded into the modules' B, so that every module ends with the scale that it has.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backpropagate_protocol.errors import UserInputError
from backpropagate_protocol.jobs import ConvertAdapterJob
from backpropagate_protocol.messages import Made
from backpropagate_runner.export import gguf_arch
from backpropagate_runner.export.adapter import Adapter, LoraModule, as_float, open_adapter
from backpropagate_runner.export.gguf_arch import GgufArch, NotCovered
from backpropagate_runner.export.gguf_tensors import Computed, Tensor, pairs
from backpropagate_runner.export.gguf_write import Head, write
from backpropagate_runner.export.model_files import open_model
from backpropagate_runner.export.stage import Stage, new_file

_PIECE = 64 << 20
_INSTEAD = "Export the merged model instead: --format gguf or merged."


def convert_adapter(job: ConvertAdapterJob, stage: Stage) -> Made:
    """Raises INPUT_MODEL_UNSUPPORTED for the base's architecture, INPUT_ADAPTER_UNSUPPORTED for an adapter that changes
    more than GGUF adapters can say."""
    files = open_model(job.model, stage.advance, weights=False)
    adapter = open_adapter(job.adapter)
    if problems := adapter.kind_problems("lora-gguf"):
        raise _unsupported(adapter, "; ".join(problems))
    try:
        arch = gguf_arch.read(files.config)
    except NotCovered as reason:
        raise UserInputError(
            f"{files.name} has {reason}: its adapters cannot become GGUF adapters here",
            code="INPUT_MODEL_UNSUPPORTED",
            suggestion=_INSTEAD,
        ) from None
    alpha, tensors = pieces(adapter, arch)
    head = Head(arch.name, job.name)
    head.adapter(alpha)
    out = Path(job.out)
    with new_file(out) as partial:
        digest, _ = write(partial, head, tensors, stage.advance, _PIECE)
    return Made(path=str(out), bytes=out.stat().st_size, digest=digest)


def pieces(adapter: Adapter, arch: GgufArch) -> tuple[float, list[Tensor]]:
    """The alpha of the file, and its tensors."""
    modules = list(adapter.modules())
    # the most frequent one, so that most modules, and all of a plain adapter, stay as they are to the bit
    alpha = Counter(module.scale * module.r for module in modules).most_common(1)[0][0]
    try:
        names = arch.names(f"{module.name}.weight" for module in modules)
    except NotCovered as reason:
        raise _unsupported(adapter, f"it has {reason}") from None
    tensors = []
    for module in modules:
        mapped = names.get(f"{module.name}.weight")
        if mapped is None or (arch.tied and module.kind == "embedding"):
            # the base's GGUF has one matrix for both, which is used by its name: both would be changed
            raise _unsupported(adapter, f"it changes {module.name}, which the model uses for tokens in and out alike")
        a, b = _pair(module, alpha, arch)
        tensors += [_tensor(f"{mapped}.lora_a", a), _tensor(f"{mapped}.lora_b", b)]
    return alpha, tensors


def _pair(module: LoraModule, alpha: float, arch: GgufArch) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    a, b = as_float(module.A), as_float(module.B)
    if module.scale * module.r != alpha:
        b = b * np.float32(module.scale * module.r / alpha)
    if heads := arch.heads(f"{module.name}.weight"):
        b = pairs(b.shape[0] // heads)(b).astype(np.float32, copy=False)
    return (a.T if module.kind == "embedding" else a), b


def _tensor(name: str, values: NDArray[np.float32]) -> Tensor:
    return Tensor(name, values.shape, "F32", Computed(np.ascontiguousarray(values)))


def _unsupported(adapter: Adapter, why: str) -> UserInputError:
    return UserInputError(
        f"the adapter in {adapter.folder} cannot become a GGUF adapter: {why}",
        code="INPUT_ADAPTER_UNSUPPORTED",
        suggestion=_INSTEAD,
    )
