"""`did you mean …?`, for every name that a user can misspell."""

from __future__ import annotations

from collections.abc import Iterable


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that looks most like `name`, or None if none is near."""
    import difflib  # rarely needed, and not cheap

    by_lower = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """`; did you mean X?`, or nothing.

    prefix: what `name` begins with as all of its kind do, so that it makes nothing alike. Where none has it, it counts.
    """
    alike = [other.removeprefix(prefix) for other in known if other.startswith(prefix)] if prefix else []
    found = closest(name.removeprefix(prefix), alike) if alike else closest(name, known)
    return f"; did you mean {prefix if alike else ''}{found}?" if found else ""
