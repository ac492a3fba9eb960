"""What a stage of an export comes to: four results that Done carries, whose rules are those of `messages.py`."""

from __future__ import annotations

import msgspec


class ExportRoute(msgspec.Struct, frozen=True, array_like=True, tag="route"):
    """Carried by Done after a PreflightJob: what the chain will do. Bytes are estimates of what will lie on the disk."""

    architecture: str  # as config.json names it
    parameters: int
    converter: str  # own, official; empty if nothing is converted
    converter_folder: str
    type: str = msgspec.field(name="kind")  # what is converted to: f32, f16, bf16, q8_0; empty if nothing is
    quantizer: str  # llama, ollama; empty if the converter writes what is wanted
    verifier: str  # llama, weights; empty where there is nothing to compare: an adapter alone
    bytes: int  # of the result
    work_bytes: int  # needed at once, result included
    free_bytes: int
    ollama_version: str = ""
    notes: tuple[str, ...] = ()


class Made(msgspec.Struct, frozen=True, array_like=True, tag="made"):
    """Carried by Done after a stage that writes something: the file or folder is complete and durable."""

    path: str
    bytes: int
    digest: str = ""  # SHA-256 of a file; over names and digests of a folder's files
    notes: tuple[str, ...] = ()


class Registered(msgspec.Struct, frozen=True, array_like=True, tag="registered"):
    """Carried by Done after a RegisterJob."""

    name: str
    digest: str  # of the GGUF
    version: str  # of the server
    template: bool  # whether an explicit TEMPLATE was sent
    uploaded: int = 0  # bytes; 0: it was there already


class Pushed(msgspec.Struct, frozen=True, array_like=True, tag="pushed"):
    """Carried by Done after a PushJob; for a dry run, commit is empty."""

    url: str
    commit: str
    files: tuple[tuple[str, int], ...]  # name, bytes
