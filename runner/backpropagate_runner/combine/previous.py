"""The state that a merge goes on from: the folder of the merge before it, believed only as far as its digests reach.

A folder that is damaged is no reason to fail: the runs' adapters are kept, and the merge is made from the first of them.
A folder that is whole and tells of other adapters or another rule is refused: somebody meant something else than they said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from backpropagate_protocol.combined import COMBINED, COMBINED_SCHEMA, Combined
from backpropagate_protocol.errors import SLAOCheckpointError
from backpropagate_runner.combine.inputs import Run
from backpropagate_runner.combine.rules import Wishes
from backpropagate_runner.export.digests import digest_of
from backpropagate_runner.export.stage import Stage
from backpropagate_runner.export.tensor_file import BadTensorFile, StoredTensor, TensorFile


@dataclass(frozen=True, slots=True)
class State:
    """What the first `runs` of the runs come to; no tensors: nothing yet."""

    runs: int
    tensors: dict[str, StoredTensor]
    notes: tuple[str, ...] = ()  # what was said when it was made


NOTHING = State(0, {})


class _Damaged(Exception):
    pass


def state_before(folder: str | None, wishes: Wishes, runs: Sequence[Run], stage: Stage) -> State:
    """Raises SLAOCheckpointError for a whole state of another merge."""
    if folder is None or not wishes.rule.has_state:
        return NOTHING
    try:
        return _read(Path(folder), wishes, runs)
    except _Damaged as damage:
        stage.notice(f"The last merge cannot be used ({damage}); all runs are merged anew.", "warning")
        return NOTHING


def _read(folder: Path, wishes: Wishes, runs: Sequence[Run]) -> State:
    try:
        record = msgspec.json.decode((folder / COMBINED).read_bytes(), type=Combined)
    except (OSError, msgspec.DecodeError, msgspec.ValidationError) as error:
        raise _Damaged(f"{COMBINED}: {error}") from error
    _check_it_is_ours(folder, record, wishes, runs)
    path = folder / record.state
    try:
        if digest_of(path) != record.files.get(record.state):
            raise _Damaged(f"{record.state} is not as it was written")
        return State(record.link, TensorFile(path).tensors, record.notes)
    except (OSError, BadTensorFile) as error:
        raise _Damaged(f"{record.state}: {error}") from error


def _check_it_is_ours(folder: Path, record: Combined, wishes: Wishes, runs: Sequence[Run]) -> None:
    if record.schema != COMBINED_SCHEMA:
        raise _refusal(folder, f"it was written in another layout ({record.schema}, not {COMBINED_SCHEMA})")
    if not wishes.decides_like(record.rule, record.floor, record.weight):
        raise _refusal(
            folder,
            f"it was made by the rule {record.rule} (floor {record.floor:g}, weight {record.weight:g}), and wanted is "
            f"{wishes.rule} (floor {wishes.floor:g}, weight {wishes.weight:g})",
        )
    if not 0 < record.link < len(runs) or len(record.runs) != record.link:
        raise _refusal(folder, f"{record.link} runs are in it, and {len(runs)} are to be merged")
    for run, told in zip(runs, record.runs, strict=False):
        if run.digest != told.digest:
            raise _refusal(folder, f"the adapter of run {run.number} is not the one that it was made from")


def _refusal(folder: Path, why: str) -> SLAOCheckpointError:
    return SLAOCheckpointError(
        f"the merge in {folder} cannot be gone on from: {why}",
        suggestion="Merge the runs from the first on, without the earlier merge.",
    )
