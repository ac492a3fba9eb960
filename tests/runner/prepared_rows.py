"""For tests of what rows become: files of rows, preparation by the toy's tokenizer, and the result as text."""

from __future__ import annotations

import json
from pathlib import Path

from backpropagate_backends.base import Tokenizer
from backpropagate_backends.toy_tokenizer import EOS, BytesTokenizer
from backpropagate_protocol.jobs import PreparedRef
from backpropagate_protocol.messages import DataReady
from backpropagate_protocol.prepared import Prepared, View, open_prepared
from backpropagate_protocol.spec import DataSpec
from backpropagate_runner.prepare import prepare
from backpropagate_runner.validate import scan


def written(path: Path, *rows: object) -> str:
    """A file with these rows; its name."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def made(
    data: DataSpec, cache: Path, notices: list[str] | None = None, tokenizer: Tokenizer | None = None
) -> DataReady:
    notice = (notices if notices is not None else []).append
    return prepare(data, tokenizer or BytesTokenizer(), scan(data), cache, lambda done, total, detail: None, notice)


def opened(ready: DataReady) -> Prepared:
    return open_prepared(PreparedRef(ready.path, ready.digest))


def text(view: View) -> tuple[str, str]:
    """A row, and what of it carries loss; the end of a text is a dollar."""
    ids, trained = view
    signs = ["$" if token == EOS else chr(token) for token in ids]
    return "".join(signs), "".join(sign for sign, flag in zip(signs, trained, strict=True) if flag)


def texts(ready: DataReady) -> list[str]:
    """Every row of a set of plain rows."""
    prepared = opened(ready)
    return [text(prepared.row(index))[0] for index in range(len(prepared))]
