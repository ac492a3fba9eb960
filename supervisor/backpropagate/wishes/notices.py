"""What the user should read once before a run begins: wishes without effect, the model's licence, what was rounded."""

from __future__ import annotations

from backpropagate.doors.environ import environment
from backpropagate.wishes.build_spec import every_nth, train_spec
from backpropagate.wishes.models import resolve_model
from backpropagate.wishes.settings import Settings
from backpropagate.wishes.trackers import wanted_trackers


def notices(settings: Settings) -> list[str]:
    """In the order in which they are said."""
    said = [*settings.warnings, *_another_share(settings.number("data.eval_split")), *_all_warmup(settings)]
    if settings.text("training.backend") != "toy":
        note = resolve_model(settings.text("model.name")).note
        said += [f"{settings.text('model.name')}: {note}"] if note else []
    said += wanted_trackers(settings, environment()).notices
    return said


def _all_warmup(settings: Settings) -> list[str]:
    train = train_spec(settings)
    if train.steps is None or train.scheduler == "constant" or train.warmup_steps < train.steps:
        return []
    return [
        f"the warm-up of {train.warmup_steps} steps is as long as the training: the learning rate stays below its peak"
    ]


def _another_share(share: float) -> list[str]:
    """Every n-th row is held out, so not every share can be had."""
    had = 1 / every_nth(share) if share else 0.0
    if abs(had - share) <= 0.05 * share:
        return []
    return [
        f"every {every_nth(share)}. row is held out: a share of {had:.2f}, which is as near to {share:g} as can be had"
    ]
