"""The model card says everything that is known of a model, and nothing of the machine it was made on."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from backpropagate import events
from backpropagate.keep import exports, journal, runs
from backpropagate.keep.exports import ExportReport, ProofReport
from backpropagate.measured import Check
from backpropagate.wishes.card import card_for
from backpropagate.wishes.model_card import CardFacts, model_card
from backpropagate_protocol.rundir import MANIFEST, Manifest, OutputDir, RunDir
from backpropagate_protocol.spec import CampaignSpec, DataSpec, ExportSpec, LoraSpec, ModelSpec, RunSpec, TrainSpec

_RUN = "0d5c4f0e-1111-4222-8333-444455556666"


def _spec(home: Path, **more: object) -> RunSpec:
    spec = RunSpec(
        run_id=_RUN,
        created="2026-11-01T10:00:00Z",
        output=str(home / "out"),
        model=ModelSpec(name="qwen2.5-3b", path="Qwen/Qwen2.5-3B-Instruct", revision="aa8e72"),
        data=DataSpec(source=str(home / "secret place" / "letters.jsonl"), samples=500),
        lora=LoraSpec(r=16, alpha=32, targets=("q_proj", "v_proj"), use_rslora=True),
        train=TrainSpec(steps=3, seed=7),
    )
    return msgspec.structs.replace(spec, **more)


def _trained(home: Path, spec: RunSpec) -> RunDir:
    """A finished run with one fault on the way, in its directory, as a supervisor leaves it."""
    run_dir = runs.create(spec)
    told: list[events.Event] = [
        events.RunCreated(time=1000.0, run_id=_RUN, versions={"backpropagate": "9.9.9", "torch": "2.13.0"}),
        events.AttemptStarted(time=1001.0, run_id=_RUN, attempt=1, pid=1, micro_batch=4, accumulation=2, resume_step=0),
        events.DataPrepared(time=1002.0, run_id=_RUN, path="p", digest="d" * 8, format="messages", rows=500, skipped=0, tokens=9, trained_tokens=5, truncated=0, source_digest="5" * 64),
        events.ModelReady(time=1003.0, run_id=_RUN, attempt=1, backend="cuda", device="NVIDIA RTX 4090", step=0, total_steps=3, micro_batch=4, accumulation=2, trainable_parameters=1, parameters=2, precision="bf16"),
        *(events.Step(time=1004.0 + n, run_id=_RUN, step=n, total_steps=3, samples_seen=8 * n, order=n, loss=3.0 / n) for n in (1, 2, 3)),
        events.FaultSeen(time=1008.0, run_id=_RUN, attempt=1, kind="oom", code="RUNTIME_GPU_OOM", message=f"at {home}/secret place", step=2),
        events.RunEnded(time=1090.0, run_id=_RUN, status="completed", exit_code=0, step=3, total_steps=3, final_loss=1.0, samples_seen=24, seconds=90.0),
    ]  # fmt: skip
    with run_dir.events.open("ab") as file:
        for event in told:
            file.write(msgspec.json.encode(event) + b"\n")
    assert len(list(journal.read(run_dir.events))) == len(told)
    run_dir.adapter.mkdir()
    (run_dir.adapter / "adapter_config.json").write_text(
        '{"r": 16, "base_model_name_or_path": "Qwen/Qwen2.5-3B-Instruct"}'
    )
    (run_dir.adapter / MANIFEST).write_text(f'{{"run_id": "{_RUN}"}}')
    return run_dir


def _report(home: Path, adapter: Path | None, *, passed: bool = True) -> ExportReport:
    return ExportReport(
        run_id="another",
        created="2026-11-01T11:00:00Z",
        result="m-Q4_K_M.gguf",
        bytes=4,
        digest="6" * 64,
        format="gguf",
        quantization="q4_k_m",
        base_model="qwen2.5-3b",
        base_path="Qwen/Qwen2.5-3B-Instruct",
        base_revision=None,
        adapter=str(adapter) if adapter else None,
        adapter_digest="",
        architecture="Qwen2ForCausalLM",
        parameters=3,
        route={"converter_folder": str(home)},
        proof=ProofReport(
            passed=passed,
            verifier="llama",
            checks=(Check(name="tokens", passed=True), Check(name="kl", passed=passed, value=0.0123, bound=0.05)),
            prompts=8,
            positions=64,
        ),
        notes=(f"made in {home}",),
    )


def test_every_field_of_a_trained_run_is_filled(tmp_path: Path) -> None:
    run_dir = _trained(tmp_path, _spec(tmp_path))
    card = card_for("me/letters", run_dir.adapter, run=run_dir)
    assert card.startswith(
        "---\nbase_model: Qwen/Qwen2.5-3B-Instruct\nbase_model_relation: adapter\nlicense: other\n"
        "license_name: qwen-research\nlicense_link: https://huggingface.co/Qwen/Qwen2.5-3B-Instruct/blob/main/LICENSE\n"
        "library_name: peft\npipeline_tag: text-generation\ntags:\n- backpropagate\n- sft\n- lora\n---\n\n# letters\n"
    )
    for row in (
        "| Base model | [Qwen/Qwen2.5-3B-Instruct](https://huggingface.co/Qwen/Qwen2.5-3B-Instruct) |",
        "| Licence of the base model | Qwen-Research |",
        "| Revision of the base model | `aa8e72` |",
        "| Data | `letters.jsonl` |",
        f"| SHA-256 of the data | `{'5' * 64}` |",
        "| Rows | the first 500 |",
        "| Method | sft, loss on the answers |",
        "| Adapter | LoRA, r 16, alpha 32, dropout 0, rsLoRA |",
        "| Adapted modules | q_proj, v_proj |",
        "| Effective batch | 8 samples |",
        "| Learning rate | 0.0002, cosine, 10 steps of warm-up |",
        "| Seed | 7 |",
        "| Trained on | cuda, NVIDIA RTX 4090 |",
        "| Steps | 3 of 3 |",
        "| Samples seen | 24 |",
        f"| Run | `{_RUN}` |",
        "| step 2 | oom `RUNTIME_GPU_OOM` |",
        "| torch | 2.13.0 |",
    ):
        assert row in card.splitlines()
    assert "| Final loss | 1.0000 " in card
    assert 'PeftModel.from_pretrained(base, "me/letters")' in card
    assert "unknown" not in card
    assert "None" not in card


def test_the_commit_that_was_trained_on_is_told_and_not_the_branch_that_was_asked_for(tmp_path: Path) -> None:
    run_dir = _trained(tmp_path, _spec(tmp_path))
    (run_dir.adapter / MANIFEST).write_bytes(msgspec.json.encode(_manifest(model_revision="c0ffee")))
    assert "| Revision of the base model | `c0ffee` |" in card_for("me/letters", run_dir.adapter, run=run_dir)


def _manifest(**more: object) -> Manifest:
    fields: dict[str, object] = {
        "run_id": _RUN,
        "step": 3,
        "total_steps": 3,
        "samples_seen": 24,
        "order": 1,
        "micro_batch": 4,
        "accumulation": 2,
        "data_digest": "d",
        "spec_digest": "s",
        "backend": "cpu",
    }
    return msgspec.convert({**fields, **more}, Manifest)


def test_nothing_of_the_machine_is_in_a_card(tmp_path: Path) -> None:
    run_dir = _trained(tmp_path, _spec(tmp_path))
    folder = tmp_path / "exports"
    folder.mkdir()
    (folder / "m-Q4_K_M.gguf").write_bytes(b"GGUF")
    exports.publish(_made(tmp_path), folder / "m-Q4_K_M.gguf", _report(tmp_path, run_dir.adapter))
    for card in (
        card_for("me/letters", run_dir.adapter, run=run_dir),
        card_for("me/letters", folder, ("m-Q4_K_M.gguf",)),
    ):
        assert str(tmp_path) not in card
        assert "secret place" not in card


def _made(home: Path) -> Path:
    made = home / "made"
    made.write_bytes(b"GGUF")
    return made


def test_a_gguf_is_told_with_its_proof_and_the_training_behind_it(tmp_path: Path) -> None:
    run_dir = _trained(tmp_path, _spec(tmp_path))
    folder = tmp_path / "exports"
    exports.publish(_made(tmp_path), folder / "m-Q4_K_M.gguf", _report(tmp_path, run_dir.adapter))
    card = card_for("me/letters-GGUF", folder, ("m-Q4_K_M.gguf",))
    assert "library_name: gguf" in card
    assert "base_model_relation: finetune" in card
    assert "ollama run hf.co/me/letters-GGUF:Q4_K_M" in card
    assert "| kl | passed | 0.0123 | 0.05 |" in card
    assert "8 prompts, 64 positions" in card
    assert "| Exported as | gguf, Q4_K_M |" in card
    assert "| Samples seen | 24 |" in card


def test_an_exporting_run_leads_to_the_one_that_trained(tmp_path: Path) -> None:
    run_dir = _trained(tmp_path, _spec(tmp_path))
    wish = ExportSpec(format="merged", destination=str(tmp_path), name="m", adapter=str(run_dir.adapter))
    exporting = runs.create(_spec(tmp_path, run_id="e" * 8, kind="export", export=wish))
    folder = tmp_path / "m-merged"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    card = card_for("me/letters", folder, run=exporting)
    assert "library_name: transformers" in card
    assert "| Samples seen | 24 |" in card


def test_an_adapter_without_a_run_says_what_its_configuration_says(tmp_path: Path) -> None:
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": "/home/me/models/my-base",
        "r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.1,
        "target_modules": ["v_proj", "q_proj"],
        "use_dora": True,
    }
    (tmp_path / "adapter_config.json").write_bytes(msgspec.json.encode(config))
    card = card_for("me/a", tmp_path)
    assert "base_model:" not in card
    assert "license:" not in card
    assert "| Base model | `my-base` |" in card
    assert "| Licence of the base model | unknown: look at the base model's |" in card
    assert "| Adapter | LORA, r 8, alpha 16, dropout 0.1, DoRA |" in card
    assert "| Adapted modules | q_proj, v_proj |" in card
    assert "/home/me" not in card
    assert "## Result" not in card


def test_the_newest_adapter_of_an_output_folder_leads_to_its_run(tmp_path: Path) -> None:
    run_dir = _trained(tmp_path, _spec(tmp_path))
    newest = OutputDir(tmp_path / "out").lora
    newest.mkdir()
    for name in ("adapter_config.json", MANIFEST):
        (newest / name).write_bytes((run_dir.adapter / name).read_bytes())
    assert "| Samples seen | 24 |" in card_for("me/a", newest)


def test_the_licence_of_a_local_base_is_read_from_its_card(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\ntags: [x]\nlicense: apache-2.0\n---\nlicense: not this\n")
    spec = _spec(tmp_path, model=ModelSpec(name=str(base), path=str(base)))
    card = card_for("me/a", _trained(tmp_path, spec).adapter)
    assert "license: apache-2.0\n" in card
    assert "| Base model | `base` |" in card


@pytest.mark.parametrize(("source", "listed"), [("me/letters", True), ("./letters.jsonl", False)])
def test_data_of_the_hub_is_named_in_the_front_matter(tmp_path: Path, source: str, listed: bool) -> None:
    card = model_card(CardFacts(repo="me/a", files=(), spec=_spec(tmp_path, data=DataSpec(source=source))))
    assert ("datasets:\n- me/letters\n" in card) is listed


def test_what_is_odd_in_a_name_is_quoted_in_the_front_matter(tmp_path: Path) -> None:
    spec = _spec(tmp_path, model=ModelSpec(name="x", path="0wner/no"), data=DataSpec(source="me/yes"))
    card = model_card(CardFacts(repo="me/a", files=("adapter_config.json",), spec=spec))
    assert 'base_model: "0wner/no"' in card


def test_a_failed_proof_is_told_as_such(tmp_path: Path) -> None:
    report = _report(tmp_path, None, passed=False)
    card = model_card(CardFacts(repo="me/a", files=("a-Q4_K_M.gguf",), report=report))
    assert "FAILED the comparison" in card
    assert "| kl | FAILED | 0.0123 | 0.05 |" in card


def test_a_secret_in_a_name_is_taken_out(tmp_path: Path) -> None:
    spec = _spec(tmp_path, data=DataSpec(source="/x/hf_abcdefghijklmnop.jsonl"))
    assert "hf_abc" not in model_card(CardFacts(repo="me/a", files=(), spec=spec))


def test_a_campaign_names_the_data_of_all_its_runs_and_how_they_were_merged(tmp_path: Path) -> None:
    data = (DataSpec(source="/somewhere/week1.jsonl", samples=9), DataSpec(source="me/week-2"))
    campaign = CampaignSpec(runs=data, names=("week1", "week-2"), merge="ema")
    run_dir = _trained(tmp_path, _spec(tmp_path, kind="campaign", campaign=campaign, data=data[0]))
    added = events.CampaignExtended(
        time=2000.0, run_id=_RUN, data=DataSpec(source="/somewhere/week3.jsonl"), name="week3"
    )
    text = run_dir.events.read_bytes().replace(b'"event":"run_ended"', b'"event":"none_of_these"')
    run_dir.events.write_bytes(text + msgspec.json.encode(added) + b"\n")
    card = card_for("me/mine", run_dir.adapter)

    assert "datasets:\n- me/week-2\n" in card
    assert "| Runs | 3, one after the other, merged after each (ema) |" in card
    assert "`week1.jsonl`, " in card
    assert "`week3.jsonl`" in card
    assert "the first 9" not in card
    assert "somewhere" not in card


def test_the_card_of_a_full_fine_tune_speaks_of_no_adapter(tmp_path: Path) -> None:
    spec = _spec(tmp_path, train=TrainSpec(steps=3, seed=7, mode="full"))
    run_dir = _trained(tmp_path, spec)
    (run_dir.adapter / "adapter_config.json").unlink()
    (run_dir.adapter / "config.json").write_text("{}")
    own = card_for("me/letters", run_dir.adapter, run=run_dir)
    assert "A full fine-tune of [Qwen/Qwen2.5-3B-Instruct]" in own
    assert "| Trained | every weight |" in own
    assert "base_model_relation: finetune" in own
    assert not any(word in own for word in ("LoRA", "PeftModel", "- lora"))

    # What was exported of it names the run's folder as its base; the card still knows the run.
    exported = _spec(tmp_path, run_id="e" * 36, kind="export")
    place = msgspec.structs.replace(exported.model, path=str(run_dir.adapter))
    made = ExportSpec(format="merged", destination=str(tmp_path), name="letters")
    export_dir = runs.create(msgspec.structs.replace(exported, model=place, export=made))
    assert "| Trained | every weight |" in card_for("me/letters", run_dir.adapter, run=export_dir)
