"""MLX is had where it can be, and what it cannot do is said before anything starts."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from backpropagate.wishes.mlx import check_wishes
from backpropagate.wishes.surroundings import check_backend, check_runner, installed
from backpropagate_protocol.errors import BackpropagateError
from backpropagate_protocol.mlx_rules import ALLOW_CPU, apple_silicon
from backpropagate_protocol.spec import DataSpec, LoraSpec, ModelSpec, RunSpec, TrainSpec

SPEC = RunSpec(
    run_id="r",
    created="",
    backend="mlx",
    output="/o",
    model=ModelSpec(name="m", path="/m"),
    data=DataSpec(source="/d"),
)


def _with(**parts: object) -> RunSpec:
    return msgspec.structs.replace(SPEC, **parts)


@pytest.mark.skipif(sys.platform != "linux", reason="the CPU build is for Linux")
def test_linux_has_the_cpu_build_only_where_it_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ALLOW_CPU, raising=False)
    with pytest.raises(BackpropagateError, match="Apple silicon") as caught:
        check_backend("mlx")
    assert caught.value.code == "CONFIG_INVALID_SETTING"
    monkeypatch.setenv(ALLOW_CPU, "1")
    check_backend("mlx")
    check_backend("cpu")


@pytest.mark.skipif(installed("mlx_lm"), reason="it is here")
def test_where_it_is_not_installed_that_is_said_by_its_code() -> None:
    with pytest.raises(BackpropagateError) as caught:
        check_runner(None, "mlx")
    assert caught.value.code == "DEP_MLX_UNAVAILABLE"


def test_another_interpreter_may_have_what_this_one_lacks(tmp_path: Path) -> None:
    assert check_runner(sys.executable, "mlx") == str(Path(sys.executable).absolute())


@pytest.mark.parametrize(
    ("parts", "word"),
    [
        ({"train": TrainSpec(method="orpo")}, "orpo"),
        ({"train": TrainSpec(mode="full")}, "--mode full"),
        ({"train": TrainSpec(fp8=True)}, "--fp8"),
        ({"train": TrainSpec(liger=True)}, "--liger"),
        ({"train": TrainSpec(attention="sdpa")}, "--attention"),
        ({"train": TrainSpec(optim="paged_adamw_8bit")}, "paged_adamw_8bit"),
        ({"data": DataSpec(source="/d", packing=True)}, "--packing"),
        ({"model": ModelSpec(name="m", path="/m", dtype="fp16")}, "fp16"),
        ({"lora": LoraSpec(init="pissa")}, "pissa"),
        ({"lora": LoraSpec(dropout=0.1), "train": TrainSpec(gradient_checkpointing=True)}, "--lora-dropout"),
    ],
)
def test_a_wish_that_mlx_cannot_serve_is_named(parts: dict[str, object], word: str) -> None:
    with pytest.raises(BackpropagateError, match=word) as caught:
        check_wishes(_with(**parts), installed=True)
    assert caught.value.code == "CONFIG_INVALID_SETTING"
    elsewhere = _with(**parts, backend="cpu")
    assert check_wishes(elsewhere, installed=True) is elsewhere


def test_what_it_can_serve_passes_and_auto_means_it_only_on_apple_silicon() -> None:
    assert check_wishes(SPEC, installed=True) is SPEC
    auto = _with(backend="auto", train=TrainSpec(method="orpo"))
    if apple_silicon():
        with pytest.raises(BackpropagateError, match="auto"):
            check_wishes(auto, installed=True)
    assert check_wishes(auto, installed=False) is auto
