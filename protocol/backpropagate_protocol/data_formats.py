"""The names of what training data may be: ends of file names, formats of rows, ids of the hub. One table for both sides.

The parent refuses by it within a moment; the child reads by it.
"""

from __future__ import annotations

import re
from pathlib import PurePath

# What a file holds, by the end of its name (after a `.gz` is taken off).
KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonlines": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
}
PACKED = ".gz"

# Of rows; each has a sample in docs/data.md.
FORMATS = (
    "sharegpt",
    "messages",
    "preference",
    "preference_text",
    "alpaca",
    "labelled",
    "prompt_completion",
    "question_answer",
    "text",
    "chatml",
    "raw",
)
FORMAT_ALIASES = {"openai": "messages", "raw_text": "raw"}

# In which order an epoch takes the samples.
RANDOM, CURRICULUM, GIVEN = "random", "curriculum", "given"
ORDERS = (RANDOM, CURRICULUM, GIVEN)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def suffix(name: str) -> str:
    """The end of a file's name that says what it holds, in small letters: `rows.JSONL.gz` → `.jsonl`; or nothing."""
    suffixes = [part.lower() for part in PurePath(name).suffixes]
    if suffixes and suffixes[-1] == PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def may_be_hub_id(source: str) -> bool:
    """True for `owner/name` unless it ends like a data file; whether there is such a file is not asked."""
    return _HUB_ID.fullmatch(source) is not None and suffix(source) not in KINDS and not source.lower().endswith(PACKED)


def accepted() -> str:
    """The ends of file names for a message: `.jsonl, .ndjson, …`."""
    return ", ".join(KINDS)
