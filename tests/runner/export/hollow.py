"""A model without weights, for tests of what must not read any: real small files, and tensors that are a hole in the disk."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from tests.house.source import ROOT

TINY = ROOT / "fixtures" / "tiny-base"
_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


def hollow_model(folder: Path, *, parameters: int = 2_000_000, dtype: str = "BF16", **config: object) -> Path:
    """The tiny base with other entries in its config (None: without that entry), and one tensor of so many parameters.

    The header is sound, its data are a hole: whoever reads them reads for ever, and gets zeros.
    """
    folder.mkdir(parents=True)
    for file in TINY.iterdir():
        if file.suffix != ".safetensors":
            shutil.copyfile(file, folder / file.name)
    said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    said = {key: value for key, value in (said | config).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(said), encoding="utf-8")
    size = parameters * _BYTES[dtype]
    about = {"model.embed_tokens.weight": {"dtype": dtype, "shape": [parameters], "data_offsets": [0, size]}}
    header = json.dumps(about).encode()
    header += b" " * (-len(header) % 8)
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(path, 8 + len(header) + size)
    return folder


def lora_adapter(folder: Path, *, r: int = 4, **config: object) -> Path:
    """A LoRA adapter of the tiny base, of zeros, in PEFT's layout."""
    folder.mkdir(parents=True)
    module = "base_model.model.model.layers.0.mlp.up_proj"
    tensors: dict[str, NDArray[np.float32]] = {
        f"{module}.lora_A.weight": np.zeros((r, 256), np.float32),
        f"{module}.lora_B.weight": np.zeros((512, r), np.float32),
    }
    if config.get("use_dora"):
        tensors[f"{module}.lora_magnitude_vector"] = np.ones(512, np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": r, "lora_alpha": 8, "target_modules": ["up_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(said), encoding="utf-8")
    return folder
