"""Formats and quantizations of an export: their names, sizes, and who can make them. One table for both sides of the wall."""

from __future__ import annotations

from typing import NamedTuple

FORMATS = ("lora", "merged", "gguf", "lora-gguf", "mlx")


class Quantization(NamedTuple):
    """One type of GGUF. `bits`: per weight, of a large model, for estimates of size."""

    name: str
    bits: float
    convert: bool  # our converter writes it directly, without native code
    ollama: bool  # Ollama makes it from f16 by itself


_ROWS = (
    Quantization("f32", 32.0, True, False),
    Quantization("f16", 16.0, True, False),
    Quantization("bf16", 16.0, True, False),
    Quantization("q8_0", 8.5, True, True),
    Quantization("q6_k", 6.6, False, False),
    Quantization("q5_k_m", 5.7, False, False),
    Quantization("q5_k_s", 5.6, False, False),
    Quantization("q5_1", 6.0, False, False),
    Quantization("q5_0", 5.6, False, False),
    Quantization("q4_k_m", 4.9, False, True),
    Quantization("q4_k_s", 4.7, False, True),
    Quantization("q4_1", 5.1, False, False),
    Quantization("q4_0", 4.6, False, False),
    Quantization("q3_k_l", 4.3, False, False),
    Quantization("q3_k_m", 4.0, False, False),
    Quantization("q3_k_s", 3.7, False, False),
    Quantization("q2_k", 3.3, False, False),
)
QUANTIZATIONS: dict[str, Quantization] = {row.name: row for row in _ROWS}
DEFAULT_QUANTIZATION = "q4_k_m"
