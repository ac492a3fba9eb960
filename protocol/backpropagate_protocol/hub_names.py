"""What a repository of the hub may be called: pure text, so that both sides of the wall refuse the same names."""

from __future__ import annotations

import re

_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_LONGEST = 96


def check_repo(repo: str) -> str | None:
    """None for an owner/name that the hub can have; else what is wrong with it."""
    parts = repo.split("/")
    if len(parts) != 2 or not all(parts):
        return f"{repo!r} is not of the form owner/name"
    if len(repo) > _LONGEST:
        return f"{repo!r} is longer than {_LONGEST} characters"
    for part in parts:
        if not _PART.fullmatch(part) or "--" in part or ".." in part:
            return f"{repo!r}: {part!r} may have letters, digits and `_ . -`, no `--` or `..`, and none of `- .` at its ends"
    if repo.endswith((".git", ".ipynb")):
        return f"{repo!r} ends in .git or .ipynb"
    return None
