"""How a run begins (its first micro-batch, always a divisor of the effective batch), and the stages of an export."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from backpropagate.judge import plan
from backpropagate.judge.prompts import PROMPTS
from backpropagate.judge.start import first_micro_batch
from backpropagate_protocol import messages as m
from backpropagate_protocol.jobs import PlaceJob, PreflightJob, ProveJob, ReferenceJob, RegisterJob
from backpropagate_protocol.rundir import ExportDir, OutputDir
from backpropagate_protocol.spec import ExportSpec, PlannedFault, PushSpec, RunSpec
from tests.supervisor.transcript import spec


def asking(batch_size: int | None, effective: int = 8) -> RunSpec:
    plain = spec(effective)
    return msgspec.structs.replace(plain, train=msgspec.structs.replace(plain.train, batch_size=batch_size))


@pytest.mark.parametrize(("memory", "micro"), [(None, 8), (81_559, 4), (24_564, 4), (16_380, 2), (8_192, 1)])
def test_without_a_wish_the_cards_memory_decides(memory: int | None, micro: int) -> None:
    assert first_micro_batch(asking(None), card_memory=memory) == micro


def test_what_fitted_before_is_better_than_a_guess_and_a_wish_is_better_than_both() -> None:
    assert first_micro_batch(asking(None), fitted=2, card_memory=81_559) == 2
    assert first_micro_batch(asking(4), fitted=2, card_memory=8_192) == 4


@pytest.mark.parametrize(("wish", "effective", "micro"), [(5, 12, 4), (100, 8, 8), (3, 8, 2), (7, 7, 7), (6, 7, 1)])
def test_it_divides_the_effective_batch(wish: int, effective: int, micro: int) -> None:
    assert first_micro_batch(asking(wish, effective)) == micro


# --- the chain of an export -----------------------------------------------------------------------------------------

ROUTE = m.ExportRoute("LlamaForCausalLM", 1, "own", "", "f16", "llama", "llama", 1, 1, 1)


def wishing(format: str, **wishes: object) -> RunSpec:
    wish = {"format": format, "destination": "/exports", "name": "talk", "adapter": "/lora", **wishes}
    return msgspec.structs.replace(spec(), kind="export", export=msgspec.convert(wish, ExportSpec))


def names(asked: RunSpec, route: m.ExportRoute = ROUTE) -> list[str]:
    return [stage.name for stage in plan.stages(asked, route)]


def test_each_format_has_its_stages_in_order() -> None:
    gguf = wishing("gguf", quantization="q4_k_m")
    assert names(gguf) == ["reference", "convert", "quantize", "prove"]
    assert names(wishing("merged")) == ["reference", "merge", "merged-reference", "prove"]
    assert names(wishing("lora")) == ["place"]
    assert names(wishing("lora-gguf")) == ["convert", "prove"]


def test_what_the_converter_writes_itself_is_not_quantized() -> None:
    route = msgspec.structs.replace(ROUTE, type="q8_0", quantizer="")
    chain = plan.export(wishing("gguf", quantization="q8_0"), route)
    assert [stage.name for stage in chain.making] == ["reference", "convert", "prove"]
    assert Path(chain.result).name == "talk-Q8_0.gguf"


def test_where_ollama_quantizes_the_file_is_named_after_what_it_holds() -> None:
    route = msgspec.structs.replace(ROUTE, quantizer="ollama")
    chain = plan.export(wishing("gguf", quantization="q4_k_m", ollama_name="talk"), route)
    assert Path(chain.result).name == "talk-F16.gguf"
    (register,) = chain.using
    assert isinstance(register.job, RegisterJob)
    assert (register.job.gguf, register.job.quantize) == (chain.result, "q4_k_m")


def test_the_result_is_used_only_after_it_has_its_name() -> None:
    chain = plan.export(wishing("gguf", quantization="q4_k_m", ollama_name="talk", lmstudio="/models"), ROUTE)
    assert [stage.name for stage in chain.using] == ["lmstudio", "register"]
    placed, registered = (stage.job for stage in chain.using)
    assert isinstance(placed, PlaceJob)
    assert isinstance(registered, RegisterJob)
    assert placed.source == registered.gguf == chain.result
    assert Path(placed.out).parts[-3:] == ("backpropagate", "talk", "talk-Q4_K_M.gguf")


def test_every_output_is_made_in_the_runs_own_work_folder() -> None:
    for format in ("gguf", "merged", "lora", "lora-gguf"):
        asked = wishing(format, quantization="q4_k_m" if format == "gguf" else None)
        chain = plan.export(asked, ROUTE)
        outputs = {Path(stage.output).parent for stage in chain.making if stage.output}
        assert outputs == {ExportDir(Path("/exports")).work(asked.run_id)}
        assert Path(chain.made).parent in outputs


def test_the_reference_answers_the_fixed_prompts_and_the_users() -> None:
    asked = wishing("gguf", quantization="f16", prompts=("And mine?",))
    reference, *_ = plan.stages(asked, ROUTE, "a-commit")
    assert isinstance(reference.job, ReferenceJob)
    assert reference.job.prompts == (*PROMPTS, "And mine?")
    assert (reference.job.backend, reference.job.model.revision) == (asked.backend, "a-commit")


def test_both_references_of_a_merge_are_made_at_one_moment_however_late_the_second_is() -> None:
    asked = wishing("merged")
    made = [stage.job for stage in plan.stages(asked, ROUTE) if isinstance(stage.job, ReferenceJob)]
    assert [job.moment for job in made] == [asked.created, asked.created]


def test_an_adapter_alone_is_proved_without_a_reference_and_named_after_what_it_holds() -> None:
    chain = plan.export(wishing("lora-gguf"), ROUTE)
    prove = chain.making[-1].job
    assert isinstance(prove, ProveJob)
    assert (prove.kind, prove.target, prove.reference) == ("lora-gguf", chain.made, "")
    assert Path(chain.result).name == "talk-lora-F32.gguf"


def test_a_chained_export_is_of_the_adapter_that_the_run_trains() -> None:
    asked = msgspec.structs.replace(wishing("lora", adapter=None), kind="train")
    (place,) = plan.stages(asked, ROUTE)
    assert isinstance(place.job, PlaceJob)
    assert Path(place.job.source) == OutputDir(Path(asked.output)).run(asked.run_id).adapter
    before, after = (plan.preflight(asked, trained=trained).job for trained in (False, True))
    assert isinstance(before, PreflightJob)
    assert isinstance(after, PreflightJob)
    assert before.adapter is None
    assert after.adapter == place.job.source


def test_a_full_fine_tune_is_a_model_of_its_own() -> None:
    asked = msgspec.structs.replace(wishing("gguf", quantization="f16", adapter=None), kind="train")
    asked = msgspec.structs.replace(asked, train=msgspec.structs.replace(asked.train, mode="full"))
    model, adapter = plan.subject(asked)
    assert adapter is None
    assert Path(model.path) == OutputDir(Path(asked.output)).run(asked.run_id).adapter


def test_a_planned_fault_goes_to_its_stage_alone() -> None:
    faults = (PlannedFault("error", 1, stage="merged-reference"), PlannedFault("error", 2))
    asked = msgspec.structs.replace(wishing("merged"), faults=faults)
    planned = {stage.name: stage.job.faults for stage in plan.stages(asked, ROUTE)}
    assert planned.pop("merged-reference") == (PlannedFault("error", 1, stage="reference"),)
    assert set(planned.values()) == {()}


def test_a_push_is_one_stage() -> None:
    push = PushSpec(folder="/lora", repo="someone/something")
    assert plan.push(msgspec.structs.replace(spec(), kind="push", push=push)).name == "push"
