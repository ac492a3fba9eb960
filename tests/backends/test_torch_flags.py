"""Every flag of `backprop train` that changes the training is seen in the trainer that it builds: none is passed over.

A proof looks at the same place twice: there is what the flag asked for, and without the flag there is something else. A flag
that is not wired fails one of the two. `test_every_flag_of_train_has_its_proof` keeps the list complete.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from backpropagate.commands.train import TRAINING_KEYS
from backpropagate.wishes.options import BY_KEY
from backpropagate_backends.cpu import CpuBackend
from backpropagate_protocol.errors import BackpropagateError, InvalidSettingError
from backpropagate_runner.readers import HubSource, RawRow
from tests.backends.flag_runs import CHAT, PAIRS, Look, Row, Seen, chat, seen, understood, wished
from tests.backends.torch_runs import FOREIGN_WARNINGS
from tests.house.source import ROOT

pytestmark = [pytest.mark.slow, FOREIGN_WARNINGS]


@dataclass(frozen=True)
class Proof:
    """Where the flag of `key` is seen, and as what."""

    key: str
    look: Look
    expected: object

    def __str__(self) -> str:
        return self.key


def hold(proof: Proof, with_flag: Seen, without: Seen) -> None:
    assert proof.look(with_flag) == proof.expected
    assert proof.look(without) != proof.expected


# --- places to look at ----------------------------------------------------------------------------------------------


def optimizer(run: Seen) -> torch.optim.Optimizer:
    found = run.trainer.optimizer
    return getattr(found, "optimizer", found)  # type: ignore[no-any-return]  # accelerate's wrapper


def of_optimizer(name: str) -> Look:
    return lambda run: optimizer(run).param_groups[0][name]


def of_arguments(name: str) -> Look:
    return lambda run: getattr(run.trainer.args, name)


def of_adapter(name: str) -> Look:
    return lambda run: getattr(run.trainer.model.peft_config["default"], name)


def rate_at(step: int) -> Look:
    """The share of the peak learning rate at this step."""
    return lambda run: round(run.trainer.lr_scheduler.lr_lambdas[0](step), 3)


def adapted(run: Seen) -> set[str]:
    named = run.trainer.model.named_modules()
    return {name.rpartition(".")[2] for name, module in named if hasattr(module, "lora_A")}


def base_weight(run: Seen) -> torch.nn.Parameter:
    named = run.trainer.model.named_parameters()
    found: torch.nn.Parameter = next(p for name, p in named if "up_proj" in name and "lora" not in name)
    return found


def trained_share(run: Seen) -> float:
    """Of all weights, how many are trained."""
    parameters: list[torch.nn.Parameter] = list(run.trainer.model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad) / sum(p.numel() for p in parameters)


# --- one training with many flags, beside one with none --------------------------------------------------------------

MANY = (
    ("--steps", "7"),
    ("--batch-size", "2"),
    ("--gradient-accumulation", "3"),
    ("--samples", "11"),
    ("--lr", "1e-3"),
    ("--scheduler", "linear"),
    ("--warmup-steps", "3"),
    ("--weight-decay", "0.05"),
    ("--max-grad-norm", "0.7"),
    ("--optim", "adamw_8bit"),
    ("--seed", "11"),
    ("--lora-r", "4"),
    ("--lora-alpha", "12"),
    ("--lora-dropout", "0.25"),
    ("--target-modules", "q_proj,v_proj"),
    ("--use-dora",),
    ("--use-rslora",),
    ("--init-lora-weights", "gaussian"),
    ("--dtype", "bf16"),
    ("--gradient-checkpointing",),
)
OF_MANY = (
    Proof("training.max_steps", of_arguments("max_steps"), 7),
    Proof("training.batch_size", of_arguments("per_device_train_batch_size"), 2),
    Proof("training.gradient_accumulation", of_arguments("gradient_accumulation_steps"), 3),
    Proof("data.max_samples", lambda run: len(run.trainer.train_dataset), 11),
    Proof("training.learning_rate", lambda run: run.trainer.lr_scheduler.base_lrs[0], 1e-3),
    Proof("training.scheduler", rate_at(4), 0.75),
    Proof("training.warmup_steps", rate_at(2), 0.667),
    Proof("training.weight_decay", of_optimizer("weight_decay"), 0.05),
    Proof("training.max_grad_norm", of_arguments("max_grad_norm"), 0.7),
    Proof("training.optim", lambda run: type(optimizer(run)).__module__.partition(".")[0], "bitsandbytes"),
    Proof("training.seed", of_arguments("data_seed"), 11),
    Proof("lora.r", of_adapter("r"), 4),
    Proof("lora.alpha", of_adapter("lora_alpha"), 12),
    Proof("lora.dropout", of_adapter("lora_dropout"), 0.25),
    Proof("lora.target_modules", adapted, {"q_proj", "v_proj"}),
    Proof("lora.use_dora", lambda run: any("magnitude" in n for n, _ in run.trainer.model.named_parameters()), True),
    Proof("lora.use_rslora", of_adapter("use_rslora"), True),
    Proof("lora.init_lora_weights", of_adapter("init_lora_weights"), "gaussian"),
    Proof("model.dtype", lambda run: base_weight(run).dtype, torch.bfloat16),
    Proof("training.gradient_checkpointing", lambda run: run.trainer.model.is_gradient_checkpointing, True),
)


@pytest.fixture(scope="module")
def plain(cpu: CpuBackend, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return seen(cpu, tiny, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def many(cpu: CpuBackend, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    pytest.importorskip("bitsandbytes")
    return seen(cpu, tiny, tmp_path_factory.mktemp("many"), *(word for flag in MANY for word in flag))


@pytest.mark.parametrize("proof", OF_MANY, ids=str)
def test_a_flag_is_seen_in_the_trainer(proof: Proof, many: Seen, plain: Seen) -> None:
    hold(proof, many, plain)


def test_the_scale_of_rank_stabilised_adapters_is_another(many: Seen) -> None:
    layer = next(m for n, m in many.trainer.model.named_modules() if n.endswith("q_proj") and hasattr(m, "scaling"))
    assert layer.scaling["default"] == 12 / 4**0.5


# --- flags that need a training of their own ------------------------------------------------------------------------

ALONE = (
    (("--epochs", "3"), Proof("training.epochs", of_arguments("max_steps"), 6), CHAT),
    (("--preset", "fast"), Proof("training.preset", of_arguments("max_steps"), 50), CHAT),
    (("--lora-preset", "fast"), Proof("lora.preset", adapted, {"q_proj", "v_proj"}), CHAT),
    (("--mode", "full"), Proof("training.mode", trained_share, 1.0), CHAT),
    (("--load-in-4bit",), Proof("model.load_in_4bit", lambda run: type(base_weight(run)).__name__, "Params4bit"), CHAT),
)


@pytest.mark.parametrize(
    ("flags", "proof", "rows"), ALONE, ids=lambda value: str(value) if isinstance(value, Proof) else ""
)
def test_a_flag_with_a_training_of_its_own_is_seen_in_the_trainer(
    cpu: CpuBackend, tiny: Path, tmp_path: Path, plain: Seen, flags: tuple[str, ...], proof: Proof, rows: list[Row]
) -> None:
    if "--load-in-4bit" in flags:
        pytest.importorskip("bitsandbytes")
    made = seen(cpu, tiny, tmp_path, *flags, rows=rows)
    hold(proof, made, plain)
    if "--load-in-4bit" in flags:
        state = base_weight(made).quant_state  # type: ignore[attr-defined]  # bitsandbytes' own parameter
        assert (state.quant_type, state.nested) == ("nf4", True)


# --- what is computed how, and in which order -----------------------------------------------------------------------

CALM = (
    (
        ("--attention", "eager"),
        Proof("training.attention", lambda run: run.trainer.model.config._attn_implementation, "eager"),
    ),
    (("--no-packing",), Proof("data.packing", lambda run: run.trainer.data_collator._side_by_side, False)),
    (
        ("--group-by-length",),
        Proof("training.group_by_length", lambda run: run.trainer.arranged.lengths is not None, True),
    ),
    (("--order", "given"), Proof("data.order", lambda run: run.trainer.arranged.given, True)),
    (("--order", "curriculum"), Proof("data.order", lambda run: run.trainer.arranged.bands is not None, True)),
)


@pytest.mark.parametrize(
    ("flags", "proof"), CALM, ids=lambda value: "" if isinstance(value, Proof) else " ".join(value)
)
def test_what_changes_no_sample_but_how_it_is_read_is_seen_in_the_trainer(
    cpu: CpuBackend, tiny: Path, tmp_path: Path, plain: Seen, flags: tuple[str, ...], proof: Proof
) -> None:
    hold(proof, seen(cpu, tiny, tmp_path, *flags), plain)


def test_code_that_comes_with_a_model_is_run_only_if_that_was_asked(
    cpu: CpuBackend, tiny: Path, tmp_path: Path, plain: Seen
) -> None:
    """Seen in what every `from_pretrained` is given."""
    from backpropagate_backends.model_source import find

    trusting = wished(cpu, tiny, tmp_path, "--trust-remote-code").spec.model
    assert find(trusting).options()["trust_remote_code"] is True
    assert find(plain.wished.spec.model).options()["trust_remote_code"] is False


# --- what is preferred ------------------------------------------------------------------------------------------------

METHODS = (
    ("orpo", ("--orpo-beta", "0.3"), {"training.orpo_beta": ("beta", 0.3)}),
    (
        "simpo",
        ("--simpo-beta", "3", "--simpo-gamma", "0.5"),
        {"training.simpo_beta": ("beta", 3.0), "training.simpo_gamma": ("gamma", 0.5)},
    ),
    ("dpo", ("--dpo-beta", "0.3"), {"training.dpo_beta": ("beta", 0.3)}),
    (
        "kto",
        ("--kto-beta", "0.3", "--kto-desirable-weight", "1.5", "--kto-undesirable-weight", "0.8"),
        {
            "training.kto_beta": ("beta", 0.3),
            "training.kto_desirable_weight": ("desirable", 1.5),
            "training.kto_undesirable_weight": ("undesirable", 0.8),
        },
    ),
)


@pytest.mark.parametrize(("method", "flags", "expected"), METHODS, ids=[method for method, _, _ in METHODS])
def test_a_method_and_its_knobs_are_seen_in_the_trainer(
    cpu: CpuBackend,
    tiny: Path,
    tmp_path: Path,
    method: str,
    flags: tuple[str, ...],
    expected: dict[str, tuple[str, float]],
) -> None:
    with_flags = seen(cpu, tiny, tmp_path / "with", "--method", method, *flags, rows=PAIRS).trainer.preference
    assert with_flags.method == method
    without = wished(cpu, tiny, tmp_path / "without", "--method", method, rows=PAIRS).spec.train
    for field, value in expected.values():
        assert getattr(with_flags, field) == value
        name = {"desirable": "desirable_weight", "undesirable": "undesirable_weight"}.get(field, field)
        assert getattr(without, name) != value


# --- rows ------------------------------------------------------------------------------------------------------------

TWICE = [*CHAT, CHAT[3]]
NEARLY = [
    *CHAT,
    chat("How many are there of all the things?", "so many " * 9),
    chat("How many are there of all the things!", "so many " * 9),
]
FORMATS = [{"text": "plain text of a row"} for _ in range(3)]


def test_the_longest_row_is_as_long_as_was_asked(cpu: CpuBackend, tiny: Path, tmp_path: Path, plain: Seen) -> None:
    cut = wished(cpu, tiny, tmp_path, "--max-length", "40")
    assert max(map(len, cut.rows())) == 40 < max(map(len, plain.wished.rows()))


def test_all_tokens_carry_loss_if_that_was_asked(cpu: CpuBackend, tiny: Path, tmp_path: Path, plain: Seen) -> None:
    every = wished(cpu, tiny, tmp_path, "--train-on", "all")
    assert all(every.data.row(0)[1])
    assert not all(plain.wished.data.row(0)[1])


def test_the_shape_of_rows_is_the_one_that_was_named(cpu: CpuBackend, tiny: Path, tmp_path: Path) -> None:
    """A row that could be two things is the named one."""
    both = [{"text": f"text {row}", "prompt": "p", "completion": "c"} for row in range(4)]
    assert wished(cpu, tiny, tmp_path / "a", "--format", "text", rows=both).data.manifest.format == "text"
    assert wished(cpu, tiny, tmp_path / "b", rows=both).data.manifest.format != "text"


def test_bad_rows_are_left_out_if_that_was_asked(cpu: CpuBackend, tiny: Path, tmp_path: Path) -> None:
    made = wished(cpu, tiny, tmp_path, "--on-bad-row", "skip", rows=[*CHAT, {"messages": []}])
    assert len(made.data) == len(CHAT)


@pytest.mark.parametrize(
    ("flags", "rows", "left"),
    [
        (("--dedup", "exact"), TWICE, 12),
        (("--dedup", "near"), NEARLY, 13),
        (("--min-tokens", "40"), CHAT, None),
        (("--max-tokens", "40"), CHAT, None),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_rows_are_left_out_as_was_asked(
    cpu: CpuBackend, tiny: Path, tmp_path: Path, flags: tuple[str, ...], rows: list[Row], left: int | None
) -> None:
    every = [len(row) for row in wished(cpu, tiny, tmp_path / "all", rows=rows).rows()]
    kept = [len(row) for row in wished(cpu, tiny, tmp_path / "some", *flags, rows=rows).rows()]
    assert 0 < len(kept) < len(every)
    assert left is None or len(kept) == left
    if left is None:
        assert kept == [length for length in every if (length >= 40) == (flags[0] == "--min-tokens") or length == 40]


THOUGHTS = [chat(f"And {row}?", f"<think>{'hm ' * (2 + 3 * row)}</think>so {row}") for row in range(8)]


def test_rows_without_a_trace_of_the_wanted_length_are_left_out(cpu: CpuBackend, tiny: Path, tmp_path: Path) -> None:
    rows = [*THOUGHTS, *CHAT]
    every = len(wished(cpu, tiny, tmp_path / "every", rows=rows).data)
    least = ("--min-trace-tokens", "0")
    thinking = len(wished(cpu, tiny, tmp_path / "thinking", "--reasoning-trace", *least, rows=rows).data)
    usual = len(wished(cpu, tiny, tmp_path / "usual", "--reasoning-trace", rows=rows).data)
    short = len(
        wished(cpu, tiny, tmp_path / "a", "--reasoning-trace", *least, "--max-trace-tokens", "20", rows=rows).data
    )
    long = len(wished(cpu, tiny, tmp_path / "b", "--reasoning-trace", "--min-trace-tokens", "30", rows=rows).data)
    assert (every, thinking) == (len(rows), len(THOUGHTS))
    assert 0 < short < thinking
    assert 0 < long < usual <= thinking


def test_rows_are_held_out_of_the_training_as_was_asked(cpu: CpuBackend, tiny: Path, tmp_path: Path) -> None:
    assert len(wished(cpu, tiny, tmp_path, "--eval-split", "0.25").data) == 9


def test_the_split_of_a_hub_data_set_is_the_one_that_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's own library takes a folder here for the data set of that name."""
    pytest.importorskip("datasets")
    folder = tmp_path / "there" / "me" / "rows"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text(f'{{"text": "{split}"}}\n')

    def read(*flags: str) -> list[object]:
        (tmp_path / "here").mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / "here")
        data = understood(tmp_path / "here", "--data", "me/rows", "--model", "tiny", "--backend", "cpu", *flags).data
        monkeypatch.chdir(tmp_path / "there")
        with HubSource(data) as source:
            return [row.value for row in source.rows() if isinstance(row, RawRow)]

    assert (read(), read("--split", "test")) == ([{"text": "train"}], [{"text": "test"}])


