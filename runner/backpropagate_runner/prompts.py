"""A prompt and what follows it, either of them text or turns, as one conversation."""

from __future__ import annotations

from backpropagate_runner.turns import Message, filled, messages_of, text_of

Columns = dict[str, object]


def led_by_system(row: Columns, messages: list[Message]) -> list[Message]:
    """With a `system` column of its own, where the turns have no system turn."""
    system = row.get("system")
    if system is None or system == "" or (messages and messages[0]["role"] == "system"):
        return messages
    return [{"role": "system", "content": text_of(system, "system")}, *messages]


def prompt_turns(prompt: object) -> list[Message]:
    """The `prompt` column: text is what the user says."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": filled(prompt, "prompt")}]
    return messages_of(prompt, "prompt")


def answer_turns(answer: object, column: str) -> list[Message]:
    """The column with an answer: text is what the assistant says."""
    if isinstance(answer, str):
        return [{"role": "assistant", "content": filled(answer, column)}]
    return messages_of(answer, column)


def assistants(messages: list[Message]) -> int:
    return sum(message["role"] == "assistant" for message in messages)
