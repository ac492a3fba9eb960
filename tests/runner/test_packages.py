"""Other packages than a checkpoint was made with: named, old and new, and nothing said of what changes no bit."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from backpropagate_protocol.rundir import Manifest
from backpropagate_runner.packages import told_if_others

HAD = {"backpropagate": "0.1.0", "torch": "2.12.0", "mlx": "0.32.0", "bitsandbytes": "0.50.0", "datasets": "4.7.0"}


def _checkpoint(backend: str, packages: Mapping[str, str]) -> Manifest:
    return Manifest(
        run_id="r",
        step=10,
        total_steps=20,
        samples_seen=80,
        order=1,
        micro_batch=4,
        accumulation=2,
        data_digest="data",
        spec_digest="spec",
        backend=backend,
        packages=dict(packages),
    )


@pytest.mark.parametrize(
    ("backend", "now", "named"),
    [
        ("cuda", {"torch": "2.13.0"}, "torch 2.12.0 → 2.13.0"),
        ("cuda", {"backpropagate": "0.2.0", "trl": "1.16.0"}, "backpropagate 0.1.0 → 0.2.0, trl none → 1.16.0"),
        ("cpu", {"bitsandbytes": ""}, "bitsandbytes 0.50.0 → none"),
        ("mlx", {"mlx": "0.33.0"}, "mlx 0.32.0 → 0.33.0"),
        ("toy", {"backpropagate": "0.2.0"}, "backpropagate 0.1.0 → 0.2.0"),
    ],
)
def test_what_decides_bits_is_named_old_and_new(backend: str, now: Mapping[str, str], named: str) -> None:
    packages = {name: version for name, version in {**HAD, **now}.items() if version}
    told = told_if_others(_checkpoint(backend, HAD), packages)
    assert told is not None
    assert told.startswith(f"since the checkpoint of step 10 packages have changed: {named}. ")


@pytest.mark.parametrize(
    ("backend", "had", "now"),
    [
        ("cuda", HAD, {}),
        ("cuda", HAD, {"mlx": "0.33.0", "datasets": "5.0.0"}),
        ("mlx", HAD, {"torch": "2.13.0"}),
        ("toy", HAD, {"torch": "2.13.0"}),
        ("cuda", {}, {"torch": "2.13.0"}),
    ],
    ids=["the same", "of another backend", "torch for mlx", "torch for the toy", "nothing is known"],
)
def test_nothing_is_said_of_what_changes_no_bit(backend: str, had: dict[str, str], now: dict[str, str]) -> None:
    assert told_if_others(_checkpoint(backend, had), {**HAD, **now}) is None
