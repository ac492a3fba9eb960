"""The Unsloth rail without Unsloth: it is asked for first, named when missing, and what it cannot do is refused."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import msgspec
import pytest

from backpropagate_backends.registry import load
from backpropagate_backends.unsloth import check_unsloth
from backpropagate_protocol.errors import DependencyError, InvalidSettingError
from tests.backends.torch_session import make_job


@pytest.mark.skipif(find_spec("unsloth") is not None, reason="it is installed here")
def test_where_it_is_missing_the_way_to_it_is_named() -> None:
    with pytest.raises(DependencyError) as caught:
        load("unsloth").warm()
    assert "backprop setup --unsloth" in caught.value.suggestion


@pytest.mark.parametrize(
    "wish", [{"method": "dpo"}, {"mode": "full"}, {"fp8": True}, {"compile": True}, {"liger": True}]
)
def test_what_it_does_itself_or_not_at_all_is_refused(tmp_path: Path, wish: dict[str, object]) -> None:
    job = make_job(tmp_path)
    check_unsloth(job)
    asked = msgspec.structs.replace(job.spec, train=msgspec.structs.replace(job.spec.train, **wish))
    with pytest.raises(InvalidSettingError, match="--unsloth"):
        check_unsloth(msgspec.structs.replace(job, spec=asked))
