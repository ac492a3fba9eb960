"""What an estimate is made of: the base's configuration, the card, and a first look at the data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from backpropagate.judge.estimate import Estimate, Gpu, Measured, Range, Rows, Sizing, estimate
from backpropagate.keep import calibrations
from backpropagate.wishes.base_config import config_of
from backpropagate.wishes.surroundings import installed
from backpropagate_protocol.errors import UserInputError
from backpropagate_protocol.spec import DataSpec, RunSpec

_LOOK = 1 << 20  # bytes of a file that are read
_BYTES_OF_A_TOKEN = (3.0, 5.0)
_LINES = (".jsonl", ".ndjson")


def sizing_of(spec: RunSpec, gpu: Gpu, environ: Mapping[str, str]) -> Sizing | None:
    """Which micro-batch fits, here and now; None where the base's shape is not known on this machine."""
    config = config_of(spec.model, environ) if spec.backend in ("auto", "cuda") else None
    if config is None:
        return None
    return Sizing.of(_as_installed(spec), config, gpu, calibrations.measured(gpu.name, spec))


def _as_installed(spec: RunSpec) -> RunSpec:
    """What `auto` comes to without bitsandbytes; of another interpreter's packages nothing is known."""
    if spec.runner_python is not None or installed("bitsandbytes"):
        return spec
    four_bit, optim = bool(spec.model.load_in_4bit), spec.train.optim
    return msgspec.structs.replace(
        spec,
        model=msgspec.structs.replace(spec.model, load_in_4bit=four_bit),
        train=msgspec.structs.replace(spec.train, optim="adamw_torch_fused" if optim == "auto" else optim),
    )


def told(
    spec: RunSpec,
    gpu: Gpu | None,
    environ: Mapping[str, str],
    *,
    measured: Measured | None = None,
    rows: Rows | None = None,
) -> Estimate:
    """The estimate, corrected by what real steps took, if there were any on this card.

    rows: what is known of the data; None: what a look at their file says. Raises UserInputError [INPUT_MODEL_NOT_FOUND] where
    nothing is known of the base.
    """
    config = config_of(spec.model, environ)
    if measured is None and gpu is not None:
        measured = calibrations.measured(gpu.name, spec)
    spec = _within(spec, config)
    found = None if config is None else estimate(spec, config, gpu, rows=rows or rows_of(spec.data), measured=measured)
    if found is None:
        why = (
            "its config.json is not on this machine"
            if config is None
            else "its config.json tells no shape that we know"
        )
        raise UserInputError(
            f"nothing can be estimated for {spec.model.name}: {why}",
            code="INPUT_MODEL_NOT_FOUND",
            suggestion="Name a folder with its config.json, or fetch that one file: hf download MODEL config.json.",
        )
    return found


def _within(spec: RunSpec, config: Mapping[str, object] | None) -> RunSpec:
    """No row is longer than what the base can read."""
    most = (config or {}).get("max_position_embeddings")
    if not isinstance(most, int) or most >= spec.data.max_length:
        return spec
    return msgspec.structs.replace(spec, data=msgspec.structs.replace(spec.data, max_length=most))


def rows_of(data: DataSpec) -> Rows:
    """A guess from the first lines of a file and from its size; empty for what is no file of lines."""
    path = Path(data.source)
    try:
        if not data.source or path.suffix.lower() not in _LINES or not path.is_file():
            return Rows(data.samples)
        size = path.stat().st_size
        with open(path, "rb") as file:
            beginning = file.read(_LOOK)
    except OSError:
        return Rows(data.samples)
    lines = [line for line in beginning.splitlines() if line.strip()]
    if len(beginning) == _LOOK and len(lines) > 1:
        lines.pop()  # cut off
    if not lines:
        return Rows(data.samples)
    mean = sum(map(len, lines)) / len(lines)
    count = round(size / (mean + 1))
    tokens = Range(max(1.0, mean / _BYTES_OF_A_TOKEN[1]), max(1.0, mean / _BYTES_OF_A_TOKEN[0]))
    return Rows(count if data.samples is None else min(count, data.samples), tokens)
