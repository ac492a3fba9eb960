"""A byte-level BPE tokenizer as GGUF says it: tokens, merges, special tokens, the way text is split, the chat template.

Read from tokenizer.json and the files beside it; nothing is guessed. llama.cpp knows ways of splitting text by name, so a
tokenizer's way is found by its very rules; one that has other rules would make other tokens, and is not covered.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from backpropagate_protocol.errors import ModelLoadError, UserInputError
from backpropagate_runner.export.gguf_arch import NotCovered

# gguf.TokenType
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
_SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BY_RULE = {
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+{_REST}": "qwen2",
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+{_REST}": "llama-bpe",
    rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_SLASHED}": "tekken",
    rf"{_CASED[0]}{_CONTRACTIONS}?|{_CASED[1]}{_CONTRACTIONS}?|\p{{N}}{{1,3}}|{_SLASHED}": "gpt-4o",
}
# llama.cpp takes a whole word that is a token as it is in these; with the same rules, but merging in every case, is:
_WITHOUT_MERGES = {"llama-bpe": "smaug-bpe"}
# How a split says that what the rule matches becomes a word: the rules above leave nothing unmatched.
_WORDS = (("Isolated", False), ("Removed", True))

# Ends of answers that llama.cpp knows by their text, whatever the file says of them.
_KNOWN_ENDS = frozenset(
    [
        "</s>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<eos>",
        "<end_of_turn>",
        "<turn|>",
        "<end_of_utterance>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|calls|>",
        "<|flush|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|tool_response>",
    ]
)
_PHI3 = ("<unk>", "<s>", "</s>", "<|endoftext|>")  # the four that llama.cpp's rule for Phi-3 speaks of by name
_SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


@dataclass(frozen=True)
class Vocabulary:
    """tokens[i] and types[i] (gguf.TokenType) belong to the id i. special: bos, eos, … to ids."""

    pre: str
    tokens: Sequence[str]
    types: Sequence[int]
    merges: Sequence[str]
    special: Mapping[str, int]
    add_bos: bool
    add_eos: bool
    chat_template: str | None
    notes: tuple[str, ...] = ()


def pre_tokenizer(folder: str | Path) -> str | None:
    """llama.cpp's name for the way in which this folder's tokenizer splits text; None if it has no name for it, or the
    tokenizer is not byte-level BPE."""
    try:
        return _pre(_json(Path(folder) / "tokenizer.json"))
    except NotCovered:
        return None


def tokenizer_folder(model: Path, adapter: Path | None) -> Path:
    """Where the tokenizer lies that the model was trained with: beside the adapter if it was saved there."""
    return adapter if adapter is not None and (adapter / "tokenizer.json").is_file() else model


def read(folder: Path, rows: int, config: Mapping[str, object], ends: Sequence[int] = ()) -> Vocabulary:
    """The tokenizer in `folder` for a model whose embedding has `rows` rows. `ends`: all tokens that end an answer.

    Raises NotCovered with the reason; UserInputError [INPUT_MODEL_UNSUPPORTED] for what no GGUF can say, and ModelLoadError
    for a damaged file.
    """
    tokenizer, settings = _json(folder / "tokenizer.json"), _json(folder / "tokenizer_config.json", optional=True)
    pre = _pre(tokenizer)
    model = _object(tokenizer, "model")
    added = {_id(entry): entry for entry in _list(tokenizer, "added_tokens")}
    by_id = {index: token for token, index in _object(model, "vocab").items() if isinstance(index, int)}
    by_id |= {index: str(entry["content"]) for index, entry in added.items()}
    if max(by_id) >= rows:
        raise NotCovered(f"the tokenizer has tokens up to {max(by_id)}, and the model only {rows} rows for them")
    tokens = [by_id.get(index, f"[PAD{index}]") for index in range(rows)]
    types = [_type(added.get(index), tokens[index]) if index in by_id else UNUSED for index in range(rows)]
    special = _special(settings, config, {str(entry["content"]): index for index, entry in added.items()}, rows)
    if (turn := _end_of_turn(ends, special, tokens)) is not None:
        special["eot"] = turn
    first, last = _ends(tokenizer)
    template = chat_template(folder)
    return Vocabulary(
        pre=pre,
        tokens=tokens,
        types=types,
        merges=[_merge(pair) for pair in _list(model, "merges")],
        special=special,
        add_bos=_adds("bos", first, special, tokens),
        add_eos=_adds("eos", last, special, tokens),
        chat_template=template,
        notes=_swallowing(folder, added.values(), template, {kind: tokens[index] for kind, index in special.items()}),
    )


def chat_template(folder: Path) -> str | None:
    """The template that transformers uses for a tokenizer in this folder, if it has one."""
    if (file := folder / "chat_template.jinja").is_file():
        return file.read_text(encoding="utf-8")
    for name in ("tokenizer_config.json", "chat_template.json"):
        said = _json(folder / name, optional=True).get("chat_template")
        if isinstance(said, list):  # several by name: the default one speaks for the model
            named = [entry for entry in said if isinstance(entry, dict) and entry.get("name") == "default"]
            said = named[0].get("template") if named else None
        if isinstance(said, str):
            return said
    return None


def _pre(tokenizer: Mapping[str, object]) -> str:
    model = _object(tokenizer, "model")
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise NotCovered("a tokenizer that is not byte-level BPE")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise NotCovered(f"a tokenizer with {key}")
    normalizer = tokenizer.get("normalizer")
    kind = normalizer.get("type") if isinstance(normalizer, dict) else None
    empty = isinstance(normalizer, dict) and kind == "Sequence" and not normalizer.get("normalizers")
    if normalizer is not None and kind != "NFC" and not empty:
        raise NotCovered(f"a tokenizer that normalizes text by {kind}")
    name = _named(_steps(tokenizer.get("pre_tokenizer")))
    if name is not None and not model.get("ignore_merges"):
        name = _WITHOUT_MERGES.get(name, name)
    if name is None:
        raise NotCovered("a tokenizer that splits text by rules of its own")
    return name


def _steps(pre: object) -> list[dict[str, object]]:
    if not isinstance(pre, dict):
        return []
    if pre.get("type") != "Sequence":
        return [pre]
    return [step for step in pre.get("pretokenizers", []) if isinstance(step, dict)]


def _named(steps: Sequence[Mapping[str, object]]) -> str | None:
    match [step.get("type") for step in steps]:
        case ["Split", "ByteLevel"]:
            split, bytes_ = steps
            pattern = split.get("pattern")
            rule = pattern.get("Regex") if isinstance(pattern, dict) else None
            plain = (split.get("behavior"), bool(split.get("invert"))) in _WORDS and not bytes_.get("use_regex")
            return _BY_RULE.get(str(rule)) if plain and not bytes_.get("add_prefix_space") else None
        case ["ByteLevel"]:
            (bytes_,) = steps
            return "gpt-2" if bytes_.get("use_regex", True) and not bytes_.get("add_prefix_space") else None
        case ["Digits", "ByteLevel"]:
            digits, bytes_ = steps
            plain = bool(digits.get("individual_digits")) and bool(bytes_.get("use_regex", True))
            return "smollm" if plain and not bytes_.get("add_prefix_space") else None
        case _:
            return None


def _type(entry: Mapping[str, object] | None, token: str) -> int:
    if entry is None:
        return NORMAL
    marked = token.startswith(("<|", "<｜")) and token.endswith(("|>", "｜>"))
    # llama.cpp prints user-defined tokens; what has the looks of a mark is one, whatever the file says
    return CONTROL if entry.get("special") or marked or token in ("<pad>", "<mask>") else USER_DEFINED


def _special(
    settings: Mapping[str, object], config: Mapping[str, object], added: Mapping[str, int], rows: int
) -> dict[str, int]:
    found: dict[str, int] = {}
    for kind in _SPECIAL:
        said = settings.get(f"{kind}_token")
        content = said.get("content") if isinstance(said, dict) else said
        index = added.get(content) if isinstance(content, str) else None
        if index is None:
            fallback = config.get(f"{kind}_token_id")
            fallback = fallback[0] if isinstance(fallback, list) and fallback else fallback
            index = fallback if isinstance(fallback, int) and 0 <= fallback < rows else None
        if index is not None:
            found[kind] = index
    return found


def ends_of_answers(model: Path) -> tuple[int, ...]:
    """What the model in this folder says ends an answer, besides its tokenizer's eos."""
    said = _json(model / "generation_config.json", optional=True).get("eos_token_id")
    return tuple(index for index in (said if isinstance(said, list) else [said]) if isinstance(index, int))


