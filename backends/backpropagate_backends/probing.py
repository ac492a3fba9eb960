"""Tries one thing out in this process, which is there for nothing else: whether a package, a card or a kernel works here."""

from __future__ import annotations

import importlib
from time import perf_counter

from backpropagate_protocol.probes import BROKEN, MISSING, WORKS, ProbeReport

# Ours that imports torch.
_TRIES = "backpropagate_backends.torch_probe"


class NotHere(Exception):
    """What is to be tried is not installed, or is not made for this machine."""


def try_out(name: str) -> ProbeReport:
    """Never raises. A crash or a hang of a broken kernel is for the parent to see."""
    began = perf_counter()
    try:
        state, detail = WORKS, str(importlib.import_module(_TRIES).TRIES[name]())
    except NotHere as error:
        state, detail = MISSING, str(error)
    except ModuleNotFoundError as error:
        state, detail = MISSING, f"{error.name} is not installed"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
        lines = [line for line in str(error).splitlines() if line.strip()]
        state, detail = BROKEN, f"{type(error).__name__}: {lines[0] if lines else 'without a word'}"
    return ProbeReport(name, state, detail, round(perf_counter() - began, 2))
