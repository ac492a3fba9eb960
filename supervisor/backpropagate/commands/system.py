"""`info`, `config`, `completion`: what is installed here, what is set here, and the shell's help."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import sys

import click

from backpropagate import __version__
from backpropagate.commands.flags import Command
from backpropagate.screen import current
from backpropagate.wishes.options import OPTIONS, Option
from backpropagate.wishes.settings import OTHER_VARIABLES, Settings
from backpropagate_protocol.catalogue import CATALOGUE

_PACKAGES = (
    "torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "safetensors", "pyarrow",
    "llama-cpp-python", "gguf", "huggingface-hub", "anyio", "click", "filelock", "msgspec", "nvidia-ml-py", "orjson", "rich",
)  # fmt: skip


@click.command(cls=Command)
@click.option("--error-codes", is_flag=True, help="List every error code, its exit code and what to do.")
@click.option("--env-vars", is_flag=True, help="List every environment variable.")
def info(error_codes: bool, env_vars: bool) -> None:
    """Show versions, hardware and presets."""
    document: dict[str, object] = {}
    lines: list[str] = []
    if error_codes:
        rows = [
            {"code": r.code, "title": r.title, "retry": str(r.retry), "exit_code": int(r.exit), "remedy": r.remedy}
            for r in CATALOGUE.values()
        ]
        document["error_codes"] = rows
        lines += [f"{r['code']:34} exit {r['exit_code']:<4} {r['title']}\n{'':45}{r['remedy']}" for r in rows]
    if env_vars:
        document["env_vars"] = [
            {"name": o.variable, "default": o.default, "accepts": o.accepted, "help": o.help} for o in OPTIONS
        ] + [{"name": name, "default": None, "accepts": None, "help": text} for name, text in OTHER_VARIABLES.items()]
        lines += [f"{o.variable}\n    {o.help} ({o.accepted}{_default(o)})" for o in OPTIONS]
        lines += [f"{name}\n    {text}" for name, text in OTHER_VARIABLES.items()]
    if not document:
        document = _about()
        lines = _about_in_words(document)
    current().data(document, "\n".join(lines))


def _default(option: Option) -> str:
    """Nothing where the help says what is taken instead."""
    return "" if option.default is None else f"; default: {_shown(option.default)}"


def _about() -> dict[str, object]:
    from backpropagate.wishes.presets import LORA, MODELS, TRAINING

    packages = {name: _version(name) for name in _PACKAGES}
    return {
        "backpropagate": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "packages": packages,
        "training_possible": all(packages[name] for name in ("torch", "transformers", "trl", "peft", "datasets")),
        "gpu": _gpu(),
        "export": _export(packages),
        "models": [
            {"name": m.name, "repo": m.repo, "licence": m.licence, "vram_gb": m.vram_gb, "vram_gb_fast": m.vram_gb_fast, "lora_r": m.lora_r, "max_length": m.max_length, "note": m.note}
            for m in MODELS.values()
        ],
        "presets": [
            {"name": p.name, "lora_r": p.lora_r, "effective_batch": p.effective_batch, "learning_rate": p.learning_rate, "steps": p.steps}
            for p in TRAINING.values()
        ],
        "lora_presets": [{"name": p.name, "r": p.r, "targets": p.targets} for p in LORA.values()],
    }  # fmt: skip


def _export(packages: dict[str, str | None]) -> dict[str, object]:
    """What an export would find; nobody is asked, and nothing imported."""
    settings = Settings()
    return {
        "gguf": bool(packages["gguf"]),
        "quantize": bool(packages["llama-cpp-python"]),
        "ollama": shutil.which("ollama"),
        "ollama_host": settings.text("export.ollama_host"),
        "llama_cpp_dir": settings.text_or_none("export.llama_cpp_dir"),
    }


def _export_in_words(export: object) -> str:
    assert isinstance(export, dict)
    can = ["lora, merged"] + ["gguf (f16, bf16, q8_0)"] * bool(export["gguf"])
    can += ["all quantizations and the proof by llama.cpp"] if export["quantize"] else []
    missing = "" if export["quantize"] else "; for the other quantizations: pip install 'backpropagate[export]'"
    return f"{', '.join(can)}{missing}; Ollama {export['ollama'] or 'not on the PATH'}, expected at {export['ollama_host']}"


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpu() -> object:
    """What the driver says; None without a GPU or a driver."""
    import msgspec

    try:
        from backpropagate.gpu_safety import get_gpu_status

        return msgspec.to_builtins(get_gpu_status())
    except Exception as error:  # noqa: BLE001 - a report about a broken machine must come out on it
        return {"error": f"{type(error).__name__}: {error}"}


def gpu_in_words(status: object) -> str:
    if not isinstance(status, dict):
        return "none found"
    if "error" in status:
        return str(status["error"])
    used, total = status["memory_used"] / 1024, status["memory_total"] / 1024
    said = f"{status['name']}, {used:.1f} of {total:.1f} GB in use, {status['temperature']} °C ({status['condition']})"
    return "".join([said, *(f"; {text}" for text in _health_in_words(status))])


def _health_in_words(status: dict[str, object]) -> list[str]:
    slowdown, shutdown, left = status["slowdown"], status["shutdown"], status["to_slowdown"]
    said = [f"slows down at {slowdown} °C, off at {shutdown} °C"] if slowdown and shutdown else []
    said += [f"{left} °C left until it slows down"] if left is not None else []
    said += [f"{status['power']:.0f} of {status['power_limit']:.0f} W"] if status["power_limit"] else []
    throttled = status["throttled"]
    said += [str(text) for text in throttled] if isinstance(throttled, list | tuple) else []
    said += [f"the driver asks for {status['recovery']}"] if status["recovery"] else []
    errors = status["uncorrected_errors"]
    return said + ([f"{errors} memory errors lost data"] if errors else [])


def _about_in_words(about: dict[str, object]) -> list[str]:
    from backpropagate.wishes.presets import LORA, MODELS, TRAINING

    packages = about["packages"]
    assert isinstance(packages, dict)
    missing = (
        "" if about["training_possible"] else "  (pip install 'backpropagate[cuda]' or 'backpropagate[cpu]' to train)"
    )
    return [
        f"backpropagate {about['backpropagate']}, Python {about['python']}, {about['platform']}",
        f"interpreter   {about['executable']}",
        f"GPU           {gpu_in_words(about['gpu'])}",
        f"export        {_export_in_words(about['export'])}",
        "packages      " + ", ".join(f"{name} {version or '-'}" for name, version in packages.items()) + missing,
        "",
        "models for --model (4-bit training fits into so much free GPU memory; in brackets, with --lora-preset fast):",
        "  tiny              bundled, for trying out, trains on any CPU",
        *(f"  {m.name:17} {m.repo}, {m.licence}, {m.vram_gb} ({m.vram_gb_fast}) GB{f'; {m.note}' if m.note else ''}" for m in MODELS.values()),
        "presets for --preset:",
        *(f"  {p.name:17} r {p.lora_r}, effective batch {p.effective_batch}, learning rate {p.learning_rate:g}, {p.steps} steps" for p in TRAINING.values()),
        "presets for --lora-preset:",
        *(f"  {p.name:17} r {p.r} on {', '.join(p.targets)}" for p in LORA.values()),
    ]  # fmt: skip


@click.command(cls=Command)
def config() -> None:
    """Show each setting and where its value comes from."""
    from backpropagate.wishes.build_spec import decided, effective_batch

    screen = current()
    settings = Settings()
    every = settings.all()
    for warning in settings.warnings:
        screen.note(f"note: {warning}")
    values = {s.option.key: s.value for s in every} | decided(settings)
    batch = effective_batch(settings)
    document = {
        "settings": [
            {"key": s.option.key, "value": values[s.option.key], "source": s.source, "variable": s.option.variable}
            for s in every
        ],
        "effective_batch": batch,
        "warnings": settings.warnings,
    }
    rows = [(s.option.key, _shown(values[s.option.key]), s.source) for s in every]
    rows.append(("(effective batch)", str(batch), "rows in one optimizer step"))
    screen.data(document, "\n".join(f"{name:32} {value:28} {source}" for name, value, source in rows))


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(value) if isinstance(value, tuple) else str(value)


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish", "powershell"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    For bash, in ~/.bashrc: eval "$(backprop completion bash)". For PowerShell, in $PROFILE: backprop completion powershell |
    Out-String | Invoke-Expression.
    """
    from click.shell_completion import get_completion_class

    from backpropagate.cli import root
    from backpropagate.commands.powershell import register

    register()

    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(root, {}, "backprop", "_BACKPROP_COMPLETE").source()
    current().data({"shell": shell, "script": script}, script)
