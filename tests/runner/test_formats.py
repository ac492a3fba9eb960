"""Formats: each accepted row becomes exactly the messages or texts it says, and each defect a reason."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backpropagate_runner.example import Chat, Completion, Example, Text
from backpropagate_runner.formats import FORMATS, canonical, columns_of, convert, detect
from backpropagate_runner.prompts import Columns
from backpropagate_runner.turns import Message, RowError, chatml

USER: Message = {"role": "user", "content": "Hi."}
ANSWER: Message = {"role": "assistant", "content": "Hello."}


def recognised(row: Columns) -> tuple[str, Example]:
    name = detect(row)
    assert name is not None
    return name, convert(name, row)


def chat(row: Columns) -> Chat:
    example = recognised(row)[1]
    assert isinstance(example, Chat)
    return example


def reason(row: Columns, name: str = "auto") -> str:
    found = detect(row) if name == "auto" else name
    assert found is not None
    with pytest.raises(RowError) as caught:
        convert(found, row)
    return str(caught.value)


# --- conversations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "role"),
    [
        ("human", "user"),
        ("user", "user"),
        ("Human ", "user"),
        ("gpt", "assistant"),
        ("assistant", "assistant"),
        ("model", "assistant"),
        ("system", "system"),
        ("developer", "system"),
        ("tool", "tool"),
        ("function", "tool"),
        ("observation", "tool"),
    ],
)
def test_roles_of_every_dialect_become_the_four_of_templates(said: str, role: str) -> None:
    turns = [{"from": said, "value": "x"}, {"from": "gpt", "value": "y"}]
    assert chat({"conversations": turns}).messages[0] == {"role": role, "content": "x"}


def test_sharegpt_and_messages_give_the_same_conversation() -> None:
    sharegpt: Columns = {"conversations": [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello."}]}
    assert recognised(sharegpt) == ("sharegpt", Chat([USER, ANSWER]))
    assert recognised({"messages": [USER, ANSWER]}) == ("messages", Chat([USER, ANSWER]))
    assert recognised({"conversations": [USER, ANSWER]})[1] == Chat([USER, ANSWER])


def test_messages_as_json_text_are_read() -> None:
    assert chat({"messages": json.dumps([USER, ANSWER])}).messages == [USER, ANSWER]


def test_tools_calls_and_names_are_kept_and_arguments_become_objects() -> None:
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 7}'}}
    row: Columns = {
        "tools": json.dumps(tools),
        "messages": [
            USER,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "name": "add", "content": ""},
            ANSWER,
        ],
    }
    example = chat(row)
    assert example.tools == tools
    assert example.messages[1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 7}}}],
    }
    assert example.messages[2] == {"role": "tool", "content": "", "tool_call_id": "c1", "name": "add"}
    assert chat({**row, "tools": tools}).tools == tools


def test_a_function_call_in_the_old_ways_is_a_tool_call() -> None:
    expected = [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]
    old = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}}
    assert chat({"messages": [USER, old]}).messages[1]["tool_calls"] == expected
    sharegpt = {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'}
    turns = [{"from": "human", "value": "a"}, sharegpt]
    assert chat({"conversations": turns}).messages[1]["tool_calls"] == expected


def test_parts_of_text_are_joined_and_other_parts_refused() -> None:
    parts = [{"type": "text", "text": "Hello"}, {"type": "text", "text": "."}]
    assert chat({"messages": [USER, {"role": "assistant", "content": parts}]}).messages[1] == ANSWER
    image = {"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}
    assert "image_url" in reason({"messages": [image, ANSWER]})


def test_turns_that_no_one_answers_are_left_out_and_counted() -> None:
    example = chat({"messages": [USER, ANSWER, USER, USER]})
    assert (example.messages, example.dropped) == ([USER, ANSWER], 2)


def test_a_system_column_leads_and_an_empty_system_turn_goes() -> None:
    system = {"role": "system", "content": "Be brief."}
    assert chat({"messages": [USER, ANSWER], "system": "Be brief."}).messages == [system, USER, ANSWER]
    assert chat({"messages": [system, USER, ANSWER], "system": "Other."}).messages == [system, USER, ANSWER]
    assert chat({"messages": [{"role": "system", "content": ""}, USER, ANSWER]}).messages == [USER, ANSWER]


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([], "messages is empty"),
        ({}, "messages is an object, not a list"),
        ("[oops", "messages is text that is not JSON"),
        (["x"], "turn 1 is text, not an object"),
        ([{"content": "x"}], "turn 1 has no role"),
        ([{"role": "wizard", "content": "x"}], "turn 1 has the role 'wizard'"),
        ([{"role": ["user"], "content": "x"}], "turn 1 has the role"),
        ([{"role": "user"}], "the content of turn 1 is null, not text"),
        ([{"role": "user", "content": "  "}], "turn 1 (user) is empty"),
        ([USER, {"role": "assistant", "content": 4}], "the content of turn 2 is a number"),
        ([USER, {"role": "assistant", "tool_calls": "x"}], "the tool_calls of turn 2 are text"),
        ([USER, {"role": "assistant", "tool_calls": [{}]}], "a tool call of turn 2 has no function name"),
        ([USER], "no assistant turn"),
        ([USER, {"role": "assistant", "content": "half \ud800"}], "half a surrogate pair"),
    ],
)
def test_a_conversation_that_cannot_be_used_says_why(turns: object, expected: str) -> None:
    assert expected in reason({"messages": turns})


# --- the other shapes ---------------------------------------------------------------------------------------------------


def test_alpaca_joins_instruction_and_input_and_takes_output_or_response() -> None:
    joined: list[Message] = [
        {"role": "user", "content": "Translate.\n\nmoon"},
        {"role": "assistant", "content": "lune"},
    ]
    assert recognised({"instruction": "Translate.", "input": "moon", "output": "lune"}) == ("alpaca", Chat(joined))
    assert chat({"instruction": "Translate.", "context": "moon", "response": "lune"}).messages == joined
    assert chat({"instruction": "Hi.", "input": "", "output": "Hello."}).messages == [USER, ANSWER]
    assert reason({"instruction": "Hi.", "output": None}) == "output is null, not text"


def test_the_history_of_an_alpaca_row_comes_before_it() -> None:
    row: Columns = {"instruction": "b", "output": "B", "history": [["a", "A"]], "system": "s"}
    assert [turn["content"] for turn in chat(row).messages] == ["s", "a", "A", "b", "B"]
    assert "history is not a list of pairs" in reason({**row, "history": [["a"]]})


def test_question_and_answer_are_a_conversation() -> None:
    assert recognised({"question": "Hi.", "answer": "Hello."}) == ("question_answer", Chat([USER, ANSWER]))
    assert reason({"question": "Hi.", "answer": " "}) == "answer is empty"


def test_prompt_and_completion_as_texts_get_no_template() -> None:
    assert recognised({"prompt": "a", "completion": " b"}) == ("prompt_completion", Completion("a", " b"))


def test_prompt_and_completion_as_turns_learn_only_the_completion() -> None:
    row: Columns = {"prompt": [USER, ANSWER, USER], "completion": [ANSWER]}
    assert chat(row) == Chat([USER, ANSWER, USER, ANSWER], unlearnt=1)
    assert chat({"prompt": "Hi.", "completion": [ANSWER]}) == Chat([USER, ANSWER])
    assert chat({"prompt": [USER], "completion": "Hello."}) == Chat([USER, ANSWER])
    assert "no assistant turn" in reason({"prompt": [USER, ANSWER], "completion": [USER]})


def test_a_preference_is_prompt_and_chosen_answer() -> None:
    row: Columns = {"prompt": "Hi.", "chosen": "Hello.", "rejected": "Go away."}
    assert recognised(row) == ("preference", Chat([USER, ANSWER]))
    assert chat({"prompt": [USER], "chosen": [ANSWER], "rejected": [USER]}) == Chat([USER, ANSWER])
    assert chat({"prompt": "Hi.", "chosen": [USER, ANSWER], "rejected": []}) == Chat([USER, ANSWER])
    assert chat({"chosen": [USER, ANSWER], "rejected": []}) == Chat([USER, ANSWER])
    assert recognised({"chosen": "all of it", "rejected": "all of x"})[1] == Text("all of it")
    assert reason({"chosen": "x", "rejected": None}) == "rejected is missing"


def test_text_is_plain_unless_it_is_chatml_from_end_to_end() -> None:
    talk = "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
    assert recognised({"text": talk}) == ("chatml", Chat([USER, ANSWER]))
    assert recognised({"text": "plain"}) == ("text", Text("plain"))
    assert convert("raw", {"text": talk}) == Text(talk)
    for broken in ("x" + talk, talk + "x", talk.replace("user", "wizard"), "a stray <|im_start|> here"):
        assert convert("chatml", {"text": broken}) == Text(broken)


def test_an_open_last_answer_of_chatml_is_an_answer_and_an_empty_one_is_none() -> None:
    head = "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n"
    assert chatml(head + "Hello.") == [USER, ANSWER]
    assert chatml(head) is None


def test_formats_are_told_apart_by_columns_and_unknown_ones_are_none() -> None:
    assert detect({"title": 1, "body": 2}) is None
    assert detect({}) is None
    assert detect({"text": "x", "messages": []}) == "messages"
    assert detect({"prompt": "", "completion": "", "text": ""}) == "prompt_completion"
    assert columns_of({"a" * 50: 1, **{str(n): n for n in range(9)}}).endswith("…")


def test_a_row_of_another_shape_says_what_the_format_needs() -> None:
    assert reason({"title": "x"}, "alpaca") == (
        "has the columns title; the format alpaca needs instruction + output or instruction + response"
    )


def test_names_of_formats_have_their_old_aliases() -> None:
    assert [canonical(name) for name in (*FORMATS, "openai", "raw_text", "xml")] == [*FORMATS, "messages", "raw", None]


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.sampled_from(["user", "assistant", "<|im_start|>user\nx"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "from", "content", "value", "tool_calls", "function", "name", "arguments", "type", "text"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)
_COLUMNS = [
    *("conversations", "messages", "prompt", "completion", "chosen", "rejected", "instruction", "input", "output"),
    *("response", "question", "answer", "text", "tools", "system", "history"),
]


@given(name=st.sampled_from(FORMATS), row=st.dictionaries(st.sampled_from(_COLUMNS), _VALUES, max_size=5))
def test_any_row_is_an_example_or_has_a_reason(name: str, row: Columns) -> None:
    detect(row)
    try:
        example = convert(name, row)
    except RowError:
        return
    if isinstance(example, Chat):
        assert example.messages[-1]["role"] == "assistant"
        assert all(isinstance(message["content"], str) for message in example.messages)
