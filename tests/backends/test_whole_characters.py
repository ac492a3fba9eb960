"""Pieces of an answer: together they are all of it, and none ends amid a character."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from backpropagate_backends.whole_characters import pieces


def _utf8(ids: Sequence[int]) -> str:
    return bytes(ids).decode("utf-8", errors="replace")


def _words(ids: Sequence[int]) -> str:
    """As tokenizers of the SentencePiece kind decode: without the space at the beginning."""
    return "".join(("▁one", "▁two", "!")[token] for token in ids).replace("▁", " ").lstrip()


@pytest.mark.parametrize(
    ("text", "expected"), [("a\u00e9b", ["a", "\u00e9", "b"]), ("\U0001f40d!", ["\U0001f40d", "!"]), ("", [])]
)
def test_a_character_of_many_tokens_is_given_out_whole(text: str, expected: list[str]) -> None:
    assert list(pieces(text.encode(), _utf8)) == expected


def test_a_space_that_decoding_drops_at_the_beginning_stays_between_pieces() -> None:
    assert list(pieces([0, 1, 2, 0], _words)) == ["one", " two", "!", " one"]


def test_an_answer_that_ends_amid_a_character_is_given_out_to_its_last_token() -> None:
    assert list(pieces("a\u00e9".encode()[:2], _utf8)) == ["a", "\ufffd"]