# --- the list ---------------------------------------------------------------------------------------------------------

HERE = {
    *(proof.key for proof in OF_MANY),
    *(proof.key for _, proof, _ in ALONE),
    *(key for _, _, keys in METHODS for key in keys),
    "training.method", "data.source", "model.name",  # nothing here would run without
    "model.max_seq_length", "data.train_on", "data.format", "data.on_bad_row", "data.dedup", "data.min_tokens",
    "data.max_tokens", "training.fp8", *(proof.key for _, proof in CALM), "data.reasoning_trace",
    "data.min_trace_tokens", "data.max_trace_tokens", "data.eval_split", "training.liger", "training.compile",
    "training.unsloth", "model.trust_remote_code", "data.split",
}  # fmt: skip
ELSEWHERE = {
    "training.full_ft_ceiling": "tests/supervisor/wishes/test_together.py",
    "model.revision": "tests/backends/test_model_source.py",
    "training.backend": "tests/backends/test_torch_cuda.py",
    "training.eval_steps": "tests/system/test_evaluated.py",
    "training.early_stopping": "tests/system/test_evaluated.py",
    "training.keep_best": "tests/system/test_evaluated.py",
    "training.logging_steps": "tests/supervisor/test_cli.py",
}
# What says where results go and how a run is watched over changes no step of it.
OF_THE_SUPERVISOR = ("tracking.", "safety.", "export.", "runner.", "training.output_dir", "training.name")


