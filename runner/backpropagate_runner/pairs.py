"""Rows that hold two answers, or one with a verdict: what preference methods learn from, and what supervised tuning keeps.

Where two conversations have their prompt in them, it is what both begin with; all turns that they share carry no loss.
"""

from __future__ import annotations

import re
from itertools import takewhile

from backpropagate_runner.example import Answer, Chat, Completion, Labelled, Pair, Text
from backpropagate_runner.prompts import Columns, answer_turns, assistants, led_by_system, prompt_turns
from backpropagate_runner.turns import Message, RowError, answered, described, filled, messages_of, text_of, tools_of
from backpropagate_runner.unspaced import UNSPACED

_SPEAKER = "Assistant:"  # ends the prompt in texts that write a dialogue out, as Anthropic's preference data do
_SIGN = re.compile(f"[{UNSPACED}\u3000-\u303f\uff00-\uff65]")  # with the marks that end sentences of such writing
_WORDS = {"true": True, "1": True, "false": False, "0": False}


def pair(row: Columns) -> Pair:
    """`chosen` and `rejected`, each text or turns, with or without `prompt`."""
    row = _unrepeated(row)
    sides = [_listed(row.get(column)) for column in ("chosen", "rejected")]
    for side, column in zip(sides, ("chosen", "rejected"), strict=True):
        if side is None:
            raise RowError(f"{column} is missing")
    if asked(row) is None and all(isinstance(side, str) for side in sides):
        return text_pair(row)
    whole = [_conversation(row, side, column) for side, column in zip(sides, ("chosen", "rejected"), strict=True)]
    return _parted(row, *whole)


def asked(row: Columns) -> object:
    """The prompt, by the names that it goes under; None if it has no column of its own."""
    if row.get("prompt") is not None:
        return row["prompt"]
    instruction, more = row.get("instruction"), row.get("input")
    if instruction and more:
        return f"{text_of(instruction, 'instruction')}\n\n{text_of(more, 'input')}"
    if isinstance(row.get("chosen"), dict):  # one turn, which answers a conversation beside it
        more = more or row.get("conversations") or row.get("messages")
    return row.get("question") or instruction or more or None


def _unrepeated(row: Columns) -> Columns:
    """Without the prompt's text at the beginning of both answers, where it would be learnt as if it were answered."""
    prompt, sides = asked(row), {column: row.get(column) for column in ("chosen", "rejected")}
    if not isinstance(prompt, str) or not prompt.strip():
        return row
    rest = {column: side.removeprefix(prompt) for column, side in sides.items() if isinstance(side, str)}
    if len(rest) < 2 or any(not text.strip() or text == sides[column] for column, text in rest.items()):
        return row
    return {**row, **rest}


def _listed(side: object) -> object:
    """One turn alone stands for a list of it."""
    return [side] if isinstance(side, dict) else side


def _conversation(row: Columns, side: object, column: str) -> list[Message]:
    """All turns of one side, those of the prompt included."""
    prompt = asked(row)
    if prompt is None:
        return led_by_system(row, messages_of(side, column))
    turns = answer_turns(side, column)
    return led_by_system(row, turns if _whole(prompt, turns) else [*prompt_turns(prompt), *turns])


def _whole(prompt: object, turns: list[Message]) -> bool:
    """Whether the prompt is in the turns already, as in many data sets of the hub."""
    first = prompt_turns(prompt)
    return turns[0]["role"] != "assistant" and (isinstance(prompt, str) or turns[: len(first)] == first)


def _parted(row: Columns, chosen: list[Message], rejected: list[Message]) -> Pair:
    """Two conversations, parted where they differ."""
    (chosen, more), (rejected, also) = answered(chosen), answered(rejected)
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if shared == len(chosen) == len(rejected):
        shared -= 1  # the same answer twice, which is dropped by whoever reads the rows
    if shared in (len(chosen), len(rejected)):
        raise RowError("one of the two conversations is the beginning of the other, so there are not two answers")
    if not chosen[shared]["role"] == rejected[shared]["role"] == "assistant":
        raise RowError(f"chosen and rejected differ in turn {shared + 1} already, which is no answer")
    if shared == 0:
        raise RowError("chosen and rejected begin with an answer, and there is no prompt")
    tools, unlearnt = tools_of(row.get("tools")), assistants(chosen[:shared])
    return Pair(Chat(chosen, tools, unlearnt, more), Chat(rejected, tools, unlearnt, also))


