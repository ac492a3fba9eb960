"""A campaign's adapter: what its runs were merged into, complete in its run directory as a training's would be."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import msgspec

from backpropagate.keep.record import iso
from backpropagate_protocol import durable, swap, weights
from backpropagate_protocol.combined import COMBINED, Combined
from backpropagate_protocol.combined import MERGED as MERGED_FOLDER
from backpropagate_protocol.rundir import MANIFEST, FileEntry, Manifest, RunDir
from backpropagate_protocol.spec import RunSpec, spec_digest


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Of all runs of a campaign, as far as they are trained."""

    step: int
    samples_seen: int
    order: int
    loss: float | None


class DamagedMerge(Exception):
    """The weights are not those that were merged."""


def take(spec: RunSpec, run_dir: RunDir, merged: Path, newest: Path, totals: Totals, digest: str) -> None:
    """Makes the folder `merged` the campaign's adapter, whole or not at all; an older one is replaced.

    What its newest run's adapter has beside weights and configuration (the tokenizer, say) comes with it. `digest`: of the weights,
    as they were merged. Raises DamagedMerge if they are others, and OSError; what there was then stands.
    """
    made_by = msgspec.json.decode((newest / MANIFEST).read_bytes(), type=Manifest)
    staged = run_dir.staging / "adapter"
    durable.discard(run_dir.staging)
    try:
        shutil.copytree(merged, staged, ignore=shutil.ignore_patterns(MANIFEST))
        if weights.digest_in(staged) != digest:
            raise DamagedMerge(str(merged))
        for name in durable.files_of(newest):
            target = staged / name
            if not target.exists() and name != MANIFEST and not weights.weighs(name):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(newest / name, target)
        stamp = msgspec.structs.replace(
            made_by,
            run_id=spec.run_id,
            step=totals.step,
            total_steps=totals.step,
            samples_seen=totals.samples_seen,
            order=totals.order,
            loss=totals.loss,
            spec_digest=spec_digest(spec),
            created=iso(time.time()),
        )
        whole = run_dir.staging / "whole"
        durable.commit_dir(staged, whole, lambda files: _with(stamp, files))
        swap.rename_over(whole, run_dir.adapter)
    finally:
        durable.discard(run_dir.staging)


def _with(stamp: Manifest, files: dict[str, FileEntry]) -> bytes:
    return msgspec.json.encode(msgspec.structs.replace(stamp, files=files))


def combined(folder: Path) -> Combined:
    """What a merge says of itself. Raises OSError, or ValueError for what cannot be read."""
    return msgspec.json.decode((folder / COMBINED).read_bytes(), type=Combined)


def merged_digest(about: Combined) -> str:
    """Of the merged weights, as `weights.digest_in` would find it, without reading them."""
    place = f"{MERGED_FOLDER}/"
    return weights.digest_of({n.removeprefix(place): sha for n, sha in about.files.items() if n.startswith(place)})
