"""A tokenizer carried into GGUF makes the same tokens there; one that would not is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import llama_cpp
import pytest
from tokenizers import Tokenizer

from backpropagate_protocol.errors import ModelLoadError, UserInputError
from backpropagate_runner.export.gguf_arch import NotCovered
from backpropagate_runner.export.gguf_vocab import (
    CONTROL,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    chat_template,
    ends_of_answers,
    pre_tokenizer,
    read,
    swallows_like_phi3,
    tokenizer_folder,
)
from backpropagate_runner.export.gguf_write import Head, fitting_name, write
from backpropagate_runner.export.read_gguf import GgufFile
from tests.runner.export.gguf_models import GPT4O, LLAMA3, MARKS, PADDED, QWEN2, TEKKEN, TEMPLATE, TEXTS, save_tokenizer
from tests.runner.export.real_vocabulary import rebuild

Edit = Callable[[dict[str, object]], None]


def edited(folder: Path, change: dict[str, object], part: str | None = None) -> Path:
    """A tokenizer.json with some of its entries, or of its model's, changed."""
    path = save_tokenizer(folder, QWEN2) / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    (content[part] if part else content).update(change)
    path.write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("rule", "name"), [(QWEN2, "qwen2"), (LLAMA3, "llama-bpe"), (TEKKEN, "tekken"), (GPT4O, "gpt-4o")]
)
def test_a_way_of_splitting_is_known_by_its_rules(tmp_path: Path, rule: str, name: str) -> None:
    assert pre_tokenizer(save_tokenizer(tmp_path, rule)) == name


def test_words_may_be_said_as_what_is_not_removed(tmp_path: Path) -> None:
    split = {"type": "Split", "pattern": {"Regex": GPT4O}, "behavior": "Removed", "invert": True}
    steps = [split, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]
    assert pre_tokenizer(edited(tmp_path, {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}})) == "gpt-4o"
    split["invert"] = False
    assert pre_tokenizer(edited(tmp_path, {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}})) is None


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        ({"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}, "gpt-2"),
        ({"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}, None),
        (
            {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Digits", "individual_digits": True},
                    {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
                ],
            },
            "smollm",
        ),
        ({"type": "Whitespace"}, None),
        (None, None),
    ],
)
def test_splitting_without_a_rule_is_known_by_its_steps(tmp_path: Path, steps: object, name: str | None) -> None:
    assert pre_tokenizer(edited(tmp_path, {"pre_tokenizer": steps})) == name


@pytest.mark.parametrize(
    ("change", "part", "reason"),
    [
        ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "x"}}}, None, "rules of its own"),
        ({"type": "Unigram"}, "model", "not byte-level BPE"),
        ({"byte_fallback": True}, "model", "not byte-level BPE"),
        ({"end_of_word_suffix": "</w>"}, "model", "end_of_word_suffix"),
        ({"normalizer": {"type": "Lowercase"}}, None, "normalizes text by Lowercase"),
        ({"merges": [["a"]]}, "model", "neither pairs nor lines"),
    ],
)
def test_what_would_make_other_tokens_is_refused(
    tmp_path: Path, change: dict[str, object], part: str | None, reason: str
) -> None:
    with pytest.raises(NotCovered, match=reason):
        read(edited(tmp_path, change, part), PADDED, {})


def test_the_same_rules_without_whole_words_have_another_name(tmp_path: Path) -> None:
    """llama-bpe takes a word that is a token as it is; where the tokenizer does not, smaug-bpe splits alike and merges."""
    path = save_tokenizer(tmp_path, LLAMA3) / "tokenizer.json"
    path.write_text(path.read_text().replace('"ignore_merges": true', '"ignore_merges": false'))
    assert pre_tokenizer(tmp_path) == "smaug-bpe"


