"""A published model's tokenizer, rebuilt from the vocabulary that llama.cpp's sources carry of it."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from backpropagate_runner.export.read_gguf import GgufFile
from tests.runner.export.gguf_models import LLAMA3, QWEN2

_CONTROL, _USER_DEFINED = "3", "4"
_SPECIAL = (_CONTROL, _USER_DEFINED)
RULES = {"qwen2": QWEN2, "llama-bpe": LLAMA3}


def rebuild(vocabulary: Path, folder: Path) -> list[str]:
    """Writes tokenizer.json and tokenizer_config.json into `folder`, and returns all tokens."""
    fields = GgufFile(vocabulary).fields
    tokens, types, merges = (_list(fields[f"tokenizer.ggml.{part}"]) for part in ("tokens", "token_type", "merges"))
    pre = str(fields["tokenizer.ggml.pre"])
    special = [index for index, kind in enumerate(types) if kind in _SPECIAL]
    plain = {token: index for index, token in enumerate(tokens) if types[index] not in _SPECIAL}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=plain,
            merges=[(a, b) for a, _, b in (merge.partition(" ") for merge in merges)],
            ignore_merges=pre == "llama-bpe",
        )
    )
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(RULES[pre]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(
        [AddedToken(tokens[index], special=types[index] == _CONTROL, normalized=False) for index in special]
    )
    settings: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for kind in ("bos", "eos"):
        settings[f"{kind}_token"] = tokens[int(str(fields[f"tokenizer.ggml.{kind}_token_id"]))]
    if pre == "llama-bpe":
        bos = str(settings["bos_token"])
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return tokens


def _list(value: object) -> list[str]:
    assert isinstance(value, list)
    return [str(entry) for entry in value]