def test_every_flag_of_train_has_its_proof() -> None:
    asked = {key for key in TRAINING_KEYS if not key.startswith(OF_THE_SUPERVISOR)}
    missing = asked - HERE - ELSEWHERE.keys()
    assert not missing, sorted(missing)
    assert not (HERE | ELSEWHERE.keys()) - BY_KEY.keys()
    for key, file in ELSEWHERE.items():
        text = (ROOT / file).read_text(encoding="utf-8")
        option = BY_KEY[key]
        assert any(name in text for name in (option.argument, key, *option.flags)), f"{file} says nothing of {key}"


# --- where this machine cannot -----------------------------------------------------------------------------------------------


def test_eight_bit_floats_are_refused_where_there_are_none(cpu: CpuBackend, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError, match="CUDA card"):
        wished(cpu, tiny, tmp_path, "--fp8")
    auto = wished(cpu, tiny, tmp_path, "--fp8", "--backend", "auto")
    with pytest.raises(InvalidSettingError, match="the CPU does not multiply 8-bit floats"):
        cpu.check(auto.job)


@pytest.mark.filterwarnings("ignore")  # the compiler has words of its own
def test_layers_are_compiled_if_that_was_asked(cpu: CpuBackend, tiny: Path, tmp_path: Path, plain: Seen) -> None:
    def compiled(run: Seen) -> bool:
        return any(module._compiled_call_impl is not None for module in run.trainer.model.modules())

    try:
        made = seen(cpu, tiny, tmp_path, "--compile", steps=0)  # the layers themselves are compiled when they are used
    except InvalidSettingError as error:
        pytest.skip(error.message)
    hold(Proof("training.compile", compiled, True), made, plain)


def test_kernels_for_cards_are_refused_without_one(cpu: CpuBackend, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError, match="--liger"):
        cpu.check(wished(cpu, tiny, tmp_path, "--liger").job)


def test_unsloth_is_refused_where_it_is_not(cpu: CpuBackend, tiny: Path, tmp_path: Path) -> None:
    if find_spec("unsloth") is not None:
        pytest.skip("Unsloth is installed here")
    with pytest.raises(BackpropagateError, match="nsloth"):
        wished(cpu, tiny, tmp_path, "--unsloth")
