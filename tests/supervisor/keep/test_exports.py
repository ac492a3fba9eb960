"""What an export leaves on the disk: never a result without its report, never half of one."""

from __future__ import annotations

from pathlib import Path

import msgspec

from backpropagate.keep import exports
from backpropagate.keep.exports import ExportReport
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


def test_a_result_has_its_name_only_with_the_report_of_its_own_run(tmp_path: Path) -> None:
    result, folder = tmp_path / "talk-merged", made(tmp_path, "x")
    assert not exports.is_published("run", folder, result, None)
    exports.publish(folder, result, report())
    assert exports.is_published("run", folder, result, None)
    assert not exports.is_published("another", folder, result, None)


def test_a_result_that_was_made_of_an_earlier_adapter_of_the_same_run_is_made_again(tmp_path: Path) -> None:
    result, folder, adapter = tmp_path / "talk-merged", made(tmp_path, "x"), tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"first")
    told = msgspec.structs.replace(report(), adapter_digest=exports.weights_digest(adapter))
    exports.publish(folder, result, told)
    assert exports.is_published("run", folder, result, str(adapter))
    (adapter / "adapter_model.safetensors").write_bytes(b"second")
    assert not exports.is_published("run", folder, result, str(adapter))


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
    exports.sweep(tmp_path / "work", tmp_path / "talk-merged")
    assert (tmp_path / "talk-merged" / "old.txt").is_file()
    assert not old.exists()


def test_a_sweep_takes_what_is_half_made_and_leaves_what_is_complete(tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / f"merged{PARTIAL}").mkdir(parents=True)
    (work / "f16.gguf").write_bytes(b"whole")
    (work / f"q4_k_m.gguf{PARTIAL}").write_bytes(b"half")
    exports.sweep(work)
    assert [path.name for path in work.iterdir()] == ["f16.gguf"]


def test_the_digest_of_an_adapter_is_that_of_its_weights(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    first = exports.weights_digest(tmp_path)
    (tmp_path / "README.md").write_text("words")
    assert exports.weights_digest(tmp_path) == first != ""
    (tmp_path / "adapter_model.safetensors").write_bytes(b"other weights")
    assert exports.weights_digest(tmp_path) != first
    assert exports.weights_digest(tmp_path / "nothing") == ""


def test_a_report_of_a_newer_version_can_be_read(tmp_path: Path) -> None:
    told = {**msgspec.to_builtins(report()), "something_new": 1}
    ExportDir.report(tmp_path / "x").write_bytes(msgspec.json.encode(told))
    assert exports.read_report(tmp_path / "x") == report()
