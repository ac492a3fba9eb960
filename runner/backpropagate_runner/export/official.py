"""The door to llama.cpp's own converter: found, never shipped; run inside the process that does nothing else.

It brings its own `gguf` package, which has the name and the version of the registry's and is another one. So this process
must not have imported `gguf` before, and does not use it for anything else after.
"""

from __future__ import annotations

import re
from pathlib import Path

from backpropagate_runner.export.fetch_converter import converter_in, default_folder

SCRIPT = "convert_hf_to_gguf.py"


def find_converter(folder: str | None) -> Path | None:
    """The folder with the converter: `folder` if one is named, else the one that `fetch_converter` fills."""
    return converter_in(Path(folder) if folder else default_folder())


def knows(folder: Path, architecture: str) -> bool:
    """Whether the converter in this folder has an entry for it. Nothing is imported: its own table is read as text."""
    quoted = re.compile(rf"""["']{re.escape(architecture)}["']""")
    package = folder / "conversion"
    files = [folder / SCRIPT, *(package.glob("*.py") if package.is_dir() else ())]
    return any(quoted.search(file.read_text(encoding="utf-8")) for file in files)
