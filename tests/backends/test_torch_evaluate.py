"""Scores are the cross entropy that anyone would compute, however the rows are cut into batches and the logits into pieces."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from backpropagate_backends.cpu import CpuBackend
from backpropagate_backends.torch_evaluate import Scorer
from backpropagate_backends.torch_generate import with_adapter
from backpropagate_protocol.errors import UserInputError
from backpropagate_protocol.jobs import Candidate, EvaluateJob
from backpropagate_protocol.measured import Score
from backpropagate_protocol.prepared import Prepared, PreparedWriter
from backpropagate_protocol.spec import ModelSpec
from tests.backends.torch_runs import FOREIGN_WARNINGS, run
from tests.backends.torch_session import make_data, make_job

pytestmark = [pytest.mark.slow, FOREIGN_WARNINGS]


class Heard:
    """A stage's voice that is kept."""

    def __init__(self) -> None:
        self.signs: list[tuple[int, int, str]] = []

    def advance(self, done: int = 0, total: int = 0, detail: str = "") -> None:
        self.signs.append((done, total, detail))

    def notice(self, text: str, level: str = "info") -> None:
        raise AssertionError(text)


@pytest.fixture(scope="module")
def adapter(cpu: CpuBackend, tiny: Path, rows: Prepared, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Trained for some steps, so that it says something else than the base."""
    return run(cpu, make_job(tiny, steps=6), rows, tmp_path_factory.mktemp("trained")).done.adapter


@pytest.fixture
def model(tiny: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()


def job(model: Path, *candidates: Candidate, batch_size: int = 4) -> EvaluateJob:
    return EvaluateJob(
        model=ModelSpec(name="tiny", path=str(model)),
        candidates=candidates,
        tasks=(),
        cache="",
        backend="cpu",
        batch_size=batch_size,
    )


def plainly(model: torch.nn.Module, data: Prepared) -> tuple[float, float, int]:
    """Loss, accuracy and tokens as a few lines of torch compute them, row by row."""
    loss, right, tokens = 0.0, 0, 0
    for index in range(len(data)):
        ids, trained = (torch.tensor(list(part)) for part in data.row(index))
        labels = torch.where(trained == 1, ids, -100)[1:]
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, :-1]
        loss += float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
        right += int((logits.argmax(-1) == labels).sum())
        tokens += int((labels != -100).sum())
    return loss / tokens, right / tokens, tokens


def agrees(score: Score, expected: tuple[float, float, int]) -> None:
    assert score.loss == pytest.approx(expected[0], abs=1e-5)
    assert score.accuracy == pytest.approx(expected[1])
    assert score.tokens == expected[2]


def test_scores_are_those_of_a_plain_computation(
    cpu: CpuBackend, tiny: Path, rows: Prepared, adapter: str, model: PreTrainedModel
) -> None:
    base, trained = cpu.evaluate(job(tiny, Candidate("base", None), Candidate("t", adapter)), [rows], Heard())
    agrees(base, plainly(model, rows))
    agrees(trained, plainly(with_adapter(model, adapter).eval(), rows))
    assert trained.loss < base.loss
    assert (trained.rows, trained.candidate, trained.task) == (len(rows), "t", 0)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_the_batch_makes_no_difference(
    cpu: CpuBackend, tiny: Path, rows: Prepared, adapter: str, batch_size: int
) -> None:
    [one] = cpu.evaluate(job(tiny, Candidate("t", adapter)), [rows], Heard())
    [other] = cpu.evaluate(job(tiny, Candidate("t", adapter), batch_size=batch_size), [rows], Heard())
    assert other.loss == pytest.approx(one.loss, abs=1e-6)
    assert (other.accuracy, other.tokens, other.rows) == (one.accuracy, one.tokens, one.rows)


def test_the_same_again_is_the_same_to_the_bit_and_one_candidate_leaves_nothing_for_the_next(
    cpu: CpuBackend, tiny: Path, rows: Prepared, adapter: str, tmp_path: Path
) -> None:
    few = make_data(tmp_path / "few", rows=5)
    base, trained = Candidate("base", None), Candidate("t", adapter)
    once = cpu.evaluate(job(tiny, base, trained), [rows, few], Heard())
    turned = cpu.evaluate(job(tiny, trained, base, trained), [rows, few], Heard())
    assert turned == (*once[2:], *once[:2], *once[2:])
    assert [(score.candidate, score.task) for score in once] == [("base", 0), ("base", 1), ("t", 0), ("t", 1)]


def test_a_training_step_of_all_rows_has_the_loss_of_the_adapter_that_it_begins_from(
    cpu: CpuBackend, tiny: Path, rows: Prepared, adapter: str, tmp_path: Path
) -> None:
    wish = make_job(tiny, steps=1, micro_batch=len(rows))
    wish = msgspec.structs.replace(wish, spec=msgspec.structs.replace(wish.spec, init_adapter=adapter))
    [score] = cpu.evaluate(job(tiny, Candidate("t", adapter)), [rows], Heard())
    assert run(cpu, wish, rows, tmp_path).losses()[1] == pytest.approx(score.loss, abs=1e-4)


def test_logits_are_made_in_pieces_where_they_would_take_too_much_memory(
    tiny: Path, rows: Prepared, model: PreTrainedModel
) -> None:
    made: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda module, given, out: made.append(out.shape[:2].numel()))
    width = model.get_output_embeddings().weight.shape[0]
    score = Scorer(model, 4, Heard(), logits=5 * 8 * width).score("base", 0, rows)
    assert max(made) == 5
    agrees(score, plainly(model, rows))


def test_a_batch_that_does_not_fit_is_halved(rows: Prepared, model: PreTrainedModel) -> None:
    sizes: list[int] = []

    def full(module: torch.nn.Module, args: object, given: dict[str, torch.Tensor]) -> None:
        sizes.append(len(given["input_ids"]))
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = model.register_forward_pre_hook(full, with_kwargs=True)
    score = Scorer(model, 15, Heard()).score("base", 0, rows)
    hook.remove()
    assert sizes[:3] == [15, 7, 3]
    assert max(sizes[3:]) == 3
    assert score.rows == len(rows)
    agrees(score, plainly(model, rows))


def test_a_row_that_does_not_fit_alone_is_an_error(rows: Prepared, model: PreTrainedModel) -> None:
    def full(module: torch.nn.Module, args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.register_forward_pre_hook(full)
    with pytest.raises(torch.OutOfMemoryError):
        Scorer(model, 4, Heard()).score("base", 0, rows)


class Whole(torch.nn.Module):
    """A model that makes all logits or none."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self._model = model
        self.device = model.device

    def get_output_embeddings(self) -> torch.nn.Module:
        found: torch.nn.Module = self._model.get_output_embeddings()
        return found

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(logits=self._model(input_ids=input_ids, attention_mask=attention_mask).logits)


def test_a_model_that_cannot_choose_its_logits_is_scored_all_the_same(rows: Prepared, model: PreTrainedModel) -> None:
    agrees(Scorer(Whole(model), 4, Heard()).score("base", 0, rows), plainly(model, rows))


def test_capped_logits_are_scored_as_they_come_out(cpu: CpuBackend, rows: Prepared, tmp_path: Path) -> None:
    from tests.backends.tiny_model import make_gemma

    folder = make_gemma(tmp_path / "gemma")
    [score] = cpu.evaluate(job(folder, Candidate("base", None)), [rows], Heard())
    agrees(score, plainly(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), rows))


