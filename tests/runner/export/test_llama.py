"""The door to llama.cpp, with the real one behind it: the same numbers and tokens as the model's own framework has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from backpropagate_protocol.errors import GGUFExportError
from backpropagate_protocol.jobs import ConvertJob
from backpropagate_protocol.messages import Phase
from backpropagate_protocol.reference import Reference, read_reference, read_rows
from backpropagate_protocol.spec import ModelSpec
from backpropagate_runner.export import llama
from backpropagate_runner.export.convert import convert
from backpropagate_runner.export.llama import Llama, Text
from tests.runner.export.heard import Heard
from tests.runner.export.lesson import TINY, refer, warmed

pytest.importorskip("llama_cpp")
pytest.importorskip("trl")
pytestmark = pytest.mark.slow

PROMPT = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base as f32.gguf, and what transformers says as `reference`."""
    folder = tmp_path_factory.mktemp("llama")
    model = ModelSpec(name="tiny", path=str(TINY), load_in_4bit=False)
    job = ConvertJob(model=model, adapter=None, out=str(folder / "f32.gguf"), type="f32", name="tiny", memory=64)
    convert(job, Heard(Phase.CONVERT).stage)
    refer(warmed(), model, None, folder / "reference")
    return folder


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    return read_reference(folder / "reference")


def model(folder: Path, context: int = 256) -> Llama:
    return Llama(folder / "f32.gguf", context, threads=1)


def test_it_is_there() -> None:
    assert llama.available() == ""


def test_an_unrounded_model_expects_what_transformers_expects(folder: Path, reference: Reference) -> None:
    """Nothing is rounded on the way, so all that is left is the order of sums."""
    with model(folder) as run:
        for prompt in reference.prompts:
            rows = run.logits([*prompt.ids, *prompt.answer[:-1]], prompt.first, prompt.rows)
            expected = np.frombuffer(read_rows(folder / "reference", reference, prompt), np.float32)
            assert np.abs(rows.ravel() - expected).max() < 1e-3


def test_greedy_answers_are_those_of_transformers(folder: Path, reference: Reference) -> None:
    with model(folder) as run:
        for prompt in reference.prompts:
            said = run.greedy(prompt.ids, len(prompt.answer))
            assert said == list(prompt.answer[: len(said)])
            assert len(said) == len(prompt.answer) - prompt.ended


def test_prompts_are_the_tokens_of_transformers(folder: Path, reference: Reference) -> None:
    with model(folder) as run:
        assert [tuple(run.prompt(prompt.text)) for prompt in reference.prompts] == [p.ids for p in reference.prompts]


def test_the_text_of_an_answer_is_made_of_its_pieces(folder: Path, reference: Reference) -> None:
    with model(folder) as run:
        for prompt in reference.prompts:
            text = Text()
            said = "".join(text.more(run.piece(token, special=False)) for token in prompt.answer) + text.rest()
            assert said == prompt.answer_text


def test_a_longer_conversation_uses_the_cache_and_says_the_same(folder: Path) -> None:
    with model(folder) as run, model(folder) as fresh:
        ids = run.prompt(PROMPT)
        ids += run.greedy(ids, 8) + run.tokenize("<|im_end|>\n<|im_start|>user\nAnd of Egypt?<|im_end|>\n")
        expected = fresh.greedy(ids, 8)
        assert run.greedy(ids, 8) == expected
        assert run.greedy(ids, 8) == expected  # nothing of it is new
        other = run.prompt("<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n")
        assert run.greedy(other, 8) == fresh.greedy(other, 8)  # almost all of it is


def test_more_tokens_than_a_batch_holds_are_read(folder: Path) -> None:
    ids = list(range(3, 700))
    with model(folder, 800) as run, model(folder, 800) as other:
        whole = run.logits(ids, 505, 20)
        for at in (0, 6, 7, 19):  # before and after the border of the batch
            assert np.allclose(other.logits(ids[: 505 + at + 1], 505 + at, 1)[0], whole[at], atol=1e-3)


def test_a_conversation_without_room_is_refused(folder: Path) -> None:
    with model(folder, 64) as run, pytest.raises(GGUFExportError, match="longer than"):
        run.greedy(list(range(3, 300)), 1)


def test_the_vocabulary_alone_makes_the_same_tokens_and_knows_the_same_ends(folder: Path, reference: Reference) -> None:
    with model(folder, 0) as vocabulary, model(folder) as whole:
        for prompt in reference.prompts:
            assert tuple(vocabulary.prompt(prompt.text)) == prompt.ids
        ends = [token for token in range(whole.vocabulary) if whole.ends(token)]
        assert ends
        assert [token for token in range(vocabulary.vocabulary) if vocabulary.ends(token)] == ends


def test_a_file_that_is_no_model_is_refused_with_the_reason(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "none.gguf"
    path.write_bytes(b"something else entirely")
    with pytest.raises(GGUFExportError, match="invalid magic"):
        Llama(path, 64)
    out, err = capfd.readouterr()
    assert out == ""
    assert "llama.cpp: " in err


def test_loading_and_running_says_nothing_on_the_screen(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with model(folder) as run:
        run.greedy(run.prompt(PROMPT), 2)
    assert capfd.readouterr() == ("", "")


def test_a_character_of_several_tokens_is_said_when_it_is_whole() -> None:
    text = Text()
    bytes_ = "ä🦜".encode()
    assert [text.more(bytes_[at : at + 1]) for at in range(len(bytes_))] == ["", "ä", "", "", "", "🦜"]
    assert text.more(bytes_[:1]) == ""
    assert text.rest() == "�"