def _end_of_turn(ends: Sequence[int], special: Mapping[str, int], tokens: Sequence[str]) -> int | None:
    """The end that is not the eos: GGUF has room for one, and llama.cpp knows those of well-known models by their text."""
    others = [index for index in ends if 0 <= index < len(tokens) and index != special.get("eos")]
    unknown = [index for index in others if tokens[index] not in _KNOWN_ENDS]
    return unknown[0] if unknown else None


def _swallowing(
    folder: Path, added: Iterable[Mapping[str, object]], template: str | None, special: Mapping[str, str]
) -> tuple[str, ...]:
    """What is to be said of marks that swallow the blanks beside them, for which GGUF has no words.

    Raises UserInputError if the chat template itself writes such blanks: then no prompt would be the same tokens.
    """
    right = [str(entry["content"]) for entry in added if entry.get("rstrip")]
    left = [str(entry["content"]) for entry in added if entry.get("lstrip")]
    if not right and not left:
        return ()
    text = _probe(template, special) if template is not None else ""
    swallowed = [mark for mark in right if re.search(re.escape(mark) + r"\s", text)]
    swallowed += [mark for mark in left if re.search(r"\s" + re.escape(mark), text)]
    if swallowed:
        raise UserInputError(
            f"the tokenizer in {folder} swallows the blanks beside {swallowed[0]}, and its chat template writes some there: "
            "a GGUF cannot say that, and every prompt would become other tokens",
            code="INPUT_MODEL_UNSUPPORTED",
            suggestion="Export it as `merged` or `lora`; or train with a chat template that writes no blanks there.",
        )
    return (f"blanks beside {(right + left)[0]} become other tokens in a GGUF: the tokenizer swallows them",)


