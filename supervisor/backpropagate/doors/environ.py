"""The environment as the operating system handed it to us. Settings are made of it in settings.py, and nowhere else."""

from __future__ import annotations

import os


def environment() -> dict[str, str]:
    """A copy of all variables."""
    return dict(os.environ)
