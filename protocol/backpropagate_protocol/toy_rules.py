"""What the toy backend cannot do. Asked on both sides: before a run begins, and again before its data are read."""

from __future__ import annotations

from backpropagate_protocol.spec import DataSpec, TrainSpec


def refused_by_toy(data: DataSpec, train: TrainSpec) -> str:
    """The first wish that it cannot serve, as its flag; empty if there is none."""
    wishes = {
        f"--attention {train.attention}": train.attention != "auto",
        "--compile": train.compile,
        "--liger": train.liger is True,
        "--packing": data.packing is True,
        "--group-by-length": train.group_by_length,
        "--fp8": train.fp8,
    }
    return next((wish for wish, asked in wishes.items() if asked), "")