def test_kinds_of_tokens_and_the_rows_that_no_token_has(tmp_path: Path) -> None:
    vocabulary = read(save_tokenizer(tmp_path, QWEN2), PADDED, {"unk_token_id": 7})
    kinds = dict(zip(vocabulary.tokens, vocabulary.types, strict=True))
    assert len(vocabulary.tokens) == PADDED
    assert (kinds["<|im_end|>"], kinds["<tool>"], kinds["a"]) == (CONTROL, USER_DEFINED, NORMAL)
    assert (vocabulary.tokens[-1], vocabulary.types[-1]) == (f"[PAD{PADDED - 1}]", UNUSED)
    assert vocabulary.special == {"eos": 2, "unk": 7, "pad": 0}
    assert (vocabulary.add_bos, vocabulary.add_eos) == (False, False)


def swallowing(folder: Path, side: str) -> Path:
    """Every mark swallows the blanks on one side of it."""
    path = save_tokenizer(folder, QWEN2) / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for entry in content["added_tokens"]:
        entry[side] = True
    path.write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_marks_that_swallow_what_the_template_writes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match=r"swallows the blanks beside <\|im_end\|>") as told:
        read(swallowing(tmp_path / "right", "rstrip"), PADDED, {})
    assert told.value.code == "INPUT_MODEL_UNSUPPORTED"
    with pytest.raises(UserInputError, match=r"<\|im_start\|>"):
        read(swallowing(tmp_path / "left", "lstrip"), PADDED, {})


def test_marks_that_could_swallow_something_are_told(tmp_path: Path) -> None:
    folder = swallowing(tmp_path, "rstrip")
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    )
    assert "other tokens" in read(folder, PADDED, {}).notes[0]
    assert read(save_tokenizer(tmp_path / "plain", QWEN2), PADDED, {}).notes == ()


def test_a_damaged_tokenizer_is_a_damaged_model(tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path, QWEN2)
    (folder / "tokenizer.json").write_bytes(b'{"model": \xff')
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json cannot be read"):
        read(folder, PADDED, {})


def test_the_first_of_several_ends_is_the_eos_where_the_tokenizer_names_none(tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path, QWEN2)
    settings = folder / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace('"eos_token"', '"other"'))
    assert read(folder, PADDED, {"eos_token_id": [2, 1]}).special["eos"] == 2


def test_an_end_that_llama_cpp_does_not_know_is_written_down(tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path, QWEN2)
    assert ends_of_answers(folder) == ()
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 0, 1]}')
    assert ends_of_answers(folder) == (2, 0, 1)
    vocabulary = read(folder, PADDED, {}, ends_of_answers(folder))
    assert (vocabulary.special["eos"], vocabulary.special["eot"]) == (2, 1)  # 0 is <|endoftext|>, which it knows
    head = Head("llama", "vocabulary")
    head.vocabulary(vocabulary)
    write(tmp_path / "vocabulary.gguf", head, [], lambda done, total, detail: None, 1 << 20)
    llama = llama_cpp.Llama(str(tmp_path / "vocabulary.gguf"), vocab_only=True, n_ctx=8, verbose=False)
    known = llama_cpp.llama_model_get_vocab(llama.model)
    assert [llama_cpp.llama_vocab_is_eog(known, token) for token in (0, 1, 2, 3)] == [True, True, True, False]
    llama.close()


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotCovered, match="only 100 rows"):
        read(save_tokenizer(tmp_path, QWEN2), 100, {})


def test_merges_written_as_lines_are_the_same_merges(tmp_path: Path) -> None:
    pairs = read(save_tokenizer(tmp_path, QWEN2), PADDED, {}).merges
    assert read(edited(tmp_path, {"merges": list(pairs)}, "model"), PADDED, {}).merges == pairs


def test_the_template_is_where_transformers_looks_for_it(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, QWEN2)
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(
        json.dumps({"chat_template": [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]})
    )
    assert chat_template(tmp_path) == TEMPLATE
    (tmp_path / "chat_template.jinja").unlink()
    assert chat_template(tmp_path) == "d"
    settings.write_text("{}")
    assert chat_template(tmp_path) is None


