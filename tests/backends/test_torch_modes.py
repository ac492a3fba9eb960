"""Full fine-tuning, and the kinds of adapters and of base weights: resumed and halved, each is the same training."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import torch

from backpropagate_backends.cpu import CpuBackend
from backpropagate_protocol.errors import BackpropagateError, CheckpointError
from backpropagate_protocol.jobs import TrainJob
from backpropagate_protocol.prepared import Prepared
from tests.backends.torch_runs import FOREIGN_WARNINGS, Run, halved, resumed, run
from tests.backends.torch_session import commit_again, make_job

pytestmark = [pytest.mark.slow, FOREIGN_WARNINGS]

WHOLE = "model.safetensors"


def full_job(model: Path, *, ceiling: float = 4.0, **wishes: object) -> TrainJob:
    """8 steps that train every weight."""
    job = make_job(model, **{"steps": 8, **wishes})  # type: ignore[arg-type]  # each of its own type
    train = msgspec.structs.replace(job.spec.train, mode="full", ceiling=ceiling)
    return msgspec.structs.replace(job, spec=msgspec.structs.replace(job.spec, train=train))


def farthest(one: Run, other: Run) -> float:
    """The largest difference of any weight."""
    left, right = (weights(each) for each in (one, other))
    assert left.keys() == right.keys()
    return max(float((left[name].float() - right[name].float()).abs().max()) for name in left)


def weights(done: Run) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(Path(done.done.adapter) / WHOLE)


# --- full fine-tuning ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full(cpu: CpuBackend, tiny: Path, rows: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(cpu, full_job(tiny), rows, tmp_path_factory.mktemp("full"), save_at=[4, 8])


def test_every_weight_is_trained_and_the_result_is_a_model_of_its_own(full: Run, tiny: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    begun = full.session.begun
    assert begun is not None
    assert begun.trainable_parameters == begun.parameters
    assert begun.precision == "fp32"
    before, after = load_file(tiny / WHOLE), weights(full)
    assert before.keys() == after.keys()
    assert not any(before[name].equal(after[name]) for name in before)
    model = AutoModelForCausalLM.from_pretrained(full.done.adapter)
    tokenizer = AutoTokenizer.from_pretrained(full.done.adapter)
    assert model.get_input_embeddings().weight.equal(after["model.embed_tokens.weight"])
    assert tokenizer.chat_template


def test_a_resumed_full_run_is_bit_identical_and_a_halved_one_sees_the_same_samples(
    cpu: CpuBackend, tiny: Path, rows: Prepared, full: Run, tmp_path: Path
) -> None:
    job = resumed(full_job(tiny), full.session.checkpoint(4))
    assert run(cpu, job, rows, tmp_path / "again").done.digest == full.done.digest
    half = run(cpu, halved(job), rows, tmp_path / "half")
    assert half.orders() == {step: order for step, order in full.orders().items() if step > 4}
    assert farthest(half, full) < 1e-6


def test_a_full_run_that_died_after_its_last_step_does_none_more(
    cpu: CpuBackend, tiny: Path, rows: Prepared, full: Run, tmp_path: Path
) -> None:
    again = run(cpu, resumed(full_job(tiny), full.session.checkpoint(8)), rows, tmp_path)
    assert again.session.progress == []
    assert again.done.digest == full.done.digest


def test_the_best_checkpoint_is_a_result_without_what_only_a_training_needs(full: Run, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from backpropagate_backends.torch_whole import copy_trained

    copy_trained(full.session.checkpoint(8), tmp_path / "best")
    assert {path.name for path in (tmp_path / "best").iterdir()} == {WHOLE, "config.json", "generation_config.json"}
    assert all(tensor.equal(weights(full)[name]) for name, tensor in load_file(tmp_path / "best" / WHOLE).items())


def test_weights_in_bf16_stay_so_in_the_checkpoint_and_after_it(
    cpu: CpuBackend, tiny: Path, rows: Prepared, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    job = full_job(tiny, dtype="bf16", optim="adamw_8bit", steps=4)
    first = run(cpu, job, rows, tmp_path / "first", save_at=[2])
    assert {tensor.dtype for tensor in weights(first).values()} == {torch.bfloat16}
    again = run(cpu, resumed(job, first.session.checkpoint(2)), rows, tmp_path / "again")
    assert again.session.begun is not None
    assert again.session.begun.precision == "bf16"
    assert again.done.digest == first.done.digest


def test_a_checkpoint_without_its_weights_is_refused(
    cpu: CpuBackend, tiny: Path, rows: Prepared, full: Run, tmp_path: Path
) -> None:
    first = run(cpu, full_job(tiny, steps=2), rows, tmp_path / "first", save_at=[1])
    (first.session.checkpoint(1) / WHOLE).unlink()
    commit_again(first.session.checkpoint(1))
    with pytest.raises(CheckpointError, match=WHOLE):
        run(cpu, resumed(full_job(tiny, steps=2), first.session.checkpoint(1)), rows, tmp_path / "second")


def test_a_model_that_is_too_large_is_refused_before_its_weights_are_read(
    cpu: CpuBackend, tiny: Path, rows: Prepared, tmp_path: Path
) -> None:
    """Its weights could not be read: there are none in the file."""
    large = tmp_path / "large"
    large.mkdir()
    for path in tiny.iterdir():
        (large / path.name).write_bytes(b"" if path.name == WHOLE else path.read_bytes())
    config = json.loads((large / "config.json").read_text())
    (large / "config.json").write_text(json.dumps(config | {"intermediate_size": 100_000}))
    with pytest.raises(BackpropagateError, match=r"0\.001 billion") as caught:
        run(cpu, full_job(large, ceiling=0.001), rows, tmp_path / "run")
    assert caught.value.code == "RUNTIME_FULL_FT_MODEL_TOO_LARGE"
    assert "--full-ft-ceiling-billions" in caught.value.suggestion


def test_sampling_settings_that_contradict_each_other_do_not_keep_a_model_from_being_saved(
    cpu: CpuBackend, tiny: Path, rows: Prepared, tmp_path: Path
) -> None:
    """As the first Llama 2 has them: transformers loads such a file, and raises when it shall write one."""
    odd = tmp_path / "odd"
    odd.mkdir()
    for path in tiny.iterdir():
        (odd / path.name).write_bytes(path.read_bytes())
    (odd / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.6, "top_p": 0.9}')
    done = run(cpu, full_job(odd, steps=1), rows, tmp_path / "run").done
    assert json.loads((Path(done.adapter) / "generation_config.json").read_text())["temperature"] == 0.6


# --- kinds of adapters -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [{"use_dora": True}, {"use_rslora": True}], ids=str)
def test_every_kind_of_adapter_resumes_bit_identical_and_halves_with_the_same_samples(
    cpu: CpuBackend, tiny: Path, rows: Prepared, tmp_path: Path, kind: dict[str, bool]
) -> None:
    job = make_job(tiny, steps=4)
    spec = msgspec.structs.replace(job.spec, lora=msgspec.structs.replace(job.spec.lora, **kind))
    job = msgspec.structs.replace(job, spec=spec)
    first = run(cpu, job, rows, tmp_path / "first", save_at=[2])
    job = resumed(job, first.session.checkpoint(2))
    assert run(cpu, job, rows, tmp_path / "again").done.digest == first.done.digest
    half = run(cpu, halved(job), rows, tmp_path / "half")
    assert half.done.order == first.done.order
    assert half.losses() == pytest.approx({step: loss for step, loss in first.losses().items() if step > 2}, abs=1e-5)


# --- 8-bit floats ----------------------------------------------------------------------------------------------------


def test_products_in_eight_bits_are_as_good_as_the_reference_makes_them(cpu: CpuBackend) -> None:
    """torchao's layer rounds the same numbers at the same places. Both are compared with bf16."""
    torchao = pytest.importorskip("torchao.float8")
    from torchao.float8.float8_linear import Float8Linear

    from backpropagate_backends.torch_fp8 import Fp8Linear

    torch.manual_seed(0)
    plain = torch.nn.Linear(64, 128, dtype=torch.bfloat16).requires_grad_(False)
    theirs = Float8Linear.from_float(plain, config=torchao.Float8LinearConfig.from_recipe_name("rowwise"))
    given, pulled = torch.randn(3, 7, 64, dtype=torch.bfloat16), torch.randn(3, 7, 128, dtype=torch.bfloat16)

    def off(layer: torch.nn.Module) -> list[float]:
        found = []
        for each in (plain, layer):
            x = given.clone().requires_grad_()
            y = each(x)
            y.backward(pulled)
            assert x.grad is not None
            found.append((y.detach().float(), x.grad.float()))
        return [float((b - a).norm() / a.norm()) for a, b in zip(*found, strict=True)]

    ours, reference = off(Fp8Linear(plain)), off(theirs)
    assert ours == pytest.approx(reference, rel=0.15)
    assert max(ours) < 0.05


