"""llama.cpp's own sources, which ours is held against: its converter, real chat templates, real vocabularies."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# Where scripts/llama_sources.py puts them; scripts/test.py calls it, so that none of these tests is left out there.
LLAMA_SOURCES = Path(sys.prefix) / "llama.cpp"

with_llama_sources = pytest.mark.skipif(
    not (LLAMA_SOURCES / "convert_hf_to_gguf.py").is_file(), reason="run `python scripts/llama_sources.py` once"
)