def test_the_tokenizer_of_the_training_comes_first(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    assert tokenizer_folder(tmp_path, tmp_path / "adapter") == tmp_path
    save_tokenizer(tmp_path / "adapter", QWEN2)
    assert tokenizer_folder(tmp_path, tmp_path / "adapter") == tmp_path / "adapter"
    assert tokenizer_folder(tmp_path, None) == tmp_path


@pytest.mark.slow
def test_the_vocabulary_of_phi_3_is_read_rightly_under_the_name_that_its_model_gets(
    llama_sources: Path, tmp_path: Path
) -> None:
    """llama.cpp lets its marks swallow the blanks after them, as its tokenizer does, in a model of that name only."""
    source = llama_sources / "models" / "ggml-vocab-phi-3.gguf"
    if not source.is_file():
        pytest.skip("it was not among those that an earlier `python scripts/llama_sources.py` fetched")
    fields = GgufFile(source).fields
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert isinstance(tokens, list)
    assert isinstance(types, list)
    plain = ("<unk>", "<s>", "<|endoftext|>")
    added = [
        {"id": index, "content": token, "special": True, "rstrip": token not in plain}
        for index, token in enumerate(tokens)
        if types[index] == CONTROL or token == "</s>"
    ]
    vocab = {token: index for index, token in enumerate(tokens)}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added, "model": {"vocab": vocab}}))
    assert swallows_like_phi3(tmp_path)

    def read_by(name: str) -> list[int]:
        before = str(fields["general.name"]).encode()
        whole, after = source.read_bytes(), name.encode()
        said = len(before).to_bytes(8, "little") + before
        (tmp_path / "named.gguf").write_bytes(whole.replace(said, len(after).to_bytes(8, "little") + after, 1))
        llama = llama_cpp.Llama(str(tmp_path / "named.gguf"), vocab_only=True, n_ctx=8, verbose=False)
        found = llama.tokenize(b"<|user|>\nHello<|end|>\n<|assistant|>\n", add_bos=False, special=True)
        llama.close()
        return list(found)

    ids = [32010, 15043, 32007, 32001]  # of Phi-3's own tokenizer
    assert read_by(fitting_name("my-model", phi3=True)) == ids
    assert read_by(fitting_name("Phi-3.5-mini", phi3=True)) == ids
    assert read_by(fitting_name("Phi-3.5-mini", phi3=False)) != ids


def test_other_vocabularies_get_no_name_that_makes_llama_cpp_look_for_phi_3(tmp_path: Path) -> None:
    assert not swallows_like_phi3(save_tokenizer(tmp_path, QWEN2))
    assert not swallows_like_phi3(swallowing(tmp_path / "marks", "rstrip"))  # without the four that the rule names
    assert fitting_name("my-phi3", phi3=False) == "my-phi 3"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2", "llama-bpe"])
def test_a_published_vocabulary_makes_the_same_tokens(llama_sources: Path, tmp_path: Path, name: str) -> None:
    """The tokens of llama.cpp, which reads our file, and those of the library that training reads the tokenizer with."""
    known = rebuild(llama_sources / "models" / f"ggml-vocab-{name}.gguf", tmp_path)
    vocabulary = read(tmp_path, len(known), {})
    assert (vocabulary.pre, list(vocabulary.tokens)) == (name, known)
    head = Head("llama", "vocabulary")
    head.vocabulary(vocabulary)
    write(tmp_path / "vocabulary.gguf", head, [], lambda done, total, detail: None, 1 << 20)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    llama = llama_cpp.Llama(str(tmp_path / "vocabulary.gguf"), vocab_only=True, n_ctx=8, verbose=False)
    for text in (*TEXTS, MARKS):
        assert llama.tokenize(text.encode(), add_bos=True, special=True) == tokenizer.encode(text).ids
    llama.close()