def test_an_adapter_learns_over_a_base_in_eight_bits_as_over_one_in_bf16(cpu: CpuBackend, tiny: Path) -> None:
    from transformers import AutoModelForCausalLM

    from backpropagate_backends.torch_fp8 import Fp8Linear, multiply_in_fp8
    from backpropagate_backends.torch_model import add_adapter

    ids = torch.arange(3, 40).repeat(2, 1)

    def losses(fp8: bool) -> list[float]:
        base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16)
        if fp8:
            assert multiply_in_fp8(base) == 2 * 7
            held = base.model.layers[0].mlp.up_proj
            assert isinstance(held, Fp8Linear)
            assert [held.weight8.element_size(), base.lm_head.weight.element_size()] == [1, 2]
        model = add_adapter(base, make_job(tiny).spec.lora, seed=1)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        assert {parameter.dtype for parameter in trained} == {torch.float32}
        optimizer = torch.optim.AdamW(trained, lr=1e-2)
        seen = []
        for _ in range(6):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seen.append(float(loss.detach()))
        return seen

    plain, rounded = losses(fp8=False), losses(fp8=True)
    assert rounded[-1] < rounded[0] - 0.4
    assert rounded == pytest.approx(plain, abs=0.05)


def test_a_model_without_a_layer_that_fits_the_hardware_is_refused(cpu: CpuBackend) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from backpropagate_backends.torch_fp8 import multiply_in_fp8

    config = Qwen2Config(
        vocab_size=64,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    with pytest.raises(BackpropagateError, match="multiples of 16"):
        multiply_in_fp8(Qwen2ForCausalLM(config))
