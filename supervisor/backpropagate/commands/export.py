"""`export`: make of a trained run, an adapter or a model what other programs can use, and prove that it answers the same."""

from __future__ import annotations

import click

from backpropagate.commands.drills import fault_flag
from backpropagate.commands.flags import Command, from_table
from backpropagate.screen import current
from backpropagate.wishes.options import Value
from backpropagate_protocol.errors import UserInputError
from backpropagate_protocol.export_formats import FORMATS
from backpropagate_protocol.spec import PlannedFault

# Flags of the original that another command has here.
_PUSHED = "--push-to-hub", "--hub-token", "--hub-token-file", "--hub-private"


def _elsewhere(ctx: click.Context, param: click.Parameter, value: object) -> None:
    if value:
        raise UserInputError(
            f"{param.opts[0]}: exporting and uploading are two commands here",
            suggestion="Export first, then: backprop push PATH --repo owner/name",
        )


@click.command(cls=Command)
@click.argument("what", metavar="RUN|PATH")
@click.option(
    "-f",
    "--format",
    "kind",
    type=click.Choice(FORMATS, case_sensitive=False),
    help="What to make. Default: gguf if a quantization, Ollama or LM Studio is named (or a model without an adapter), else lora.",
)
@from_table("export.quantization")
@click.option("-o", "--output", "destination", metavar="DIR", help="Where the result goes. Default: exports/RUN in the output folder.")  # fmt: skip
@click.option("--name", help="The result's name, without quantization and suffix. Default: the run's, or the folder's.")
@click.option("--ollama", is_flag=True, help="Register the GGUF with Ollama, under a name made from --name.")
@from_table("export.ollama_name", "export.ollama_host")
@click.option("--lmstudio", is_flag=True, help="Place the GGUF among the models of LM Studio, too.")
@from_table("export.lmstudio_dir")
@click.option("--base", "--base-model", "base", metavar="MODEL", help="Base model, instead of the one that the run or adapter names.")  # fmt: skip
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="Also prove it with this prompt. May be given several times.")  # fmt: skip
@from_table("export.memory", "export.llama_cpp_dir", "training.backend", "runner.python", "model.revision", "model.trust_remote_code")  # fmt: skip
@click.option("--runs", "output_dir", metavar="FOLDER", help="Output folder in which RUN is looked up and the export is recorded.  [default: ./output]")  # fmt: skip
@from_table("safety.wait")
@click.option("--detach", is_flag=True, help="Start the export and return; it goes on without this terminal.")
@fault_flag
@click.option("--push-to-hub", hidden=True, expose_value=False, callback=_elsewhere)
@click.option("--hub-token", hidden=True, expose_value=False, callback=_elsewhere)
@click.option("--hub-token-file", hidden=True, expose_value=False, callback=_elsewhere)
@click.option("--hub-private", is_flag=True, hidden=True, expose_value=False, callback=_elsewhere)
def export(
    what: str,
    kind: str | None,
    destination: str | None,
    name: str | None,
    ollama: bool,
    lmstudio: bool,
    base: str | None,
    prompts: tuple[str, ...],
    detach: bool,
    faults: tuple[PlannedFault, ...],
    **given: Value,
) -> int:
    """Export a run, an adapter or a model: GGUF, merged, LoRA.

    RUN is a run id, any unique prefix of one, or `latest`; PATH the folder of an adapter or of a model, a hub id, or an output
    folder. The result is compared with the trained model before it gets its name. An interrupted export goes on with `backprop
    resume`.
    """
    from backpropagate.commands.supervising import begin
    from backpropagate.wishes.export_run import export_run
    from backpropagate.wishes.export_spec import ExportWish
    from backpropagate.wishes.settings import Settings

    screen = current()
    settings = Settings(given)
    screen.verbose = screen.verbose or settings.flag("debug")
    wish = ExportWish(
        format=kind, destination=destination, name=name, ollama=ollama, lmstudio=lmstudio, prompts=prompts
    )
    spec = export_run(settings, what, wish, base=base, detached=detach, verbose=screen.verbose, faults=faults)
    for warning in settings.warnings:
        screen.note(f"note: {warning}")
    return begin(screen, spec, detach)
