"""Merging the runs of a campaign: which adapter is delivered, which the next run begins with, and what is written down."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from backpropagate_protocol.combined import COMBINED, MERGED, NEXT
from backpropagate_protocol.durable import files_of
from backpropagate_protocol.errors import SLAOMergeError, UserInputError
from backpropagate_protocol.rundir import MANIFEST, PARTIAL
from backpropagate_runner.combine.inputs import digest_of_adapter
from backpropagate_runner.combine.rules import Rule, closed_form
from backpropagate_runner.export.adapter import CONFIG, WEIGHTS
from backpropagate_runner.export.digests import digest_of, files_below, folder_digest
from tests.runner.combine.runs import (
    INPUTS,
    OUTPUTS,
    A,
    B,
    Merging,
    R,
    adapter,
    factors,
    near,
    product,
    random,
    rank_cut,
    several,
    tensors,
)  # fmt: skip

LAMBDAS = [1 / math.sqrt(i) for i in range(1, 6)]


def digests(folder: Path) -> dict[str, str]:
    return {name: digest_of(path) for name, path in files_below(folder).items()}


# ---- slao --------------------------------------------------------------------------------------------------------------


def test_five_runs_are_the_weighted_sum_of_their_bs_and_the_newest_a(tmp_path: Path) -> None:
    runs = several(tmp_path, 5)
    merged = Merging(runs, tmp_path / "out").merged
    trained = [tensors(run) for run in runs]
    for name in merged:
        if ".lora_A." in name:
            assert np.array_equal(merged[name], trained[-1][name])
        else:
            weights = closed_form(LAMBDAS)
            by_runs = sum(w * found[name].astype(np.float64) for w, found in zip(weights, trained, strict=True))
            steps = np.diff([np.zeros_like(trained[0][name], np.float64), *(found[name] for found in trained)], axis=0)
            by_increments = np.tensordot(np.cumsum(weights[::-1])[::-1], steps, 1)
            assert np.allclose(merged[name], by_runs, rtol=1e-6, atol=1e-6)
            assert np.allclose(merged[name], by_increments, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rule", list(Rule))
def test_the_first_run_is_delivered_as_it_is(rule: str, tmp_path: Path) -> None:
    (run,) = several(tmp_path, 1)
    merging = Merging([run], tmp_path / "out", rule)
    trained = tensors(run)
    assert merging.merged.keys() == trained.keys()
    assert all(np.array_equal(merging.merged[name], trained[name]) for name in trained)
    assert merging.record.coefficient == 1


def test_the_next_run_begins_with_the_last_fine_tuned_b_and_not_the_merged_one(tmp_path: Path) -> None:
    runs = several(tmp_path, 2)
    merging = Merging(runs, tmp_path / "out")
    assert np.array_equal(merging.next[B], tensors(runs[1])[B])
    assert not np.allclose(merging.next[B], merging.merged[B], atol=1e-2)


def test_the_next_run_begins_with_orthonormal_rows_that_span_the_newest_a(tmp_path: Path) -> None:
    runs = several(tmp_path, 2)
    begun, trained = Merging(runs, tmp_path / "out").next[A], tensors(runs[1])[A]
    assert np.allclose(begun @ begun.T, np.eye(R), atol=1e-6)
    assert near(trained @ begun.T @ begun, trained)
    turned = trained @ begun.T
    assert np.allclose(turned, np.tril(turned), atol=1e-5)
    assert (np.diagonal(turned) > 0).all()


def test_what_is_delivered_is_the_merge_and_not_the_last_run(tmp_path: Path) -> None:
    runs = several(tmp_path, 3)
    merged = Merging(runs, tmp_path / "out").merged
    assert not np.allclose(merged[B], tensors(runs[-1])[B], atol=1e-2)


# ---- the other rules -------------------------------------------------------------------------------------------------


def test_slao_product_is_the_dense_interpolation_cut_after_every_run(tmp_path: Path) -> None:
    runs = several(tmp_path, 4)
    merging = Merging(runs, tmp_path / "out", "slao-product")
    for module in ("model.up", "model.down"):
        expected = product(tensors(runs[0]), module)
        for coefficient, run in zip(LAMBDAS[1:], runs[1:], strict=False):
            expected = rank_cut((1 - coefficient) * expected + coefficient * product(tensors(run), module))
        assert near(product(merging.merged, module), expected)
    assert np.allclose(merging.next[A] @ merging.next[A].T, np.eye(R), atol=1e-6)
    assert np.array_equal(merging.next[B], tensors(runs[-1])[B])


def test_the_average_is_the_mean_of_all_products_cut_once(tmp_path: Path) -> None:
    runs = several(tmp_path, 4)
    merging = Merging(runs, tmp_path / "out", "average")
    expected = rank_cut(np.mean([product(tensors(run)) for run in runs], axis=0))
    assert near(product(merging.merged), expected)


def test_ema_gives_the_newest_run_a_constant_part(tmp_path: Path) -> None:
    runs = several(tmp_path, 3)
    merging = Merging(runs, tmp_path / "out", "ema", weight=0.25)
    one, two, three = (tensors(run)[B] for run in runs)
    assert np.allclose(merging.merged[B], 0.75 * (0.75 * one + 0.25 * two) + 0.25 * three, atol=1e-6)
    assert np.array_equal(merging.merged[A], tensors(runs[-1])[A])


@pytest.mark.parametrize("rule", ["ties", "dare"])
def test_sparse_merges_of_one_adapter_with_itself_are_that_adapter(rule: str, tmp_path: Path) -> None:
    (run,) = several(tmp_path, 1)
    merging = Merging([run, run, run], tmp_path / "out", rule, density=1.0)
    assert near(product(merging.merged), product(tensors(run)))
    assert near(product(merging.merged, "model.down"), product(tensors(run), "model.down"))


def test_none_takes_the_newest_byte_for_byte(tmp_path: Path) -> None:
    runs = several(tmp_path, 3)
    merging = Merging(runs, tmp_path / "out", "none")
    for below in (MERGED, NEXT):
        assert (merging.out / below / WEIGHTS).read_bytes() == (runs[-1] / WEIGHTS).read_bytes()


@pytest.mark.parametrize("rule", ["ema", "average", "ties", "dare", "none"])
def test_without_slao_the_next_run_goes_on_from_the_newest(rule: str, tmp_path: Path) -> None:
    runs = several(tmp_path, 2)
    Merging(runs, tmp_path / "out", rule)
    assert (tmp_path / "out" / NEXT / WEIGHTS).read_bytes() == (runs[-1] / WEIGHTS).read_bytes()


def test_a_floor_of_one_is_the_newest_run_alone(tmp_path: Path) -> None:
    runs = several(tmp_path, 3)
    merged = Merging(runs, tmp_path / "out", floor=1.0).merged
    assert all(np.array_equal(merged[name], value) for name, value in tensors(runs[-1]).items())


@given(st.lists(st.integers(0, 50), min_size=2, max_size=5, unique=True), st.floats(0, 1))
@settings(max_examples=15)
def test_no_entry_leaves_the_range_of_the_runs(
    tmp_path_factory: pytest.TempPathFactory, seeds: list[int], floor: float
) -> None:
    folder = tmp_path_factory.mktemp("runs")
    runs = [adapter(folder / str(seed), factors(seed)) for seed in seeds]
    merged = Merging(runs, folder / "out", floor=floor).merged[B]
    trained = np.stack([tensors(run)[B] for run in runs])
    assert (merged <= trained.max(0) + 1e-6).all()
    assert (merged >= trained.min(0) - 1e-6).all()


def test_the_order_of_the_runs_matters(tmp_path: Path) -> None:
    one, two = several(tmp_path, 2)
    forth, back = Merging([one, two], tmp_path / "forth"), Merging([two, one], tmp_path / "back")
    assert not np.allclose(forth.merged[B], back.merged[B], atol=1e-2)


# ---- the folder ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", list(Rule))
def test_merging_twice_gives_the_same_bytes(rule: str, tmp_path: Path) -> None:
    runs = several(tmp_path, 3)
    made = [Merging(runs, tmp_path / "out", rule).made for _ in range(2)]
    made += [Merging(runs, tmp_path / "elsewhere", rule, memory=64).made]
    assert len({each.digest for each in made}) == 1
    assert made[0].digest == folder_digest(digests(tmp_path / "out"))
    assert made[0].bytes == sum(path.stat().st_size for path in files_below(tmp_path / "out").values())


def test_the_merged_adapter_has_everything_that_the_newest_run_has_beside_its_weights(tmp_path: Path) -> None:
    runs = several(tmp_path, 2)
    for name in ("tokenizer.json", "chat_template.jinja", MANIFEST, "more/notes.txt"):
        (runs[1] / name).parent.mkdir(exist_ok=True)
        (runs[1] / name).write_text(f"of {name}")
    Merging(runs, tmp_path / "out")
    names = [COMBINED]
    names += [
        f"{MERGED}/{name}" for name in (CONFIG, WEIGHTS, "tokenizer.json", "chat_template.jinja", "more/notes.txt")
    ]
    names += [f"{NEXT}/{name}" for name in (CONFIG, WEIGHTS)]
    assert sorted(files_below(tmp_path / "out")) == sorted(names)
    assert (tmp_path / "out" / MERGED / "tokenizer.json").read_text() == "of tokenizer.json"


def test_the_record_names_every_input_every_coefficient_and_every_output(tmp_path: Path) -> None:
    runs = several(tmp_path, 3)
    record = Merging(runs, tmp_path / "out", floor=0.6).record
    assert (record.link, record.rule, record.floor, record.coefficient) == (3, "slao", 0.6, 0.6)
    assert [run.digest for run in record.runs] == [digest_of_adapter(run) for run in runs]
    assert [run.coefficient for run in record.runs] == [1.0, LAMBDAS[1], 0.6]
    assert sum(run.weight for run in record.runs) == pytest.approx(1)
    assert record.numpy == np.__version__
    found = digests(tmp_path / "out")
    del found[COMBINED]
    assert record.files == found
    assert str(tmp_path) not in (tmp_path / "out" / COMBINED).read_text()


def test_adapters_in_sixteen_bits_are_merged_in_thirty_two_and_keep_their_type(tmp_path: Path) -> None:
    runs = several(tmp_path, 3)
    for run in runs:
        save_file({name: value.astype(np.float16) for name, value in tensors(run).items()}, run / WEIGHTS)
    merging = Merging(runs, tmp_path / "out")
    weights = closed_form(LAMBDAS[:3])
    exact = sum(w * tensors(run)[B].astype(np.float64) for w, run in zip(weights, runs, strict=True))
    assert merging.merged[B].dtype == np.float16
    assert np.allclose(merging.merged[B], exact, atol=2e-3)
    assert merging.record.state == "state.safetensors"
    assert merging.next[A].dtype == np.float16


def test_a_result_that_sixteen_bits_cannot_hold_is_refused(tmp_path: Path) -> None:
    runs = several(tmp_path / "runs", 2)
    for run in runs:
        save_file(
            {name: np.full_like(value, 60_000, np.float16) for name, value in tensors(run).items()}, run / WEIGHTS
        )
    with pytest.raises(SLAOMergeError, match="does not fit into 16 bits"):
        Merging(runs, tmp_path / "out", "slao-product")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_progress_reaches_its_total(tmp_path: Path) -> None:
    merging = Merging(several(tmp_path, 2), tmp_path / "out")
    last = merging.phases[-1]
    assert last.total > 0
    assert merging.signs > 8


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("rule", list(Rule))
def test_a_run_that_diverged_is_refused_before_anything_is_written(rule: str, value: float, tmp_path: Path) -> None:
    runs = several(tmp_path, 2)
    trained = tensors(runs[1])
    trained[B][3, 2] = value
    adapter(runs[1], trained)
    before = digests(tmp_path)
    with pytest.raises(UserInputError, match="NaN or infinite") as caught:
        Merging(runs, tmp_path / "out", rule)
    assert caught.value.code == "INPUT_ADAPTER_INVALID"
    assert digests(tmp_path) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["pissa", "pissa_niter_16", "olora", "corda", "loftq"])
def test_adapters_that_changed_their_base_are_refused(method: str, tmp_path: Path) -> None:
    run = adapter(tmp_path / "run", factors(1), init_lora_weights=method)
    with pytest.raises(UserInputError, match="changed the base model"):
        Merging([run], tmp_path / "out")


def test_a_rank_above_the_inputs_keeps_its_a_and_is_told_once(tmp_path: Path) -> None:
    runs = [adapter(tmp_path / f"run{n}", factors(n, inputs=R - 1) | factors(n, module="model.wide")) for n in (1, 2)]
    merging = Merging(runs, tmp_path / "out")
    assert np.array_equal(merging.next[A], tensors(runs[1])[A])
    assert not np.array_equal(merging.merged[B], tensors(runs[1])[B])
    (notice,) = merging.notices
    assert "model.up" in notice
    assert "model.wide" not in notice
    assert merging.record.notes == (notice,)
    assert merging.made.notes == (notice,)
    later = Merging([*runs, runs[0]], tmp_path / "later", previous=str(tmp_path / "out"))
    assert later.notices == []
    assert later.record.notes == (notice,)


def test_rows_that_depend_on_one_another_are_told_and_replaced(tmp_path: Path) -> None:
    trained = factors(1)
    trained[A][2] = trained[A][0]
    trained[A][3] = 0
    merging = Merging([adapter(tmp_path / "run", trained)], tmp_path / "out")
    assert np.allclose(merging.next[A] @ merging.next[A].T, np.eye(R), atol=1e-6)
    (notice,) = merging.notices
    assert "depend on one another in model.up" in notice


class _Interrupted(Merging):
    def _sign(self, number: int) -> None:
        super()._sign(number)
        if number == 7:
            raise KeyboardInterrupt


def test_an_interrupted_merge_leaves_nothing_and_the_old_one_stays(tmp_path: Path) -> None:
    runs = several(tmp_path, 3)
    Merging(runs[:2], tmp_path / "out")
    before = digests(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        _Interrupted(runs, tmp_path / "out")
    assert digests(tmp_path) == before
    assert not list(tmp_path.glob(f"*{PARTIAL}*"))


def test_the_configuration_is_the_newest_runs(tmp_path: Path) -> None:
    runs = several(tmp_path, 2, lora_dropout=0.0, target_modules=["up", "down"])
    Merging(runs, tmp_path / "out")
    assert json.loads((tmp_path / "out" / MERGED / CONFIG).read_text()) == json.loads((runs[1] / CONFIG).read_text())
    assert files_of(tmp_path / "out" / NEXT) == [CONFIG, WEIGHTS]
    assert (random(INPUTS, OUTPUTS).shape) == (INPUTS, OUTPUTS)
