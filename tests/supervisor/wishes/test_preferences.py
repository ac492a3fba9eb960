"""A preference method and what does not go with it: refused by code, before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from backpropagate.wishes.build_spec import build_spec
from backpropagate.wishes.settings import Settings
from backpropagate_protocol.errors import InvalidSettingError
from backpropagate_protocol.spec import RunSpec


def build(tmp_path: Path, **arguments: object) -> RunSpec:
    data = tmp_path / "pairs.jsonl"
    data.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    wishes = {"backend": "cpu", "model": "tiny", "data": data, "output_dir": tmp_path / "out", **arguments}
    return build_spec(Settings(wishes, environ={}, folder=tmp_path))


def test_a_method_brings_its_own_learning_rate_and_knobs(tmp_path: Path) -> None:
    orpo = build(tmp_path, method="orpo").train
    assert (orpo.method, orpo.learning_rate, orpo.beta, orpo.gamma) == ("orpo", 8e-6, 0.1, None)
    simpo = build(tmp_path, method="simpo", simpo_gamma=0.5).train
    assert (simpo.beta, simpo.gamma) == (2.0, 0.5)
    kto = build(tmp_path, method="kto", kto_desirable_weight=1.33).train
    assert (kto.beta, kto.desirable_weight, kto.undesirable_weight) == (0.1, 1.33, 1.0)
    assert build(tmp_path, method="dpo", dpo_beta=0.3).data.method == "dpo"


@pytest.mark.parametrize(
    "wishes",
    [
        {"method": "orpo", "packing": True},
        {"method": "simpo", "train_on": "all"},
        {"method": "dpo", "backend": "toy"},
        {"method": "orpo", "mode": "full"},
        {"method": "kto", "batch_size": 1},
        {"method": "kto", "batch_size": 1, "gradient_accumulation": 1},
        {"method": "kto", "gradient_accumulation": 8},
        {"method": "sft", "orpo_beta": 0.2},
        {"method": "dpo", "kto_desirable_weight": 2.0},
        {"method": "orpo", "orpo_beta": 0.0},
    ],
)  # fmt: skip
def test_what_could_not_take_effect_is_refused(tmp_path: Path, wishes: dict[str, object]) -> None:
    with pytest.raises(InvalidSettingError) as caught:
        build(tmp_path, **wishes)
    assert caught.value.code == "CONFIG_INVALID_SETTING"
    assert caught.value.suggestion


def test_kto_takes_two_rows_at_once(tmp_path: Path) -> None:
    assert build(tmp_path, method="kto", batch_size=2).train.batch_size == 2
