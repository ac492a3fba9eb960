"""A talk with a real child: with a model, with a GGUF, and how it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from backpropagate_protocol.jobs import ChatJob, ConvertJob, GenerateJob
from backpropagate_protocol.messages import (
    Answers,
    Done,
    Fault,
    FaultKind,
    Phase,
    PhaseChanged,
    Said,
    Say,
    Stop,
    Stopped,
    Turn,
)
from backpropagate_protocol.spec import ModelSpec
from tests.runner.child import Child, runner
from tests.runner.export.chat_templates import write_gguf

TINY = Path(__file__).parents[2] / "fixtures" / "tiny-base"
QUESTION = ("user", "What is the capital of France?")
TOY = ChatJob(model=ModelSpec(name="toy", path="toy"), backend="toy")


def ready(child: Child) -> None:
    assert child.wait_for(Turn) == Turn("")


def ask(child: Child, *messages: tuple[str, str]) -> str:
    """The answer; what was said on the way is all of it."""
    before = len(child.of(Said))
    child.send(Say(messages))
    turn = child.wait_for(Turn)
    assert "".join(said.text for said in child.of(Said)[before:]) == turn.text
    assert turn.seconds > 0
    return turn.text


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the tiny base says when it is asked once, the usual way."""
    pytest.importorskip("trl")
    folder = tmp_path_factory.mktemp("asked")
    job = GenerateJob(
        model=ModelSpec(name="tiny", path=str(TINY)),
        prompts=(QUESTION[1],),
        backend="cpu",
        max_new_tokens=24,
        adapter=None,
    )
    with runner(job, folder, "cpu") as child:
        last = child.finish()
    assert isinstance(last, Done), last
    assert isinstance(last.result, Answers)
    return last.result.texts[0]


def test_each_say_is_answered_in_pieces_and_then_whole(tmp_path: Path) -> None:
    with runner(TOY, tmp_path) as child:
        ready(child)
        assert ask(child, QUESTION) == "0.000000"
        assert ask(child, QUESTION, ("assistant", "0"), ("user", "Sure?")) == "0.000000"
        assert len(child.of(Said)) == 16


def test_what_is_said_before_the_model_is_ready_is_answered_then(tmp_path: Path) -> None:
    with runner(TOY, tmp_path) as child:
        child.send(Say((QUESTION,)))
        ready(child)
        assert child.wait_for(Turn).text == "0.000000"


def test_it_ends_when_the_parent_hangs_up(tmp_path: Path) -> None:
    with runner(TOY, tmp_path) as child:
        ready(child)
        child.hang_up()
        child.finish()
        assert child.process.returncode == 0


def test_a_stop_ends_it(tmp_path: Path) -> None:
    with runner(TOY, tmp_path) as child:
        ready(child)
        child.send(Stop("ctrl-c", save=False))
        assert child.finish() == Stopped(0, saved=False)
        assert child.process.returncode == 0


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with runner(ChatJob(gguf=str(tmp_path / "none.gguf")), tmp_path, "none") as child:
        fault = child.finish()
    assert isinstance(fault, Fault)
    assert (fault.kind, fault.code) == (FaultKind.USER, "INPUT_MODEL_NOT_FOUND")


@pytest.mark.slow
def test_a_model_answers_as_it_does_when_asked_once(expected: str, tmp_path: Path) -> None:
    job = ChatJob(model=ModelSpec(name="tiny", path=str(TINY)), backend="cpu", max_new_tokens=24)
    with runner(job, tmp_path, "cpu") as child:
        ready(child)
        assert ask(child, QUESTION).strip() == expected
        follow_up = ask(child, QUESTION, ("assistant", expected), ("user", "And of Egypt?"))
        assert follow_up != expected
        assert Phase.LOAD in {m.phase for m in child.of(PhaseChanged)}


