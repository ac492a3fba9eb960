"""`chat`: talk with a trained run, an adapter, a model or a GGUF; on a terminal, in a pipe, or as lines of JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from backpropagate.commands.flags import Command, from_table
from backpropagate.commands.generate import seed_of
from backpropagate.screen import Screen, current, terminal
from backpropagate.wishes.options import Value
from backpropagate_protocol.catalogue import ExitCode
from backpropagate_protocol.errors import BackpropagateError

if TYPE_CHECKING:
    from backpropagate.drive.conversation import Conversation, Reply

_LEAVING = ("/exit", "/quit", "/bye")
_HELP = "/exit ends it, /reset begins anew, Ctrl-C stops an answer"


@click.command(cls=Command)
@click.argument("what", metavar="RUN|PATH|MODEL|GGUF")
@click.option("--system", metavar="TEXT", help="What the model is told about its part.")
@click.option("--base", is_flag=True, help="Talk to the base model of the run or adapter, without the adapter.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=512, show_default=True, help="Longest answer.")
@click.option(
    "--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0: always the likeliest token."
)
@click.option("--seed", type=click.IntRange(min=0), help="For a temperature above 0.  [default: 0]")
@from_table("training.backend", "training.output_dir", "model.load_in_4bit", "model.revision", "model.trust_remote_code", "runner.python")  # fmt: skip
def chat(
    what: str, system: str | None, base: bool, max_new_tokens: int, temperature: float, seed: int | None, **given: Value
) -> int:
    """Talk to a trained run, an adapter, a model or a GGUF.

    A RUN that was trained with --export, or that is itself an export, is answered by its GGUF; one that was made of a RUN
    later has to be named: its path, or the export's own id. In a pipe, each line is a question and each answer follows, but for
    /reset and /exit; with --json, each is one line `{"prompt": …, "answer": …}`.
    """
    from backpropagate.drive.conversation import Conversation
    from backpropagate.wishes.chat_job import chat_job
    from backpropagate.wishes.settings import Settings

    screen = current()
    settings = Settings(given)
    job, python, about = chat_job(
        settings,
        what,
        base=base,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed_of(temperature, seed),
    )
    person = terminal(sys.stdin) and not screen.json
    screen.note(f"loading {about}")
    heard = (lambda text: None) if screen.json else screen.piece
    with Conversation(job, runner_python=python, system=system, heard=heard, note=screen.note) as conversation:
        if person:
            screen.note(_HELP)
            return _with_a_person(screen, conversation)
        for question in _questions(screen, conversation):
            _told(screen, question, conversation.ask(question))
    return 0


def _with_a_person(screen: Screen, conversation: Conversation) -> int:
    """Until they have enough: an answer that fails is told, and the talk goes on."""
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            screen.note("")
            return 0
        except KeyboardInterrupt:
            screen.note("")
            return int(ExitCode.INTERRUPTED)
        if text in _LEAVING:
            return 0
        if text == "/reset":
            conversation.reset()
            screen.note("forgotten")
        elif text.startswith("/"):
            screen.note(_HELP)
        elif text:
            try:
                _told(screen, text, conversation.ask(text))
            except BackpropagateError as error:
                screen.error(error)


def _told(screen: Screen, question: str, reply: Reply) -> None:
    if reply.stopped and not terminal(sys.stdin):
        raise KeyboardInterrupt
    if screen.json:
        screen.line(
            {"prompt": question, "answer": reply.text, "tokens": reply.tokens, "seconds": round(reply.seconds, 3)}
        )
    else:
        screen.piece("\n" if not reply.stopped else " …\n")


def _questions(screen: Screen, conversation: Conversation) -> Iterator[str]:
    """The lines of standard input, but for the commands; one that only begins with a slash, as a path does, is a question."""
    for line in sys.stdin:
        text = line.strip()
        if text in _LEAVING:
            return
        if text == "/reset":
            conversation.reset()
            screen.note("forgotten")
        elif text == "/help":
            screen.note(_HELP)
        elif text:
            yield text
