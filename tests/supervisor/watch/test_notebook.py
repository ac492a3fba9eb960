"""A training in a notebook: a real kernel, whose event loop is running, a display that changes in place, an interrupt."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

jupyter_client = pytest.importorskip("jupyter_client", reason="ipykernel is part of the dev extra")
pytest.importorskip("ipykernel", reason="ipykernel is part of the dev extra")

_CELL = (
    "from backpropagate import Trainer\n"
    "run = Trainer('any', backend='toy').train('d.jsonl', steps={steps})\n"
    "print(run.status, run.steps)\n"
)


class Notebook:
    """One cell of a real kernel: what it displayed and what it printed."""

    def __init__(self, folder: Path) -> None:
        self.kernel = jupyter_client.KernelManager(kernel_name="python3")
        self.kernel.start_kernel(cwd=str(folder), stderr=sys.stderr)
        self.client = self.kernel.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def run(self, cell: str) -> Iterator[tuple[str, str]]:
        """(message type, text) of everything the cell says, until it is done."""
        asked = self.client.execute(cell)
        while True:
            message = self.client.get_iopub_msg(timeout=120)
            if message["parent_header"].get("msg_id") != asked:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "status" and content["execution_state"] == "idle":
                return
            text = (
                content.get("text")
                or content.get("data", {}).get("text/html")
                or "\n".join(content.get("traceback", ()))
            )
            yield str(kind), str(text)

    def close(self) -> None:
        self.client.stop_channels()
        self.kernel.shutdown_kernel(now=True)


@pytest.fixture
def notebook(tmp_path: Path) -> Iterator[Notebook]:
    (tmp_path / "d.jsonl").write_text("".join(f'{{"text": "row {i}"}}\n' for i in range(40)))
    opened = Notebook(tmp_path)
    yield opened
    opened.close()


def test_a_cell_shows_one_display_that_changes_and_prints_its_result(notebook: Notebook) -> None:
    said = list(notebook.run(_CELL.format(steps=20)))
    kinds = [kind for kind, _ in said]

    assert kinds.count("display_data") == 1
    assert "update_display_data" in kinds
    shown = [text for kind, text in said if kind == "update_display_data"][-1]
    assert "<progress" in shown
    assert "step 20/20" in shown
    assert "completed at step 20/20" in shown
    assert ("stream", "completed 20\n") in said


def test_an_interrupted_cell_saves_and_gives_back_the_run(notebook: Notebook, tmp_path: Path) -> None:
    printed = ""
    interrupted = False
    for kind, text in notebook.run(_CELL.format(steps=50_000_000)):
        if not interrupted and kind == "update_display_data" and "training on" in text:
            notebook.kernel.interrupt_kernel()
            interrupted = True
        assert kind != "error", text
        printed += text if kind == "stream" else ""

    result = re.search(r"^interrupted (\d+)$", printed, re.MULTILINE)
    assert result is not None, printed
    assert list((tmp_path / "output" / "runs").glob(f"*/checkpoints/step-{int(result[1]):08d}"))
