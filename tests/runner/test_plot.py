"""A campaign's pictures: every number in them, the same bytes every time, whole files or none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from backpropagate_protocol.campaign_report import CampaignReport, ScoreCell, Totals
from backpropagate_protocol.errors import BackpropagateError
from backpropagate_protocol.jobs import PlotJob
from backpropagate_protocol.messages import Made, Phase
from backpropagate_runner.export.digests import digest_of
from backpropagate_runner.plot import plot
from tests.runner.export.heard import Heard

pytest.importorskip("matplotlib")


def report(names: tuple[str, ...] = ("monday", "tuesday"), runs: int = 2) -> CampaignReport:
    """Scores by which every cell is told from every other."""

    def cell(candidate: str, run: int, task: int) -> ScoreCell:
        accuracy = 0.5 + 0.011 * run + 0.001 * task - (0.3 if candidate == "base" else 0.0)
        return ScoreCell(candidate=candidate, run=run, task=task, accuracy=accuracy, loss=3 - accuracy)

    scores = [
        cell(whose, run, task) for whose in ("merged", "base") for run in range(1, runs + 1) for task in range(run)
    ]
    return CampaignReport(
        run_id="0123456789",
        rule="slao",
        tasks=names,
        held_out=tuple(range(len(names))),
        scores=tuple(scores),
        totals=(Totals(run=runs, average_accuracy=0.5225, backward_transfer=-0.02),),
    )


def draw(folder: Path, what: CampaignReport | bytes, *names: str) -> Made:
    folder.mkdir(exist_ok=True)
    source = folder / "campaign.json"
    source.write_bytes(what if isinstance(what, bytes) else msgspec.json.encode(what))
    heard = Heard(Phase.PLOT)
    made = plot(PlotJob(report=str(source), out=tuple(str(folder / name) for name in names)), heard.stage)
    assert heard.signs == len(names) + 1
    return made


def test_the_picture_holds_every_number_as_text(tmp_path: Path) -> None:
    made = draw(tmp_path, report(), "c.svg")
    root = ElementTree.parse(made.path).getroot()
    texts = {text for element in root.iter("{http://www.w3.org/2000/svg}text") for text in element.itertext()}
    assert {"51.1", "52.2", "52.3", "2.49", "2.48", "1 monday", "2 tuesday", "after run 1", "after run 2"} <= texts
    assert "campaign 01234567, merged by slao, average accuracy 52.2 %, backward transfer -2.0 points" in texts
    assert (made.bytes, made.digest) == (Path(made.path).stat().st_size, digest_of(Path(made.path)))


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    first = draw(tmp_path / "a", report(), "c.svg", "c.png")
    second = draw(tmp_path / "b", report(), "c.svg", "c.png")
    assert first.digest == second.digest
    for name in ("c.svg", "c.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / "c.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"campaign.json", "c.svg", "c.png"}


def test_a_task_may_have_any_name(tmp_path: Path) -> None:
    made = draw(tmp_path, report(("$x_", "日本語\n<b>&\x00 with a name that has no end")), "c.svg")
    ElementTree.parse(made.path)


def test_a_single_run_and_many_are_drawn(tmp_path: Path) -> None:
    draw(tmp_path, report(("only",), runs=1), "one.png")
    draw(tmp_path, report(tuple(map(str, range(25))), runs=25), "many.svg")
    assert (tmp_path / "many.svg").stat().st_size > 0


@pytest.mark.parametrize("broken", [b"{", b'{"run_id": "x"}'])
def test_a_report_without_scores_is_refused(tmp_path: Path, broken: bytes) -> None:
    with pytest.raises(BackpropagateError, match=r"campaign\.json"):
        draw(tmp_path, broken, "c.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["campaign.json"]


def test_another_kind_of_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackpropagateError, match=r"c\.pdf"):
        draw(tmp_path, report(), "c.pdf")


def test_without_matplotlib_the_error_says_what_to_install(tmp_path: Path) -> None:
    """In an interpreter that has none."""
    (tmp_path / "campaign.json").write_bytes(msgspec.json.encode(report()))
    program = """
import sys
sys.modules["matplotlib"] = None
from backpropagate_protocol.errors import DependencyError
from backpropagate_protocol.jobs import PlotJob
from backpropagate_protocol.messages import Phase
from backpropagate_runner.plot import plot
from tests.runner.export.heard import Heard
try:
    plot(PlotJob(report=sys.argv[1], out=(sys.argv[2],)), Heard(Phase.PLOT).stage)
except DependencyError as error:
    print(error.code, error.suggestion)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "campaign.json"), str(tmp_path / "c.svg")],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).resolve().parents[2],
        timeout=120,
    )
    assert done.stdout.startswith("DEP_PLOT_TOOL_MISSING pip install 'backpropagate[plot]'"), done.stderr
