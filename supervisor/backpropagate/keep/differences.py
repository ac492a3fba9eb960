"""Two runs' wishes side by side: every setting in which they differ, by its dotted name. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import msgspec

from backpropagate_protocol.spec import RunSpec

# What is different in any two runs, and decides nothing about their results.
_OF_ONE_RUN = ("schema", "run_id", "created", "detached", "verbose", "safety.wait_for_lock", "parent", "link")

_RUN, _SOURCE = re.compile(r"campaign\.runs\.\d+\."), "source"


@dataclass(frozen=True, slots=True)
class Difference:
    """None: this run does not have the setting at all, or it is empty."""

    name: str
    first: object
    second: object


def differences(first: RunSpec, second: RunSpec) -> list[Difference]:
    """In the order of the specs' fields. Names that were made from a run's id count as the same."""
    one, other = wishes(first), wishes(second)
    names = list(dict.fromkeys((*one, *other)))
    found = [Difference(name, one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)]
    return [each for each in found if not _within_missing_run(each.name, one, other)]


def _within_missing_run(name: str, one: Mapping[str, object], other: Mapping[str, object]) -> bool:
    """Of a campaign's run that only one of them has, its data say enough."""
    match = _RUN.match(name)
    if match is None or name == match[0] + _SOURCE:
        return False
    return any(match[0] + _SOURCE not in wishes for wishes in (one, other))


def wishes(spec: RunSpec) -> dict[str, object]:
    """Every setting of a spec by its dotted name: `train.learning_rate`, `campaign.runs.2.source`."""
    export = spec.export
    if export is not None:
        export = msgspec.structs.replace(
            export,
            name=_without_id(export.name, spec.run_id),
            destination=_without_id(export.destination, spec.run_id),
        )
    plain = msgspec.to_builtins(msgspec.structs.replace(spec, export=export))
    return {name: value for name, value in _flat("", plain) if name not in _OF_ONE_RUN}


def _without_id(text: str, run_id: str) -> str:
    return text.replace(run_id[:8], "RUN")


def _flat(name: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(f"{name}.{key}" if name else key, item)
    elif isinstance(value, list | tuple) and any(isinstance(item, dict) for item in value):
        for number, item in enumerate(value, 1):
            yield from _flat(f"{name}.{number}", item)
    elif value not in (None, [], ()):
        yield name, value
