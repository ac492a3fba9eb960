"""Fine-tune an LLM on one GPU under a crash-proof supervisor. `from backpropagate import Trainer`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backpropagate.api.campaign_result import Campaign, CampaignRun
    from backpropagate.api.export_result import Export
    from backpropagate.api.trainer import Trainer, TrainingCallback, TrainingRun
    from backpropagate.exceptions import BackpropagateError

__version__ = "0.1.0"

# Imported when they are first asked for: the command line needs none of them.
_WHERE = {
    "BackpropagateError": "backpropagate.exceptions",
    "Campaign": "backpropagate.api.campaign_result",
    "CampaignRun": "backpropagate.api.campaign_result",
    "Export": "backpropagate.api.export_result",
    "Trainer": "backpropagate.api.trainer",
    "TrainingCallback": "backpropagate.api.trainer",
    "TrainingRun": "backpropagate.api.trainer",
}

__all__ = [
    "BackpropagateError",
    "Campaign",
    "CampaignRun",
    "Export",
    "Trainer",
    "TrainingCallback",
    "TrainingRun",
    "__version__",
]


def __getattr__(name: str) -> object:
    module = _WHERE.get(name)
    if module is None and name.endswith("Error"):
        module = "backpropagate.exceptions"
    if module is not None:
        found = getattr(importlib.import_module(module), name, None)
        if found is not None:
            globals()[name] = found
            return found
    raise AttributeError(f"module 'backpropagate' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
