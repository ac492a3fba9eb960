"""Which way a model becomes a GGUF of the wanted type: decided from what was found out, with nothing looked at again."""

from __future__ import annotations

from typing import NamedTuple

from backpropagate_protocol.errors import DependencyError, UserInputError
from backpropagate_protocol.export_formats import QUANTIZATIONS

_DIRECT = ", ".join(row.name for row in QUANTIZATIONS.values() if row.convert)

# Made from weights as the base keeps them: bfloat16 has no exact float16 below 2^-14, and its bits can be copied as they
# are. A float32 base goes through float16: its rounding is a hundredth of what any of these types does, half the disk.
_BETWEEN = {"BF16": "bf16"}


class Way(NamedTuple):
    """type: what the converter writes. quantizer: llama, ollama, or empty where that is the result already."""

    type: str
    quantizer: str


def way(quantization: str, stored: str, llama: str, *, ollama: bool) -> Way:
    """stored: the base's precision. llama: why llama.cpp cannot be used, empty if it can. ollama: whether one will get it.

    Raises DependencyError [DEP_EXPORT_TOOL_MISSING] if nobody here can make it.
    """
    row = QUANTIZATIONS[quantization]
    if row.convert:
        return Way(row.name, "")
    between = _BETWEEN.get(stored, "f16")
    if not llama:
        return Way(between, "llama")
    if row.ollama and ollama:
        return Way(between, "ollama")
    others = f"export a type that needs no tool (--quantization {_DIRECT})"
    if row.ollama:
        others += f", or let Ollama make {row.name} itself (--ollama-name NAME)"
    raise DependencyError(
        f"{row.name} is made by llama.cpp, and {llama}",
        code="DEP_EXPORT_TOOL_MISSING",
        suggestion="pip install 'backpropagate[export]' (compiled on the spot: a C++ compiler is needed); "
        f"or {others}. The merged model (--format merged) needs none of it.",
    )


def no_converter(name: str, architecture: str, why: str) -> DependencyError:
    return DependencyError(
        f"{name} ({architecture}) is not a model that our own converter covers: {why}; llama.cpp's converter is not here",
        code="DEP_EXPORT_TOOL_MISSING",
        suggestion="Fetch it once with `backprop setup --converter`, or set LLAMA_CPP_DIR to a checkout of llama.cpp; "
        "or export --format merged.",
    )


def unsupported(name: str, architecture: str, wanted: str, why: str) -> UserInputError:
    return UserInputError(
        f"{name} ({architecture}) cannot become {wanted}: {why}",
        code="INPUT_MODEL_UNSUPPORTED",
        suggestion="Export it with --format merged"
        + (" or gguf." if wanted == "a GGUF adapter" else ", which takes every architecture."),
    )
