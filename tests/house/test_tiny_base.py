"""The bundled base model: it loads, it chats, and its token ids do not depend on who reads the file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from tests.house.source import ROOT

TINY = ROOT / "fixtures" / "tiny-base"

TEXTS = [
    "What does Backpropagate do when a run crashes?",
    "It's 12,345 plus 6.7 — isn't it? I'll, we've, you're, THEY'D",
    "  leading, double  spaces, trailing  \n\n\tand a tab\r\n",
    "Grüß Gott, e\u0301te\u0301, 世界, привет, 🙂‍↔️, \u200b",
    "def f(x):\n    return x ** 2  # code_with_underscores\n",
    "<|im_start|>user\nHello!<|im_end|>\n<|endoftext|>",
    "",
]


@pytest.fixture(scope="module")
def loaded() -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(TINY, local_files_only=True)
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


@pytest.fixture(scope="module")
def raw() -> Tokenizer:
    return Tokenizer.from_file(str(TINY / "tokenizer.json"))


@pytest.mark.parametrize("text", TEXTS)
def test_both_readers_give_the_same_ids(loaded: PreTrainedTokenizerBase, raw: Tokenizer, text: str) -> None:
    assert loaded(text, add_special_tokens=False)["input_ids"] == raw.encode(text, add_special_tokens=False).ids


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=60))
def test_both_readers_give_the_same_ids_for_any_text(
    loaded: PreTrainedTokenizerBase, raw: Tokenizer, text: str
) -> None:
    assert loaded(text, add_special_tokens=False)["input_ids"] == raw.encode(text, add_special_tokens=False).ids


def test_text_survives_the_way_through_tokens(loaded: PreTrainedTokenizerBase) -> None:
    for text in TEXTS[:3]:
        assert loaded.decode(loaded(text)["input_ids"]) == text


def test_the_template_marks_answers_and_what_ends_them(loaded: PreTrainedTokenizerBase) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Bye!"},
        {"role": "assistant", "content": "Bye."},
    ]
    out = loaded.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    trained = [token for token, flag in zip(out["input_ids"], out["assistant_masks"], strict=True) if flag]
    assert loaded.decode(trained) == "Hi.<|im_end|>Bye.<|im_end|>"


def test_the_special_tokens_are_the_expected_ones(loaded: PreTrainedTokenizerBase) -> None:
    assert (loaded.eos_token, loaded.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert loaded.eos_token_id != loaded.pad_token_id


def test_it_is_small_and_its_rows_fit_the_block_quantisations() -> None:
    config = json.loads((TINY / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "qwen2"
    assert config["hidden_size"] % 256 == config["intermediate_size"] % 256 == 0
    assert sum(path.stat().st_size for path in TINY.iterdir()) <= 8_000_000


@pytest.mark.slow
def test_it_chats_a_little(loaded: PreTrainedTokenizerBase) -> None:
    model = AutoModelForCausalLM.from_pretrained(TINY, local_files_only=True, dtype="float32")
    prompt = loaded.apply_chat_template(
        [{"role": "user", "content": "What is the opposite of happy?"}],
        add_generation_prompt=True, return_tensors="pt", return_dict=True,
    )  # fmt: skip
    answer = model.generate(**prompt, max_new_tokens=20)[0, prompt["input_ids"].shape[1] :]
    assert loaded.decode(answer, skip_special_tokens=True) == "The opposite of happy is sad."


def test_the_quickstart_data_are_five_conversations() -> None:
    lines = (ROOT / "fixtures" / "quickstart.jsonl").read_text(encoding="utf-8").splitlines()
    talks = [json.loads(line)["conversations"] for line in lines]
    assert len(talks) == 5
    assert all(talk[-1]["from"] == "gpt" for talk in talks)


def test_the_card_names_what_the_model_is() -> None:
    card = Path(TINY / "README.md").read_text(encoding="utf-8")
    assert "make_tiny_base.py" in card


@pytest.mark.slow
def test_the_vocabulary_is_the_one_that_the_script_learns(raw: Tokenizer) -> None:
    """Who changes the script's text has to make the model again."""
    program = (
        "import json, sys; sys.path.insert(0, sys.argv[1])\n"
        "import make_tiny_base as m\n"
        "talks = m.conversations(m.STEPS * m.BATCH, m.SEED)\n"
        "print(json.dumps(m.train_tokenizer(talks).get_vocab()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(ROOT / "scripts")], capture_output=True, text=True, check=True, timeout=120
    )
    assert json.loads(done.stdout) == raw.get_vocab()
