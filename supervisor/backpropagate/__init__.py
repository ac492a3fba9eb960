"""Fine-tune an LLM on one GPU under a crash-proof supervisor. `from backpropagate import Trainer`."""

from __future__ import annotations

__version__ = "0.1.0"
