"""Unsloth as a wish: what goes with it, which interpreter has it, and how an environment for it is built.

Unsloth pins older releases of TRL, transformers and datasets than the training packages here, so the two rarely share an
environment. The one that is built holds Unsloth, what it asks for, and a copy of our runner.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from backpropagate.keep import unsloth_home
from backpropagate.wishes.settings import Settings
from backpropagate.wishes.surroundings import check_runner, installed
from backpropagate_protocol.errors import DependencyError, InvalidSettingError

# The runner needs these beside what Unsloth brings.
_OURS = ("msgspec>=0.20", "psutil>=6", "jinja2>=3.1")
_UNSLOTH = "unsloth>=2026.10"


def check_unsloth(settings: Settings) -> None:
    """Raises InvalidSettingError for the first wish that Unsloth does not serve here."""
    attention, backend = settings.text("training.attention"), settings.text("training.backend")
    wishes = {
        f"--method {settings.text('training.method')}": settings.text("training.method") != "sft",
        f"--mode {settings.text('training.mode')}": settings.text("training.mode") != "lora",
        f"--backend {backend}": backend not in ("auto", "cuda", "cpu"),
        f"--attention {attention}": attention != "auto",
        "--fp8": settings.flag("training.fp8"),
        "--use-dora": settings.flag("lora.use_dora"),
        "--packing": settings.flag_or_none("data.packing") is True,
        "--compile": settings.flag("training.compile"),
        "--liger": settings.flag_or_none("training.liger") is True,
    }
    for wish, asked in wishes.items():
        if asked:
            raise InvalidSettingError(
                f"{wish} does not go with --unsloth, which has its own way there",
                suggestion="Leave one of the two out.",
            )


def unsloth_python(settings: Settings) -> str | None:
    """The interpreter that trains through Unsloth; None: our own. Raises DependencyError if there is none."""
    named = settings.text_or_none("runner.python")
    if named is not None:
        return check_runner(named, settings.text("training.backend"))
    built = unsloth_home.known()
    if built is not None:
        return built
    if installed("unsloth"):
        return None
    raise DependencyError(
        "Unsloth is not installed here",
        suggestion="`backprop setup --unsloth` builds an environment for it; or name an interpreter that has it with "
        "--runner-python, or leave --unsloth out.",
    )


def recipe(folder: Path, base: str = sys.executable) -> tuple[tuple[str, ...], ...]:
    """The commands that build the environment: with uv where it is on the PATH, else with venv and pip.

    base: the interpreter that it is made of.
    """
    python = str(unsloth_home.python_in(folder))
    packages = (_UNSLOTH, *_OURS)
    uv = shutil.which("uv")
    if uv is not None:
        return (
            (uv, "venv", "--clear", "--python", base, str(folder)),
            (uv, "pip", "install", "--python", python, *packages),
        )
    return (
        (base, "-m", "venv", "--clear", str(folder)),
        (python, "-m", "pip", "install", "--disable-pip-version-check", *packages),
    )
