"""What an export leaves on the disk: never a result without its report, never half of one."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from backpropagate.keep import exports
from backpropagate.keep.exports import ExportReport
from backpropagate_protocol.errors import ConfigurationError
from backpropagate_protocol.rundir import PARTIAL, ExportDir


def report(run_id: str = "run", result: str = "talk-merged") -> ExportReport:
    return ExportReport(
        run_id=run_id,
        created="2026-01-01T00:00:00Z",
        result=result,
        bytes=3,
        digest="d",
        format="merged",
        quantization=None,
        base_model="tiny",
        base_path="/tiny",
        base_revision=None,
        adapter="/lora",
        adapter_digest="e",
        architecture="Qwen2ForCausalLM",
        parameters=1,
        route={},
        proof=None,
    )


def made(tmp_path: Path, text: str) -> Path:
    folder = tmp_path / "work" / "merged"
    folder.mkdir(parents=True)
    (folder / f"{text}.txt").write_text(text)
    return folder


def test_a_folder_of_the_same_name_is_replaced_whole(tmp_path: Path) -> None:
    result = tmp_path / "exports" / "talk-merged"
    for text in ("old", "new"):
        exports.publish(made(tmp_path, text), result, report(text))
    assert [path.name for path in result.iterdir()] == ["new.txt"]
    assert exports.read_report(result) == report("new")
    assert sorted(path.name for path in result.parent.iterdir()) == ["talk-merged", "talk-merged.export.json"]


def test_what_stands_under_a_name_is_one_runs_and_not_another_s(tmp_path: Path) -> None:
    result = tmp_path / "talk-merged"
    assert exports.standing("run", result) is None
    exports.publish(made(tmp_path, "x"), result, report())
    assert exports.standing("run", result) == report()
    exports.publish(made(tmp_path, "y"), result, report("another"))
    assert exports.standing("run", result) is None


def test_a_report_of_another_size_is_not_the_file_s(tmp_path: Path) -> None:
    """Somebody put a file of their own where ours had been."""
    result = tmp_path / "talk.gguf"
    ExportDir.report(result).write_bytes(msgspec.json.encode(report()))
    result.write_bytes(b"abc")
    assert exports.standing("run", result) is not None
    exports.check_replaceable(result)
    result.write_bytes(b"somebody's")
    assert exports.standing("run", result) is None
    with pytest.raises(ConfigurationError, match="no export of ours"):
        exports.check_replaceable(result)


def test_a_result_that_cannot_get_its_name_leaves_the_older_one_with_its_own_report(tmp_path: Path) -> None:
    result = tmp_path / "talk-merged"
    exports.publish(made(tmp_path, "old"), result, report("old"))
    with pytest.raises(OSError):
        exports.publish(tmp_path / "work" / "never-made", result, report("new"))
    assert exports.read_report(result) == report("old")
    assert (result / "old.txt").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["talk-merged", "talk-merged.export.json", "work"]


@pytest.mark.parametrize("renamed", [True, False])
def test_a_publication_that_was_cut_off_is_ended_by_the_next_one_who_comes(tmp_path: Path, renamed: bool) -> None:
    """Whether the result had its name already tells whose report is right."""
    result, work = tmp_path / "talk.gguf", tmp_path / "work" / "f16.gguf"
    work.parent.mkdir()
    for name in ("old", "new"):
        work.write_bytes(name.encode())
        if name == "old":
            exports.publish(work, result, report("old"))
    waiting = tmp_path / f".talk.gguf.export.json{PARTIAL}"
    waiting.write_bytes(msgspec.json.encode({"made": str(work), "report": report("new")}))
    if renamed:
        work.replace(result)
    exports.settle(result)
    told = exports.read_report(result)
    assert told is not None
    assert told.run_id == result.read_text() == ("new" if renamed else "old")
    assert not waiting.exists()


def test_what_was_not_proven_lies_beside_an_older_result_and_does_not_touch_it(tmp_path: Path) -> None:
    result = tmp_path / "talk-merged"
    exports.publish(made(tmp_path, "good"), result, report("good"))
    aside = exports.reject(made(tmp_path, "bad"), result, report("bad"))
    assert aside == ExportDir.rejected(result)
    assert (aside / "bad.txt").is_file()
    assert (result / "good.txt").is_file()
    assert exports.read_report(result) == report("good")
    assert exports.read_report(aside) == report("bad")


def test_a_swap_of_folders_that_was_cut_off_gives_the_old_result_back(tmp_path: Path) -> None:
    old = tmp_path / f".talk-merged.old{PARTIAL}"
    old.mkdir()
    (old / "old.txt").write_text("old")
    exports.settle(tmp_path / "talk-merged")
    assert (tmp_path / "talk-merged" / "old.txt").is_file()
    assert not old.exists()


def test_a_sweep_takes_what_is_half_made_and_leaves_what_is_complete(tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / f"merged{PARTIAL}").mkdir(parents=True)
    (work / "f16.gguf").write_bytes(b"whole")
    (work / f"q4_k_m.gguf{PARTIAL}").write_bytes(b"half")
    exports.sweep(work)
    assert [path.name for path in work.iterdir()] == ["f16.gguf"]


def test_a_report_of_a_newer_version_can_be_read(tmp_path: Path) -> None:
    told = {**msgspec.to_builtins(report()), "something_new": 1}
    ExportDir.report(tmp_path / "x").write_bytes(msgspec.json.encode(told))
    assert exports.read_report(tmp_path / "x") == report()


def test_inputs_are_others_when_one_of_their_files_was_replaced(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
        (folder / "weights.safetensors").write_bytes(b"1234")
    before = exports.inputs_digest(first, second, tmp_path / "a-hub/id")
    assert exports.inputs_digest(first, second, tmp_path / "a-hub/id") == before
    os.utime(second / "weights.safetensors", ns=(1, 1))
    assert exports.inputs_digest(first, second, tmp_path / "a-hub/id") != before