@pytest.mark.slow
def test_sampling_is_repeatable_by_its_seed(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    answers = set()
    for seed in (1, 1, 2):
        job = ChatJob(
            model=ModelSpec(name="tiny", path=str(TINY)), backend="cpu", max_new_tokens=24, temperature=1.5, seed=seed
        )
        with runner(job, tmp_path, "cpu") as child:
            ready(child)
            answers.add(ask(child, QUESTION))
    assert len(answers) == 2


@pytest.mark.slow
def test_a_conversation_longer_than_the_model_can_read_is_a_users_error(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    job = ChatJob(model=ModelSpec(name="tiny", path=str(TINY)), backend="cpu")
    with runner(job, tmp_path, "cpu") as child:
        ready(child)
        child.send(Say((("user", "Why? " * 2000),)))
        fault = child.finish()
    assert isinstance(fault, Fault)
    assert fault.kind is FaultKind.USER
    assert "longer than the model's 1024" in fault.message


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("llama_cpp")
    folder = tmp_path_factory.mktemp("gguf")
    out = folder / "tiny.gguf"
    model = ModelSpec(name="tiny", path=str(TINY))
    job = ConvertJob(model=model, adapter=None, out=str(out), type="f16", name="tiny", memory=64)
    with runner(job, folder, "none") as child:
        assert isinstance(child.finish(), Done)
    return out


@pytest.mark.slow
def test_a_gguf_answers_by_its_own_template_as_the_model_does(expected: str, gguf: Path, tmp_path: Path) -> None:
    with runner(ChatJob(gguf=str(gguf), max_new_tokens=24), tmp_path, "none") as child:
        ready(child)
        first = ask(child, QUESTION)
        assert first == expected
        again = (QUESTION, ("assistant", first), ("user", "And of Egypt?"))
        second = ask(child, *again)
        assert ask(child, *again) == second
        assert ask(child, QUESTION) == first


@pytest.mark.slow
def test_a_gguf_is_talked_with_by_chance_when_it_is_warm(gguf: Path, tmp_path: Path) -> None:
    answers = set()
    for seed in (1, 1, 2):
        job = ChatJob(gguf=str(gguf), temperature=2.0, seed=seed, max_new_tokens=16)
        with runner(job, tmp_path, "none") as child:
            ready(child)
            answers.add(ask(child, QUESTION))
    assert len(answers) == 2


@pytest.mark.slow
def test_a_stop_in_the_middle_of_an_answer_is_heard(gguf: Path, tmp_path: Path) -> None:
    with runner(ChatJob(gguf=str(gguf), temperature=5.0, max_new_tokens=1000), tmp_path, "none") as child:
        ready(child)
        child.send(Say((QUESTION,)))
        child.wait_for(Said)
        child.send(Stop("ctrl-c", save=False))
        assert child.finish() == Stopped(0, saved=False)
        assert child.process.returncode == 0


@pytest.mark.slow
def test_a_damaged_gguf_is_told(gguf: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.gguf"
    short.write_bytes(gguf.read_bytes()[:-100])
    with runner(ChatJob(gguf=str(short)), tmp_path, "none") as child:
        fault = child.finish()
    assert isinstance(fault, Fault)
    assert (fault.code, fault.kind) == ("INPUT_VALIDATION_FAILED", FaultKind.USER)
    assert "damaged" in fault.message


def refusal(path: Path, folder: Path) -> Fault:
    with runner(ChatJob(gguf=str(path)), folder, "none") as child:
        fault = child.finish()
    assert isinstance(fault, Fault)
    assert fault.kind is FaultKind.USER
    return fault


def test_an_adapter_alone_cannot_be_talked_with(tmp_path: Path) -> None:
    gguf_write = pytest.importorskip("backpropagate_runner.export.gguf_write")
    head = gguf_write.Head("qwen2", "mine")
    head.adapter(16.0)
    gguf_write.write(tmp_path / "mine-lora-F16.gguf", head, [], lambda *sign: None, 1)
    fault = refusal(tmp_path / "mine-lora-F16.gguf", tmp_path)
    assert "adapter" in fault.message
    assert "base" in fault.suggestion


def test_a_template_that_is_none_is_told(tmp_path: Path) -> None:
    fault = refusal(write_gguf(tmp_path / "m.gguf", "{% foo %}"), tmp_path)
    assert "chat template in m.gguf" in fault.message
    assert "resume" not in fault.suggestion


def test_a_file_that_llama_cpp_does_not_take_is_the_users(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    assert "llama.cpp cannot load" in refusal(write_gguf(tmp_path / "m.gguf", None), tmp_path).message
