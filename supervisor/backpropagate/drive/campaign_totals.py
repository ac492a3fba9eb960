"""What the runs of a campaign add up to. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from backpropagate.drive.training import Kept
from backpropagate.judge.campaign import Facts
from backpropagate_protocol.rundir import RunDir
from backpropagate_protocol.spec import RunSpec


def totals(spec: RunSpec, run_dir: RunDir, facts: Facts, current: Kept) -> Kept:
    """`current`: what is kept of the run under way. Runs that are still to come count with the steps that were asked for."""
    trained, whole = facts.trained, facts.published > 0
    newest = trained[max(trained)] if trained else None
    done = sum(link.steps for link in trained.values())
    each = spec.train.steps or current.total_steps or (newest.steps if newest else 0)
    left = len(facts.links) - len(trained)
    return Kept(
        step=done + current.step,
        total_steps=done if whole else done + left * each,
        samples_seen=sum(link.samples_seen for link in trained.values()) + current.samples_seen,
        order=_chained(trained[number].order for number in sorted(trained)),
        loss=current.loss if current.loss is not None else newest.final_loss if newest else None,
        adapter=str(run_dir.adapter) if whole else None,
        revision=trained[1].model_revision if 1 in trained else "",
    )


def _chained(orders: Iterable[int]) -> int:
    """Equal for campaigns whose runs saw the same samples in the same order."""
    digest = 0
    for order in orders:
        digest = zlib.crc32(order.to_bytes(8, "little"), digest)
    return digest
