"""Runs that cannot be merged are refused with the difference named; those of another scale are rescaled exactly."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from backpropagate_protocol.errors import SLAOMergeError
from backpropagate_runner.combine.rules import Rule
from backpropagate_runner.export.adapter import CONFIG
from tests.runner.combine.runs import (
    OUTPUTS,
    PREFIX,
    A,
    B,
    Merging,
    R,
    Tensors,
    adapter,
    factors,
    near,
    product,
    random,
    rank_cut,
    several,
    tensors,
)  # fmt: skip

MERGING = [rule for rule in Rule if rule is not Rule.NONE]
UP = f"{PREFIX}model.up"


def with_(**more: np.ndarray) -> Tensors:
    return factors(2) | {f"{PREFIX}{name.replace('__', '.')}": value for name, value in more.items()}


CHANGED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "rank": (lambda out: adapter(out, factors(2, r=2), r=2), r"ranks \(r\) are 4 and 2"),
    "rank of a module": (
        lambda out: adapter(out, factors(2, r=2), rank_pattern={"up": 2}),
        r"rank_pattern\) are \{\} and",
    ),
    "base": (
        lambda out: adapter(out, factors(2), base_model_name_or_path="another/base"),
        "someone/base and another/base",
    ),
    "no base": (lambda out: adapter(out, factors(2), base_model_name_or_path=None), "someone/base and None"),
    "revision": (lambda out: adapter(out, factors(2), revision="abc"), "revisions of the base model are None and abc"),
    "bias": (lambda out: adapter(out, factors(2), bias="all"), "biases"),
    "inputs": (lambda out: adapter(out, factors(2, inputs=23)), "A 4 x 24, B 30 x 4 and A 4 x 23"),
    "another module": (
        lambda out: adapter(out, factors(2, module="model.side")),
        "only run 1 has model.up.*model.side",
    ),
    "one more module": (
        lambda out: adapter(out, factors(2) | factors(3, module="model.side")),
        "only run 2 has model.side",
    ),
    "a bias": (lambda out: adapter(out, with_(model__up__lora_B__bias=random(OUTPUTS))), "bias 30"),
    "a whole tensor": (
        lambda out: adapter(out, with_(model__norm__weight=random(8))),
        "only run 2 has model.norm.weight",
    ),
    "transposed": (lambda out: adapter(out, factors(2), fan_in_fan_out=True), "fan_in_fan_out"),
}


@pytest.mark.parametrize("changed", CHANGED)
@pytest.mark.parametrize("rule", MERGING)
def test_what_changed_between_two_runs_is_named(changed: str, rule: str, tmp_path: Path) -> None:
    make, told = CHANGED[changed]
    runs = [adapter(tmp_path / "one", factors(1)), make(tmp_path / "two")]
    with pytest.raises(SLAOMergeError, match=told) as caught:
        Merging(runs, tmp_path / "out", rule)
    assert caught.value.code == "RUNTIME_SLAO_MERGE_FAILED"
    assert "runs 1 and 2" in caught.value.message
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("changed", CHANGED)
def test_whoever_takes_the_newest_alone_may_change_anything(changed: str, tmp_path: Path) -> None:
    make, _ = CHANGED[changed]
    runs = [adapter(tmp_path / "one", factors(1)), make(tmp_path / "two")]
    found = Merging(runs, tmp_path / "out", "none").merged
    assert all(np.array_equal(found[name], value) for name, value in tensors(runs[1]).items())


@pytest.mark.parametrize("rule", MERGING)
def test_dora_is_refused_even_for_one_run(rule: str, tmp_path: Path) -> None:
    trained = with_(model__up__lora_magnitude_vector=random(OUTPUTS))
    run = adapter(tmp_path / "run", trained, use_dora=True)
    with pytest.raises(SLAOMergeError, match="DoRA") as caught:
        Merging([run], tmp_path / "out", rule)
    assert "none" in (caught.value.suggestion or "")
    assert Merging([run], tmp_path / "out", "none").merged.keys() == trained.keys()


def test_a_base_that_moved_to_another_folder_is_the_same(tmp_path: Path) -> None:
    bases = [str(tmp_path / where / "my-model") for where in ("old", "new")]
    runs = [
        adapter(tmp_path / name, factors(1), base_model_name_or_path=base)
        for name, base in zip("ab", bases, strict=True)
    ]
    assert Merging(runs, tmp_path / "out").record.link == 2


RESCALED = [
    ({"lora_alpha": 16}, 8 / 16),
    ({"use_rslora": True}, (8 / R) / (8 / math.sqrt(R))),
    ({"alpha_pattern": {"up": 2}}, 8 / 2),
]


@pytest.mark.parametrize(("config", "factor"), RESCALED, ids=str)
def test_another_scale_rescales_the_earlier_b_exactly(config: dict[str, object], factor: float, tmp_path: Path) -> None:
    one, two = adapter(tmp_path / "one", factors(1)), adapter(tmp_path / "two", factors(2), **config)
    merging = Merging([one, two], tmp_path / "out")
    share = 1 / math.sqrt(2)
    expected = (1 - share) * factor * tensors(one)[B] + share * tensors(two)[B]
    assert np.allclose(merging.merged[B], expected, atol=1e-6)
    (note,) = merging.record.notes
    assert "runs 1 and 2 have other scales" in note


@pytest.mark.parametrize(("config", "factor"), RESCALED, ids=str)
@pytest.mark.parametrize("rule", ["slao-product", "average", "ties", "dare"])
def test_products_are_compared_with_their_scales(
    config: dict[str, object], factor: float, rule: str, tmp_path: Path
) -> None:
    """The first adapter says the same as the second in other units: their merge is that."""
    one = adapter(tmp_path / "one", factors(1))
    two = adapter(tmp_path / "two", {A: tensors(one)[A], B: tensors(one)[B] * np.float32(factor)}, **config)
    merging = Merging([one, two], tmp_path / "out", rule, density=1.0)
    assert near(product(merging.merged), rank_cut(product(tensors(two))))


def test_rslora_by_itself_changes_nothing(tmp_path: Path) -> None:
    plain, stable = (several(tmp_path / name, 3, use_rslora=name == "rs") for name in ("plain", "rs"))
    one, other = Merging(plain, tmp_path / "out1").merged, Merging(stable, tmp_path / "out2").merged
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_biases_of_b_and_whole_tensors_are_interpolated_like_b(tmp_path: Path) -> None:
    names = {f"{UP}.lora_B.bias": (OUTPUTS,), f"{PREFIX}model.norm.weight": (9,), f"{PREFIX}model.head.weight": (7, 5)}
    runs = [
        adapter(tmp_path / str(n), factors(n) | {name: random(*shape, seed=n) for name, shape in names.items()})
        for n in (1, 2, 3)
    ]
    for rule in ("slao", "slao-product"):
        merging = Merging(runs, tmp_path / rule, rule)
        for name in names:
            weights = [run.weight for run in merging.record.runs]
            expected = sum(w * tensors(run)[name] for w, run in zip(weights, runs, strict=True))
            assert np.allclose(merging.merged[name], expected, atol=1e-6)
            assert np.array_equal(merging.next[name], tensors(runs[-1])[name])
    mean = Merging(runs, tmp_path / "ties", "ties").merged
    assert all(
        np.allclose(mean[name], np.mean([tensors(run)[name] for run in runs], axis=0), atol=1e-6) for name in names
    )


def test_embeddings_have_their_a_interpolated_and_their_b_replaced(tmp_path: Path) -> None:
    """PEFT begins there with A zero and B random; neither is made orthonormal."""
    a, b = (f"{PREFIX}model.embed.lora_embedding_{side}" for side in "AB")
    runs = [
        adapter(tmp_path / str(n), factors(n) | {a: random(R, 40, seed=n), b: random(12, R, seed=n)}) for n in (1, 2)
    ]
    merging = Merging(runs, tmp_path / "out")
    share = 1 / math.sqrt(2)
    one, two = (tensors(run) for run in runs)
    assert np.allclose(merging.merged[a], (1 - share) * one[a] + share * two[a], atol=1e-6)
    assert np.array_equal(merging.merged[b], two[b])
    assert np.array_equal(merging.next[a], two[a])
    assert np.array_equal(merging.next[b], two[b])


def test_whole_tensors_of_another_shape_are_refused(tmp_path: Path) -> None:
    runs = [adapter(tmp_path / str(n), with_(model__norm__weight=random(n + 8))) for n in (1, 2)]
    with pytest.raises(SLAOMergeError, match=r"model\.norm\.weight has the shapes \(9,\) and \(10,\)"):
        Merging(runs, tmp_path / "out")


def test_trained_tokens_are_interpolated_and_must_be_the_same_ones(tmp_path: Path) -> None:
    name = f"{PREFIX}model.embed.token_adapter.trainable_tokens_delta"
    runs = [
        adapter(tmp_path / str(n), factors(n) | {name: random(2, 6, seed=n)}, trainable_token_indices={"embed": [3, 5]})
        for n in (1, 2)
    ]
    share = 1 / math.sqrt(2)
    expected = (1 - share) * tensors(runs[0])[name] + share * tensors(runs[1])[name]
    assert np.allclose(Merging(runs, tmp_path / "out").merged[name], expected, atol=1e-6)
    about = json.loads((runs[1] / CONFIG).read_text())
    (runs[1] / CONFIG).write_text(json.dumps(about | {"trainable_token_indices": {"embed": [3, 6]}}))
    with pytest.raises(SLAOMergeError, match="other tokens"):
        Merging(runs, tmp_path / "out")
