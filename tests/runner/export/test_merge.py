"""The merged folder: that transformers opens it and it answers as PEFT's, within little memory, and whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import torch
from transformers import PreTrainedModel

from backpropagate_protocol.durable import files_of
from backpropagate_protocol.errors import ModelLoadError
from backpropagate_protocol.jobs import MergeJob
from backpropagate_protocol.messages import Done, Made, Phase
from backpropagate_protocol.rundir import PARTIAL
from backpropagate_protocol.spec import PlannedFault
from backpropagate_runner.export.digests import digest_of, files_below, folder_digest
from backpropagate_runner.export.merge import merge
from backpropagate_runner.export.tensor_file import TensorFile
from tests.house.source import ROOT
from tests.runner.child import Child
from tests.runner.export import peft_models as models
from tests.runner.export.heard import Heard

ALL: dict[str, object] = {"target_modules": "all-linear"}


class Interrupted(Heard):
    """In the middle of the weights."""

    def _sign(self, number: int) -> None:
        if number == 9:
            raise KeyboardInterrupt


def merged(base: Path, adapter: Path, out: Path, shard: int = 1 << 30) -> Made:
    heard = Heard(Phase.MERGE)
    job = MergeJob(model=models.spec(base), adapter=str(adapter), out=str(out), memory=64)
    made = merge(job, heard.stage, shard)
    assert heard.signs > 1
    return made


def digests(folder: Path) -> dict[str, str]:
    return {name: digest_of(path) for name, path in files_below(folder).items()}


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("make", [models.llama, models.qwen2, models.gpt2])
def test_the_merged_folder_opens_and_is_pefts_merge(
    make: Callable[[], PreTrainedModel], dtype: str, tmp_path: Path
) -> None:
    base = models.save_base(make(), tmp_path / "base", dtype, shard="20KB")
    adapter = models.save_adapter(base, tmp_path / "adapter", ALL, dtype)
    expected = models.merged_by_peft(base, adapter, dtype)
    before = digests(base) | digests(adapter)
    made = merged(base, adapter, tmp_path / "out")
    found = models.load(tmp_path / "out", dtype).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name].float(), expected[name].float(), rtol=1e-2, atol=1e-7) for name in found)
    assert found[next(iter(found))].dtype == models.DTYPES[dtype]
    assert digests(base) | digests(adapter) == before
    assert made.path == str(tmp_path / "out")
    assert made.bytes == sum(path.stat().st_size for path in files_below(tmp_path / "out").values())
    assert made.digest == folder_digest(digests(tmp_path / "out"))


SOME: tuple[dict[str, object], ...] = (
    ALL,
    ALL | {"use_dora": True},
    {"target_modules": ["embed_tokens", "v_proj"]},
    {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    {"target_modules": ["embed_tokens", "lm_head"]},
    {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens"]},
    {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]},
    {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    {"target_modules": ["v_proj"], "trainable_token_indices": [1, 2]},
    {"target_modules": ["v_proj"], "trainable_token_indices": {"embed_tokens": [1, 2], "lm_head": [3]}},
    {"target_modules": ["v_proj"], "trainable_token_indices": {"lm_head": [3]}},
)


@pytest.mark.parametrize("lora", SOME, ids=str)
@pytest.mark.parametrize("tied", [True, False])
def test_the_merged_model_answers_as_the_trained_one(lora: dict[str, object], tied: bool, tmp_path: Path) -> None:
    base = models.save_base(models.qwen2(tied=tied), tmp_path / "base")
    adapter = models.save_adapter(base, tmp_path / "adapter", lora)
    merged(base, adapter, tmp_path / "out")
    trained, exported = models.adapted(base, adapter), models.load(tmp_path / "out")
    assert torch.allclose(models.logits(trained), models.logits(exported), atol=1e-5)
    untied = "lm_head.weight" in TensorFile(tmp_path / "out" / "model.safetensors").tensors
    assert exported.config.tie_word_embeddings == (not untied)
    assert not torch.allclose(models.logits(models.load(base)), models.logits(exported), atol=1e-2)


def test_a_large_model_is_split_into_files_with_an_index(tmp_path: Path) -> None:
    base = models.save_base(models.llama(), tmp_path / "base")
    adapter = models.save_adapter(base, tmp_path / "adapter", ALL)
    merged(base, adapter, tmp_path / "one")
    merged(base, adapter, tmp_path / "many", shard=30_000)
    shards = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(shards)
    one, many = (models.load(tmp_path / name).state_dict() for name in ("one", "many"))
    assert all(torch.equal(one[name], many[name]) for name in one)
    assert files_of(tmp_path / "one") == ["config.json", "generation_config.json", "model.safetensors"]


def test_the_bases_small_files_are_kept_and_a_chat_template_of_the_training_wins(tmp_path: Path) -> None:
    base = models.save_base(models.llama(), tmp_path / "base")
    adapter = models.save_adapter(base, tmp_path / "adapter", ALL)
    tokenizer = ROOT / "fixtures" / "tiny-base"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tokenizer / name, base / name)
    again = json.dumps(json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8")))  # saved by another
    (adapter / "tokenizer.json").write_text(again, encoding="utf-8")
    (adapter / "tokenizer_config.json").write_text("{}")
    (adapter / "chat_template.jinja").write_text("trained with this")
    merged(base, adapter, tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "trained with this"
    grown = json.loads(again)
    grown["added_tokens"].append(dict(grown["added_tokens"][0], id=9999, content="<new>"))
    (adapter / "tokenizer.json").write_text(json.dumps(grown), encoding="utf-8")
    merged(base, adapter, tmp_path / "out")
    assert "<new>" in (tmp_path / "out" / "tokenizer.json").read_text(encoding="utf-8")
    assert (tmp_path / "out" / "tokenizer_config.json").read_text() == "{}"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")
def test_whoever_may_read_new_files_may_read_the_merged_ones(tmp_path: Path) -> None:
    base = models.save_base(models.llama(), tmp_path / "base")
    adapter = models.save_adapter(base, tmp_path / "adapter", ALL)
    (base / "config.json").chmod(0o600)
    merged(base, adapter, tmp_path / "out")
    (tmp_path / "new").write_text("")
    usual = (tmp_path / "new").stat().st_mode
    assert {path.stat().st_mode for path in (tmp_path / "out").iterdir()} == {usual}


def test_an_interrupted_merge_leaves_nothing_and_the_old_one_stays(tmp_path: Path) -> None:
    base = models.save_base(models.llama(), tmp_path / "base")
    adapter = models.save_adapter(base, tmp_path / "adapter", ALL)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("whole")
    job = MergeJob(model=models.spec(base), adapter=str(adapter), out=str(tmp_path / "out"), memory=64)
    with pytest.raises(KeyboardInterrupt):
        merge(job, Interrupted(Phase.MERGE).stage)
    assert files_of(tmp_path / "out") == ["old"]
    assert not list(tmp_path.glob(f"*{PARTIAL}*"))


def test_a_base_that_was_torn_is_told_before_anything_is_written(tmp_path: Path) -> None:
    base = models.save_base(models.llama(), tmp_path / "base")
    adapter = models.save_adapter(base, tmp_path / "adapter", ALL)
    os.truncate(base / "model.safetensors", 9_000)
    with pytest.raises(ModelLoadError, match="damaged"):
        merged(base, adapter, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.slow
def test_a_real_child_merges_and_a_killed_one_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    base = models.save_base(models.llama(), tmp_path / "base")
    adapter = models.save_adapter(base, tmp_path / "adapter", ALL)
    killed = PlannedFault(kind="sigkill", step=9, stage="merge")
    for attempt in (1, 2):
        job = MergeJob(
            model=models.spec(base),
            adapter=str(adapter),
            out=str(tmp_path / "out"),
            memory=64,
            faults=(killed,),
            attempt=attempt,
        )
        with Child(tmp_path / "log", "none") as child:
            child.do(job)
            done = child.finish()
            if attempt == 1:
                assert done is None
                assert not (tmp_path / "out").exists()
            else:
                assert isinstance(done, Done)
                assert isinstance(done.result, Made)
                assert done.result.digest == folder_digest(digests(tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "log", "out"]


# A tensor of 195 MiB, of which nothing is on the disk but a hole; merged under a limit on all writable private memory.
PROGRAM = """
import json, resource, sys
from pathlib import Path
import numpy as np
from backpropagate_protocol.jobs import MergeJob
from backpropagate_protocol.messages import Phase
from backpropagate_protocol.spec import ModelSpec
from backpropagate_runner.export.merge import merge
from backpropagate_runner.faults import classify
from tests.runner.export.heard import Heard

