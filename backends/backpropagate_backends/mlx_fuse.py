"""A base that MLX quantised and an adapter, fused into one model in full precision.

Quantizing the sum again would round away part of what was trained; what is written here answers as the trained model did, and
can be read by transformers as well. `mlx_lm.convert -q` makes it small again, for whoever accepts that.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_unflatten
from mlx_lm.utils import dequantize_model, save_model

from backpropagate_backends import mlx_lora
from backpropagate_backends.base import Reporting
from backpropagate_backends.mlx_config import CONFIG
from backpropagate_backends.mlx_model import load_base
from backpropagate_backends.mlx_tokenizer import copy_tokenizer
from backpropagate_backends.model_source import find
from backpropagate_backends.rope_styles import both_styles
from backpropagate_protocol.jobs import FuseJob

_BESIDE = ("generation_config.json",)
_QUANTISED = ("quantization", "quantization_config")


def fuse(job: FuseJob, folder: Path, stage: Reporting) -> None:
    """Writes the model into `folder`, which is there and empty, in the precision that the base's own scales have. Raises what
    `load_base` and `mlx_lora.wear` raise."""
    source = find(job.model)
    stage.advance(0, 0, f"loading {source.name}")
    base = load_base(source, job.model, stage.notice)
    net, place, config = base.model, base.folder, base.config
    net.set_dtype(base.stored)
    mlx_lora.wear(base, job.adapter)
    stage.advance(0, 0, "fusing")
    net.update_modules(tree_unflatten([(path, module.fuse(dequantize=True)) for path, module in mlx_lora.adapted(net)]))
    net = dequantize_model(net)
    mx.eval(net.parameters())
    stage.advance(0, 0, "writing")
    save_model(folder, net, donate_model=True)
    plain = both_styles({key: value for key, value in config.items() if key not in _QUANTISED})
    (folder / CONFIG).write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
    own = Path(job.adapter)
    copy_tokenizer(place, folder)
    if (own / "tokenizer.json").is_file():
        copy_tokenizer(own, folder)
    for name in _BESIDE:
        if (place / name).is_file():
            shutil.copyfile(place / name, folder / name)
