"""`generate`: ask a trained run, an adapter folder, or a base model, and print the answer."""

from __future__ import annotations

import click

from backpropagate.commands.flags import Command, from_table
from backpropagate.screen import current
from backpropagate.wishes.options import Value
from backpropagate.wishes.settings import Settings
from backpropagate_protocol.errors import InvalidSettingError


def seed_of(temperature: float, seed: int | None) -> int:
    """Raises InvalidSettingError for one that nothing is drawn by."""
    if seed is not None and temperature == 0:
        raise InvalidSettingError(
            "--seed would have no effect: at a temperature of 0 nothing is drawn",
            suggestion="Add --temperature 0.7, or leave it out.",
        )
    return seed or 0


@click.command(cls=Command)
@click.argument("what", metavar="RUN|MODEL|PATH")
@click.argument("prompts", metavar="PROMPT...", nargs=-1, required=True)
@click.option("--base", is_flag=True, help="Ask the base model of the run or adapter, without what was trained.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Longest answer.")
@click.option(
    "--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0: always the likeliest token."
)
@click.option("--seed", type=click.IntRange(min=0), help="For a temperature above 0.  [default: 0]")
@from_table("training.backend", "training.output_dir", "model.load_in_4bit", "model.trust_remote_code", "runner.python")
def generate(
    what: str,
    prompts: tuple[str, ...],
    base: bool,
    max_new_tokens: int,
    temperature: float,
    seed: int | None,
    **given: Value,
) -> None:
    """Ask a trained run, an adapter or a base model.

    Each PROMPT is one user turn in the model's own chat template; the answers come in the same order. A RUN is a run id, any
    unique prefix of one, or `latest`.
    """
    from backpropagate.doors.oneshot import run_job
    from backpropagate.wishes.sources import find
    from backpropagate.wishes.surroundings import check_backend, check_runner
    from backpropagate_protocol.jobs import GenerateJob
    from backpropagate_protocol.messages import Answers

    screen = current()
    chosen = seed_of(temperature, seed)
    settings = Settings(given)
    meant = find(what, settings)
    check_backend(meant.backend)
    python = check_runner(meant.runner_python, meant.backend)
    model, adapter = meant.subject(base)
    job = GenerateJob(
        model=model,
        adapter=adapter,
        prompts=prompts,
        backend=meant.backend,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=chosen,
    )
    answers = run_job(job, Answers, backend=meant.backend, runner_python=python).texts
    document = {
        "model": job.model.name,
        "adapter": None if base else meant.trained,
        "prompts": prompts,
        "answers": answers,
    }
    screen.data(document, "\n".join(answers))
