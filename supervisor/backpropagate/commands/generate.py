"""`generate`: ask a trained run, an adapter folder, or a base model, and print the answer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import click
import msgspec

from backpropagate.commands.flags import Command, from_table
from backpropagate.screen import current
from backpropagate.wishes.options import Value
from backpropagate.wishes.settings import Settings
from backpropagate_protocol.errors import RunNotFoundError, UserInputError
from backpropagate_protocol.spec import ModelSpec


@click.command(cls=Command)
@click.argument("what", metavar="RUN|MODEL|PATH")
@click.argument("prompts", metavar="PROMPT...", nargs=-1, required=True)
@click.option("--base", is_flag=True, help="Ask the base model of the run or adapter, without the adapter.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Longest answer.")
@click.option(
    "--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0: always the likeliest token."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="For a temperature above 0.")
@from_table("training.backend", "training.output_dir", "model.load_in_4bit", "model.trust_remote_code", "runner.python")
def generate(
    what: str, prompts: tuple[str, ...], base: bool, max_new_tokens: int, temperature: float, seed: int, **given: Value
) -> None:
    """Ask a trained run, an adapter or a base model.

    Each PROMPT is one user turn in the model's own chat template; the answers come in the same order. A RUN is a run id, any
    unique prefix of one, or `latest`.
    """
    from backpropagate.oneshot import run_job
    from backpropagate.wishes.surroundings import check_backend, check_runner
    from backpropagate_protocol.jobs import GenerateJob
    from backpropagate_protocol.messages import Answers

    screen = current()
    settings = Settings(given)
    meant = _meant(what, settings)
    backend = meant.backend if not settings["training.backend"].explicit else settings.text("training.backend")
    python = meant.runner_python if not settings["runner.python"].explicit else settings.text_or_none("runner.python")
    check_backend(backend)
    job = GenerateJob(
        model=meant.model,
        adapter=None if base else meant.adapter,
        prompts=prompts,
        backend=backend,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
    )
    answers = run_job(job, Answers, backend=backend, runner_python=check_runner(python, backend)).texts
    document = {"model": job.model.name, "adapter": job.adapter, "prompts": prompts, "answers": answers}
    screen.data(document, "\n".join(answers))


class _Meant(NamedTuple):
    """What is to be asked, and how, unless the command line says otherwise."""

    model: ModelSpec
    adapter: str | None
    backend: str
    runner_python: str | None


def _meant(what: str, settings: Settings) -> _Meant:
    """A run first, then the folder of an adapter, then a model."""
    from backpropagate.keep import runs
    from backpropagate.wishes.build_spec import model_spec
    from backpropagate.wishes.models import adapter_base

    backend, python = settings.text("training.backend"), settings.text_or_none("runner.python")
    try:
        run_dir = runs.find(settings.text("training.output_dir"), what)
    except RunNotFoundError as error:
        if error.code == "INPUT_RUN_AMBIGUOUS" or what == "latest":
            raise
    else:
        spec = runs.load_spec(run_dir)
        if not run_dir.adapter.is_dir():
            raise UserInputError(
                f"run {run_dir.run_id} has no finished adapter",
                suggestion=f"Finish it: {runs.resuming(run_dir)}",
                run_id=run_dir.run_id,
            )
        return _Meant(_with_wishes(spec.model, settings), str(run_dir.adapter), spec.backend, spec.runner_python)
    folder = Path(os.path.abspath(os.path.expanduser(what)))
    for adapter in (folder, folder / "lora", folder / "adapter"):
        if (adapter / "adapter_config.json").is_file():
            return _Meant(model_spec(_for(settings, adapter_base(adapter))), str(adapter), backend, python)
    return _Meant(model_spec(_for(settings, what)), None, backend, python)


def _with_wishes(model: ModelSpec, settings: Settings) -> ModelSpec:
    """The run's model, held as the command line says if it says so."""
    if settings["model.load_in_4bit"].explicit:
        model = msgspec.structs.replace(model, load_in_4bit=settings.flag_or_none("model.load_in_4bit"))
    if settings["model.trust_remote_code"].explicit:
        model = msgspec.structs.replace(model, trust_remote_code=settings.flag("model.trust_remote_code"))
    return model


def _for(settings: Settings, model: str) -> Settings:
    """The same wishes for another model."""
    kept = ("model.load_in_4bit", "model.trust_remote_code", "training.backend")
    return Settings({"model": model, **{settings[key].option.argument: settings[key].value for key in kept}})
