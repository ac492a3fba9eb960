"""numpy's matrix products on one thread. Must be asked for before numpy is imported for the first time.

Merging multiplies small pieces that stay in the cache, between which threads would wait for each other: measured, two
threads on two busy cores take three to five times as long as one. Whoever has set a number of threads is left with it.
"""

from __future__ import annotations

import os


def on_one_thread() -> None:
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
