"""Imports torch, transformers, PEFT and TRL once, quietly, and says in one error what is missing.

Importing takes seconds, so it happens in a thread while the Job is still on its way. Nothing here touches a device.
"""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from backpropagate_protocol.errors import DependencyError

# Read by the libraries when they are imported: no telemetry, no thread pool of tokenizers to fork under, a hub that
# answers within seconds or is given up, and no search for trackers. A user's own value stands.
QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_ETAG_TIMEOUT": "5",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}
_ENVIRONMENT = {**QUIET, "BITSANDBYTES_NOWELCOME": "1"}

# What is imported, in an order in which each import makes the next one cheap.
_MODULES = ("torch", "transformers", "transformers.trainer", "peft", "datasets", "trl.trainer.sft_trainer")

# distribution → first version that will do, and the first that was not yet there when this was written.
_SUPPORTED = {"transformers": ((5, 17), (6,)), "trl": ((1, 16), (2,)), "peft": ((0, 21), (0, 22))}

_TRL_OF_UNSLOTH = (0, 18)


def warm(extra: str) -> None:
    """Imports what training needs. Raises DependencyError naming the extra (`cpu` or `cuda`) that brings it."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for distribution, (low, high) in _SUPPORTED.items():
        # An environment of Unsloth's has the older TRL that Unsloth wants; what trains without Unsloth asks once more.
        older = distribution == "trl" and find_spec("unsloth") is not None
        check_version(distribution, _TRL_OF_UNSLOTH if older else low, high, extra)
    _silence()
    for module in _MODULES:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise DependencyError(
                f"{module} cannot be imported: {error}", suggestion=f"pip install 'backpropagate[{extra}]'"
            ) from error
    _no_bars()


def check_trainer(extra: str) -> None:
    """Raises DependencyError if TRL is one that cannot train without Unsloth."""
    check_version("trl", *_SUPPORTED["trl"], extra)


def check_version(distribution: str, low: tuple[int, ...], high: tuple[int, ...], extra: str) -> None:
    """Raises DependencyError if `distribution` is missing or not in [low, high)."""
    try:
        installed = version(distribution)
    except PackageNotFoundError as error:
        raise DependencyError(
            f"{distribution} is not installed", suggestion=f"pip install 'backpropagate[{extra}]'"
        ) from error
    numbers = tuple(int(part) for part in installed.split(".")[:2] if part.isdigit())
    if not low <= numbers < high:
        wanted = f">={'.'.join(map(str, low))},<{'.'.join(map(str, high))}"
        raise DependencyError(
            f"{distribution} {installed} is installed; {wanted} is needed", code="DEP_VERSION_UNSUPPORTED"
        )


def _silence() -> None:
    """What libraries say to each other has no place in a user's log file. Before they are imported."""
    # that a kernel for the CPU is not downloaded; errors still come through
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # PEFT 0.21 asks transformers 5.23 by a name that goes in version 6
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)


def _no_bars() -> None:
    from datasets import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    disable_progress_bars()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
