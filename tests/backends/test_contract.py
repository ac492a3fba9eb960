"""What every backend owes the runner, tried on a real child for each backend that this machine has."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from backpropagate_backends.registry import load
from backpropagate_protocol.durable import verify_dir
from backpropagate_protocol.jobs import (
    Candidate,
    ChatJob,
    EvaluateJob,
    GenerateJob,
    PreparedRef,
    ReferenceJob,
    TrainJob,
)
from backpropagate_protocol.measured import Evaluation
from backpropagate_protocol.messages import (
    Answers,
    CheckpointFailed,
    CheckpointSaved,
    DataReady,
    Done,
    Evaluated,
    Fault,
    FaultKind,
    Made,
    Notice,
    Progress,
    Said,
    Say,
    Started,
    Stop,
    Stopped,
    TrainResult,
    Turn,
)
from backpropagate_protocol.reference import read_reference
from backpropagate_protocol.spec import LoraSpec, ModelSpec, PlannedFault, SafetySpec
from tests.runner.child import Child, again, run_of, runner, train_job

TINY = Path(__file__).parents[2] / "fixtures" / "tiny-base"
STEPS = 7

_no_torch = pytest.mark.skipif(
    importlib.util.find_spec("trl") is None, reason="the training packages are not installed"
)
_no_mlx = pytest.mark.skipif(
    importlib.util.find_spec("mlx_lm") is None, reason="MLX has no wheel for this machine, or it is not installed"
)


@dataclass(frozen=True)
class Way:
    """A backend and a model that it can train in seconds."""

    backend: str
    model: str

    def job(self, folder: Path, run_id: str, faults: tuple[PlannedFault, ...] = ()) -> TrainJob:
        """10 rows of varied length, 4 in a step: the third and the sixth step end an epoch, with 2 rows each."""
        source = folder / "rows.jsonl"
        lines = []
        for i in range(10):
            turns = [{"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": "one more " * i}]
            turns[1]["content"] += "than that."
            lines.append(json.dumps({"messages": turns}))
        source.write_text("\n".join(lines))
        job = train_job(
            folder,
            run_id=run_id,
            steps=STEPS,
            effective_batch=4,
            micro_batch=2,
            backend=self.backend,
            model=self.model,
            faults=faults,
            safety=SafetySpec(save_steps=2),
        )
        data = msgspec.structs.replace(job.spec.data, max_length=128)
        spec = msgspec.structs.replace(job.spec, data=data, lora=LoraSpec(r=8, alpha=16))
        return msgspec.structs.replace(job, spec=spec)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(Way("toy", "toy"), id="toy"),
        pytest.param(Way("cpu", str(TINY)), id="cpu", marks=[_no_torch, pytest.mark.slow]),
        pytest.param(Way("mlx", str(TINY)), id="mlx", marks=[_no_mlx, pytest.mark.slow]),
    ],
)
def way(request: pytest.FixtureRequest) -> Way:
    found = request.param
    assert isinstance(found, Way)
    return found


@dataclass(frozen=True)
class Finished:
    """An undisturbed run, and what its child said."""

    folder: Path
    job: TrainJob
    child: Child
    ready: DataReady
    result: TrainResult


def _result(child: Child) -> TrainResult:
    last = child.finish()
    assert isinstance(last, Done), (last, child.log.read_text())
    assert isinstance(last.result, TrainResult)
    return last.result


@pytest.fixture(scope="module")
def undisturbed(way: Way, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp(way.backend)
    job = way.job(folder, "undisturbed")
    with runner(job, folder, way.backend) as child:
        result = _result(child)
    return Finished(folder, job, child, child.of(DataReady)[0], result)


def _prepared(undisturbed: Finished, job: TrainJob) -> TrainJob:
    return msgspec.structs.replace(job, prepared=PreparedRef(undisturbed.ready.path, undisturbed.ready.digest))


def test_it_is_called_what_the_registry_calls_it(way: Way) -> None:
    assert load(way.backend).name == way.backend


def test_it_starts_once_with_what_it_was_given(undisturbed: Finished) -> None:
    [started] = undisturbed.child.of(Started)
    first = next(m for m in undisturbed.child.said if isinstance(m, Progress))
    assert undisturbed.child.said.index(started) < undisturbed.child.said.index(first)
    assert (started.micro_batch, started.accumulation, started.step, started.total_steps) == (2, 2, 0, STEPS)
    assert started.backend == undisturbed.job.spec.backend
    assert 0 < started.trainable_parameters <= started.parameters


def test_an_epoch_ends_with_a_smaller_step(undisturbed: Finished) -> None:
    """10 + 10 + 4 samples."""
    assert (undisturbed.result.step, undisturbed.result.samples_seen) == (STEPS, 24)
    last = undisturbed.child.of(Progress)[-1]
    assert (last.step, last.samples_seen, last.order) == (STEPS, 24, undisturbed.result.order)
    assert last.loss is not None
    assert last.tokens > 0


def test_the_result_and_every_checkpoint_verify_and_nothing_is_left_in_staging(undisturbed: Finished) -> None:
    run = run_of(undisturbed.job)
    assert [m.step for m in undisturbed.child.of(CheckpointSaved)] == [2, 4, 6, 7]
    for name in (p.name for p in run.checkpoints.iterdir()):
        manifest = verify_dir(run.checkpoints / name)
        assert manifest.data_digest == undisturbed.ready.digest
        assert manifest.backend == undisturbed.job.spec.backend
    assert (run.adapter / "adapter_config.json").is_file()
    verify_dir(run.adapter)
    assert [p for p in run.staging.rglob("*") if p.is_file()] == []


def test_a_resume_in_a_new_process_is_bit_identical(way: Way, undisturbed: Finished) -> None:
    folder = undisturbed.folder
    job = _prepared(undisturbed, way.job(folder, "killed", (PlannedFault("sigkill", 6),)))
    with runner(job, folder, way.backend) as child:
        assert child.finish() is None
    with runner(again(job, undisturbed.ready, step=4), folder, way.backend) as child:
        result = _result(child)
    assert (result.order, result.samples_seen) == (undisturbed.result.order, 24)
    assert result.digest == undisturbed.result.digest


def test_a_run_with_many_mishaps_sees_the_samples_of_the_undisturbed_one(way: Way, undisturbed: Finished) -> None:
    """A full disk and an OOM; half the batch from then on; a stop with a save; the rest."""
    folder, ready = undisturbed.folder, undisturbed.ready
    faults = (PlannedFault("disk_full", 4), PlannedFault("oom", 6), PlannedFault("hold", 5, attempt=2))
    job = _prepared(undisturbed, way.job(folder, "mishaps", faults))

    with runner(job, folder, way.backend) as child:
        fault = child.finish()
    assert isinstance(fault, Fault)
    assert (fault.kind, fault.step) == (FaultKind.OOM, 5)
    assert [m.step for m in child.of(CheckpointFailed)] == [4]
    assert [m.step for m in child.of(CheckpointSaved)] == [2]

    job = again(job, ready, step=2, micro_batch=1)
    with runner(job, folder, way.backend) as child:
        child.wait_until(lambda: child.log.read_text().count("planned fault before step 5: hold") == 1)
        child.send(Stop("heat"))
        assert child.finish() == Stopped(5, saved=True)
    [started] = child.of(Started)
    assert (started.step, started.samples_seen, started.micro_batch, started.accumulation) == (2, 8, 1, 4)

    with runner(again(job, ready, step=5), folder, way.backend) as child:
        result = _result(child)
    assert (result.order, result.samples_seen) == (undisturbed.result.order, 24)
    assert result.final_loss == pytest.approx(undisturbed.result.final_loss, rel=1e-4)


def _begun_from(job: TrainJob, adapter: str, **train: object) -> TrainJob:
    """`job`, beginning from `adapter`; what else it asks for is in `train`."""
    wishes = msgspec.structs.replace(job.spec.train, **train)
    return msgspec.structs.replace(job, spec=msgspec.structs.replace(job.spec, init_adapter=adapter, train=wishes))


def test_a_run_that_begins_from_an_adapter_begins_with_its_very_weights(way: Way, undisturbed: Finished) -> None:
    """A step of learning rate 0 changes nothing."""
    job = _prepared(undisturbed, way.job(undisturbed.folder, "still"))
    job = _begun_from(job, undisturbed.result.adapter, steps=1, learning_rate=0.0, warmup_steps=0)
    with runner(job, undisturbed.folder, way.backend) as child:
        result = _result(child)
    assert result.digest == undisturbed.result.digest


def test_a_run_that_began_from_an_adapter_resumes_bit_identical_when_that_is_gone(
    way: Way, undisturbed: Finished
) -> None:
    folder = undisturbed.folder
    adapter = Path(shutil.copytree(undisturbed.result.adapter, folder / "begin-here"))
    whole = _begun_from(_prepared(undisturbed, way.job(folder, "further")), str(adapter))
    with runner(whole, folder, way.backend) as child:
        expected = _result(child)
    assert expected.digest != undisturbed.result.digest

    faults = (PlannedFault("sigkill", 2), PlannedFault("sigkill", 6, attempt=2))
    job = _begun_from(_prepared(undisturbed, way.job(folder, "further-killed", faults)), str(adapter))
    with runner(job, folder, way.backend) as child:
        assert child.finish() is None
    job = again(job, undisturbed.ready, step=0)
    with runner(job, folder, way.backend) as child:
        assert child.finish() is None
    shutil.rmtree(adapter)
    with runner(again(job, undisturbed.ready, step=4), folder, way.backend) as child:
        result = _result(child)
    assert (result.digest, result.order) == (expected.digest, expected.order)


def test_an_adapter_of_another_rank_is_refused_by_name(way: Way, undisturbed: Finished) -> None:
    job = _begun_from(_prepared(undisturbed, way.job(undisturbed.folder, "rank")), undisturbed.result.adapter)
    job = msgspec.structs.replace(job, spec=msgspec.structs.replace(job.spec, lora=LoraSpec(r=2, alpha=16)))
    with runner(job, undisturbed.folder, way.backend) as child:
        fault = child.finish()
    assert isinstance(fault, Fault)
    assert (fault.kind, fault.code) == (FaultKind.USER, "INPUT_ADAPTER_MISMATCH")
    assert "its r is" in fault.message
    assert "this run's is 2" in fault.message


def test_a_run_that_died_while_it_scored_held_out_rows_goes_on_scoring_and_ends_with_its_best_weights(
    way: Way, undisturbed: Finished
) -> None:
    """It dies after its last step, of three; the resume does that again, and scores it."""
    job = way.job(undisturbed.folder, "scored", (PlannedFault("sigkill_in_evaluation", 3),))
    data = msgspec.structs.replace(job.spec.data, holdout=4)  # leaves 8 rows, 2 steps an epoch
    train = msgspec.structs.replace(job.spec.train, steps=3, eval_steps=1, keep_best=True)
    job = msgspec.structs.replace(job, spec=msgspec.structs.replace(job.spec, data=data, train=train))
    with runner(job, undisturbed.folder, way.backend) as first:
        assert first.finish() is None
    [ready] = first.of(DataReady)
    assert (ready.rows, ready.held_out_rows) == (8, 2)
    later = again(job, ready, step=2)
    later = msgspec.structs.replace(later, held_out=PreparedRef(ready.held_out_path, ready.held_out_digest))
    with runner(later, undisturbed.folder, way.backend) as second:
        result = _result(second)
    said = [*first.of(Evaluated), *second.of(Evaluated)]
    assert [m.step for m in said] == [1, 2, 3]
    best = min(said, key=lambda m: m.loss)
    assert [m.best for m in said] == [m.loss <= min(before.loss for before in said[: m.step]) for m in said]
    assert (result.step, result.best_step, result.stopped_early) == (3, best.step, False)
    result_is = verify_dir(run_of(job).adapter)
    assert (result_is.step, result_is.best_step) == (3, best.step)


def test_it_scores_candidates_on_held_out_rows(way: Way, undisturbed: Finished) -> None:
    """All at once or one by one, in any order: the same scores, and the trained one is better."""
    rows = undisturbed.job.spec.data
    held_out = msgspec.structs.replace(rows, holdout=3, part="held-out")
    few = msgspec.structs.replace(held_out, samples=4)
    none = msgspec.structs.replace(held_out, samples=2)

    def scores(*candidates: Candidate) -> Evaluation:
        job = EvaluateJob(
            model=ModelSpec(name="m", path=way.model),
            candidates=candidates,
            tasks=(held_out, none, few),
            cache=str(undisturbed.folder / "cache"),
            backend=way.backend,
        )
        with runner(job, undisturbed.folder, way.backend) as child:
            last = child.finish()
        assert isinstance(last, Done), (last, child.log.read_text())
        assert isinstance(last.result, Evaluation)
        assert any("task 2 is not scored: rows.jsonl has no rows that are held out" in m.text for m in child.of(Notice))
        return last.result

    base, trained = Candidate("base", None), Candidate("trained", undisturbed.result.adapter)
    both = scores(base, trained).scores
    assert [(s.candidate, s.task, s.rows) for s in both] == [
        ("base", 0, 3),
        ("base", 2, 1),
        ("trained", 0, 3),
        ("trained", 2, 1),
    ]
    assert both[2].loss < both[0].loss
    assert both[0].tokens == both[2].tokens > both[1].tokens > 0
    assert all(0.0 <= s.accuracy <= 1.0 for s in both)
    turned = scores(trained, Candidate("again", undisturbed.result.adapter), base).scores
    assert turned[:2] == both[2:]
    assert [msgspec.structs.replace(s, candidate="trained") for s in turned[2:4]] == list(both[2:])
    assert turned[4:] == both[:2]


def test_it_answers_each_prompt_with_and_without_the_adapter(way: Way, undisturbed: Finished) -> None:
    for adapter in (None, undisturbed.result.adapter):
        job = GenerateJob(
            model=ModelSpec(name="m", path=way.model),
            adapter=adapter,
            prompts=("What is 1?", "What is 2?"),
            backend=way.backend,
            max_new_tokens=4,
        )
        with runner(job, undisturbed.folder, way.backend) as child:
            last = child.finish()
        assert isinstance(last, Done), last
        assert isinstance(last.result, Answers)
        assert len(last.result.texts) == 2


def test_it_can_be_talked_with(way: Way, undisturbed: Finished) -> None:
    job = ChatJob(
        model=ModelSpec(name="m", path=way.model),
        adapter=undisturbed.result.adapter,
        backend=way.backend,
        max_new_tokens=4,
    )
    with runner(job, undisturbed.folder, way.backend) as child:
        assert child.wait_for(Turn) == Turn("")
        for turns in ((("user", "What is 1?"),), (("user", "What is 1?"), ("assistant", "1"), ("user", "And 2?"))):
            before = len(child.of(Said))
            child.send(Say(turns))
            assert child.wait_for(Turn).text == "".join(piece.text for piece in child.of(Said)[before:])


def test_it_says_what_it_learnt_for_the_proof_of_an_export_or_why_it_cannot(way: Way, undisturbed: Finished) -> None:
    out = undisturbed.folder / "reference"
    job = ReferenceJob(
        model=ModelSpec(name="m", path=way.model),
        adapter=undisturbed.result.adapter,
        prompts=("What is 1?", "What is 2?"),
        out=str(out),
        backend=way.backend,
    )
    with runner(job, undisturbed.folder, way.backend) as child:
        last = child.finish()
    if isinstance(last, Fault):
        assert (last.kind, last.code) == (FaultKind.USER, "INPUT_MODEL_UNSUPPORTED")
        assert not out.exists()
        return
    assert isinstance(last, Done), last
    assert isinstance(last.result, Made)
    assert [prompt.turns[0][1] for prompt in read_reference(out).prompts] == ["What is 1?", "What is 2?"]


def test_its_tokenizer_flags_what_is_to_be_learnt(way: Way) -> None:
    backend = load(way.backend)
    backend.warm()
    tokenizer = backend.tokenizer(ModelSpec(name="m", path=way.model))
    tokenizer.check()
    ids, flags = tokenizer.chat(
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
        None,
    )
    assert len(ids) == len(flags)
    assert 0 < sum(flags) < len(flags)
    assert flags[0] == 0
    ids, flags = tokenizer.completion("question ", "answer")
    assert len(ids) == len(flags)
    assert flags[0] == 0
    assert flags[-1] == 1
    ids, flags = tokenizer.text("all of it")
    assert flags == [1] * len(ids)
    assert tokenizer.text("all of it")[0] == ids
    assert tokenizer.digest
