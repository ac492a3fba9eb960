"""Held-out preference rows: scored by the method's own loss, without a trace, and the same to the bit whatever the micro-batch."""

from __future__ import annotations

from pathlib import Path

import pytest

from backpropagate_backends.cpu import CpuBackend
from backpropagate_protocol.prepared import PAIRS, Prepared
from tests.backends.preferences import make_preferences, preference_job
from tests.backends.torch_runs import FOREIGN_WARNINGS, Run, halved, resumed, run
from tests.backends.torch_session import KeepingSession

pytestmark = [pytest.mark.slow, FOREIGN_WARNINGS]

# With its adapter at 0, as after a step whose learning rate is 0, a model is its own reference.
AT_THE_START = {"dpo": 0.6931, "kto": 0.5}


@pytest.mark.parametrize(
    ("method", "four_bit"), [("orpo", None), ("simpo", None), ("dpo", None), ("kto", None), ("kto", True)]
)
def test_held_out_rows_are_scored_by_the_methods_own_loss_and_the_training_takes_no_notice(
    cpu: CpuBackend, tiny: Path, tmp_path: Path, method: str, four_bit: bool | None
) -> None:
    if four_bit:
        pytest.importorskip("bitsandbytes")
    data = make_preferences(method, tmp_path / "data")
    job = preference_job(tiny, method, {"steps": 4}, four_bit=four_bit)
    session = KeepingSession(job, tmp_path / "a", data, save_at=[3], held_out=data, score_at=[1, 3])
    whole = Run(session, cpu.train(session, data))
    first, third = session.scores[1], session.scores[3]
    assert (first.rows, first.tokens) == (len(data), data.manifest.trained_tokens)
    assert first.loss == pytest.approx(AT_THE_START.get(method, first.loss), abs=1e-4)
    assert third.loss < first.loss
    assert third.extra["margin"] > 0

    half = halved(resumed(job, session.checkpoint(3)))
    again = KeepingSession(half, tmp_path / "b", data, held_out=data, score_at=[3], stop_at=4)
    cpu.train(again, data)
    assert again.scores == {3: third}
    assert run(cpu, job, data, tmp_path / "c").done.digest == whole.done.digest


@pytest.mark.parametrize("method", ["orpo", "kto"])
def test_no_batch_of_held_out_rows_is_larger_than_the_longest_sample(tmp_path: Path, method: str) -> None:
    from backpropagate_backends.torch_pairs import batches_by_length

    data = make_preferences(method, tmp_path / "data")
    batches, longest = list(batches_by_length(data)), [_longest(data, index) for index in range(len(data))]
    assert sorted(index for batch in batches for index in batch) == list(range(len(data)))
    assert any(len(batch) > 1 for batch in batches)
    assert max(len(batch) * max(longest[index] for index in batch) for batch in batches) == max(longest)


def _longest(data: Prepared, index: int) -> int:
    return max(len(ids) for ids, _ in (data.pair(index) if data.kind == PAIRS else (data.row(index),)))
