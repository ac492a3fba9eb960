"""Makes docs/python.md: signatures and docstrings as they stand in the source, and between them the words that join them.

Read as syntax trees and not from running code, so that every version of Python makes the same page.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import indent

from backpropagate_protocol.errors import BackpropagateError

_PACKAGE = Path(__file__).resolve().parents[1] / "supervisor" / "backpropagate"
_WIDTH = 100
_Definition = ast.ClassDef | ast.FunctionDef


@dataclass(frozen=True, slots=True)
class Shown:
    """What is shown of a module: a class with these of its methods, or a function."""

    module: str  # below the package, as a path
    name: str
    methods: tuple[str, ...] = ()
    of: str = ""  # the class that users know these methods by; this one is never made by itself


_TRAINER = (
    Shown("api/trainer.py", "Trainer", ("train", "resume", "export", "push_to_ollama", "push_to_hub", "save")),
    Shown("api/multi_runs.py", "MultiRuns", ("multi_run", "append_run", "multi_run_train"), "Trainer"),
    Shown("api/trainer_base.py", "TrainerBase", ("estimate",), "Trainer"),
)
_GIVEN_BACK = (
    Shown("api/result.py", "TrainingRun"),
    Shown("api/campaign_result.py", "Campaign"),
    Shown("api/campaign_result.py", "CampaignRun"),
    Shown("api/export_result.py", "Export"),
    Shown("api/export_result.py", "Proof"),
    Shown("api/export_result.py", "Check"),
)
_CARD = (
    Shown("gpu_safety.py", "check_gpu_safe"),
    Shown("gpu_safety.py", "get_gpu_status"),
    Shown("gpu_safety.py", "GPUMonitor", ("start", "stop")),
    Shown("gpu_safety.py", "GPUStatus"),
    Shown("gpu_safety.py", "Condition"),
    Shown("gpu_safety.py", "GPUSafetyConfig"),
)
_CHECKPOINTS = (
    Shown(
        "keep/checkpoint_manager.py",
        "CheckpointManager",
        ("list", "final", "best", "verify", "stats", "register", "prune"),
    ),
    Shown("keep/checkpoint_manager.py", "CheckpointPolicy"),
)
_PRESETS = (
    Shown("wishes/presets.py", "get_preset"),
    Shown("wishes/presets.py", "get_lora_preset"),
    Shown("wishes/presets.py", "get_model_preset"),
)

_BEGINNING = """\
Everything that the command line does with a training can be done from Python, by the same supervisor: `Trainer` starts it as a
process of its own and follows it. Importing `backpropagate` loads no framework, starts no thread and sets no signal handler.

```python
from backpropagate import BackpropagateError, Trainer, TrainingCallback

watch = TrainingCallback(
    on_step=lambda step, loss: loss is None or loss < 100.0,  # False: save and stop
    on_recovery=lambda what: print("went on after", what),
)
trainer = Trainer("tiny", backend="toy", lora_r=8, progress=False)
try:
    run = trainer.train("sample", steps=20, callback=watch)
except BackpropagateError as error:
    print(error.code, error.message, error.suggestion, error.run_id, error.retry, error.exit_code)
    raise SystemExit(error.exit_code) from None
print(run.status, run.steps, run.final_loss, run.adapter_path)
```

`backend="toy"` makes a rehearsal of seconds, with a real supervisor and a real child but no language model; leave it out to
train. `"sample"` are five rows that are bundled.

| of | import it from |
|---|---|
| `Trainer`, `TrainingCallback`, `TrainingRun`, `Campaign`, `CampaignRun`, `Export`, every exception | `backpropagate` |
| the exceptions, `ExitCode`, `Retry` | `backpropagate.exceptions` |
| `check_gpu_safe`, `get_gpu_status`, `GPUMonitor`, `GPUStatus`, `GPUSafetyConfig`, `Condition` | `backpropagate.gpu_safety` |
| `CheckpointManager`, `CheckpointPolicy` | `backpropagate.checkpoints` |
| `Settings`, `get_preset`, `get_lora_preset`, `get_model_preset` | `backpropagate.config` |

Modules that are not named here may change."""

_ENDS = """\
| what happens | what `train` does |
|---|---|
| the run ends well | returns a `TrainingRun` whose `status` is `completed` |
| Ctrl-C, or the cell is interrupted | the run saves a checkpoint; `train` returns it with the status `interrupted`. A second one ends it at once |
| `on_step` returns `False` | the same |
| a fault that can be recovered from | goes on; it is in `run.recoveries` when the run ends |
| the run fails | raises the exception of its code; `run_id` is set on it, and `trainer.runs[-1]` has what was reached |
| the training is done, its export fails | raises; the training is kept, in `trainer.runs[-1]` and on the disk |
| your program ends or is killed | the supervisor sees the closed pipe, saves a checkpoint and stops; `Trainer(…).resume()` or `backprop resume RUN` goes on |
| a function of yours raises | Python's warnings tell it with your file and line, `run.callback_error` in one line; the run goes on, and only `on_complete` and `on_error` are still called |
| another run trains into the folder or on the card | raises `BusyError`; with `wait=True` it waits |