@pytest.fixture
def odd(tmp_path: Path) -> Prepared:
    """A row whose only loss is on its first token, one of a single token, and one like any other."""
    writer = PreparedWriter(tmp_path / "odd")
    writer.add([5, 6, 7], [1, 0, 0])
    writer.add([5], [1])
    writer.add([5, 6, 7], [1, 0, 1])
    writer.commit(key="odd", skipped=0, truncated=0, format="text", source_digest="odd")
    return Prepared(tmp_path / "odd")


def test_a_first_token_counts_for_nothing(odd: Prepared, model: PreTrainedModel) -> None:
    score = Scorer(model, 4, Heard()).score("base", 0, odd)
    assert (score.tokens, score.rows) == (1, 1)
    agrees(score, plainly(model, odd))


def test_a_candidate_that_is_no_adapter_is_refused(cpu: CpuBackend, tiny: Path, rows: Prepared, tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="holds no adapter"):
        cpu.evaluate(job(tiny, Candidate("t", str(tmp_path))), [rows], Heard())


def test_it_says_how_far_it_is(cpu: CpuBackend, tiny: Path, rows: Prepared) -> None:
    heard = Heard()
    cpu.evaluate(job(tiny, Candidate("base", None), Candidate("again", None)), [rows], heard)
    assert heard.signs[0][2].startswith("loading ")
    assert (0, 2, f"base: {len(rows)} of {len(rows)} rows") in heard.signs
    assert heard.signs[-1] == (1, 2, f"again: {len(rows)} of {len(rows)} rows")
