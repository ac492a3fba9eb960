"""The prove stage: what was exported is compared with what was trained, before anybody is given it.

A GGUF must turn the same conversations into the same text and tokens, hold the same numbers, and, run by llama.cpp, expect
the same after each token and answer the same, each within the bounds of its quantization. A merged model must do so in
transformers. A difference is an answer, not an error; only what cannot be read is one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from backpropagate_protocol.errors import ExportError
from backpropagate_protocol.jobs import ProveJob
from backpropagate_protocol.measured import Check, Proof
from backpropagate_protocol.mlx_rules import CPU_DEVICE, METAL_DEVICE
from backpropagate_protocol.reference import Answered, BadReference, Reference, read_reference, read_rows
from backpropagate_runner.export.gguf_arch import architecture
from backpropagate_runner.export.llama import Llama, available
from backpropagate_runner.export.prove_adapter import prove_adapter
from backpropagate_runner.export.prove_answers import Comparison, Rows
from backpropagate_runner.export.prove_bounds import bounds_for
from backpropagate_runner.export.prove_text import check_template, check_tokens, wrong_ends
from backpropagate_runner.export.prove_weights import check_tensors, sampled, wrong_metadata, wrong_vocabulary
from backpropagate_runner.export.read_gguf import GgufFile
from backpropagate_runner.export.stage import Stage

_LLAMA, _WEIGHTS, _TEXT = "llama", "weights", "text"
_NOT_SEEN = (
    "the weights in this file were compared with nothing: its architecture is known to llama.cpp alone, and it could not be "
    "run here; only template and vocabulary are proved"
)
_MIB = 1 << 20
_SPARE_TOKENS = 8


def prove(job: ProveJob, stage: Stage) -> Proof:
    """Raises GGUFExportError, ExportError or OSError for what cannot be read."""
    if job.kind == "lora-gguf":
        return prove_adapter(job, stage)
    try:
        reference = read_reference(Path(job.reference))
        if job.kind in ("merged", "fused"):
            return _merged(job, reference, stage)
        return _gguf(job, reference, stage)
    except BadReference as error:
        raise ExportError(f"there is nothing to compare with: {error}") from error


# --- a GGUF -----------------------------------------------------------------------------------------------------------


def _gguf(job: ProveJob, reference: Reference, stage: Stage) -> Proof:
    file = GgufFile(Path(job.target))
    running = job.verifier == _LLAMA and not reference.why_not
    comparison = Comparison(bounds_for(job.quantization, reference))
    numbers, problem = _numbers(job, reference, file, stage, every_row=not running)
    checks = [check_template(reference, file), *numbers]
    problems = [problem]
    whole = all(
        check.passed or check.value is not None for check in numbers
    )  # llama.cpp refuses a file that lacks a tensor
    if whole and not available():
        # where it is not run its vocabulary alone is loaded: a wrong way of splitting text is the commonest fault of all
        with Llama(file.path, _longest(reference) + _SPARE_TOKENS if running else 0) as model:
            checks.append(check_tokens(reference, file, model))
            problems.append(wrong_ends(reference, model))
            if running:
                _ask(job, reference, model, comparison, stage)
                checks += comparison.checks()
    wrong = "; ".join(problem for problem in problems if problem)
    checks.append(Check("metadata", not wrong, detail=wrong or "configuration, vocabulary, special tokens"))
    verifier = _LLAMA if running else _WEIGHTS if numbers else _TEXT
    if verifier == _TEXT:
        stage.notice(_NOT_SEEN, "warning")
    return _proof(verifier, checks, comparison)


def _longest(reference: Reference) -> int:
    return max(len(prompt.ids) + len(prompt.answer) for prompt in reference.prompts)


def _ask(job: ProveJob, reference: Reference, model: Llama, comparison: Comparison, stage: Stage) -> None:
    """The trained answer is read to the model, and what it would have said each time is noted."""
    for index, prompt in enumerate(reference.prompts):
        stage.advance(index, len(reference.prompts), prompt.turns[-1][1].partition("\n")[0])
        read = [*prompt.ids, *prompt.answer[:-1]]
        rows = model.logits(read, prompt.first, len(read) - prompt.first)
        answer = rows[len(prompt.ids) - 1 - prompt.first :].argmax(1).tolist()
        comparison.add(prompt, _rows(job, reference, prompt), rows[: prompt.rows], answer)


def _rows(job: ProveJob, reference: Reference, prompt: Answered) -> Rows:
    return _shaped(read_rows(Path(job.reference), reference, prompt), reference)


def _shaped(data: bytes, reference: Reference) -> Rows:
    return np.frombuffer(data, np.float32).reshape(-1, reference.vocabulary)


def _numbers(
    job: ProveJob, reference: Reference, file: GgufFile, stage: Stage, *, every_row: bool
) -> tuple[list[Check], str]:
    """Tensors (none where only running it tells), and what is wrong with the metadata, as far as our own converter knows how they have to be."""
    from backpropagate_runner.export.adapter import open_adapter
    from backpropagate_runner.export.gguf_vocab import tokenizer_folder
    from backpropagate_runner.export.model_files import open_model
    from backpropagate_runner.export.tensors import open_weights

    files = open_model(job.model, stage.advance)
    weights = open_weights(files, open_adapter(job.adapter) if job.adapter is not None else None)
    arch = architecture(weights.config)
    folder = tokenizer_folder(files.folder, None if job.adapter is None else Path(job.adapter))
    problem = wrong_vocabulary(folder, reference, file)
    if arch is None:
        return [], problem
    base = open_weights(files, None)
    numbers = check_tensors(weights, base, arch, file, job.memory * _MIB, stage.advance, every_row=every_row)
    return numbers, wrong_metadata(arch, file) or problem


# --- a merged model ---------------------------------------------------------------------------------------------------


def _merged(job: ProveJob, reference: Reference, stage: Stage) -> Proof:
    """`target` is the reference folder of the merged model, which names the folder of the model itself."""
    target = Path(job.target)
    merged = read_reference(target)
    comparison = Comparison(bounds_for("f32", reference, merged))
    others = {prompt.turns: prompt for prompt in merged.prompts}
    same = [prompt for prompt in reference.prompts if prompt.turns in others]
    different = [prompt for prompt in same if others[prompt.turns].ids != prompt.ids]
    missing = len(reference.prompts) - len(same)
    total = len(reference.prompts)
    good = total - missing - len(different)
    checks = [
        Check("template", merged.template == reference.template, detail="the chat template"),
        Check("tokens", good == total, float(good), float(total), f"{good} of {total} prompts are the same tokens"),
    ]
    if job.kind == "merged":
        checks.append(_tensors_of_merged(job, merged, stage))
    answered = not (reference.why_not or merged.why_not)
    if answered:
        for index, prompt in enumerate(same):
            stage.advance(index, total, prompt.turns[-1][1].partition("\n")[0])
            other = others[prompt.turns]
            rows, other_rows = _rows(job, reference, prompt), _shaped(read_rows(target, merged, other), merged)
            count = _shared(prompt, other)
            comparison.add(prompt, rows[:count], other_rows[:count], other.answer)
        checks += comparison.checks()
    ran = "mlx" if merged.device.startswith((CPU_DEVICE, METAL_DEVICE)) else "transformers"
    return _proof(ran if answered else _WEIGHTS, checks, comparison)


def _shared(one: Answered, other: Answered) -> int:
    """How many rows of both come after the same tokens: those up to the first token in which the answers differ."""
    same = 0
    while same < min(len(one.answer), len(other.answer)) and one.answer[same] == other.answer[same]:
        same += 1
    return min(one.rows, other.rows, len(one.ids) - one.first + same)


def _tensors_of_merged(job: ProveJob, merged: Reference, stage: Stage) -> Check:
    """Every tensor is there, in the shape that merging gives it, and some rows of each are what merging makes of them."""
    from backpropagate_protocol.spec import ModelSpec
    from backpropagate_runner.export.adapter import open_adapter
    from backpropagate_runner.export.model_files import open_model
    from backpropagate_runner.export.tensors import open_weights

    adapter = open_adapter(job.adapter) if job.adapter is not None else None
    expected = open_weights(open_model(job.model, stage.advance), adapter)
    made = open_weights(open_model(ModelSpec(name="the merged model", path=merged.model)), None)
    wrong = sorted(set(expected.names) ^ set(made.names))
    wrong += [name for name in expected.names if name not in wrong and expected.shape(name) != made.shape(name)]
    if wrong:
        return Check("tensors", False, detail=f"{len(wrong)} are missing, too many or of another shape: {wrong[0]}")
    for index, name in enumerate(expected.names):
        stage.advance(index, len(expected.names), name)
        for start, stop in sampled(expected.shape(name)):
            if not np.array_equal(expected.rows(name, start, stop), made.rows(name, start, stop)):
                return Check("tensors", False, detail=f"{name} holds other numbers than merging makes")
    return Check("tensors", True, detail=f"{len(expected.names)} tensors")


def _proof(verifier: str, checks: list[Check], comparison: Comparison) -> Proof:
    passed = all(check.passed for check in checks)
    return Proof(passed, verifier, tuple(checks), comparison.prompts, comparison.positions)
