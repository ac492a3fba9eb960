"""Does it forget less? Every rule of merging, and replay, on a small stream of drifting tasks, over several seeds.

    python scripts/bench_slao.py                      # three seeds, all ways: about two minutes of one core
    python scripts/bench_slao.py --seeds 5 --drift 0.6

Prints a Markdown table: mean and spread (standard deviation over seeds) of the average accuracy after the last run, of the
backward transfer, and of the accuracy on each task right after it was learnt. Everything goes through the real merge on
adapters on the disk; the experiment itself is tests/runner/combine/drift.py.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
for part in ("protocol", "runner", "."):
    sys.path.insert(0, str(ROOT / part))
os.environ.setdefault("OMP_NUM_THREADS", "1")


@dataclass(frozen=True)
class Way:
    """One line of the table."""

    label: str
    rule: str
    apart: bool = False
    replay: int = 0  # rows of a batch of 32


WAYS = (
    Way("`none`: training on and on", "none"),
    Way("`slao`", "slao"),
    Way("`slao-product`", "slao-product"),
    Way("`ema`, 0.5", "ema"),
    Way("`average`", "average"),
    Way("`average`, runs apart", "average", apart=True),
    Way("`ties`, 0.5, runs apart", "ties", apart=True),
    Way("`dare`, 0.5, runs apart", "dare", apart=True),
    Way("`none`, replay 12.5 %", "none", replay=4),
    Way("`slao`, replay 12.5 %", "slao", replay=4),
    Way("`slao-product`, replay 12.5 %", "slao-product", replay=4),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--drift", type=float, default=1.0, help="largest rotation of a task, in half turns")
    parser.add_argument("--only", default="", help="rules, separated by commas")
    wishes = parser.parse_args()

    import numpy as np

    from tests.runner.combine.drift import campaign, pretrained, tasks

    net = pretrained()
    print("| | average accuracy | backward transfer | learnt |")
    print("|---|---|---|---|")
    for way in WAYS:
        if wishes.only and way.rule not in wishes.only.split(","):
            continue
        found = []
        for seed in range(wishes.seeds):
            stream = tasks(seed, wishes.drift)
            with tempfile.TemporaryDirectory() as folder:
                outcome = campaign(net, stream, seed, way.rule, Path(folder), apart=way.apart, replay=way.replay)
            found.append((outcome.average, outcome.backward_transfer, outcome.learnt))
        means, spreads = np.mean(found, axis=0), np.std(found, axis=0)
        cells = (f"{mean:+.3f} ± {spread:.3f}" for mean, spread in zip(means, spreads, strict=True))
        print(f"| {way.label} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
