"""What one does without us to get a GGUF out of an adapter, one step for each call; bench_export.py holds ours against it.

python scripts/plain_export.py merge BASE ADAPTER OUT              PEFT: merge_and_unload, save_pretrained
python scripts/plain_export.py convert MODEL OUT LLAMA_CPP         llama.cpp's own converter, to f16
python scripts/plain_export.py quantize SOURCE OUT                 llama.cpp's quantizer as it comes, to Q4_K_M
"""

from __future__ import annotations

import ctypes
import importlib
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType


def merge(base: str, adapter: str, out: str) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float16)
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
    AutoTokenizer.from_pretrained(base).save_pretrained(out)


def convert(model: str, out: str, llama_cpp: str) -> None:
    folder = Path(llama_cpp)
    sys.path[:0] = [str(folder), str(folder / "gguf-py")]
    base = importlib.import_module("conversion.base")
    try:
        importlib.import_module("sentencepiece")
    except ImportError:  # it is imported before it is known whether the model has anything for it to read
        sys.modules["sentencepiece"] = empty = ModuleType("sentencepiece")
        empty.SentencePieceProcessor = None  # type: ignore[attr-defined]
    known = base.TextModel.get_vocab_base_pre

    def named(self: object, tokenizer: object) -> str:
        try:
            return str(known(self, tokenizer))
        except NotImplementedError:  # the bench's vocabulary is no published one; it splits text as Qwen2's does
            return "qwen2"

    base.TextModel.get_vocab_base_pre = named
    sys.argv = ["convert_hf_to_gguf.py", model, "--outfile", out, "--outtype", "f16", "--model-name", "bench"]
    runpy.run_path(str(folder / sys.argv[0]), run_name="__main__")


def quantize(source: str, out: str) -> None:
    import llama_cpp

    wishes = llama_cpp.llama_model_quantize_default_params()
    wishes.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    if llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(wishes)):
        sys.exit("llama.cpp did not quantize it")


if __name__ == "__main__":
    steps: dict[str, Callable[..., None]] = {"merge": merge, "convert": convert, "quantize": quantize}
    steps[sys.argv[1]](*sys.argv[2:])
