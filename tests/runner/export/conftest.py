"""What tests of exports share: llama.cpp's own converter, to compare with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.llama_sources import LLAMA_SOURCES
from tests.runner.export.official import Officially

# Another checkout of llama.cpp than the one that scripts/llama_sources.py fetches.
GIVEN = "BACKPROPAGATE_TEST_LLAMA_CPP"


@pytest.fixture(scope="session")
def llama_sources() -> Path:
    """The folder with llama.cpp's converter, and some of its vocabularies."""
    folder = Path(os.environ.get(GIVEN, LLAMA_SOURCES))
    if not (folder / "convert_hf_to_gguf.py").is_file():
        pytest.skip("run `python scripts/llama_sources.py` once")
    return folder


@pytest.fixture(scope="session")
def official(llama_sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Officially:
    return Officially(llama_sources, tmp_path_factory.mktemp("official"))
