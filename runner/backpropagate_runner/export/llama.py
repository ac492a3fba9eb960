"""The only door to llama.cpp: a GGUF file that is run on the CPU, for proofs and for a talk.

It is spoken to through the thin layer of llama-cpp-python, below that package's own sampling and chat formats, which have
formatters of their own for templates they recognise. For a proof the KV cache is float32: its rounding is not to be measured.
What the library says is heard by the log alone, and by whoever asks why something failed.
"""

from __future__ import annotations

import codecs
import ctypes
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from backpropagate_protocol.errors import DependencyError, GGUFExportError

_F32, _F16 = 0, 1  # ggml_type
_NO_FLASH = 0  # llama_flash_attn_type
_WARNING, _ERROR, _CONTINUED = 3, 4, 5  # ggml_log_level
_KEPT_LINES = 40
_BATCH = 512

Heard = Callable[[str], None]


def available() -> str:
    """Why llama.cpp cannot be used here, in words; empty if it can."""
    if find_spec("llama_cpp") is None:
        return "llama-cpp-python is not installed"
    try:
        import llama_cpp  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:  # its library is missing, or built for another processor
        return f"llama-cpp-python cannot be loaded: {error}"
    return ""


class Log:
    """What llama.cpp says from now on, instead of on the screen: warnings go to stderr, each line to `heard`.

    `errors` keeps the last lines that were errors. There is one log at a time; it is kept alive here, since the library
    holds a bare pointer to it.
    """

    _current: Log | None = None

    def __init__(self, heard: Heard = lambda line: None) -> None:
        import llama_cpp

        self.errors: deque[str] = deque(maxlen=_KEPT_LINES)
        self._heard = heard
        self._level, self._line = 0, ""
        self._callback = llama_cpp.llama_log_callback(self._say)
        llama_cpp.llama_log_set(self._callback, ctypes.c_void_p(0))
        Log._current = self

    def _say(self, level: int, text: bytes, _user: object) -> None:
        if level != _CONTINUED:
            self._end_line()
            self._level = level
        *whole, self._line = (self._line + text.decode("utf-8", "replace")).split("\n")
        for line in whole:
            self._take(line)

    def _end_line(self) -> None:
        line, self._line = self._line, ""
        if line:
            self._take(line)

    def _take(self, line: str) -> None:
        if self._level == _ERROR:
            self.errors.append(line.strip())
        if self._level in (_WARNING, _ERROR):
            sys.stderr.write(f"llama.cpp: {line}\n")
        self._heard(line)

    def reason(self) -> str:
        """The errors so far, in one line: the first is the cause, the last what it led to."""
        self._end_line()
        return "; ".join(dict.fromkeys(self.errors)) or "llama.cpp did not say why"


def load() -> ModuleType:
    """llama_cpp, its backend begun. Raises DependencyError [DEP_EXPORT_TOOL_MISSING]."""
    if reason := available():
        raise DependencyError(
            reason,
            code="DEP_EXPORT_TOOL_MISSING",
            suggestion="pip install llama-cpp-python (it is compiled on the spot, with a C++ compiler and cmake).",
        )
    import llama_cpp

    module: ModuleType = llama_cpp
    return module


