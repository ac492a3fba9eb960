"""What a run's row says of its wishes: all that decides the result, and nothing that belongs to another method or mode."""

from __future__ import annotations

import os

import msgspec

from backpropagate.events import AttemptStarted, ModelReady
from backpropagate_protocol.spec import DataSpec, RunSpec, is_evaluated

_OF_MODEL = ("revision", "load_in_4bit", "dtype")
_OF_DATA = (
    "split", "format", "samples", "on_bad_row", "max_length", "train_on", "packing", "holdout", "reasoning_trace", "trace_tokens",
    "dedup", "min_tokens", "max_tokens", "order",
)  # fmt: skip
_OF_EVALUATION = ("eval_steps", "early_stopping", "keep_best")


def hyperparameters(spec: RunSpec) -> dict[str, object]:
    """By name; those of the adapter begin with `lora_`. None: left to the backend, or all."""
    if spec.kind not in ("train", "campaign"):
        wishes = msgspec.to_builtins(spec.export if spec.kind == "export" else spec.push)
        said = wishes.items() if wishes else ()
        return {name: value for name, value in said if value not in (None, "", [], ()) and name != "card"}
    method, full = spec.train.method, spec.train.mode == "full"
    apply = {
        "logging_steps": False,
        "beta": method != "sft",
        "gamma": method == "simpo",
        "desirable_weight": method == "kto",
        "undesirable_weight": method == "kto",
        "ceiling": full,
        **dict.fromkeys(_OF_EVALUATION, is_evaluated(spec)),
    }
    shown: dict[str, object] = {n: v for n, v in msgspec.to_builtins(spec.train).items() if apply.get(n, True)}
    if not full:
        shown.update({f"lora_{name}": value for name, value in msgspec.to_builtins(spec.lora).items()})
    if spec.campaign is not None:
        chosen = msgspec.to_builtins(msgspec.structs.replace(spec.campaign, runs=(), names=()))
        shown.update({name: value for name, value in chosen.items() if name not in ("runs", "names")})
    model, data = msgspec.to_builtins(spec.model), msgspec.to_builtins(spec.data)
    shown.update({name: model[name] for name in _OF_MODEL})
    shown.update({name: data[name] for name in _OF_DATA if _applies(name, spec.data)})
    return shown


def _applies(name: str, data: DataSpec) -> bool:
    if name == "trace_tokens":
        return data.reasoning_trace
    return name != "split" or not os.path.isabs(data.source)  # a file has none


def as_it_came_to(shown: dict[str, object], event: AttemptStarted | ModelReady) -> dict[str, object]:
    """The same, with what was left to the backend as the backend chose it."""
    if isinstance(event, ModelReady):
        came: dict[str, object] = {"precision": event.precision, "optimizer": event.optimizer}
    else:
        came = {"gradient_checkpointing": event.gradient_checkpointing}
    return shown | {name: value for name, value in came.items() if value not in (None, "")}
