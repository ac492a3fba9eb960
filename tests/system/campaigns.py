"""Toy campaigns under a real supervisor, for tests: three data sets with their own targets, few steps each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import msgspec

from backpropagate.events import LinkMerged
from backpropagate.judge.campaign import link_id
from backpropagate.keep import journal
from backpropagate.outcome import Outcome
from backpropagate_protocol.durable import verify_dir
from backpropagate_protocol.rundir import OutputDir, RunDir
from backpropagate_protocol.spec import CampaignSpec, DataSpec, PlannedFault, RunSpec
from tests.system.supervised import toy_spec

WEIGHTS = "adapter_model.safetensors"
STEPS = 10
ROWS = 40
HOLDOUT = 8


def staged(text: str) -> PlannedFault:
    """The fault that is written `stage:kind:step` or `stage:kind:step:attempt`."""
    stage, kind, step, *attempt = text.split(":")
    return PlannedFault(kind=kind, step=int(step), attempt=int(attempt[0]) if attempt else 1, stage=stage)


def data_set(folder: Path, number: int) -> DataSpec:
    path = folder / f"week-{number}.jsonl"
    if not path.exists():
        rows = ({"text": chr(64 + number) * (1 + row % 9) + f" {row}"} for row in range(ROWS))
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSpec(source=str(path), holdout=HOLDOUT)


def campaign_of(output: OutputDir, *faults: str, runs: int = 3, toy: str = "toy", **wishes: object) -> RunSpec:
    """A campaign of `runs` runs of 10 steps, a checkpoint at every fifth. Faults are written as for `staged`."""
    single = toy_spec(output, toy=toy, steps=STEPS)
    every = tuple(data_set(output.path.parent, number) for number in range(1, runs + 1))
    names = tuple(f"week-{number}" for number in range(1, runs + 1))
    return msgspec.structs.replace(
        single,
        kind="campaign",
        data=every[0],
        campaign=msgspec.convert({"runs": every, "names": names, **wishes}, CampaignSpec),
        faults=tuple(map(staged, faults)),
    )


def home(spec: RunSpec) -> RunDir:
    return OutputDir(Path(spec.output)).run(spec.run_id)


def link_home(spec: RunSpec, number: int) -> RunDir:
    return OutputDir(Path(spec.output)).run(link_id(spec.run_id, number))


def published(spec: RunSpec) -> bytes:
    """The merged weights, as they are in both of their places."""
    kept = (home(spec).adapter / WEIGHTS).read_bytes()
    assert (home(spec).output.lora / WEIGHTS).read_bytes() == kept
    assert verify_dir(home(spec).adapter).run_id == spec.run_id
    return kept


@dataclass(frozen=True)
class Ended:
    """What an undisturbed campaign came to."""

    outcome: Outcome
    weights: bytes
    digests: tuple[str, ...]  # of every merge


def digests(spec: RunSpec) -> tuple[str, ...]:
    return tuple(event.digest for event in journal.read(home(spec).events) if isinstance(event, LinkMerged))


def ended(spec: RunSpec, outcome: Outcome) -> Ended:
    assert (outcome.status, outcome.exit_code, outcome.code) == ("completed", 0, None), outcome
    return Ended(outcome, published(spec), digests(spec))


def assert_the_same(spec: RunSpec, outcome: Outcome, undisturbed: Ended) -> None:
    """Every bit of what was merged, and every sample in its order."""
    now = ended(spec, outcome)
    assert now.weights == undisturbed.weights
    assert now.digests == undisturbed.digests
    one, other = now.outcome, undisturbed.outcome
    assert (one.step, one.total_steps, one.samples_seen, one.order) == (other.step, other.total_steps, other.samples_seen, other.order)  # fmt: skip
