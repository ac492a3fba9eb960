"""Fetches llama.cpp's own converter into the user's cache: two megabytes out of one pinned source package."""

from __future__ import annotations

import sys
from pathlib import Path

_NAME = "llama.cpp-converter"


def default_folder() -> Path:
    """Where the converter is kept for all projects of this user."""
    home = Path.home()
    if sys.platform == "win32":
        return home / "AppData" / "Local" / "backpropagate" / _NAME
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "backpropagate" / _NAME
    return home / ".cache" / "backpropagate" / _NAME


def converter_in(folder: Path) -> Path | None:
    """The folder itself if all that the converter needs is in it."""
    needed = ("convert_hf_to_gguf.py", "conversion/__init__.py", "gguf-py/gguf/__init__.py")
    return folder if all((folder / name).is_file() for name in needed) else None
