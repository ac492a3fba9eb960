"""An answer given out as it is made, in pieces that never end amid a character. The same for every backend."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

_UNFINISHED = "\ufffd"  # what decoding makes of bytes that are not a character yet
_BEFORE = 4  # tokens that are decoded with a new one: some tokenizers drop a space at a text's beginning


def pieces(tokens: Iterable[int], decode: Callable[[Sequence[int]], str]) -> Iterator[str]:
    """What `tokens` say, each piece as soon as its characters are whole; the last one whatever it ends in."""
    made: list[int] = []
    said = 0  # tokens whose text is out
    for token in tokens:
        made.append(token)
        if not decode(made[said:]).endswith(_UNFINISHED):
            before = made[max(0, said - _BEFORE) : said]
            yield decode(before + made[said:])[len(decode(before)) :]
            said = len(made)
    if said < len(made):
        yield decode(made[said:])
