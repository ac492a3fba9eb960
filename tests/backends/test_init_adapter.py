"""An adapter to begin from is refused by the name of what differs."""

from __future__ import annotations

from pathlib import Path

import pytest

from backpropagate_backends.base import ADAPTER_CONFIG
from backpropagate_backends.init_adapter import check_config, check_tensors, config_of
from backpropagate_protocol.errors import UserInputError

HERE = Path("adapter")
OWN: dict[str, object] = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "rank_pattern": {}, "use_rslora": True}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"r": 8}, "its r is 8, and this run's is 16"),
        ({"lora_alpha": 16}, "its lora_alpha is 16, and this run's is 32"),
        ({"use_rslora": False}, "its use_rslora is False"),
        ({"use_rslora": None}, "its use_rslora is False"),
        ({"use_dora": True}, "its use_dora is True"),
        ({"peft_type": "LOHA"}, "its peft_type is LOHA"),
        ({"bias": "all"}, "its bias is all"),
        ({"rank_pattern": {"q_proj": 4}}, "its rank_pattern is {'q_proj': 4}"),
        ({"modules_to_save": ["lm_head"]}, r"its modules_to_save is \['lm_head'\]"),
    ],
)
def test_a_setting_that_gives_the_tensors_another_meaning_is_named(changed: dict[str, object], words: str) -> None:
    with pytest.raises(UserInputError, match=words) as caught:
        check_config(HERE, {**OWN, **changed}, OWN)
    assert caught.value.code == "INPUT_ADAPTER_MISMATCH"


@pytest.mark.parametrize(
    "changed", [{"lora_alpha": 32.0}, {"alpha_pattern": None}, {"lora_dropout": 0.5}, {"inference_mode": True}]
)
def test_what_means_the_same_is_the_same(changed: dict[str, object]) -> None:
    check_config(HERE, {**OWN, **changed}, OWN)


def test_tensors_that_are_missing_too_many_or_of_another_shape_are_named() -> None:
    wanted = {"a": (2, 3), "b": (3, 2)}
    check_tensors(HERE, dict(wanted), wanted)
    with pytest.raises(UserInputError) as caught:
        check_tensors(HERE, {"a": (2, 4), "c": (1,)}, wanted)
    assert caught.value.message.splitlines()[1:] == [
        "  it has no b",
        "  this run does not train its c",
        "  its a is 2 x 4, and this run's is 2 x 3",
    ]


def test_of_many_differences_a_few_are_named_and_the_rest_counted() -> None:
    with pytest.raises(UserInputError, match="it has no a\n  it has no b\n  it has no c\n  … and 2 more"):
        check_tensors(HERE, {}, dict.fromkeys("abcde", (1,)))


@pytest.mark.parametrize("content", [None, b"{", b"[]"])
def test_a_folder_without_a_configuration_is_no_adapter(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / ADAPTER_CONFIG).write_bytes(content)
    with pytest.raises(UserInputError, match=ADAPTER_CONFIG):
        config_of(tmp_path)
