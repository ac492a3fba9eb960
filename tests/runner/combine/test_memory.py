"""How much memory a merge takes: of the adapter's largest module, not of the adapter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.source import ROOT
from tests.runner.combine.runs import Tensors, adapter, factors

MODULES, SIZE, RANK = 24, 1024, 64  # 24 x 0.5 MB

PROGRAM = """
import os, re, sys
from pathlib import Path
from backpropagate_runner.export.one_thread import on_one_thread
on_one_thread()
from backpropagate_protocol.jobs import CombineJob
from backpropagate_protocol.messages import Phase
from backpropagate_runner.combine.combine import combine
from tests.runner.export.heard import Heard

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

class Watching(Heard):
    peak = 0
    def _sign(self, number):
        super()._sign(number)
        self.peak = max(self.peak, anonymous())

out, rule, *adapters = sys.argv[1:]
def merge(where):
    watching = Watching(Phase.COMBINE)
    combine(CombineJob(adapters=adapters, out=out + where, rule=rule, memory=64), watching.stage)
    return watching.peak
merge("first")  # what the libraries keep once they are used is not counted
before = anonymous()
print(merge("second") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@pytest.mark.parametrize("rule", ["slao", "slao-product", "average", "ema"])
def test_memory_does_not_grow_with_the_adapter(rule: str, tmp_path: Path) -> None:
    runs = []
    for number in (1, 2):
        trained: Tensors = {}
        for module in range(MODULES):
            trained |= factors(number, r=RANK, inputs=SIZE, outputs=SIZE, module=f"model.{module}.up")
        runs.append(adapter(tmp_path / str(number), trained, r=RANK))
    arguments = [sys.executable, "-c", PROGRAM, str(tmp_path / "out"), rule, *map(str, runs)]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 8 << 10  # KiB; the two adapters have 24 MiB
