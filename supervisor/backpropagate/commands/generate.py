"""`generate`: ask a trained run, an adapter folder, or a base model, and print the answer."""

from __future__ import annotations

import os
from pathlib import Path

import click

from backpropagate.commands.flags import Command, from_table
from backpropagate.options import Value
from backpropagate.screen import current
from backpropagate.settings import Settings
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
    from backpropagate.build_spec import check_backend, check_runner
    from backpropagate.oneshot import run_job
    from backpropagate_protocol.jobs import GenerateJob
    from backpropagate_protocol.messages import Answers

    screen = current()
    settings = Settings(given)
    model, adapter, trained_on = _meant(what, settings)
    backend = settings["training.backend"]
    chosen = str(backend.value) if backend.explicit else trained_on
    check_backend(chosen)
    job = GenerateJob(
        model=model,
        adapter=None if base else adapter,
        prompts=prompts,
        backend=chosen,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
    )
    runner_python = check_runner(settings.text_or_none("runner.python"), chosen)
    answers = run_job(job, Answers, backend=chosen, runner_python=runner_python).texts
    document = {"model": model.name, "adapter": job.adapter, "prompts": prompts, "answers": answers}
    screen.data(document, "\n".join(answers))


def _meant(what: str, settings: Settings) -> tuple[ModelSpec, str | None, str]:
    """(model, adapter folder if any, backend): a run first, then a folder, then a model."""
    from backpropagate import runs
    from backpropagate.build_spec import model_spec
    from backpropagate.models import adapter_base

    output = settings.text("training.output_dir")
    try:
        run_dir = runs.find(output, what)
    except RunNotFoundError as error:
        if error.code == "INPUT_RUN_AMBIGUOUS":
            raise
    else:
        spec = runs.load_spec(run_dir)
        if not run_dir.adapter.is_dir():
            raise UserInputError(
                f"run {run_dir.run_id} has no finished adapter",
                suggestion=f"backprop resume {run_dir.run_id[:8]}",
                run_id=run_dir.run_id,
            )
        return spec.model, str(run_dir.adapter), spec.backend
    folder = Path(os.path.abspath(os.path.expanduser(what)))
    for adapter in (folder, folder / "lora", folder / "adapter"):
        if (adapter / "adapter_config.json").is_file():
            base = Settings(_given(settings, adapter_base(adapter)))
            return model_spec(base), str(adapter), settings.text("training.backend")
    return model_spec(Settings(_given(settings, what))), None, settings.text("training.backend")


def _given(settings: Settings, model: str) -> dict[str, object]:
    """The same wishes for another model."""
    kept = ("model.load_in_4bit", "model.trust_remote_code", "training.backend")
    return {"model": model, **{settings[key].option.argument: settings[key].value for key in kept}}
