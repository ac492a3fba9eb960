"""Models in real shapes with random weights, and rows of known lengths: nothing has to be downloaded for the GPU bench."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

TINY = Path(__file__).resolve().parent.parent / "fixtures" / "tiny-base"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder as the config.json of the model it is named after has it."""

    kind: str  # llama or qwen2
    hidden: int
    inner: int
    layers: int
    heads: int
    keys: int
    vocabulary: int
    tied: bool


SHAPES = {
    "1b": Shape("llama", 2048, 8192, 16, 32, 8, 128_256, True),  # Llama 3.2 1B
    "3b": Shape("qwen2", 2048, 11_008, 36, 16, 2, 151_936, True),  # Qwen2.5 3B
    "7b": Shape("qwen2", 3584, 18_944, 28, 28, 4, 152_064, False),  # Qwen2.5 7B
    "8b": Shape("llama", 4096, 14_336, 32, 32, 8, 128_256, False),  # Llama 3.1 8B
}


def shrunk(shape: Shape) -> Shape:
    """The same kind of model, small enough for any CPU: to try the bench itself out."""
    return replace(shape, hidden=64, inner=128, layers=2, heads=4, keys=2, vocabulary=8192)


def write_model(shape: Shape, folder: Path, *, device: str, dtype: str) -> Path:
    """A model folder with random weights. On a GPU the weights are made there, which takes seconds instead of minutes."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

    sizes = {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.keys,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied,
        "max_position_embeddings": 32_768,
        "dtype": dtype,
    }
    config = LlamaConfig(**sizes) if shape.kind == "llama" else Qwen2Config(**sizes)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    for name in _TOKENIZER:
        if (TINY / name).is_file():
            shutil.copy(TINY / name, folder / name)
    del model
    if device != "cpu":
        torch.cuda.empty_cache()
    return folder


def write_rows(path: Path, count: int, shortest: int, longest: int) -> Path:
    """Rows of text, each of so many words that it has between so many tokens (about), most of them short as in real data."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    draw = random.Random(0)
    words = [
        "the",
        "of",
        "a",
        "model",
        "learns",
        "what",
        "rows",
        "say",
        "and",
        "tells",
        "it",
        "again",
        "in",
        "other",
        "words",
        "when",
        "asked",
        "about",
        "numbers",
    ]
    per_word = len(tokenizer.encode(" ".join(words * 20)).ids) / (20 * len(words))
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(count):
            tokens = shortest + (longest - shortest) * draw.betavariate(1.2, 3.0) if longest > shortest else longest
            text = " ".join(draw.choice(words) for _ in range(max(4, int(tokens / per_word))))
            file.write(json.dumps({"text": text}) + "\n")
    return path


def write_pairs(path: Path, count: int, words: int) -> Path:
    """Preference rows of plain text."""
    draw = random.Random(0)
    some = [
        "yes",
        "no",
        "perhaps",
        "the",
        "answer",
        "is",
        "seven",
        "eight",
        "nine",
        "because",
        "it",
        "was",
        "said",
        "so",
        "before",
    ]
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            one, other = (" ".join(draw.choice(some) for _ in range(words)) for _ in range(2))
            file.write(json.dumps({"prompt": f"Question {number}: ", "chosen": one, "rejected": other}) + "\n")
    return path