def text_pair(row: Columns) -> Pair:
    """Texts that are joined as they are, without a template; without `prompt`, it is what the two share."""
    row = _unrepeated(row)
    chosen, rejected = filled(row.get("chosen"), "chosen"), filled(row.get("rejected"), "rejected")
    prompt = asked(row)
    _without_system(row)
    if prompt is not None:
        text = text_of(prompt, "prompt")
        return Pair(Completion(text, chosen), Completion(text, rejected))
    cut = _parting(chosen, rejected)
    if cut == 0 and chosen != rejected:
        raise RowError("chosen and rejected share no beginning, and there is no prompt: name its column prompt")
    one, other = filled(chosen[cut:], "the answer in chosen"), filled(rejected[cut:], "the answer in rejected")
    return Pair(Completion(chosen[:cut], one), Completion(rejected[:cut], other))


def _parting(one: str, other: str) -> int:
    """Where the answers begin: after the last mark of the assistant that both share, else before the word that differs."""
    count = sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(one, other, strict=False)))
    shared = one[:count]
    at = shared.rfind(_SPEAKER)
    if at >= 0:
        return at + len(_SPEAKER)
    if shared[-1:].isspace() or _SIGN.fullmatch(shared[-1:]):
        return len(shared.rstrip())
    before = shared.rsplit(maxsplit=1)
    return len(before[0]) if len(before) > 1 else 0


def chosen(row: Columns) -> Chat | Text:
    """Of a preference row, what supervised fine-tuning learns: the preferred answer."""
    if row.get("rejected") is None:
        raise RowError("rejected is missing")
    row = _unrepeated(row)
    side, prompt = _listed(row.get("chosen")), asked(row)
    if prompt is None and isinstance(side, str):
        return _text(row)
    turns = _conversation(row, side, "chosen")
    messages, dropped = answered(turns)
    if prompt is None:
        return Chat(messages, tools_of(row.get("tools")), dropped=dropped)
    return Chat(messages, tools_of(row.get("tools")), _of_prompt(prompt, side, messages), dropped)


def _of_prompt(prompt: object, side: object, messages: list[Message]) -> int:
    """How many of the assistant's turns belong to the prompt."""
    after = answer_turns(side, "chosen")
    if _whole(prompt, after):
        return assistants(messages) - 1
    if assistants(after) == 0:
        raise RowError("chosen has no assistant turn, so there is nothing to learn")
    return assistants(prompt_turns(prompt))


def chosen_text(row: Columns) -> Completion | Text:
    """The same of texts that are joined as they are."""
    if row.get("rejected") is None:
        raise RowError("rejected is missing")
    if asked(row) is None:
        return _text(row)
    answer = text_pair(row).chosen
    assert isinstance(answer, Completion)
    return answer


def _text(row: Columns) -> Text:
    """All of `chosen`, unless its prompt stands in a column that is not known to be one: it would be left out."""
    text, rejected = filled(row.get("chosen"), "chosen"), row.get("rejected")
    _without_system(row)
    if isinstance(rejected, str) and text != rejected and _parting(text, rejected) == 0:
        for name, value in row.items():
            if name not in ("chosen", "rejected") and _says_something(value):
                raise RowError(
                    f"chosen and rejected share no beginning, and {name} may be their prompt: name it prompt"
                )
    return Text(text)


def _says_something(value: object) -> bool:
    """Whether it is text of more than a word, unlike a name or a number."""
    return isinstance(value, str) and (len(value.split()) > 1 or _SIGN.search(value) is not None)


def _without_system(row: Columns) -> None:
    if row.get("system"):
        raise RowError("has a system column, which texts without a template have no place for")


def labelled(row: Columns, answer: Answer) -> Labelled:
    """An answer and its `label`: true or false, or 1 or 0, also as text."""
    value = row.get("label")
    if isinstance(value, str):
        value = _WORDS.get(value.strip().lower(), value)
    if isinstance(value, bool) or (isinstance(value, (int, float)) and value in (0, 1)):
        return Labelled(answer, bool(value))
    said = f"{value!r:.30}" if isinstance(value, (str, int, float)) else described(value)
    raise RowError(f"label is {said}; it says true of a good answer and false of a bad one")


def is_verdict(value: object) -> bool:
    """Whether a `label` can only be meant as a verdict."""
    return isinstance(value, bool)
