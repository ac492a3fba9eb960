"""Full fine-tuning: the gate of its size, and a whole model as a checkpoint and as a result.

A whole model is a folder as transformers lays it out. A checkpoint is loaded by the library that wrote it, as any model is:
the Trainer's own way goes by the names in the file, and passes over those that it does not know.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from shutil import copytree, ignore_patterns

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from backpropagate_backends.base import ADAPTER_WEIGHTS
from backpropagate_backends.model_source import Source
from backpropagate_backends.torch_model import Notice, Precision, load_model, train_all
from backpropagate_protocol.durable import file_entry
from backpropagate_protocol.errors import BackpropagateError, error_for
from backpropagate_protocol.rundir import MANIFEST
from backpropagate_protocol.spec import TrainSpec

WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
# What a checkpoint has beside the weights and their description.
_OF_TRAINING = (MANIFEST, "optimizer.*", "scheduler.pt", "scaler.pt", "rng_state*.pth", "trainer_state.json")


def _check_size(source: Source, ceiling: float) -> None:
    """Raises ConfigurationError [RUNTIME_FULL_FT_MODEL_TOO_LARGE] by config.json alone, before any weight is read."""
    try:
        config = AutoConfig.from_pretrained(source.path, **source.options())
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config, trust_remote_code=source.trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError, AttributeError, NotImplementedError, RuntimeError):
        return  # some cannot be made without weights; then it is asked when they are there
    _check_loaded(source.name, empty, ceiling)


def _check_loaded(name: str, model: PreTrainedModel, ceiling: float) -> None:
    """The same by the model itself. ceiling: the most parameters, in 1e9."""
    count = sum(parameter.numel() for parameter in model.parameters())
    if count > ceiling * 1e9:
        raise _too_large(name, count, ceiling)


def _too_large(name: str, count: int, ceiling: float) -> BackpropagateError:
    return error_for(
        "RUNTIME_FULL_FT_MODEL_TOO_LARGE",
        f"{name} has {count / 1e9:.3g} billion parameters, and full fine-tuning takes at most {ceiling:g} billion",
        suggestion="Use --mode lora, which trains models of this size in a fraction of the memory, choose a smaller model, "
        "or raise --full-ft-ceiling-billions if the card has the memory.",
    )


def load_whole(
    source: Source,
    checkpoint: str | None,
    precision: Precision,
    tokenizer: PreTrainedTokenizerBase,
    train: TrainSpec,
    notice: Notice,
) -> PreTrainedModel:
    """The model with every weight that text reaches to be trained: as it began, or as `checkpoint` has it."""
    _check_size(source, train.ceiling)
    if checkpoint is not None:
        source = replace(source, path=checkpoint, revision=None, local=True)
    set_seed(train.seed)  # weights that the files lack begin at random
    model = load_model(source, precision, tokenizer, notice)
    _check_loaded(source.name, model, train.ceiling)
    _ready_to_save(model)
    return train_all(model)


def _ready_to_save(model: PreTrainedModel) -> None:
    """Mends what transformers loads and then refuses to write: settings of sampling for a model that does not sample."""
    chosen = model.generation_config
    if chosen is None:
        return
    try:
        chosen.validate(strict=True)
    except ValueError:
        chosen.do_sample = True


def weights_missing(folder: Path, whole: bool) -> str | None:
    """The file of trained weights that a checkpoint lacks."""
    if not whole:
        return None if (folder / ADAPTER_WEIGHTS).is_file() else ADAPTER_WEIGHTS
    return None if (folder / WHOLE).is_file() or (folder / _INDEX).is_file() else WHOLE


def save_trained(model: PreTrainedModel | PeftModel, folder: str, weights: Mapping[str, object] | None = None) -> None:
    """The adapter, or the whole model if there is none. weights: others than those that `model` has now, by its names."""
    if isinstance(model, PeftModel):
        for config in model.peft_config.values():
            targets = getattr(config, "target_modules", None)
            if isinstance(targets, set):  # its order is another one in each process, and the file's would be
                config.target_modules = sorted(targets)
        # save_embedding_layers: "auto" would ask the hub, at every checkpoint, whether the vocabulary grew.
        model.save_pretrained(folder, save_embedding_layers=False, state_dict=weights)
    else:
        model.save_pretrained(folder, state_dict=weights)


def copy_trained(checkpoint: Path, folder: Path) -> None:
    """The same, as a checkpoint has it."""
    copytree(checkpoint, folder, ignore=ignore_patterns(*_OF_TRAINING))


def digest_of(folder: Path) -> str:
    """Of the weights that were saved there: that of their file, or over those of several."""
    entries = [file_entry(path).sha256 for path in sorted(folder.glob("*.safetensors"))]
    return entries[0] if len(entries) == 1 else hashlib.sha256("\n".join(entries).encode()).hexdigest()
