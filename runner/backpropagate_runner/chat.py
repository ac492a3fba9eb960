"""A talk: a model or a GGUF is loaded once, then each Say is answered in pieces until the parent goes away.

A stop, or the end of the pipe, ends the process wherever it is, also in the middle of an answer: nothing is kept here. Each
Say carries the whole conversation, so the parent can go on with a fresh child.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from backpropagate_protocol.errors import GGUFExportError, UserInputError
from backpropagate_protocol.jobs import ChatJob
from backpropagate_protocol.messages import Answers, Done, Phase, Said, Turn
from backpropagate_runner.channel import Channel
from backpropagate_runner.frameworks import Frameworks
from backpropagate_runner.voice import Voice

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from backpropagate_runner.export.read_gguf import GgufFile

_ROOM = 8192  # tokens of a GGUF's conversation, where the model has no less: the cache is memory
_DEFAULT_ROOM = 2048
_OTHER = "Export or download the file again, or name another one."

Messages = Sequence[tuple[str, str]]


def chat(job: ChatJob, channel: Channel, voice: Voice, frameworks: Frameworks) -> Done:
    """Returns when the parent has closed its end. Raises what went wrong with loading or with an answer."""
    answer = _gguf(job, voice) if job.gguf is not None else _model(job, voice, frameworks)
    voice.phase(Phase.GENERATE)
    channel.send(Turn(""))
    while (said := channel.say()) is not None:
        began = time.monotonic()
        pieces: list[str] = []
        for piece in answer(said.messages):
            if piece:
                channel.send(Said(piece))
                pieces.append(piece)
            voice.phase(Phase.GENERATE, len(pieces))
        channel.send(Turn("".join(pieces), len(pieces), time.monotonic() - began))
    return Done(Answers(()))


def _model(job: ChatJob, voice: Voice, frameworks: Frameworks) -> Callable[[Messages], Iterator[str]]:
    voice.phase(Phase.IMPORT)
    backend = frameworks.backend(job.backend)
    voice.phase(Phase.LOAD)
    return backend.chat(job).answer


def _gguf(job: ChatJob, voice: Voice) -> Callable[[Messages], Iterator[str]]:
    from backpropagate_runner.export.jinja_chat import TemplateRefused, renderer
    from backpropagate_runner.export.llama import Llama, Text

    assert job.gguf is not None
    voice.phase(Phase.LOAD, detail=job.gguf)
    path = Path(job.gguf)
    if not path.is_file():
        raise UserInputError(f"there is no file {path}", code="INPUT_MODEL_NOT_FOUND")
    file = _model_in(path)
    room = min(int(file.number("context_length") or _DEFAULT_ROOM), _ROOM)
    variables = {f"{name}_token": file.token(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
    try:
        render = renderer(file.template, variables, datetime.now) if file.template else _plain
    except TemplateRefused as error:
        raise UserInputError(f"the chat template in {path.name} cannot be used: {error}", suggestion=_OTHER) from error
    try:
        model = Llama(path, room, exact=False)
    except GGUFExportError as error:
        raise UserInputError(error.message, suggestion=_OTHER) from error

    def answer(messages: Messages) -> Iterator[str]:
        turns = [{"role": role, "content": content} for role, content in messages]
        try:
            ids = model.prompt(render(turns))
        except TemplateRefused as error:
            raise UserInputError(f"the chat template of {path.name} refuses this conversation: {error}") from error
        if len(ids) >= room:
            raise UserInputError(f"the conversation of {len(ids)} tokens is longer than the {room} that are held")
        text = Text()
        choose = _chooser(job)  # anew, so that the seed decides each answer and not the talk before it
        for token in model.continuation(ids, min(job.max_new_tokens, room - len(ids)), choose):
            yield text.more(model.piece(token, special=False))
        yield text.rest()

    return answer


def _model_in(path: Path) -> GgufFile:
    """Raises UserInputError for a file that is damaged, or whose model lacks what only another file has."""
    from backpropagate_runner.export.read_gguf import GgufFile

    try:
        file = GgufFile(path)
    except GGUFExportError as error:
        raise UserInputError(error.message, suggestion=_OTHER) from error
    if file.fields.get("general.type", "model") != "model":
        raise UserInputError(
            f"{path.name} is an adapter, which cannot answer without its base model",
            suggestion="Name the run or the adapter's folder; or give llama.cpp the GGUF of the base and this one: --lora.",
        )
    return file


def _plain(messages: Sequence[object]) -> str:
    return "\n".join(str(turn["content"]) for turn in messages if isinstance(turn, dict))


def _chooser(job: ChatJob) -> Callable[[NDArray[np.float32]], int]:
    """The likeliest token, or one by chance that the seed decides."""
    import numpy as np

    chance = np.random.default_rng(job.seed)

    def choose(row: NDArray[np.float32]) -> int:
        if job.temperature <= 0:
            return int(row.argmax())
        weights = np.exp((row.astype(np.float64) - row.max()) / job.temperature)
        return int(chance.choice(len(row), p=weights / weights.sum()))

    return choose
