"""Why rows are left out: each reason has a name, for programs, and words, for people."""

from __future__ import annotations

from collections.abc import Mapping

WORDS = {
    "bad_row": "that cannot be used",
    "refused": "that the model's chat template refuses",
    "duplicate": "that are there twice",
    "near_duplicate": "that are nearly there twice",
    "equal_answers": "whose chosen and rejected answers are the same",
    "bad_answer": "whose answer is labelled as a bad one",
    "too_short": "that are shorter than --min-tokens",
    "too_long": "that are longer than --max-tokens",
    "no_trace": "without a reasoning trace",
    "open_trace": "with a reasoning trace that does not begin or does not end",
    "empty_trace": "with an empty reasoning trace",
    "short_trace": "with a reasoning trace shorter than --min-trace-tokens",
    "long_trace": "with a reasoning trace longer than --max-trace-tokens",
    "cut_trace": "whose reasoning trace does not end within --max-length",
    "unlearnable": "of which nothing could be learnt within --max-length",
}


def in_words(dropped: Mapping[str, int]) -> str:
    """`12 that are there twice, 3 without a reasoning trace`."""
    return ", ".join(f"{count} {WORDS.get(reason, reason)}" for reason, count in dropped.items() if count)
