"""The model card that goes to the hub with a model: what it is made of and how, in the hub's format, as text.

Only what is known is said. No path of this machine gets into it: folders and files are named by their last part, and
messages of faults, which may hold paths, are left out. Nothing is read here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath

from backpropagate.keep.exports import ExportReport
from backpropagate.keep.record import RunRow
from backpropagate.watch.view import duration, sparkline
from backpropagate.wishes.presets import MODELS
from backpropagate_protocol.data_formats import may_be_hub_id
from backpropagate_protocol.redact import redact
from backpropagate_protocol.spec import RunSpec

# Names of licences as our presets write them → as the hub's front matter wants them.
_LICENCES = {"Apache-2.0": "apache-2.0", "MIT": "mit", "Llama-3.2-Community": "llama3.2"}
_UNKNOWN = "unknown: look at the base model's"


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """What a card is made of. Anything may be missing but the repository and the files.

    spec, row   of the run that trained
    report      of the export that made the files
    adapter     the fields of adapter_config.json
    base_card   the README.md of the base model, for its licence
    revision    the commit of the base model that was trained on, where that is known
    """

    repo: str
    files: Sequence[str]
    spec: RunSpec | None = None
    row: RunRow | None = None
    report: ExportReport | None = None
    adapter: Mapping[str, object] | None = None
    base_card: str = ""
    version: str = ""
    revision: str = ""


def model_card(facts: CardFacts) -> str:
    """The README.md: front matter and text, redacted, ending with a line end."""
    name = facts.repo.rpartition("/")[2]
    parts = [
        "\n".join(_front_matter(facts)),
        f"# {name}",
        _opening(facts),
        f"## How to use it\n\n{_usage(facts)}",
        _section("Training", _training(facts)),
        _section("Result", _result(facts)),
        _faults(facts),
        _proof(facts),
        _section("Versions", sorted((facts.row.packages if facts.row else {}).items())),
    ]
    return redact("\n\n".join(part for part in parts if part) + "\n")


# --- the parts ------------------------------------------------------------------------------------------------------


def _front_matter(facts: CardFacts) -> Iterator[str]:
    kind = _kind(facts)
    base = _base(facts)
    yield "---"
    if _is_hub_id(base):
        yield f"base_model: {_yaml(base)}"
        yield f"base_model_relation: {'adapter' if kind == 'adapter' else 'finetune'}"
    licence = _licence(facts)
    if licence is not None:
        known = _LICENCES.get(licence)
        yield f"license: {_yaml(known or (licence if licence.islower() else 'other'))}"
        if known is None and not licence.islower():
            yield f"license_name: {_yaml(licence.lower())}"
            yield f"license_link: https://huggingface.co/{base}/blob/main/LICENSE"
    yield f"library_name: {({'adapter': 'peft', 'gguf': 'gguf'}).get(kind, 'transformers')}"
    yield "pipeline_tag: text-generation"
    on_the_hub = [source for source in _sources(facts.spec) if _is_hub_id(source)] if facts.spec is not None else []
    if on_the_hub:
        yield "\n".join(["datasets:", *(f"- {_yaml(source)}" for source in on_the_hub)])
    yield "tags:"
    for tag in _tags(facts, kind):
        yield f"- {_yaml(tag)}"
    yield "---"


def _tags(facts: CardFacts, kind: str) -> Iterator[str]:
    yield "backpropagate"
    if facts.spec is not None:
        yield facts.spec.train.method
    if facts.adapter is not None or (facts.spec is not None and facts.spec.train.mode == "lora"):
        yield "lora"
    if kind == "gguf":
        yield "gguf"


def _opening(facts: CardFacts) -> str:
    full = facts.spec is not None and facts.spec.train.mode == "full"
    what = {
        "adapter": "A LoRA adapter for",
        "gguf": "A fine-tune, as GGUF for llama.cpp and Ollama, of",
        "model": "A full fine-tune of" if full else "A fine-tune, adapter merged in, of",
    }[_kind(facts)]
    version = f" {facts.version}" if facts.version else ""
    return f"{what} {_linked(_base(facts))}, made with Backpropagate{version}."


def _usage(facts: CardFacts) -> str:
    base = _base(facts)
    kind = _kind(facts)
    if kind == "gguf":
        file = next(name for name in sorted(facts.files) if name.endswith(".gguf"))
        tag = file.removesuffix(".gguf").rpartition("-")[2]
        return (
            f"```sh\nollama run hf.co/{facts.repo}:{tag}\n```\n\nor with llama.cpp:\n\n"
            f"```sh\nllama-server -hf {facts.repo}:{tag}\n```"
        )
    start = "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
    if kind == "adapter":
        body = (
            f'from peft import PeftModel\n{start}\nbase = AutoModelForCausalLM.from_pretrained("{base}")\n'
            f'model = PeftModel.from_pretrained(base, "{facts.repo}")\n'
        )
    else:
        body = f'{start}\nmodel = AutoModelForCausalLM.from_pretrained("{facts.repo}")\n'
    return (
        f'```python\n{body}tokenizer = AutoTokenizer.from_pretrained("{facts.repo}")\n\n'
        'messages = [{"role": "user", "content": "Hello!"}]\n'
        'inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")\n'
        "answer = model.generate(**inputs, max_new_tokens=128)\n"
        'print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))\n```'
    )


def _training(facts: CardFacts) -> Iterator[tuple[str, object]]:
    yield "Base model", _linked(_base(facts))
    yield "Licence of the base model", _licence(facts) or _UNKNOWN
    spec, row = facts.spec, facts.row
    if spec is None:
        yield from _adapter(facts.adapter or {})
        return
    data, train, lora = spec.data, spec.train, spec.lora
    revision = facts.revision or spec.model.revision
    if revision:
        yield "Revision of the base model", f"`{revision}`"
    yield "Data", ", ".join(_named(source) for source in _sources(spec))
    if row is not None and row.dataset_digest:
        yield "SHA-256 of the data", f"`{row.dataset_digest}`"
    if spec.campaign is not None:
        yield "Runs", f"{len(spec.campaign.runs)}, one after the other, merged after each ({spec.campaign.merge})"
    elif data.samples is not None:
        yield "Rows", f"the first {data.samples}"
    yield "Method", f"{train.method}, loss on {'the answers' if data.train_on == 'assistant' else 'all tokens'}"
    if train.mode == "lora":
        extras = [name for name, on in (("DoRA", lora.use_dora), ("rsLoRA", lora.use_rslora)) if on]
        yield "Adapter", ", ".join([f"LoRA, r {lora.r}, alpha {lora.alpha}, dropout {lora.dropout:g}", *extras])
        yield "Adapted modules", ", ".join(lora.targets)
    else:
        yield "Trained", "every weight"
    yield "Effective batch", f"{train.effective_batch} samples"
    yield "Maximum length", f"{data.max_length} tokens"
    yield "Learning rate", f"{train.learning_rate:g}, {train.scheduler}, {train.warmup_steps} steps of warm-up"
    yield "Weight decay, gradient clipping", f"{train.weight_decay:g}, {train.max_grad_norm:g}"
    yield "Seed", train.seed
    if row is not None and row.backend:
        yield "Trained on", f"{row.backend}{f', {row.device}' if row.device and row.device != row.backend else ''}"


def _sources(spec: RunSpec) -> list[str]:
    """What it was trained on; of a campaign, all of its runs."""
    data = [spec.data] if spec.campaign is None else spec.campaign.runs
    return list(dict.fromkeys(each.source for each in data))


def _named(source: str) -> str:
    return _linked(source) if _is_hub_id(source) else f"`{_last(source)}`"


def _adapter(config: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """What adapter_config.json says, where no run is known."""
    if "r" in config:
        extras = [name for name, key in (("DoRA", "use_dora"), ("rsLoRA", "use_rslora")) if config.get(key)]
        numbers = f"{config.get('peft_type', 'LORA')}, r {config['r']}, alpha {config.get('lora_alpha', '?')}"
        yield "Adapter", ", ".join([f"{numbers}, dropout {config.get('lora_dropout', 0)}", *extras])
    modules = config.get("target_modules")
    if isinstance(modules, list | tuple):
        yield "Adapted modules", ", ".join(sorted(map(str, modules)))
    elif modules:
        yield "Adapted modules", f"`{modules}`"


def _result(facts: CardFacts) -> Iterator[tuple[str, object]]:
    row, report = facts.row, facts.report
    if row is not None:
        yield "Steps", f"{row.steps} of {row.total_steps}"
        yield "Samples seen", row.samples_seen
        if row.final_loss is not None:
            yield "Final loss", f"{row.final_loss:.4f} {sparkline([loss for _, loss in row.loss_history])}".strip()
        yield "Time", duration(row.duration_seconds)
        yield "Finished", row.completed_at or "not yet"
        yield "Run", f"`{row.run_id}`"
    if report is not None:
        yield "Exported as", f"{report.format}{f', {report.quantization.upper()}' if report.quantization else ''}"
        yield "SHA-256 of the file", f"`{report.digest}`" if report.digest else ""


def _faults(facts: CardFacts) -> str:
    """What went wrong on the way and was recovered from: part of how the model came to be."""
    row = facts.row
    if row is None:
        return ""
    if not row.faults:
        told = f"{_count(row.recoveries, 'recovery', 'recoveries')} in its runs." if row.recoveries else "None."
        return f"## Faults and recoveries\n\n{told}"
    seen = [
        (f"step {fault.get('step', '?')}", f"{fault.get('kind', '')} `{fault.get('code', '')}`") for fault in row.faults
    ]
    counts = f"{_count(len(row.faults), 'fault', 'faults')}, {_count(row.recoveries, 'recovery', 'recoveries')}"
    told = f"{counts}. A recovery goes on from a checkpoint: no sample is left out and none is counted twice."
    return f"## Faults and recoveries\n\n{told}\n\n{_table(seen, ('When', 'What'))}"


def _proof(facts: CardFacts) -> str:
    proof = facts.report.proof if facts.report else None
    if proof is None:
        return ""
    how = "run by llama.cpp" if proof.verifier == "llama" else "read and compared tensor by tensor"
    head = f"The exported model was {how} and {'answers as the trained one' if proof.passed else 'FAILED the comparison'}: {proof.prompts} prompts, {proof.positions} positions."
    rows = [
        (
            check.name.replace("_", " "),
            "passed" if check.passed else "FAILED",
            _number(check.value),
            _number(check.bound),
        )
        for check in proof.checks
    ]
    return f"## Proof\n\n{head}\n\n{_table(rows, ('Check', 'Outcome', 'Value', 'Bound'))}"


# --- words ----------------------------------------------------------------------------------------------------------


def _kind(facts: CardFacts) -> str:
    """adapter, gguf, model"""
    if any(name.endswith(".gguf") for name in facts.files):
        return "gguf"
    return "adapter" if "adapter_config.json" in facts.files else "model"


def _base(facts: CardFacts) -> str:
    """A hub id, or the last part of a folder's name."""
    said: object = None
    if facts.spec is not None:
        said = facts.spec.model.path if _is_hub_id(facts.spec.model.path) else facts.spec.model.name
    elif facts.report is not None:
        said = facts.report.base_path if _is_hub_id(facts.report.base_path) else facts.report.base_model
    elif facts.adapter is not None:
        said = facts.adapter.get("base_model_name_or_path")
    text = str(said or "an unknown base model")
    return text if _is_hub_id(text) else _last(text)


