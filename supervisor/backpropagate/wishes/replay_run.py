"""An earlier run once more: the same wishes as a new RunSpec, after its data were found to be the same.

Only what belongs to one run alone is new: its id, its time, and the names that were made of the id.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from backpropagate.judge.campaign import link_id
from backpropagate.keep import history
from backpropagate.keep.data_digest import Digest, digest_now, digests
from backpropagate.keep.runs import load_spec
from backpropagate.wishes.campaign_again import campaign
from backpropagate.wishes.surroundings import check_backend, check_runner, writable_folder
from backpropagate_protocol.errors import DatasetError, RunNotFoundError, UserInputError, error_for
from backpropagate_protocol.rundir import RunDir
from backpropagate_protocol.spec import DataSpec, RunSpec


@dataclass(frozen=True, slots=True)
class Replay:
    """`same`: all data were read, and found to be what they were. `notices`: what was not, or could not be, compared."""

    spec: RunSpec
    same: bool
    notices: tuple[str, ...]


def replay_run(run_dir: RunDir, *, changed_data: bool = False, detached: bool = False, verbose: bool = False) -> Replay:
    """Raises UserInputError for what is no training, DatasetError for data that are not what they were.

    changed_data: then that is only told.
    """
    spec = _whole(run_dir)
    check_backend(spec.backend)
    check_runner(spec.runner_python, spec.backend)
    writable_folder(spec.output, least_mib=1)
    model = Path(spec.model.path)
    if model.is_absolute() and not model.exists():
        raise error_for("INPUT_MODEL_NOT_FOUND", f"the model {model} is not there any more", run_id=spec.run_id)
    said: list[str] = []
    digest = digests()
    for data, before in _trained_on(run_dir, spec):
        complaint = _compared(data, before, digest, said)
        if complaint is not None and not changed_data:
            raise DatasetError(
                complaint,
                suggestion="Bring the old data back, or train on what is there now: --changed-data.",
                run_id=spec.run_id,
            )
        if complaint is not None:
            said.append(complaint)
    return Replay(_anew(spec, detached=detached, verbose=verbose), not said, tuple(dict.fromkeys(said)))


def _whole(run_dir: RunDir) -> RunSpec:
    """With the runs that were appended to a campaign."""
    spec = load_spec(run_dir)
    if spec.parent is not None:
        begins = ", and begins where the one before it ended" if spec.link > 1 else ""
        raise UserInputError(
            f"run {spec.run_id[:8]} is run {spec.link} of campaign {spec.parent[:8]}{begins}: only all of it is replayed",
            suggestion=f"Replay the campaign: backprop replay {spec.parent[:8]}",
            run_id=spec.run_id,
        )
    if spec.kind == "campaign":
        spec, whole = campaign(run_dir)
        return msgspec.structs.replace(spec, campaign=whole)
    if spec.kind != "train":
        raise UserInputError(
            f"run {spec.run_id[:8]} is no training, but {'an' if spec.kind == 'export' else 'a'} {spec.kind}",
            suggestion=f"Run `backprop {spec.kind}` again.",
            run_id=spec.run_id,
        )
    return spec


def _trained_on(run_dir: RunDir, spec: RunSpec) -> Iterator[tuple[DataSpec, str]]:
    """Each data set, and its digest as it was when it was read; empty: it was never read."""
    if spec.campaign is None:
        yield spec.data, history.row_of(run_dir).dataset_digest
        return
    for number, data in enumerate(spec.campaign.runs, 1):
        try:
            yield data, history.row_of(run_dir.output.run(link_id(spec.run_id, number))).dataset_digest
        except RunNotFoundError:
            yield data, ""


def _compared(data: DataSpec, before: str, digest: Digest, said: list[str]) -> str | None:
    """What is wrong with the data; what cannot be known goes to `said`."""
    now = digest_now(data, digest)
    if now is None:
        said.append(f"{data.source} is on the hub: whether it is what it was is not known")
        return None
    if not before:
        said.append(f"{data.source} was never read by that run: there is nothing to compare it with")
        return None
    return None if now == before else f"{data.source} is not what it was when the run read it"


def _anew(spec: RunSpec, *, detached: bool, verbose: bool) -> RunSpec:
    run_id = str(uuid.uuid4())
    export = spec.export
    if export is not None:
        old, new = spec.run_id[:8], run_id[:8]
        export = msgspec.structs.replace(
            export, name=export.name.replace(old, new), destination=export.destination.replace(old, new)
        )
    return msgspec.structs.replace(
        spec,
        run_id=run_id,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        detached=detached,
        verbose=verbose,
        faults=(),
        export=export,
    )
