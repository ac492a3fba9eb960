"""A talk with a model: real children on the toy backend, interrupted and killed in the middle."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from backpropagate.drive.conversation import Conversation
from backpropagate_protocol.errors import BackpropagateError
from backpropagate_protocol.jobs import ChatJob
from backpropagate_protocol.spec import ModelSpec
from tests.waiting import eventually

TOY = ChatJob(model=ModelSpec(name="any", path="any"), backend="toy")


class Talk:
    """A conversation, and what was heard and noted of it."""

    def __init__(
        self, job: ChatJob = TOY, heard: Callable[[str], None] | None = None, system: str | None = None
    ) -> None:
        self.heard: list[str] = []
        self.notes: list[str] = []
        self.conversation = Conversation(
            job, runner_python=None, system=system, heard=heard or self.heard.append, note=self.notes.append
        )


@pytest.fixture
def talk() -> Iterator[Talk]:
    made = Talk()
    with made.conversation:
        yield made


def runners() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "backpropagate_runner" in " ".join(child.cmdline())]


def test_an_answer_comes_in_pieces_that_make_it_up(talk: Talk) -> None:
    reply = talk.conversation.ask("one two")

    assert reply.text
    assert "".join(talk.heard) == reply.text
    assert not reply.stopped


def test_one_child_answers_all_questions_and_is_gone_with_the_conversation() -> None:
    made = Talk()
    with made.conversation as conversation:
        conversation.ask("one")
        (first,) = runners()
        conversation.ask("two")
        (second,) = runners()
    assert first.pid == second.pid
    assert not runners()


def test_the_same_conversation_has_the_same_answers(talk: Talk) -> None:
    first = [talk.conversation.ask(text).text for text in ("one", "two")]
    talk.conversation.reset()

    assert [talk.conversation.ask(text).text for text in ("one", "two")] == first


def dead(child: psutil.Process) -> bool:
    """Whether it is, without burying it: that is its owner's."""
    try:
        return bool(child.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_a_child_that_died_between_two_questions_is_replaced_and_the_talk_goes_on(talk: Talk) -> None:
    expected = [talk.conversation.ask(text).text for text in ("one", "two")]
    talk.conversation.reset()
    first = talk.conversation.ask("one")
    (child,) = runners()
    child.kill()
    eventually(lambda: dead(child), "the child is dead")
    second = talk.conversation.ask("two")

    assert [first.text, second.text] == expected
    assert len(talk.notes) == 1
    assert "SIGKILL" in talk.notes[0] or sys.platform == "win32"


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on_with_what_there_was_of_it() -> None:
    pieces: list[str] = []

    def interrupted_at_the_first_piece(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 1:
            raise KeyboardInterrupt

    made = Talk(heard=interrupted_at_the_first_piece)
    with made.conversation as conversation:
        stopped = conversation.ask("one two three")
        assert not runners()
        after = conversation.ask("four")

    assert stopped.stopped
    assert stopped.text == pieces[0]
    assert after.text
    assert not made.notes


def test_a_model_that_cannot_be_loaded_is_an_error_at_once(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    with pytest.raises(BackpropagateError) as caught, Talk(ChatJob(gguf=str(broken))).conversation:
        pass

    assert caught.value.code != "RUNTIME_INTERNAL"
    assert not runners()


def test_an_interpreter_that_is_none_is_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "no-python")
    conversation = Conversation(TOY, runner_python=missing, heard=print, note=print)
    with pytest.raises(BackpropagateError, match="no-python") as caught, conversation:
        pass

    assert caught.value.code == "CONFIG_INVALID_SETTING"
