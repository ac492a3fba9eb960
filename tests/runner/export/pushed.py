"""Folders to push, for tests: what goes, what stays, and files that hold just enough."""

from __future__ import annotations

from pathlib import Path

from backpropagate_runner.export.gguf_write import Head, write
from backpropagate_runner.export.tensor_file import header_of

CARD = "---\nlicense: mit\n---\n\n# A model\n"
SAFETENSORS = header_of([("w", "F32", (50,))]) + b"four" * 50
PUSHED = {
    "README.md": b"---\nlicense: mit\n---\nthe folder's own",
    "adapter_config.json": b"{}",
    "adapter_model.safetensors": SAFETENSORS,
    "chat_template.jinja": b"{{ messages }}",
    "tokenizer.json": b"{}",
}
KEPT = (
    "manifest.json",
    "runner.log",
    "events.jsonl",
    "spec.json",
    "optimizer.pt",
    "trainer_state.json",
    "model.gguf.partial",
    "model-Q4_K_M.gguf.export.json",
    "model-Q4_K_M.gguf.rejected",
    ".env",
    "token",
    ".token.gguf",
    "hf_token.txt",
    "pytorch_model.bin",
    "checkpoint-10/model.safetensors",
    "step-00000010/adapter_model.safetensors",
)


def gguf(path: Path, kind: str = "model") -> Path:
    head = Head("llama", "m")
    head.say("general.type", kind)
    write(path, head, [], lambda *sign: None, 1)
    return path


def filled(folder: Path) -> Path:
    """A folder with what is to be pushed, and what is not."""
    for name, content in {**PUSHED, **dict.fromkeys(KEPT, b"private")}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder
