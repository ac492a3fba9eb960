"""What an export needs and does not find: a model, or a server, before the training, at a resume, or at its last stage."""

from __future__ import annotations

import msgspec
import pytest

from backpropagate.drive.supervise import supervise
from backpropagate.events import AttemptStarted, FaultSeen, Noticed, Recovering, RunEnded
from backpropagate.keep import history, runs
from backpropagate_protocol.errors import BackpropagateError, OllamaRegistrationError
from backpropagate_protocol.spec import RunSpec
from tests.conftest import Oracle
from tests.doubles.ollama_server import OllamaDouble
from tests.system.exported import export_of, is_in, lora_export, names, result_of, wish
from tests.system.supervised import STEPS, Story, Supervisor, resume_here, run_here, toy_spec

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def no_model(oracle: Oracle, toy: RunSpec) -> RunSpec:
    """The toy, to be exported over a base that has no file."""
    empty = oracle.home / "no-model"
    empty.mkdir()
    model = msgspec.structs.replace(toy.model, path=str(empty))
    return msgspec.structs.replace(toy, model=model, export=wish(oracle.output(), None))


def test_an_export_that_cannot_work_is_refused_before_the_training_and_leaves_nothing(oracle: Oracle) -> None:
    output = oracle.output()
    spec = no_model(oracle, toy_spec(output))
    run_dir, story = runs.create(spec), Story()
    with pytest.raises(BackpropagateError) as refused, runs.beginning(run_dir):
        supervise(run_dir, [story])
    assert refused.value.exit_code == 1
    assert not story.of(AttemptStarted)
    assert not story.of(RunEnded)
    assert not run_dir.path.exists()
    assert history.list_rows(output) == []


def dead_ollama(oracle: Oracle, toy: RunSpec) -> RunSpec:
    """The toy, to be registered where nobody listens."""
    with OllamaDouble() as server:
        url = server.url
    empty = no_model(oracle, toy).export
    assert empty is not None
    return msgspec.structs.replace(toy, export=msgspec.structs.replace(empty, ollama_name="talk", ollama_host=url))


def test_a_server_that_is_away_at_first_is_a_matter_of_time_and_nothing_of_the_run_stays(oracle: Oracle) -> None:
    output = oracle.output()
    run_dir = runs.create(dead_ollama(oracle, toy_spec(output)))
    with pytest.raises(OllamaRegistrationError) as refused, runs.beginning(run_dir):
        supervise(run_dir)
    assert refused.value.exit_code == 75
    assert "run the same command again" in refused.value.suggestion
    assert not run_dir.path.exists()


def test_a_server_that_is_away_at_a_resume_does_not_keep_the_training_from_going_on(oracle: Oracle) -> None:
    """What only the last stage needs may be there when it comes to it; here it is not, and the training is kept."""
    output = oracle.output()
    toy = toy_spec(output, "device_lost:12")
    run_here(toy)
    run_dir = output.run(toy.run_id)
    run_dir.spec.write_bytes(msgspec.json.encode(dead_ollama(oracle, toy)))
    outcome, story = resume_here(run_dir)
    assert story.of(AttemptStarted)
    assert any("the training goes on" in notice.text for notice in story.of(Noticed))
    assert (outcome.status, outcome.exit_code) == ("partial", 3), outcome
    assert (outcome.code, outcome.step) == ("DEP_OLLAMA_REGISTRATION_FAILED", STEPS)
    assert outcome.adapter is not None


def test_a_server_that_is_away_when_an_export_goes_on_is_a_matter_of_time(oracle: Oracle, adapter: str) -> None:
    """Nothing was exported yet, so nothing is partly done."""
    output = oracle.output()
    run_dir = runs.create(lora_export(oracle, adapter, "place:hang:1"))
    with Supervisor(run_dir) as running:
        running.until(lambda: is_in(running, "place"), "it is in the stage")
        running.process.kill()
        running.wait()
    with OllamaDouble() as server:
        url = server.url
    spec = runs.load_spec(run_dir)
    export = msgspec.structs.replace(wish(output, adapter), ollama_name="talk", ollama_host=url)
    run_dir.spec.write_bytes(msgspec.json.encode(msgspec.structs.replace(spec, export=export)))
    outcome, _ = resume_here(run_dir)
    assert (outcome.status, outcome.exit_code, outcome.code) == ("interrupted", 75, "DEP_OLLAMA_REGISTRATION_FAILED")


def test_a_run_whose_preflight_fails_on_a_resume_keeps_everything(oracle: Oracle) -> None:
    output = oracle.output()
    toy = toy_spec(output, "device_lost:12")
    run_here(toy)
    run_dir = output.run(toy.run_id)
    run_dir.spec.write_bytes(msgspec.json.encode(no_model(oracle, toy)))
    outcome, story = resume_here(run_dir)
    assert (outcome.status, outcome.exit_code) == ("failed", 1), outcome
    assert not story.of(AttemptStarted)
    assert run_dir.checkpoint(10).is_dir()
    assert outcome.step >= 10


def test_a_server_that_goes_away_costs_the_registration_and_one_command_makes_up_for_it(
    oracle: Oracle, adapter: str
) -> None:
    """The proven file has its name and stays; the resume only registers it."""
    output = oracle.output()
    with OllamaDouble() as server:
        export = msgspec.structs.replace(wish(output, adapter), ollama_name="talk", ollama_host=server.url)
        spec = export_of(adapter, output, "register:sigkill:2:4", export=export)
        server.faults.error_line = "no space left on device"
        outcome, story = run_here(spec)
        assert (outcome.status, outcome.exit_code, outcome.code) == ("partial", 3, "DEP_OLLAMA_REGISTRATION_FAILED")
        assert [again.delay >= 2 for again in story.of(Recovering)] == [True, True]
        assert outcome.export == str(result_of(spec))
        run_dir = output.run(spec.run_id)
        assert runs.resuming(run_dir) in outcome.suggestion
        server.faults.error_line = ""
        again, second = resume_here(run_dir)
        assert (again.status, again.ollama, again.export) == ("completed", "talk", outcome.export), again
        assert names(second) == ["register"]
        assert [seen.kind for seen in second.of(FaultSeen)] == ["died"]
        assert len(server.models) == 1
    (row,) = history.list_rows(output)
    assert (row.ollama_name, row.export_paths) == ("talk", [outcome.export])