class Llama:
    """A GGUF in memory, with room for `context` tokens. Close it, or use it in a `with`."""

    def __init__(self, path: Path, context: int, threads: int = 0, *, exact: bool = True) -> None:
        """`context` 0: only the vocabulary is read, which needs no memory for the model; it can say nothing then.
        `exact`: with a cache in float32, twice as large as it need be.

        Raises DependencyError if llama.cpp is not there, GGUFExportError if it does not take the file."""
        load()
        import llama_cpp as native

        self._native = native
        self._log = Log()
        native.llama_backend_init()
        wishes = native.llama_model_default_params()
        wishes.n_gpu_layers = 0
        # Weights rearranged for speed would be a second copy of the model.
        wishes.use_extra_bufts = False
        wishes.vocab_only = not context
        model = native.llama_model_load_from_file(os.fsencode(path), wishes)  # on Windows too, it reads UTF-8
        if not model:
            raise GGUFExportError(f"llama.cpp cannot load {path.name}: {self._log.reason()}")
        self._model = model
        self._context = None
        self._vocab = native.llama_model_get_vocab(model)
        self.vocabulary = int(native.llama_vocab_n_tokens(self._vocab))
        self.room = context
        self._held: list[int] = []  # the tokens that the cache knows
        if not context:
            return
        settings = native.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = context, _BATCH, _BATCH
        settings.type_k = settings.type_v = _F32 if exact else _F16
        settings.flash_attn_type = _NO_FLASH
        settings.offload_kqv = settings.op_offload = False
        settings.n_threads = settings.n_threads_batch = threads or os.cpu_count() or 1
        self._context = native.llama_init_from_model(model, settings)
        if not self._context:
            native.llama_model_free(model)
            raise GGUFExportError(f"llama.cpp cannot run {path.name}: {self._log.reason()}")
        self._batch = native.llama_batch_init(_BATCH, 0, 1)

    def close(self) -> None:
        if self._context:
            self._native.llama_batch_free(self._batch)
            self._native.llama_free(self._context)
        if self._model:
            self._native.llama_model_free(self._model)
        self._context = self._model = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # --- text and tokens --------------------------------------------------------------------------------------------

    @property
    def adds_bos(self) -> bool:
        return bool(self._native.llama_vocab_get_add_bos(self._vocab))

    @property
    def bos(self) -> int:
        """-1: there is none."""
        return int(self._native.llama_vocab_bos(self._vocab))

    def ends(self, token: int) -> bool:
        """Whether llama.cpp stops at this token."""
        return bool(self._native.llama_vocab_is_eog(self._vocab, token))

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """Special tokens in the text are read as such. `add_special`: with what the model wants before and after."""
        data = text.encode()
        room = len(data) + 8
        ids = (self._native.llama_token * room)()
        count = self._native.llama_tokenize(self._vocab, data, len(data), ids, room, add_special, True)
        if count < 0:
            raise GGUFExportError(f"llama.cpp cannot turn a text of {len(data)} bytes into tokens")
        return list(ids[:count])

    def prompt(self, text: str) -> list[int]:
        """A rendered conversation, tokenised as llama.cpp's servers do: they add the BOS, so it is taken off the text."""
        if self.adds_bos and self.bos >= 0:
            text = text.removeprefix(self.piece(self.bos).decode("utf-8", "replace"))
        return self.tokenize(text, add_special=True)

    def piece(self, token: int, *, special: bool = True) -> bytes:
        """The text of one token; without `special`, empty for a control token."""
        buffer = ctypes.create_string_buffer(256)
        length = self._native.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = self._native.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        return buffer.raw[:length]

    # --- what comes next --------------------------------------------------------------------------------------------

    def logits(self, ids: Sequence[int], first: int, count: int) -> NDArray[np.float32]:
        """Rows `first` … `first + count - 1`: what the model expects after each of those tokens; (count, vocabulary)."""
        self._forget(0)
        return self._feed(ids, first, first + count)

    def continuation(
        self, ids: Sequence[int], limit: int, choose: Callable[[NDArray[np.float32]], int]
    ) -> Iterator[int]:
        """At most `limit` tokens after `ids`, one by one as they are made, without the one that ends it.

        What the last call left in the cache is used again where the ids begin alike. Raises GGUFExportError if there is
        no room.
        """
        same = 0
        while same < min(len(ids) - 1, len(self._held)) and ids[same] == self._held[same]:
            same += 1
        self._forget(same)
        new = ids[len(self._held) :]
        row = self._feed(new, len(new) - 1, len(new))[0]
        for made in range(limit):
            token = choose(row)
            if self.ends(token):
                return
            yield token
            if made + 1 < limit:
                row = self._feed([token], 0, 1)[0]

    def greedy(self, ids: Sequence[int], limit: int) -> list[int]:
        return list(self.continuation(ids, limit, lambda row: int(row.argmax())))

    def _forget(self, kept: int) -> None:
        """Leaves the first `kept` tokens in the cache. A model whose state cannot be cut begins anew."""
        memory = self._native.llama_get_memory(self._context)
        if kept < len(self._held) and (kept == 0 or not self._native.llama_memory_seq_rm(memory, 0, kept, -1)):
            self._native.llama_memory_clear(memory, True)
            kept = 0
        del self._held[kept:]

    def _feed(self, ids: Sequence[int], first: int, end: int) -> NDArray[np.float32]:
        """Gives the model more tokens; the logits after those from `first` to before `end`."""
        if len(self._held) + len(ids) > self.room:
            raise GGUFExportError(f"the conversation is longer than {self.room} tokens")
        rows = np.empty((end - first, self.vocabulary), np.float32)
        for start in range(0, len(ids), _BATCH):
            chunk = ids[start : start + _BATCH]
            batch = self._batch
            batch.n_tokens = len(chunk)
            for at, token in enumerate(chunk):
                batch.token[at], batch.pos[at] = token, len(self._held) + at
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, 0
                batch.logits[at] = first <= start + at < end
            if failed := self._native.llama_decode(self._context, batch):
                raise GGUFExportError(f"llama.cpp failed on {len(ids)} tokens ({failed}): {self._log.reason()}")
            self._held += chunk
            for at in range(len(chunk)):
                if batch.logits[at]:
                    row = self._native.llama_get_logits_ith(self._context, at)
                    rows[start + at - first] = np.ctypeslib.as_array(row, (self.vocabulary,))
        return rows


class Text:
    """Bytes of tokens to text, as much of it as is whole: a character may take several tokens."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def more(self, piece: bytes) -> str:
        return self._decoder.decode(piece)

    def rest(self) -> str:
        return self._decoder.decode(b"", final=True)
