"""Wishes that MLX's child refuses by a code, where the arithmetic would go wrong without a word."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from backpropagate_backends.mlx_wishes import check_wishes
from backpropagate_backends.sample_order import permutation
from backpropagate_protocol.errors import DatasetError, InvalidSettingError
from tests.backends.torch_session import make_job


@pytest.mark.parametrize("rate", [0.0, 1e-8, 1e-7])
def test_a_polynomial_schedule_that_would_rise_or_divide_by_nothing_is_refused(rate: float) -> None:
    """transformers refuses it, too."""
    job = make_job(Path("/m"), steps=2)
    train = msgspec.structs.replace(job.spec.train, scheduler="polynomial", learning_rate=rate)
    with pytest.raises(InvalidSettingError, match="polynomial"):
        check_wishes(msgspec.structs.replace(job, spec=msgspec.structs.replace(job.spec, train=train)))
    falling = msgspec.structs.replace(train, learning_rate=2e-7)
    check_wishes(msgspec.structs.replace(job, spec=msgspec.structs.replace(job.spec, train=falling)))


def test_more_rows_than_can_be_ordered_are_refused_by_a_code() -> None:
    with pytest.raises(DatasetError) as caught:
        permutation(1 << 28, 1)
    assert caught.value.code == "INPUT_DATASET_INVALID"
