"""llama.cpp's own converter, for tests: fetched once, run in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_PROGRAM = """
import json, os, sys
from backpropagate_protocol.jobs import ConvertJob
from backpropagate_protocol.messages import Phase
from backpropagate_protocol.spec import ModelSpec
from backpropagate_runner.export.official import convert_officially
from tests.runner.export.heard import Heard

for model, adapter, out, type_ in json.loads(sys.argv[2]):
    spec = ModelSpec(name=model, path=model)
    job = ConvertJob(
        model=spec, adapter=adapter, out=out, type=type_, name="tiny", memory=64, converter="official",
        converter_folder=sys.argv[1],
    )
    convert_officially(job, Heard(Phase.CONVERT).stage)
"""


@dataclass(frozen=True)
class Officially:
    """folder: the converter. results: where the files are made."""

    folder: Path
    results: Path

    def convert(self, wanted: Sequence[tuple[Path, Path | None, str]]) -> Path:
        """Models (with adapters) in types, each to NAME.TYPE.gguf, or NAME+ADAPTER.TYPE.gguf, in the folder returned."""
        jobs = [
            (
                str(model),
                str(adapter) if adapter else None,
                str(self.results / self._name(model, adapter, type_)),
                type_,
            )
            for model, adapter, type_ in wanted
        ]
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, str(self.folder), json.dumps(jobs)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return self.results

    def _name(self, model: Path, adapter: Path | None, type_: str) -> str:
        return f"{model.name}{f'+{adapter.name}' if adapter else ''}.{type_}.gguf"