def _licence(facts: CardFacts) -> str | None:
    base = _base(facts)
    preset = next((preset for preset in MODELS.values() if preset.repo == base), None)
    if preset is not None:
        return preset.licence
    lines = facts.base_card.splitlines()
    if lines[:1] != ["---"]:
        return None
    for line in lines[1:]:
        key, colon, value = line.partition(":")
        if key == "---":
            break
        if colon and key == "license" and value.strip():
            return value.strip().strip("'\"")
    return None


def _is_hub_id(text: str) -> bool:
    return may_be_hub_id(text) and not text.startswith((".", "/", "~"))


def _last(path: str) -> str:
    """The last part of a path of any system."""
    return PureWindowsPath(PurePosixPath(path).name).name or path


def _linked(name: str) -> str:
    return f"[{name}](https://huggingface.co/{name})" if _is_hub_id(name) else f"`{name}`"


def _yaml(text: str) -> str:
    """A string that YAML reads as this string."""
    plain = text.isascii() and text[:1].isalpha() and all(c.isalnum() or c in "/._-" for c in text)
    return (
        text if plain and text.lower() not in ("true", "false", "yes", "no", "null", "on", "off") else json.dumps(text)
    )


def _section(title: str, rows: Iterator[tuple[str, object]] | Sequence[tuple[str, object]]) -> str:
    told = [(name, value) for name, value in rows if value not in ("", None)]
    return f"## {title}\n\n{_table(told, ('', ''))}" if told else ""


def _table(rows: Sequence[Sequence[object]], head: Sequence[str]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _count(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
