"""A base's configuration is found where the base lies, and never fetched."""

from __future__ import annotations

from pathlib import Path

import pytest

from backpropagate.wishes.base_config import base_config, hub_cache
from backpropagate_protocol.spec import ModelSpec


def model(path: str, revision: str | None = None) -> ModelSpec:
    return ModelSpec(name=path, path=path, revision=revision)


def fetched(cache: Path, commit: str, content: str = '{"hidden_size": 8}') -> None:
    """As the hub's client leaves it."""
    home = cache / "models--owner--name"
    (home / "snapshots" / commit).mkdir(parents=True)
    (home / "snapshots" / commit / "config.json").write_text(content)


def test_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    assert base_config(model(str(tmp_path)), tmp_path / "cache") == {"hidden_size": 8}


def test_of_what_the_hubs_client_fetched(tmp_path: Path) -> None:
    fetched(tmp_path, "abc")
    assert base_config(model("owner/name"), tmp_path) is None
    refs = tmp_path / "models--owner--name" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc\n")
    assert base_config(model("owner/name"), tmp_path) == {"hidden_size": 8}
    assert base_config(model("owner/name", "abc"), tmp_path) == {"hidden_size": 8}
    assert base_config(model("owner/name", "v2"), tmp_path) is None


@pytest.mark.parametrize("content", ["{", "[]"])
def test_what_is_no_configuration_is_none(tmp_path: Path, content: str) -> None:
    fetched(tmp_path, "main", content)
    assert base_config(model("owner/name"), tmp_path) is None


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        ({"HF_HUB_CACHE": "/c", "HF_HOME": "/h"}, Path("/c")),
        ({"HF_HOME": "/h", "XDG_CACHE_HOME": "/x"}, Path("/h/hub")),
        ({"XDG_CACHE_HOME": "/x"}, Path("/x/huggingface/hub")),
        ({}, Path.home() / ".cache" / "huggingface" / "hub"),
    ],
)
def test_the_cache_is_where_the_hubs_client_has_it(environ: dict[str, str], place: Path) -> None:
    assert hub_cache(environ) == place
