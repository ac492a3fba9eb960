"""`Trainer.multi_run`: what comes back, who is told, what is refused; real campaigns on the toy backend."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from backpropagate import BackpropagateError, Campaign, CampaignRun, Trainer
from backpropagate_protocol.rundir import OutputDir


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(f'{{"text": "row number {i}"}}\n' for i in range(40)))
    return path


def toy(tmp_path: Path, **arguments: object) -> Trainer:
    wishes: dict[str, object] = {
        "backend": "toy",
        "output_dir": tmp_path / "out",
        "progress": False,
        "lora_r": 2,
        **arguments,
    }
    return Trainer("any", **wishes)  # type: ignore[arg-type]  # as a user's own dictionary would be handed over


def runs_in(tmp_path: Path) -> int:
    folder = OutputDir(tmp_path / "out").runs
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def test_a_campaign_gives_back_its_runs_and_what_they_scored(tmp_path: Path, data: Path) -> None:
    told: list[CampaignRun] = []
    trainer = toy(tmp_path)
    campaign = trainer.multi_run(data, num_runs=2, steps_per_run=4, on_run_complete=told.append)

    assert (campaign.status, campaign.completed, campaign.total_runs) == ("completed", True, 2)
    assert [(run.number, run.name, run.steps, run.rule) for run in campaign.runs] == [
        (1, "data 1-20", 4, "slao"),
        (2, "data 21-40", 4, "slao"),
    ]
    assert campaign.runs[1].coefficient == pytest.approx(0.5**0.5)
    assert sum(run.weight or 0 for run in campaign.runs) == pytest.approx(1)
    assert all(run.adapter_path.is_dir() for run in campaign.runs)
    assert campaign.adapter_path == campaign.output_path / "adapter"
    assert (tmp_path / "out" / "lora" / "adapter_config.json").is_file()
    assert [[score is None for score in row] for row in campaign.scores] == [[False, True], [False, False]]
    assert campaign.average_accuracy is not None
    assert campaign.backward_transfer is not None
    assert campaign.report_path is not None
    assert [(run.number, run.accuracy, run.weight) for run in told] == [
        (run.number, run.accuracy, run.coefficient) for run in campaign.runs
    ]
    assert trainer.campaigns == [campaign]
    assert str(campaign).startswith(f"campaign {campaign.run_id[:8]} completed: 2/2 runs, average accuracy ")


def test_the_words_of_the_command_line_mean_the_same(tmp_path: Path, data: Path) -> None:
    first = toy(tmp_path).multi_run(data, 2, 3, 15, "average", replay_ratio=0.2)
    second = toy(tmp_path).multi_run_train(data, runs=2, steps_per_run=3, samples_per_run=15, merge="average", replay_ratio=0.2)  # fmt: skip
    third = toy(tmp_path).multi_run(data=data, runs=2, steps=3, samples=15, merge="average", replay_ratio=0.2)

    assert first.scores == second.scores == third.scores
    assert first.merged == third.merged == "average"


def test_a_finished_campaign_is_given_one_more_run(tmp_path: Path, data: Path) -> None:
    trainer = toy(tmp_path)
    first = trainer.multi_run(data, num_runs=1, steps_per_run=3)
    told: list[int] = []
    again = trainer.append_run(data, on_run_complete=lambda run: told.append(run.number))

    assert again.run_id == first.run_id
    assert [run.name for run in again.runs] == ["data 1-40", "data"]
    assert told == [2]


def test_a_campaign_that_is_stopped_goes_on_where_it_was(tmp_path: Path, data: Path) -> None:
    wishes = {"num_runs": 2, "steps_per_run": 400}
    stopped = toy(tmp_path).multi_run(data, **wishes, on_step=lambda step, loss: step < 20)  # type: ignore[arg-type]  # as a user's own dictionary
    assert stopped.status == "interrupted"
    assert len(stopped.runs) < 2

    with pytest.raises(BackpropagateError, match=r"begun with other wishes: train\.learning_rate"):
        toy(tmp_path).multi_run(data, learning_rate=1e-3, **wishes)  # type: ignore[arg-type]  # as above
    again = toy(tmp_path).multi_run(data, **wishes)  # type: ignore[arg-type]  # as above

    assert (again.run_id, again.status, len(again.runs)) == (stopped.run_id, "completed", 2)


def test_a_campaign_works_in_a_thread(tmp_path: Path, data: Path) -> None:
    found: list[Campaign] = []
    thread = threading.Thread(target=lambda: found.append(toy(tmp_path).multi_run(data, num_runs=1, steps_per_run=2)))
    thread.start()
    thread.join(120)

    assert found[0].completed


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({}, "INPUT_VALIDATION_FAILED"),
        ({"dataset": 3}, "INPUT_VALIDATION_FAILED"),
        ({"dataset": [{"text": "a row"}]}, "INPUT_VALIDATION_FAILED"),
        ({"dataset": "nowhere.jsonl"}, "INPUT_DATASET_NOT_FOUND"),
        ({"dataset": "data", "num_runs": 3, "runs": 2}, "INPUT_VALIDATION_FAILED"),
        ({"dataset": "data", "num_runs": 41}, "INPUT_DATASET_INVALID"),
        ({"dataset": "data", "merge_mode": "simple"}, "CONFIG_INVALID_SETTING"),
        ({"dataset": "data", "replay_ratio": 0.7}, "CONFIG_INVALID_SETTING"),
        ({"dataset": "data", "learning_rat": 0.7}, "INPUT_VALIDATION_FAILED"),
        ({"dataset": "data", "fp8": True}, "CONFIG_INVALID_SETTING"),
        ({"resume": "abc"}, "INPUT_RUN_NOT_FOUND"),
        ({"resume": "abc", "dataset": "data"}, "INPUT_VALIDATION_FAILED"),
        ({"resume": "abc", "num_runs": 3}, "INPUT_VALIDATION_FAILED"),
    ],
    ids=str,
)
def test_a_wrong_wish_is_refused_and_nothing_is_made(
    tmp_path: Path, data: Path, arguments: dict[str, object], code: str
) -> None:
    if arguments.get("dataset") == "data":
        arguments = {**arguments, "dataset": data}
    with pytest.raises(BackpropagateError) as caught:
        toy(tmp_path).multi_run(**arguments)  # type: ignore[arg-type]  # wrong on purpose

    assert caught.value.code == code
    assert runs_in(tmp_path) == 0


def test_bad_rows_are_found_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\nnonsense\n' * 9)
    with pytest.raises(BackpropagateError, match="9 of 18 rows cannot be used"):
        toy(tmp_path).multi_run(tmp_path / "bad.jsonl")

    assert runs_in(tmp_path) == 0


def test_a_training_and_a_campaign_are_not_taken_for_each_other(tmp_path: Path, data: Path) -> None:
    trainer = toy(tmp_path)
    campaign = trainer.multi_run(data, num_runs=1, steps_per_run=2)
    run = trainer.train(data, steps=2)

    with pytest.raises(BackpropagateError, match="is a campaign"):
        trainer.resume(campaign.run_id)
    with pytest.raises(BackpropagateError, match="is no campaign"):
        trainer.multi_run(resume=run.run_id)
    with pytest.raises(BackpropagateError, match="is no campaign"):
        trainer.append_run(data, run.run_id)
