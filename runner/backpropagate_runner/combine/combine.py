"""The merge of a campaign's runs: adapters in, the adapter to use and the one to begin the next run with out.

SLAO ("Merge before Forget", Qiao & Mahdavi, arXiv:2512.23017): per adapted layer W = W0 + s B A with A (r, inputs),
B (outputs, r), after run i has been fine-tuned to (A_i, B_i):

    to use           A = A_i,  B = M_i  with  M_1 = B_1,  M_i = M_{i-1} + (B_i - M_{i-1}) / sqrt(i)
    to begin with    A = Q^T of A_i^T = Q R,  B = B_i      the last fine-tuned B, not M_i

so that merging never feeds back into training, and every merge of the same runs can be made again, by any rule (rules.py).
Deviations from the paper, and what it leaves open: docs/slao.md.

Everything is checked before anything is written: that the runs agree (agreement.py), that every number that is read is
finite, that the state fits the runs (previous.py). The output folder appears whole or not at all, inputs are never touched,
and the same inputs give the same bytes. Memory: a few blocks of `memory` / 16 MiB and the factors of one module.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from backpropagate_protocol.combined import COMBINED, MERGED, NEXT, STATE, Combined, CombinedRun
from backpropagate_protocol.errors import SLAOCheckpointError
from backpropagate_protocol.jobs import CombineJob
from backpropagate_protocol.messages import Made
from backpropagate_protocol.rundir import MANIFEST
from backpropagate_runner.combine.agreement import check_agreement, notes_on_scale
from backpropagate_runner.combine.inputs import Matched, Run, matched, open_runs
from backpropagate_runner.combine.outputs import Output, write
from backpropagate_runner.combine.plan import Oddities, merged_outputs, orthonormal_outputs
from backpropagate_runner.combine.previous import State, state_before
from backpropagate_runner.combine.rules import Rule, Wishes, closed_form
from backpropagate_runner.export.adapter import CONFIG, WEIGHTS, open_adapter
from backpropagate_runner.export.digests import digest_of, files_below, folder_digest
from backpropagate_runner.export.room import check_disk
from backpropagate_runner.export.stage import Stage, new_folder

_MIB = 1 << 20
_SPARE = 64 * _MIB  # for tokenizers, and so that the disk is not filled to its last byte


def combine(job: CombineJob, stage: Stage) -> Made:
    """Writes the folder that `backpropagate_protocol.combined` describes.

    Raises UserInputError [INPUT_VALIDATION_FAILED] for a rule or number that there is not, and
    [INPUT_ADAPTER_UNSUPPORTED] for an adapter that cannot be read or holds numbers that are not finite; SLAOMergeError for
    runs that cannot be merged with one another; SLAOCheckpointError for a `previous` of another merge; DiskFullError if there
    is no room; OSError if the disk does not take it.
    """
    wishes = Wishes.of(job)
    runs = open_runs(job.adapters, lambda detail: stage.advance(0, 0, detail))
    check_agreement(runs, wishes.rule)
    state = state_before(job.previous, wishes, runs, stage)
    for run in runs[-1:] if wishes.rule is Rule.NONE else runs[state.runs :]:
        open_adapter(str(run.adapter.folder))  # reads every number
        stage.advance(0, 0, f"run {run.number}")
    check_disk(Path(job.out), 3 * runs[-1].adapter.bytes + _SPARE, "merging")
    with new_folder(Path(job.out)) as folder:
        notes = notes_on_scale(runs, wishes.rule)
        held, met = _Writing(job, wishes, runs, state, stage).into(folder)
        for note in met:
            if note not in state.notes:  # else it was said after the run before
                stage.notice(note, "warning")
        digests = {name: held.get(folder / name) or digest_of(path) for name, path in files_below(folder).items()}
        record = _record(wishes, runs, digests, (*notes, *met))
        (folder / COMBINED).write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
        digests[COMBINED] = digest_of(folder / COMBINED)
        size = sum((folder / name).stat().st_size for name in digests)
    return Made(job.out, size, folder_digest(digests), record.notes)


class _Writing:
    """The tensors of both adapters, and what lies beside them."""

    def __init__(self, job: CombineJob, wishes: Wishes, runs: Sequence[Run], state: State, stage: Stage) -> None:
        self._wishes, self._runs, self._state, self._stage = wishes, runs, state, stage
        self._budget = max(job.memory, 32) * _MIB
        self._block = max(_MIB // 4, min(8 * _MIB, self._budget // 16))
        self._newest = runs[-1].adapter
        self._done, self._total = 0, 2 * self._newest.bytes

    def into(self, folder: Path) -> tuple[dict[Path, str], list[str]]:
        """Digests of what is known of the files already, by path, and notes."""
        merged, start = folder / MERGED, folder / NEXT
        for below in (merged, start):
            below.mkdir()
        for name, path in files_below(self._newest.folder).items():
            if name not in (WEIGHTS, MANIFEST):
                (merged / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, merged / name)
        shutil.copyfile(self._newest.folder / CONFIG, start / CONFIG)
        if self._wishes.rule is Rule.NONE:
            for below in (merged, start):
                self._copy(below / WEIGHTS)
            return {}, []
        tensors = matched(self._runs)
        digests = self._merge(tensors, folder)
        oddities = Oddities()
        if self._wishes.rule.orthonormal:
            outputs = list(orthonormal_outputs(tensors, oddities))
            digests |= write(start / WEIGHTS, outputs, self._block, self._written)
        else:
            self._copy(start / WEIGHTS)
        return digests, oddities.notes()

    def _merge(self, tensors: Matched, folder: Path) -> dict[Path, str]:
        budget = self._budget // 2
        outputs = list(merged_outputs(tensors, self._wishes, self._state, budget, lambda: self._written(0, "products")))
        self._check_state(outputs)
        wide = all(output.like.dtype == "F32" for output in outputs if output.state)
        state = folder / STATE if self._wishes.rule.has_state and not wide else None
        return write(folder / MERGED / WEIGHTS, outputs, self._block, self._written, state)

    def _check_state(self, outputs: Sequence[Output]) -> None:
        if not self._state.runs:
            return
        for output in outputs:
            found = self._state.tensors.get(output.name)
            if output.state and (found is None or found.shape != output.like.shape or found.dtype != "F32"):
                raise SLAOCheckpointError(f"the state of the last merge does not fit {output.name}")

    def _copy(self, path: Path) -> None:
        shutil.copyfile(self._newest.folder / WEIGHTS, path)
        self._written(self._newest.bytes, WEIGHTS)

    def _written(self, count: int, detail: str) -> None:
        self._done += count
        self._stage.advance(min(self._done, self._total), self._total, detail)


def _record(wishes: Wishes, runs: Sequence[Run], digests: dict[str, str], notes: tuple[str, ...]) -> Combined:
    coefficients = wishes.coefficients(len(runs))
    weights = closed_form(coefficients)
    state = ""
    if wishes.rule.has_state:
        state = STATE if STATE in digests else f"{MERGED}/{WEIGHTS}"
    return Combined(
        link=len(runs),
        rule=wishes.rule,
        coefficient=coefficients[-1],
        floor=wishes.floor,
        weight=wishes.weight,
        density=wishes.density,
        seed=wishes.seed,
        runs=tuple(
            CombinedRun(digest=run.digest, coefficient=coefficient, weight=weight)
            for run, coefficient, weight in zip(runs, coefficients, weights, strict=True)
        ),
        state=state,
        files=dict(sorted(digests.items())),
        numpy=np.__version__,
        notes=notes,
    )
