"""Takes out of llama.cpp's pinned source package what the tests hold ours against, into this interpreter's own environment.

    python scripts/llama_sources.py

That is its converter, the chat templates of many models, and the vocabularies of some. test.py calls it; the package is the
one that `backprop setup --converter` fetches, and pip has it in its cache when it has just compiled it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from backpropagate_protocol.durable import file_entry
from backpropagate_runner.export.fetch_converter import PACKAGE, SHA256, VERSION, unpack

FOLDER = Path(sys.prefix) / "llama.cpp"
_WANTED = re.compile(
    r"convert_hf_to_gguf\.py|convert_lora_to_gguf\.py|LICENSE|conversion/\w+\.py|gguf-py/(LICENSE|gguf/\w+\.py)"
    r"|models/templates/[\w.-]+\.jinja|models/ggml-vocab-(qwen2|llama-bpe|gpt-2|llama-spm|phi-3)\.gguf(\.inp|\.out)?"
)


def main() -> int:
    if (FOLDER / "convert_hf_to_gguf.py").is_file():
        return 0
    with tempfile.TemporaryDirectory() as name:
        pinned = Path(name) / "pinned.txt"
        pinned.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
        command += ["--no-deps", "--no-binary", PACKAGE, "--require-hashes", "-r", str(pinned), "-d", name]
        if subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode:
            return 1
        (package,) = Path(name).glob("*.tar.gz")
        if file_entry(package).sha256 != SHA256:
            print(f"{package.name} is not the package that was pinned", file=sys.stderr)
            return 1
        unpack(package, FOLDER, lambda done, total, detail: None, _WANTED)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
