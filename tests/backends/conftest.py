"""Fixtures of the torch backends' tests: one warmed backend, one tiny model and one data set for the whole session."""

from __future__ import annotations

from pathlib import Path

import pytest

from backpropagate_backends.cpu import CpuBackend
from backpropagate_protocol.prepared import Prepared


@pytest.fixture(scope="session")
def cpu() -> CpuBackend:
    pytest.importorskip("trl")
    backend = CpuBackend()
    backend.warm()
    import torch

    torch.set_num_threads(1)  # two threads spin on a busy machine; the results are the same bits
    return backend


@pytest.fixture(scope="session")
def tiny(cpu: CpuBackend, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder. Depends on `cpu` so that the libraries are imported in their proper order."""
    from tests.backends.tiny_model import make_model

    return make_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """30 rows of varied length: 8 steps an epoch with batches of 4, the last of them of 2."""
    from tests.backends.torch_session import make_data

    return make_data(tmp_path_factory.mktemp("rows") / "data")
