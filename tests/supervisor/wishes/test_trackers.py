"""Which trackers a run is told to, and whether W&B may send it, is known before it begins and never asked."""

from __future__ import annotations

import uuid
from pathlib import Path

import msgspec
import pytest

from backpropagate.keep import runs
from backpropagate.wishes.build_spec import build_spec
from backpropagate.wishes.campaign_again import same_wishes
from backpropagate.wishes.settings import Settings
from backpropagate.wishes.surroundings import installed
from backpropagate.wishes.trackers import TRACKERS, Wanted, wanted_trackers
from backpropagate_protocol.errors import DependencyError, InvalidSettingError
from backpropagate_protocol.rundir import OutputDir
from tests.system.campaigns import campaign_of

_ALL = all(map(installed, TRACKERS))
every_tracker = pytest.mark.skipif(not _ALL, reason="not every tracker is installed")


def wanted(folder: Path, **arguments: object) -> Wanted:
    return wanted_in(folder, {}, arguments)


def wanted_in(folder: Path, environ: dict[str, str], arguments: dict[str, object], *, watched: bool = False) -> Wanted:
    """In this environment, and nobody logged in unless the folder has a netrc."""
    known = {"NETRC": str(folder / "netrc"), **environ}
    return wanted_trackers(Settings(arguments, environ=known, folder=folder), known, watched=watched)


@pytest.mark.parametrize("said", [None, "none", ("none",)])
def test_no_tracker_is_told_unless_one_is_named(tmp_path: Path, said: object) -> None:
    arguments = {} if said is None else {"report_to": said}
    assert wanted(tmp_path, **arguments) == Wanted(())


@every_tracker
def test_each_tracker_is_named_once_in_any_case(tmp_path: Path) -> None:
    assert wanted(tmp_path, report_to="TensorBoard,mlflow,tensorboard").names == ("tensorboard", "mlflow")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"report_to": "tensorbord"}, "no tracker called tensorbord; did you mean tensorboard?"),
        ({"report_to": "none,wandb"}, "none cannot be said beside others"),
        ({"report_to": "auto,wandb"}, "auto cannot be said beside others"),
        ({"project": "mine"}, "--project would have no effect"),
    ],
)
def test_what_cannot_be_told_is_refused_by_name(tmp_path: Path, arguments: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidSettingError, match=words.replace("?", r"\?")):
        wanted(tmp_path, **arguments)


@every_tracker
def test_a_project_has_a_name_that_every_tracker_takes(tmp_path: Path) -> None:
    assert wanted(tmp_path, report_to="mlflow", project="My project_2.1-b").names == ("mlflow",)
    with pytest.raises(InvalidSettingError, match="no name that every tracker takes"):
        wanted(tmp_path, report_to="mlflow", project="a/b")


def test_a_tracker_that_is_not_installed_is_refused_with_the_way_to_install_it(tmp_path: Path) -> None:
    missing = [name for name in TRACKERS if not installed(name)]
    if not missing:
        pytest.skip("every tracker is installed")
    with pytest.raises(DependencyError) as refused:
        wanted(tmp_path, report_to=missing[0])
    assert refused.value.code == "DEP_TRACKER_MISSING"
    assert "backpropagate[monitoring]" in refused.value.suggestion


@every_tracker
@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({}, ("tensorboard",)),
        ({"MLFLOW_TRACKING_URI": "http://there"}, ("tensorboard", "mlflow")),
        ({"WANDB_API_KEY": "k"}, ("tensorboard", "wandb")),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "disabled"}, ("tensorboard",)),
        ({"WANDB_MODE": "offline", "TRACKIO_SPACE_ID": "me/runs"}, ("tensorboard", "wandb", "trackio")),
    ],
)
def test_auto_is_what_somebody_has_set_up(tmp_path: Path, environ: dict[str, str], names: tuple[str, ...]) -> None:
    assert wanted_in(tmp_path, environ, {"report_to": "auto"}).names == names


@every_tracker
@pytest.mark.parametrize(
    ("environ", "login", "watched", "why"),
    [
        ({}, False, True, "no login is known"),
        ({}, False, False, "no login is known"),
        ({}, True, True, None),
        ({}, True, False, "there is no terminal"),
        ({"WANDB_MODE": "online"}, True, False, None),
        ({"WANDB_MODE": "online"}, False, True, "no login is known"),
        ({"WANDB_API_KEY": "k"}, False, False, None),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, False, True, "WANDB_MODE is offline"),
        ({"WANDB_BASE_URL": "https://our.own"}, True, True, "no login is known"),
    ],
)
def test_wandb_sends_only_what_somebody_has_allowed(
    tmp_path: Path, environ: dict[str, str], login: bool, watched: bool, why: str | None
) -> None:
    if login:
        (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    found = wanted_in(tmp_path, environ, {"report_to": "wandb"}, watched=watched)
    assert found.names == ("wandb",)
    assert found.offline is (why is not None)
    assert [why in notice for notice in found.notices if why] == [True] * found.offline


@every_tracker
def test_a_wandb_that_is_switched_off_is_told_nothing(tmp_path: Path) -> None:
    found = wanted_in(tmp_path, {"WANDB_MODE": "disabled"}, {"report_to": "wandb,tensorboard"})
    assert found.names == ("tensorboard",)
    assert "disabled" in found.notices[0]


@every_tracker
def test_the_spec_of_a_run_has_its_trackers(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": "hello"}\n')
    wishes = {
        "data": str(tmp_path / "d.jsonl"), "output_dir": str(tmp_path / "out"), "model": "toy", "backend": "toy",
        "report_to": ["tensorboard"], "project": "mine",
    }  # fmt: skip
    spec = build_spec(Settings(wishes, environ={}, folder=tmp_path))
    assert (spec.report_to, spec.project, spec.report_offline) == (("tensorboard",), "mine", False)


def test_a_campaign_is_gone_on_with_whether_or_not_somebody_watches_it_now(tmp_path: Path) -> None:
    begun = campaign_of(OutputDir(tmp_path / "out"))
    same_wishes(runs.create(begun), msgspec.structs.replace(begun, run_id=str(uuid.uuid4()), report_offline=True))