An argument that could not take effect is refused before anything is loaded (`InvalidSettingError`), and so is one that is not
known. `**more` takes every other setting by its Python name in [settings.md](settings.md)."""

_EXCEPTIONS = """\
All have `code` (stable), `message`, `suggestion` (what to do next), `run_id` or None, `retry` (`never`, `later`, `resume`) and
`exit_code` (what the command line would exit with). What each code means: [errors.md](errors.md). Catch `BackpropagateError`
for all of them; the code in brackets is that of the class itself, and some classes stand for further codes."""


def python_page(note: str) -> str:
    return (
        "\n\n".join(
            [
                "# From Python",
                note,
                _BEGINNING,
                "## Training",
                *_section(_TRAINER),
                "## How a training can end",
                _ENDS,
                "## What is given back",
                "These are results and do nothing: what *makes* an export is `trainer.export(…)`, and `run.export` is what was made.",
                *_section(_GIVEN_BACK),
                "## Callbacks",
                *_section([Shown("api/callbacks.py", "TrainingCallback")]),
                "## Exceptions",
                _EXCEPTIONS,
                "```text\n" + "\n".join(_tree(BackpropagateError, 0)) + "\n```",
                "## The card",
                *_section(_CARD),
                "## Checkpoints",
                "With examples and rules: [checkpoints.md](checkpoints.md).",
                *_section(_CHECKPOINTS),
                "## Presets",
                *_section(_PRESETS),
            ]
        )
        + "\n"
    )


def _section(shown: tuple[Shown, ...] | list[Shown]) -> list[str]:
    parts: list[str] = []
    for each in shown:
        found = _definition(each.module, each.name)
        if not each.of:
            parts += [f"### {each.name}", _code(_head(each.module, found)), *_words(found)]
        for name in each.methods:
            method = next(node for node in found.body if isinstance(node, ast.FunctionDef) and node.name == name)
            parts += [f"#### {each.of or each.name}.{name}", _code(_head(each.module, method)), *_words(method)]
    return parts


@cache
def _source(module: str) -> str:
    return (_PACKAGE / module).read_text(encoding="utf-8")


@cache
def _tree_of(module: str) -> ast.Module:
    return ast.parse(_source(module))


def _definition(module: str, name: str) -> _Definition:
    return next(
        node for node in _tree_of(module).body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name
    )


def _words(found: _Definition) -> list[str]:
    words = ast.get_docstring(found)
    return [f"```text\n{words}\n```"] if words else []


def _code(text: str) -> str:
    return f"```python no-run\n{text}\n```"


def _head(module: str, found: _Definition) -> str:
    """A function by its signature; a class by its fields or values, or by that of its `__init__`."""
    said = _source(module)
    if isinstance(found, ast.FunctionDef):
        end = ")" if found.returns is None else f") -> {ast.unparse(found.returns)}"
        return _signature(said, f"def {found.name}", found.args, f"{end}: ...")
    fields = [node for node in found.body if isinstance(node, ast.AnnAssign | ast.Assign)]
    if fields:
        lines = said.splitlines()  # with the comments that they have
        return "\n".join(
            [f"class {found.name}:", *(line for f in fields for line in lines[f.lineno - 1 : f.end_lineno])]
        )
    made = next(node for node in found.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    return f"class {found.name}:\n" + indent(_signature(said, "def __init__", made.args, ") -> None: ..."), "    ")


def _signature(said: str, name: str, args: ast.arguments, end: str) -> str:
    """A call on one line, or with a line for each parameter."""
    given = _parameters(said, args)
    line = f"{name}({', '.join(given)}{end}"
    return line if len(line) <= _WIDTH else f"{name}(\n    " + ",\n    ".join(given) + f",\n{end}"


def _parameters(said: str, args: ast.arguments) -> list[str]:
    plain = [*args.posonlyargs, *args.args]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(args.defaults)) + list(args.defaults)
    parts = [_parameter(said, arg, default) for arg, default in zip(plain, defaults, strict=True)]
    if args.kwonlyargs:
        parts.append("*")
    parts += [_parameter(said, arg, default) for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    return [*parts, *([f"**{ast.unparse(args.kwarg)}"] if args.kwarg else [])]


def _parameter(said: str, arg: ast.arg, default: ast.expr | None) -> str:
    return ast.unparse(arg) + ("" if default is None else f" = {ast.get_source_segment(said, default)}")


def _tree(kind: type[BackpropagateError], depth: int) -> list[str]:
    ours = [sub for sub in kind.__subclasses__() if sub.__module__ == BackpropagateError.__module__]
    lines = [line for sub in ours for line in _tree(sub, depth + 1)]
    return [f"{'  ' * depth}{kind.__name__} ({kind.default_code})", *lines]
