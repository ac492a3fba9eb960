"""A model that is not there is said to be missing before anything is loaded, and in the right words."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from backpropagate_backends.cpu import CpuBackend
from backpropagate_protocol.errors import ModelLoadError, UserInputError
from backpropagate_protocol.spec import ModelSpec


def find(cpu: CpuBackend, path: str) -> None:
    from backpropagate_backends import model_source

    model_source.find(ModelSpec(name="mine", path=path))


def test_a_folder_that_is_not_there_is_not_found(cpu: CpuBackend, tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="there is no folder") as caught:
        find(cpu, str(tmp_path / "nothing"))
    assert caught.value.code == "INPUT_MODEL_NOT_FOUND"


@pytest.mark.parametrize("path", ["./nothing", "a/b/c", "not a model!"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_not_found(cpu: CpuBackend, path: str) -> None:
    with pytest.raises(UserInputError) as caught:
        find(cpu, path)
    assert caught.value.code == "INPUT_MODEL_NOT_FOUND"


def test_a_folder_without_a_configuration_is_not_a_model(cpu: CpuBackend, tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match=r"no config\.json") as caught:
        find(cpu, str(tmp_path))
    assert caught.value.code == "INPUT_MODEL_NOT_FOUND"


def test_an_adapter_is_told_from_a_model(cpu: CpuBackend, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserInputError, match="give the base model"):
        find(cpu, str(tmp_path))


def test_half_an_adapter_is_told_from_a_model(cpu: CpuBackend, tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UserInputError, match=r"no adapter_config\.json") as caught:
        find(cpu, str(tmp_path))
    assert caught.value.code == "INPUT_ADAPTER_INVALID"
    assert "adapter_config.json" in caught.value.suggestion


def test_a_folder_without_weights_cannot_be_loaded(cpu: CpuBackend, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="no weights"):
        find(cpu, str(tmp_path))


def test_a_hub_that_does_not_answer_is_noticed_at_once(cpu: CpuBackend, tmp_path: Path) -> None:
    """A closed port stands for the hub. Its own client would try for half a minute; the child would not live as long."""
    program = (
        "from backpropagate_backends.model_source import find\n"
        "from backpropagate_protocol.errors import ModelLoadError\n"
        "from backpropagate_protocol.spec import ModelSpec\n"
        "try: find(ModelSpec(name='mine', path='nobody/has-this-model'))\n"
        "except ModelLoadError as error: print(error)\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "no_proxy": "127.0.0.1"}
    child = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=90)
    assert "[DEP_HUB_UNREACHABLE]: mine is neither a folder nor in the local cache" in child.stdout, child.stderr


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does for a model whose owner's name says what is wrong with it."""

    ERRORS: ClassVar = {
        "gone": (401, "RepoNotFound"),
        "gated": (403, "GatedRepo"),
        "old": (404, "RevisionNotFound"),
        "empty": (404, "EntryNotFound"),
        "broken": (503, ""),
        "crowded": (429, ""),
    }

    def do_HEAD(self) -> None:
        status, code = self.ERRORS[self.path.split("/")[1]]
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def hub() -> Iterator[str]:
    """The address of a hub that has nothing for anybody."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_what_the_hub_says_is_passed_on_in_plain_words(cpu: CpuBackend, hub: str, tmp_path: Path) -> None:
    program = (
        "from backpropagate_backends.model_source import find\n"
        "from backpropagate_protocol.errors import ModelLoadError\n"
        "from backpropagate_protocol.spec import ModelSpec\n"
        "for owner in ('gone', 'gated', 'old', 'empty'):\n"
        "    try: find(ModelSpec(name=owner, path=owner + '/model', revision='v1'))\n"
        "    except ModelLoadError as error: print(error.code, error.message)\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "no_proxy": "127.0.0.1"}
    child = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert child.stdout.splitlines() == [
        "DEP_MODEL_LOAD_FAILED the hub has no model gone, or it is private and you are not logged in",
        "DEP_MODEL_LOAD_FAILED gated is gated and your account has no access",
        "DEP_MODEL_LOAD_FAILED old has no revision 'v1'",
        "DEP_MODEL_LOAD_FAILED empty has no config.json: it is not a transformers model",
    ], child.stderr


@pytest.mark.parametrize(("owner", "passes"), [("broken", True), ("crowded", True), ("gated", False), ("empty", False)])
def test_a_hub_that_says_not_now_is_told_from_one_that_says_no(hub: str, owner: str, passes: bool) -> None:
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils._http import get_session, hf_raise_for_status

    from backpropagate_protocol.hub import is_hub_trouble

    answer = get_session().get(f"{hub}/{owner}/model")
    with pytest.raises(HfHubHTTPError) as caught:
        hf_raise_for_status(answer)
    assert is_hub_trouble(caught.value) is passes


def test_who_has_turned_the_network_off_is_not_told_to_wait(tmp_path: Path) -> None:
    program = (
        "from backpropagate_backends.model_source import find\n"
        "from backpropagate_protocol.errors import ModelLoadError\n"
        "from backpropagate_protocol.spec import ModelSpec\n"
        "try: find(ModelSpec(name='mine', path='nobody/has-this-model'))\n"
        "except ModelLoadError as error: print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    child = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=90)
    assert "[DEP_MODEL_LOAD_FAILED]" in child.stdout, child.stderr
    assert "HF_HUB_OFFLINE is set" in child.stdout


def test_a_model_of_the_hub_is_pinned_to_the_commit_it_came_with(tmp_path: Path) -> None:
    """The branch moves on between two attempts, and both commits are in the cache."""
    first, second = "1" * 40, "2" * 40
    repository = tmp_path / "hub" / "models--me--mine"
    for commit in (first, second):
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "snapshots" / commit / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from backpropagate_backends.torch_choices import model_of_run\n"
        "from backpropagate_backends.model_source import find\n"
        "from backpropagate_protocol.rundir import Manifest\n"
        "from backpropagate_protocol.spec import ModelSpec\n"
        "main, first, second = Path(sys.argv[1]), *sys.argv[2:]\n"
        "model = ModelSpec(name='mine', path='me/mine')\n"
        "main.write_text(first)\n"
        "print(find(model).commit)\n"
        "main.write_text(second)\n"
        "begun = Manifest(run_id='r', step=1, total_steps=2, samples_seen=8, order=0, micro_batch=8, accumulation=1,\n"
        "    data_digest='', spec_digest='', backend='cpu', model_revision=first)\n"
        "print(find(model).commit)\n"
        "print(find(model_of_run(model, begun)).options()['revision'])\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", program, str(repository / "refs" / "main"), first, second]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert child.stdout.split() == [first, second, first], child.stderr


def test_broken_weights_are_a_model_that_cannot_be_loaded(cpu: CpuBackend, tiny: Path, tmp_path: Path) -> None:
    from backpropagate_backends.model_source import find as find_source
    from backpropagate_backends.torch_model import choose_precision, load_model
    from backpropagate_backends.torch_tokenizer import load_tokenizer

    for file in tiny.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    spec = ModelSpec(name="mine", path=str(tmp_path))
    source = find_source(spec)
    precision = choose_precision(spec, "cpu", lambda text, level: None)
    with pytest.raises(ModelLoadError, match="mine cannot be loaded"):
        load_model(source, precision, load_tokenizer(source), lambda text, level: None)
