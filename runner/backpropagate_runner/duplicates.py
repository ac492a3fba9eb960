"""Rows that are there twice: the same text, or nearly the same words.

Exact compares digests: about 100 bytes of memory for each row that stays. Near compares MinHash signatures over runs of three
words, without system turns, of what is asked and of each answer apart: rows that share a long instruction are not near
for that. About 500 bytes for each row that stays, whatever its length, a bounded number of comparisons for each, and no second
pass. The first of several stays, so the order of the file decides, and the same file gives the same rows everywhere.

One permutation hashing: every run of words is hashed once and falls into one of the signature's places, which keeps the
smallest; empty places borrow from others (Shrivastava, ICML 2017). Of two rows that agree in a band of six places the share
of equal places estimates the Jaccard similarity; from 0.8 on, in each of their parts, they count as near.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from array import array

import msgspec

from backpropagate_runner.example import Answer, Completion, Example, Labelled, Pair, Text
from backpropagate_runner.unspaced import UNSPACED

EXACT, NEAR = "exact", "near"
SIMILAR = 0.8
_PLACES = 64
_BAND = 6
_RUN = 3  # words
# Rows with the same band that are remembered: rows made from one template all have the same ones.
MOST_ALIKE = 16
_WORD = re.compile(f"[{UNSPACED}]|[^\\W{UNSPACED}]+")
_EMPTY = 0xFFFFFFFF


class Duplicates:
    """Remembers the rows that it was shown."""

    def __init__(self, mode: str) -> None:
        self._near = mode == NEAR
        # Rows of different kinds, or with different verdicts, are never near.
        self._alike: dict[tuple[int, bool | None], _Near] = {}
        self._digests: set[int] = set()

    @property
    def comparisons(self) -> int:
        """How many pairs of rows were compared as nearly the same."""
        return sum(alike.comparisons for alike in self._alike.values())

    def seen(self, example: Example) -> str | None:
        """Why this row is a repetition, `duplicate` or `near_duplicate`; None if it is not, and then it is remembered."""
        digest = int.from_bytes(hashlib.blake2b(msgspec.json.encode(example), digest_size=12).digest(), "little")
        if digest in self._digests:
            return "duplicate"
        if self._near:
            parts = words(example)
            verdict = example.good if isinstance(example, Labelled) else None
            if self._alike.setdefault((len(parts), verdict), _Near()).seen(parts):
                return "near_duplicate"
        self._digests.add(digest)
        return None


def words(example: Example) -> list[list[str]]:
    """Of what is asked, then of each answer, in small letters. System turns are left out: whole data sets share theirs."""
    return [_WORD.findall(part.lower()) for part in _texts(example)]


def _texts(example: Example) -> list[str]:
    if isinstance(example, Text):
        return [example.text]
    if isinstance(example, Pair):
        return [*_of_answer(example.chosen), _of_answer(example.rejected)[1]]
    return _of_answer(example.answer if isinstance(example, Labelled) else example)


def _of_answer(answer: Answer) -> list[str]:
    if isinstance(answer, Completion):
        return [answer.prompt, answer.completion]
    asked, said = list[str](), list[str]()
    unlearnt = answer.unlearnt
    for message in answer.messages:
        if message["role"] == "assistant" and unlearnt == 0:
            said.append(_of_turn(message))
        elif message["role"] != "system":
            asked.append(_of_turn(message))
            unlearnt -= message["role"] == "assistant"
    return [" ".join(asked), " ".join(said)]


def _of_turn(message: dict[str, object]) -> str:
    calls = message.get("tool_calls")
    more = msgspec.json.encode(calls).decode() if calls else ""
    return f"{message['content']} {message.get('reasoning_content') or message.get('thinking') or ''} {more}"


def signature(found: list[str]) -> array[int]:
    """uint32 (64,): of equal places in two of them, the share is the similarity of the two lists of words, as expected."""
    places = [_EMPTY] * _PLACES
    runs = {" ".join(found[at : at + _RUN]) for at in range(max(1, len(found) - _RUN + 1))}
    for run in runs:
        # CRC-32 keeps patterns of its input; the multiplications break them up
        mixed = zlib.crc32(run.encode()) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        mixed = (mixed ^ mixed >> 29) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        place, value = mixed >> 58, mixed >> 20 & 0x7FFFFFFF
        if value < places[place]:
            places[place] = value
    filled = list(places)
    for place, value in enumerate(places):
        attempt = 0
        while value == _EMPTY:
            attempt += 1
            value = places[zlib.crc32(bytes((place, attempt & 255, attempt >> 8))) % _PLACES]
        filled[place] = value
    return array("I", filled)


class _Near:
    """The signatures of the rows that stayed, found again by their bands. All have as many parts."""

    def __init__(self) -> None:
        self._signatures = bytearray()
        self._kept = 0
        self._bands = _Table()
        self.comparisons = 0

    def seen(self, parts: list[list[str]]) -> bool:
        signatures = [signature(part) for part in parts]
        # Of each place its low byte: one in 256 is equal by chance, and equal bytes are counted at once.
        mine = b"".join(bytes(value & 0xFF for value in signed) for signed in signatures)
        compared: set[int] = set()
        rare = []
        for key in _keys(signatures):
            rows = self._bands.find(key)
            if len(rows) < MOST_ALIKE:
                rare.append(key)
            for row in rows:
                if row not in compared:
                    compared.add(row)
                    if self._similar(mine, row):
                        return True
        for key in rare:
            self._bands.add(key, self._kept)
        self._signatures += mine
        self._kept += 1
        return False

    def _similar(self, mine: bytes, row: int) -> bool:
        self.comparisons += 1
        size = len(mine)
        other = self._signatures[row * size : (row + 1) * size]
        differ = (int.from_bytes(mine, "little") ^ int.from_bytes(other, "little")).to_bytes(size, "little")
        return all(differ.count(0, at, at + _PLACES) >= SIMILAR * _PLACES for at in range(0, size, _PLACES))


def _keys(signatures: list[array[int]]) -> list[int]:
    """One for each band, made of the same places of what is asked and of the first answer."""
    found = []
    for at in range(0, _PLACES - _BAND + 1, _BAND):
        key = at
        for signed in signatures[:2]:
            key = zlib.crc32(signed[at : at + _BAND].tobytes(), key)
        found.append(key)
    return found


class _Table:
    """Key → row numbers, at 8 bytes a slot: a dict would take ten times that. A key and a row have 32 bits."""

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * 1024))
        self._used = 0

    def find(self, key: int) -> list[int]:
        rows = []
        mask = len(self._slots) - 1
        at = key & mask
        while slot := self._slots[at]:
            if slot >> 32 == key:
                rows.append((slot & 0xFFFFFFFF) - 1)
            at = (at + 1) & mask
        return rows

    def add(self, key: int, row: int) -> None:
        if 2 * self._used >= len(self._slots):
            self._grow()
        self._put(key << 32 | row + 1)
        self._used += 1

    def _put(self, slot: int) -> None:
        mask = len(self._slots) - 1
        at = slot >> 32 & mask
        while self._slots[at]:
            at = (at + 1) & mask
        self._slots[at] = slot

    def _grow(self) -> None:
        old = self._slots
        self._slots = array("Q", bytes(16 * len(old)))
        for slot in old:
            if slot:
                self._put(slot)
