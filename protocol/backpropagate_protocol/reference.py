"""The reference folder: what a trained model says to the proof's prompts, for the prover of an export to compare with.

`reference.json` is a Reference; `logits.f32` holds its rows one after another, each of them `vocabulary` little-endian
float32. A row is kept only for the last positions of a prompt and the first of its answer, so that a vocabulary of
150,000 tokens costs megabytes. The folder is written whole or not at all.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import BinaryIO

import msgspec

from backpropagate_protocol.durable import DISK, Disk, discard, file_entry, files_of, rename
from backpropagate_protocol.rundir import PARTIAL

SCHEMA = 1
MAX_NEW_TOKENS = 24
MAX_ROWS = 16  # of logits, for each prompt
PROMPT_ROWS = 4  # of these before the answer; the rest are the answer's
_INDEX, _LOGITS = "reference.json", "logits.f32"

Turns = tuple[tuple[str, str], ...]  # (role, content)

# Conversations that are only rendered, never answered: a template may be right for one question and wrong for the next.
CONVERSATIONS: tuple[Turns, ...] = (
    (("user", "Hello."), ("assistant", "Hello! What can I do?"), ("user", "Tell me a joke.")),
    (("system", "You answer briefly."), ("user", "Who are you?")),
    (
        ("system", "You are a pirate."),
        ("user", "Where is the treasure?"),
        ("assistant", "Under the old oak,\nmatey."),
        ("user", "  Which oak?  "),
    ),
)


class Rendered(msgspec.Struct, frozen=True):
    """A conversation as the model's chat template writes it, with the generation prompt; None if it refuses to."""

    turns: Turns
    text: str | None


class Answered(msgspec.Struct, frozen=True):
    """One prompt. The model was given `ids`, and said `answer` when each time the likeliest token was taken.

    Row i of the logits is what is expected after position `first + i` of `ids + answer`. `gaps`: for each token of the
    answer, by how much (in nats) it was likelier than the next best. `ended`: the answer's last token is one that ends it.
    """

    turns: Turns
    text: str
    ids: tuple[int, ...]
    answer: tuple[int, ...] = ()
    answer_text: str = ""
    gaps: tuple[float, ...] = ()
    ended: bool = False
    first: int = 0
    rows: int = 0
    offset: int = 0  # of the first row in the file of all rows


class Probe(msgspec.Struct, frozen=True):
    """Plain text, and what the tokenizer makes of it without adding anything."""

    text: str
    ids: tuple[int, ...]


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """All that was asked and said. `why_not`: why there are no answers and no logits; the rest is there in any case."""

    schema: int = SCHEMA
    model: str  # the folder or hub id
    adapter: str | None = None
    adapter_digest: str = ""  # SHA-256 of its weights
    precision: str = ""  # what was computed in: fp32, bf16, fp16
    stored: str = ""  # the precision of the weights on disk
    device: str = ""
    vocabulary: int = 0  # length of a row
    template: str | None = None
    template_digest: str = ""  # SHA-256
    variables: dict[str, str] = {}  # what the template may ask for: bos_token, eos_token, …
    special: dict[str, int] = {}  # bos, eos, pad, unk: ids of the tokenizer
    ends: tuple[int, ...] = ()  # the tokens that end an answer
    adds_bos: bool = False  # the tokenizer puts the BOS before plain text
    moment: str = ""  # at which all templates were rendered, as ISO 8601: some write the date, or the hour
    prompts: tuple[Answered, ...] = ()
    rendered: tuple[Rendered, ...] = ()
    probes: tuple[Probe, ...] = ()
    why_not: str = ""


class ReferenceWriter:
    """Takes the rows of one prompt after another; `commit` makes the folder appear. Close it in any case."""

    def __init__(self, out: Path, disk: Disk = DISK) -> None:
        self.out = out
        self._disk = disk
        self._partial = out.with_name(out.name + PARTIAL)
        discard(self._partial, disk)
        self._partial.mkdir(parents=True)
        self._logits: BinaryIO = open(self._partial / _LOGITS, "wb")  # noqa: SIM115 - closed by `close`
        self._prompts: list[Answered] = []
        self._rows = 0

    def add(self, prompt: Answered, rows: bytes) -> None:
        """`rows`: prompt.rows rows of little-endian float32. Where they lie is written down here."""
        self._logits.write(rows)
        self._prompts.append(msgspec.structs.replace(prompt, offset=self._rows))
        self._rows += prompt.rows

    def commit(self, reference: Reference) -> tuple[int, str]:
        """Writes the index; returns the size of the folder in bytes, and a digest over names and digests of its files."""
        self._logits.close()
        whole = msgspec.structs.replace(reference, prompts=tuple(self._prompts))
        assert self._rows * whole.vocabulary * 4 == (self._partial / _LOGITS).stat().st_size
        (self._partial / _INDEX).write_bytes(msgspec.json.encode(whole))
        for name in files_of(self._partial):
            self._disk.sync_file(self._partial / name)
        self._disk.sync_dir(self._partial)
        entries = [(name, file_entry(self._partial / name)) for name in files_of(self._partial)]
        discard(self.out, self._disk)
        rename(self._partial, self.out, self._disk)
        self._disk.sync_dir(self.out.parent)
        digests = "\n".join(f"{name} {entry.sha256}" for name, entry in entries)
        return sum(entry.size for _, entry in entries), hashlib.sha256(digests.encode()).hexdigest()

    def close(self) -> None:
        """What was not committed is gone."""
        self._logits.close()
        discard(self._partial, self._disk)


class BadReference(Exception):
    """The folder is no reference, or not whole; the message says why."""


def read_reference(folder: Path) -> Reference:
    """Raises BadReference; OSError if the disk does not let it be read."""
    try:
        found = msgspec.json.decode((folder / _INDEX).read_bytes(), type=Reference)
        size = (folder / _LOGITS).stat().st_size
    except FileNotFoundError as error:
        raise BadReference(f"{folder} holds no reference") from error
    except msgspec.DecodeError as error:
        raise BadReference(f"{folder / _INDEX} cannot be read: {error}") from error
    rows = sum(prompt.rows for prompt in found.prompts)
    if found.schema != SCHEMA or size != rows * found.vocabulary * 4:
        raise BadReference(f"{folder} holds another reference than its index says")
    return found


def read_rows(folder: Path, reference: Reference, prompt: Answered) -> bytes:
    """The prompt's rows of logits, `prompt.rows` times `vocabulary` float32 in this machine's order."""
    assert sys.byteorder == "little"  # as is every machine that torch runs on
    width = reference.vocabulary * 4
    with open(folder / _LOGITS, "rb") as file:
        file.seek(prompt.offset * width)
        rows = file.read(prompt.rows * width)
    if len(rows) != prompt.rows * width:
        raise BadReference(f"{folder / _LOGITS} is too short")
    return rows
