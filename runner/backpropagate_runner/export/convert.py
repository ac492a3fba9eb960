"""A base model, with or without an adapter, to one GGUF file in one pass: no merged copy is ever on the disk."""

from __future__ import annotations

from pathlib import Path

from backpropagate_protocol.errors import UserInputError
from backpropagate_protocol.jobs import ConvertJob
from backpropagate_protocol.messages import Made
from backpropagate_runner.export import gguf_arch, gguf_vocab
from backpropagate_runner.export.adapter import open_adapter
from backpropagate_runner.export.gguf_arch import NotCovered
from backpropagate_runner.export.gguf_tensors import tensors
from backpropagate_runner.export.gguf_write import Head, write
from backpropagate_runner.export.model_files import open_model
from backpropagate_runner.export.stage import Stage, new_file
from backpropagate_runner.export.tensors import open_weights

_MIB = 1 << 20
_EMBEDDING = "model.embed_tokens.weight"


def convert(job: ConvertJob, stage: Stage) -> Made:
    """Raises INPUT_MODEL_UNSUPPORTED for a model that the converter does not cover."""
    if job.converter == "official":
        from backpropagate_runner.export.official import convert_officially

        return convert_officially(job, stage)
    files = open_model(job.model, stage.advance)
    adapter = open_adapter(job.adapter) if job.adapter is not None else None
    weights = open_weights(files, adapter)
    try:
        arch = gguf_arch.read(weights.config)
        if _EMBEDDING not in weights.names:
            raise NotCovered(f"a model without {_EMBEDDING}")
        folder = gguf_vocab.tokenizer_folder(files.folder, None if job.adapter is None else Path(job.adapter))
        ends = gguf_vocab.ends_of_answers(files.folder)
        vocabulary = gguf_vocab.read(folder, weights.shape(_EMBEDDING)[0], weights.config, ends)
        planned = tensors(weights, arch, job.type)
    except NotCovered as reason:
        raise UserInputError(
            f"{files.name} has {reason}: our converter does not cover that",
            code="INPUT_MODEL_UNSUPPORTED",
            suggestion="Convert with the official converter (--converter official), or export it as `merged`.",
        ) from None
    head = Head(arch.name, job.name)
    head.model(arch.metadata, job.type)
    head.vocabulary(vocabulary)
    out = Path(job.out)
    with new_file(out) as partial:
        digest, notes = write(partial, head, planned, stage.advance, job.memory * _MIB)
    notes += vocabulary.notes
    for note in notes:
        stage.notice(note, "warning")
    return Made(path=str(out), bytes=out.stat().st_size, digest=digest, notes=tuple(notes))
