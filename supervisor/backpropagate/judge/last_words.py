"""What a child wrote into its log, parted into its last lines and the stacks of its threads. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from backpropagate_protocol.landmarks import IMPORTED

LINES = 20
_LINE_WIDTH = 500
_STACK_LINES = 300
# How faulthandler begins a dump, and each thread in it, on every system and for every cause.
_THREAD = re.compile(r"(Thread|Current thread) 0x.*\(most recent call first\)")
_DUMP = re.compile(rf"Fatal Python error|Windows fatal exception|Timeout \(|Stack \(most recent|{_THREAD.pattern}")
_MODULES = "Extension modules:"  # a list of everything imported: long, and no part of the stacks


@dataclass(frozen=True, slots=True)
class LastWords:
    """`lines`: at most LINES, the newest last; `earlier`: likewise of those that libraries wrote while it only got ready.

    One that died before it was ready has no earlier ones. `stacks`: empty if there was no dump.
    """

    lines: tuple[str, ...]
    stacks: str
    earlier: tuple[str, ...] = ()


def part(text: str) -> LastWords:
    """`text`: the end of what one child wrote. What it wrote after its dump belongs to the dump."""
    lines = [line.rstrip()[:_LINE_WIDTH] for line in text.splitlines()]
    ready = max((at for at, line in enumerate(lines) if line == IMPORTED), default=-1) + 1
    earlier, lines = [line for line in lines[:ready] if line and line != IMPORTED], lines[ready:]
    dump = next((at for at, line in enumerate(lines) if _DUMP.match(line)), len(lines))
    said = [line for line in lines[:dump] if line]
    stacks = _guilty_first([line for line in lines[dump:] if not line.startswith(_MODULES)])
    if len(stacks) > _STACK_LINES:
        half = _STACK_LINES // 2
        stacks = [*stacks[:half], f"… {len(stacks) - _STACK_LINES} more lines in the log …", *stacks[-half:]]
    return LastWords(tuple(said[-LINES:]), "\n".join(stacks).strip(), tuple(earlier[-LINES:]))


def _guilty_first(stacks: list[str]) -> list[str]:
    """The thread that was at work, which a dump brings last, ahead of those that waited."""
    begins = [at for at, line in enumerate(stacks) if _THREAD.match(line)]
    if not begins:
        return stacks
    threads = [stacks[begin:end] for begin, end in zip(begins, [*begins[1:], len(stacks)], strict=True)]
    threads.sort(key=lambda thread: not thread[0].startswith("Current"))
    return stacks[: begins[0]] + [line for thread in threads for line in thread if line]