def _probe(template: str, special: Mapping[str, str]) -> str:
    """A conversation as the template writes it; a shorter one where that is refused."""
    from backpropagate_runner.export.jinja_chat import TemplateRefused, renderer

    turns = [{"role": role, "content": "x"} for role in ("system", "user", "assistant", "user")]
    for talk in (turns, turns[1:]):
        try:
            return renderer(template, {f"{kind}_token": token for kind, token in special.items()})(talk)
        except TemplateRefused:
            continue
    return ""


def swallows_like_phi3(folder: Path) -> bool:
    """Whether special tokens swallow the blanks after them as those of Phi-3's first vocabulary do, for which llama.cpp has
    a rule that goes by the model's name."""
    tokenizer = _json(folder / "tokenizer.json", optional=True)
    added = [entry for entry in _list(tokenizer, "added_tokens") if isinstance(entry, dict)]
    vocab = _object(tokenizer, "model").get("vocab") if tokenizer else None
    there = set(vocab if isinstance(vocab, dict) else ()) | {str(entry.get("content")) for entry in added}
    marks = [entry for entry in added if entry.get("special") and entry.get("content") not in _PHI3]
    return there >= set(_PHI3) and bool(marks) and all(entry.get("rstrip") for entry in marks)


def _ends(tokenizer: Mapping[str, object]) -> tuple[str | None, str | None]:
    """The special tokens that the tokenizer itself puts before and after a text."""
    post = tokenizer.get("post_processor")
    if not isinstance(post, dict):
        return None, None
    for step in post.get("processors", [post]):
        if step.get("type") == "TemplateProcessing" and len(single := step.get("single", [])) > 1:
            first, last = (end.get("SpecialToken", {}).get("id") for end in (single[0], single[-1]))
            return first, last
    return None, None


def _adds(kind: str, end: str | None, special: Mapping[str, int], tokens: Sequence[str]) -> bool:
    """Written in every case: llama.cpp's own default differs between ways of splitting. What the settings say beside the
    tokenizer has no say in transformers either."""
    index = special.get(kind)
    return index is not None and end is not None and tokens[index] == end


def _merge(pair: object) -> str:
    if isinstance(pair, str):
        return pair
    if isinstance(pair, list) and len(pair) == 2:
        return " ".join(str(part).replace(" ", "Ġ") for part in pair)
    raise NotCovered("a tokenizer whose merges are neither pairs nor lines")


def _json(path: Path, *, optional: bool = False) -> dict[str, object]:
    if not path.is_file():
        if optional:
            return {}
        raise NotCovered(f"a tokenizer without {path.name}")
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of the text, or of its encoding
        raise ModelLoadError(
            f"{path} cannot be read: {error}", suggestion="The file is damaged: download or copy the model again."
        ) from error
    if not isinstance(read, dict):
        raise NotCovered(f"{path.name} is not an object")
    return read


def _object(parent: Mapping[str, object], key: str) -> dict[str, object]:
    value = parent.get(key)
    if not isinstance(value, dict):
        raise NotCovered(f"a tokenizer without {key}")
    return value


def _list(parent: Mapping[str, object], key: str) -> list[dict[str, object]]:
    value = parent.get(key)
    return value if isinstance(value, list) else []


def _id(entry: Mapping[str, object]) -> int:
    index = entry.get("id")
    if not isinstance(index, int):
        raise NotCovered("an added token without an id")
    return index
