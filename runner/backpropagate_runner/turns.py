"""Turns of a conversation: every dialect of roles and contents becomes the messages that chat templates expect.

What comes out is a list of dicts with `role` (system, user, assistant, tool) and `content` (text), and where they were
given `name`, `tool_calls`, `tool_call_id`, `reasoning_content`. Whatever does not fit raises RowError with a reason.
"""

from __future__ import annotations

import re

import msgspec

Message = dict[str, object]


class RowError(ValueError):
    """The row does not fit; the message says why, for the user."""


_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
_CALLS = ("function_call", "tool_call")  # ShareGPT dialects: a turn of the assistant whose text is the call
_KEPT = ("name", "tool_call_id", "reasoning_content", "thinking")


def described(value: object) -> str:
    """What kind of JSON value this is, in words."""
    names: dict[type, str] = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__)


def text_of(value: object, what: str) -> str:
    """`value` if it is text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise RowError(f"{what} is {described(value)}, not text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise RowError(f"{what} holds half a surrogate pair, which is no character") from error
    return value


def filled(value: object, what: str) -> str:
    """`text_of`, and more than white space."""
    text = text_of(value, what)
    if not text or text.isspace():
        raise RowError(f"{what} is empty")
    return text


def messages_of(value: object, column: str) -> list[Message]:
    """The turns of a `messages` or `conversations` column."""
    if isinstance(value, str):
        value = _json(value, column)
    if not isinstance(value, list):
        raise RowError(f"{column} is {described(value)}, not a list of turns")
    if not value:
        raise RowError(f"{column} is empty")
    found = [_message(turn, number) for number, turn in enumerate(value, 1)]
    return [message for message in found if message["role"] != "system" or message["content"]]


def _message(turn: object, number: int) -> Message:
    what = f"turn {number}"
    if not isinstance(turn, dict):
        raise RowError(f"{what} is {described(turn)}, not an object with role and content")
    said = turn.get("role")
    if said is None:
        said = turn.get("from")
    if said is None:
        raise RowError(f"{what} has no role")
    value = turn.get("content")
    if value is None:
        value = turn.get("value")
    if said in _CALLS:
        return {"role": "assistant", "content": "", "tool_calls": [_call(_json(value, what), what)]}
    role = _ROLES.get(said.strip().lower()) if isinstance(said, str) else None
    if role is None:
        raise RowError(f"{what} has the role {str(said)[:30]!r}; known: {', '.join(_ROLES)}")
    message: Message = {"role": role}
    calls = turn.get("tool_calls") or ([{"function": turn["function_call"]}] if turn.get("function_call") else None)
    if role == "assistant" and calls:
        if not isinstance(calls, list):
            raise RowError(f"the tool_calls of {what} are {described(calls)}, not a list")
        message["content"] = _content(value, what) if value is not None else ""
        message["tool_calls"] = [_call(call, what) for call in calls]
    else:
        message["content"] = content = _content(value, what)
        if role in ("user", "assistant") and (not content or content.isspace()):
            raise RowError(f"{what} ({role}) is empty")
    for key in _KEPT:
        if turn.get(key) is not None:
            message[key] = text_of(turn[key], f"{key} of {what}")
    return message


def _content(value: object, what: str) -> str:
    if isinstance(value, str):
        return text_of(value, f"the content of {what}")
    if isinstance(value, list):
        return "".join(_part(part, what) for part in value)
    raise RowError(f"the content of {what} is {described(value)}, not text")


def _part(part: object, what: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text":
        return text_of(part.get("text"), f"the content of {what}")
    kind = part.get("type") if isinstance(part, dict) else described(part)
    raise RowError(f"the content of {what} has a part that is not text ({str(kind)[:30]}); only text can be trained")


def _call(call: object, what: str) -> Message:
    """One tool call as templates expect it: its arguments as an object, though OpenAI writes them as text."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowError(f"a tool call of {what} has no function name")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = _json(arguments, f"the arguments of a tool call of {what}") if arguments.strip() else {}
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise RowError(f"the arguments of a tool call of {what} are {described(arguments)}, not an object")
    found: Message = {
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }
    if isinstance(call.get("id"), str):
        found["id"] = call["id"]
    _encodable(found, f"a tool call of {what}")
    return found


def tools_of(value: object) -> list[object] | None:
    """The `tools` column: function schemas as a list, or as the JSON text of one; None if there are none."""
    if isinstance(value, str) and value.strip():
        value = _json(value, "tools")
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise RowError("tools is not a list of function schemas")
    _encodable(value, "tools")
    return value


def _json(value: object, what: str) -> object:
    if not isinstance(value, str):
        return value
    try:
        return msgspec.json.decode(value)
    except (ValueError, RecursionError) as error:
        raise RowError(f"{what} is text that is not JSON") from error


def _encodable(value: object, what: str) -> None:
    try:
        msgspec.json.encode(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise RowError(f"{what} holds what JSON cannot say") from error


def answered(messages: list[Message]) -> tuple[list[Message], int]:
    """The messages up to the last assistant turn, and how many came after it: no one answers those."""
    for end in range(len(messages), 0, -1):
        if messages[end - 1]["role"] == "assistant":
            return messages[:end], len(messages) - end
    raise RowError("has no assistant turn, so there is nothing to learn")


_CHATML = re.compile(r"\s*<\|im_start\|>([^\n<]*)\n(.*?)(<\|im_end\|>|\Z)", re.DOTALL)
CHATML_MARK = "<|im_start|>"


def chatml(text: str) -> list[Message] | None:
    """The turns of a text that is ChatML from beginning to end; None for any other text."""
    messages: list[Message] = []
    at = 0
    while turn := _CHATML.match(text, at):
        at = turn.end()
        role = _ROLES.get(turn[1].strip())
        open_end = not turn[3]
        if open_end and not turn[2].strip():
            break  # the head of an answer, left for a model to write
        if role is None or CHATML_MARK in turn[2] or (role != "system" and not turn[2].strip()):
            return None
        if turn[2].strip():
            messages.append({"role": role, "content": turn[2]})
    if text[at:].strip() or not any(message["role"] == "assistant" for message in messages):
        return None
    return messages
