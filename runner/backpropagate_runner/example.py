"""What a row of training data can be once its format is understood: a conversation, texts, two answers, a judged answer."""

from __future__ import annotations

import msgspec

from backpropagate_runner.turns import Message


class Chat(msgspec.Struct, frozen=True, tag="chat"):
    """A conversation for the model's own template. It ends with an assistant turn.

    unlearnt   how many of its first assistant turns belong to the prompt and carry no loss
    dropped    turns after the last assistant turn that were left out
    """

    messages: list[Message]
    tools: list[object] | None = None
    unlearnt: int = 0
    dropped: int = 0


class Completion(msgspec.Struct, frozen=True, tag="completion"):
    """A text and how it goes on; no template."""

    prompt: str
    completion: str


class Text(msgspec.Struct, frozen=True, tag="text"):
    """Plain text, all of it to be learnt."""

    text: str


Answer = Chat | Completion


class Pair(msgspec.Struct, frozen=True, tag="pair"):
    """Two answers to the same prompt, of which the first is preferred; both of the same kind."""

    chosen: Answer
    rejected: Answer


class Labelled(msgspec.Struct, frozen=True, tag="labelled"):
    """An answer, and whether it is a good one."""

    answer: Answer
    good: bool


Example = Chat | Completion | Text | Pair | Labelled