base, adapter, out, more = sys.argv[1:]
status = dict(line.split(":") for line in open("/proc/self/status"))
limit = int(status["VmData"].split()[0]) * 1024 + int(more) * 2**20
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    made = merge(
        MergeJob(model=ModelSpec(name="large", path=base), adapter=adapter, out=out, memory=64), Heard(Phase.MERGE).stage
    )
except BaseException as error:
    print(classify(error, Phase.MERGE, 0).kind.value)
else:
    print(made.bytes)
"""


@pytest.fixture
def large(tmp_path: Path) -> tuple[Path, Path]:
    """A base of one embedding of 200,000 x 256 float32, and an adapter of it."""
    import numpy as np
    from safetensors.numpy import save_file

    from backpropagate_runner.export.tensor_file import header_of

    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    (base / "config.json").write_text('{"model_type": "llama", "tie_word_embeddings": true}')
    header = header_of([("model.embed_tokens.weight", "F32", (200_000, 256))])
    (base / "model.safetensors").write_bytes(header)
    os.truncate(base / "model.safetensors", len(header) + 200_000 * 256 * 4)
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    module = "base_model.model.model.embed_tokens"
    trained = {"A": np.ones((2, 200_000), np.float32), "B": np.ones((256, 2), np.float32)}
    save_file(
        {f"{module}.lora_embedding_{part}": value for part, value in trained.items()},
        adapter / "adapter_model.safetensors",
    )
    return base, adapter


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits private memory alone")
@pytest.mark.parametrize(("more", "outcome"), [(120, None), (1, "host_oom")])
def test_a_tensor_larger_than_the_memory_is_merged_and_too_little_memory_is_said_to_be_that(
    more: int, outcome: str | None, large: tuple[Path, Path], tmp_path: Path
) -> None:
    base, adapter = large
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(base), str(adapter), str(out), str(more)],
        cwd=ROOT,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    if outcome:
        assert done.stdout.strip() == outcome
        assert not list(tmp_path.glob("out*"))
    else:
        assert int(done.stdout) > 2 * 200_000 * 256 * 4  # the pair was tied, and only one of it was trained
    shutil.rmtree(out, ignore_errors=True)
