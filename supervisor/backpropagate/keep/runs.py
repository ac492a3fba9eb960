"""Run directories: make one, find one by a prefix of its id, read the spec it was made from."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from backpropagate_protocol import durable
from backpropagate_protocol.errors import BackpropagateError, RunNotFoundError, code_of_write, error_for
from backpropagate_protocol.rundir import OutputDir, RunDir
from backpropagate_protocol.spec import RunSpec

Output = OutputDir | Path | str


def as_output(output: Output) -> OutputDir:
    """The same folder as an OutputDir with an absolute path."""
    path = output.path if isinstance(output, OutputDir) else Path(output)
    return OutputDir(path.absolute())


def create(spec: RunSpec) -> RunDir:
    """Makes the run directory of a new run and writes its `spec.json`.

    Raises ConfigurationError (CONFIG_OUTPUT_UNWRITABLE) or DiskFullError if that cannot be done; nothing half-made stays behind.
    """
    run_dir = OutputDir(Path(spec.output)).run(spec.run_id)
    try:
        run_dir.output.runs.mkdir(parents=True, exist_ok=True)
        run_dir.path.mkdir(mode=0o700)  # runner.log and samples of the data are nobody else's business
    except OSError as error:
        raise _unwritable(run_dir.output, error) from error
    try:
        write_spec(run_dir, spec)
    except OSError as error:
        durable.discard(run_dir.path)
        for folder in (run_dir.output.runs, run_dir.output.path):
            with contextlib.suppress(OSError):
                folder.rmdir()  # only if nobody else has anything in it
        raise _unwritable(run_dir.output, error) from error
    return run_dir


def write_spec(run_dir: RunDir, spec: RunSpec) -> None:
    """`spec.json`, whole or not at all. Raises OSError."""
    durable.write_file(run_dir.spec, msgspec.json.format(msgspec.json.encode(spec), indent=2) + b"\n")


@contextlib.contextmanager
def beginning(run_dir: RunDir) -> Iterator[None]:
    """Around the start of a run that was just created: if it fails before it began (its output folder was taken, say),
    nothing of it stays behind, and the error does not name it."""
    try:
        yield
    except BaseException as error:
        if _discard_unbegun(run_dir) and isinstance(error, BackpropagateError):
            error.run_id = None
        raise


def _discard_unbegun(run_dir: RunDir) -> bool:
    """What has a journal, a checkpoint or an adapter stays, whatever else is missing: a lost journal must not cost a model."""
    if any(path.exists() for path in (run_dir.events, run_dir.checkpoints, run_dir.adapter)):
        return False
    durable.discard(run_dir.path)
    with contextlib.suppress(OSError):  # nor does the folder, if it was made for this run alone
        run_dir.output.runs.rmdir()
        if os.listdir(run_dir.output.path) == [run_dir.output.lock.name]:
            run_dir.output.lock.unlink()
        run_dir.output.path.rmdir()
    return True


def _unwritable(output: OutputDir, error: OSError) -> BackpropagateError:
    """Without the run's id: nothing of it is there to be found by it, or to be resumed."""
    code, text = code_of_write(error), f"{output.path} cannot be written: {error.strerror or error}"
    full = "Free space there, or choose another folder with --output." if code == "RUNTIME_DISK_FULL" else None
    return error_for(code, text, suggestion=full)


def find(output: Output, prefix: str) -> RunDir:
    """The one run in `output` whose id begins with `prefix`; `latest` is the one made last. A campaign stands for its runs.

    Raises RunNotFoundError: INPUT_RUN_NOT_FOUND for none, INPUT_RUN_AMBIGUOUS for several.
    """
    output = as_output(output)
    ids = run_ids(output)
    if prefix == "latest" and ids:
        newest = output.run(max(ids, key=lambda run_id: output.run(run_id).spec.stat().st_mtime_ns))
        parent = load_spec(newest).parent
        return output.run(parent) if parent in ids else newest
    matches = [prefix] if prefix in ids else [run_id for run_id in ids if prefix and run_id.startswith(prefix)]
    if not ids:
        raise RunNotFoundError(
            f"there is no run in {output.path}"
            + ("" if prefix == "latest" else f", so none that begins with {prefix!r}"),
            suggestion="Name the output folder that the run was started with: --output FOLDER.",
        )
    if not matches:
        raise RunNotFoundError(f"no run in {output.path} has an id that begins with {prefix!r}")
    if len(matches) > 1:
        shown = ", ".join(matches[:5]) + (", …" if len(matches) > 5 else "")
        raise RunNotFoundError(
            f"{len(matches)} runs in {output.path} begin with {prefix!r}: {shown}", code="INPUT_RUN_AMBIGUOUS"
        )
    return output.run(matches[0])


def has_begun(run_dir: RunDir) -> bool:
    """Whether its journal has a line: a supervisor that was killed before that left an empty one, and the run begins yet."""
    try:
        return run_dir.events.stat().st_size > 0
    except OSError:
        return False


def resuming(run_dir: RunDir) -> str:
    """The command that goes on with this run, as it has to be typed in the current folder."""
    return _typed("resume", run_dir)


def stopping(run_dir: RunDir) -> str:
    """The command that stops this run, likewise."""
    return _typed("stop", run_dir)


def _typed(name: str, run_dir: RunDir) -> str:
    output = run_dir.output.path.absolute()
    command = f"backprop {name} {run_dir.run_id[:8]}"
    here = Path.cwd()
    if output == here / "output":
        return command
    shown = str(output.relative_to(here)) if output.is_relative_to(here) else str(output)
    return f'{command} --output "{shown}"' if " " in shown else f"{command} --output {shown}"


def check_its_own(run_dir: RunDir, spec: RunSpec) -> None:
    """Raises UserInputError (STATE_RUN_OF_CAMPAIGN), which names the campaign, for a run that only its campaign goes on with."""
    if spec.parent is not None:
        text = f"run {spec.run_id} is run {spec.link} of the campaign {spec.parent}"
        advice = f"`{resuming(run_dir.output.run(spec.parent))}` goes on with the campaign."
        raise error_for("STATE_RUN_OF_CAMPAIGN", text, suggestion=advice, run_id=spec.run_id)


def run_ids(output: Output) -> list[str]:
    """The ids of all runs in the folder that have a spec, sorted; none if there is no such folder."""
    output = as_output(output)
    try:
        return sorted(entry.name for entry in output.runs.iterdir() if output.run(entry.name).spec.is_file())
    except (FileNotFoundError, NotADirectoryError):
        return []


def load_spec(run_dir: RunDir) -> RunSpec:
    """The frozen RunSpec of a run. Raises RunNotFoundError if it is not there or cannot be read."""
    try:
        return msgspec.json.decode(run_dir.spec.read_bytes(), type=RunSpec)
    except FileNotFoundError as error:
        raise RunNotFoundError(f"{run_dir.path} holds no run") from error
    except (OSError, msgspec.DecodeError) as error:
        raise RunNotFoundError(f"{run_dir.spec} cannot be read: {error}") from error
