"""The Unsloth rail: the model and its adapter made and patched by Unsloth, everything else as on the torch backends.

Unsloth must be imported before transformers, PEFT and TRL, so it is a backend of its own that is chosen before any of them is
imported; it calls itself by the device that it then finds. It pins older versions, so it mostly lives in an environment of its
own (`backprop setup --unsloth`).
"""

from __future__ import annotations

import importlib
import os
from typing import ClassVar, Literal

from backpropagate_backends.base import Session
from backpropagate_backends.cuda import CudaBackend, see_one_gpu
from backpropagate_backends.torch_backend import TorchBackend
from backpropagate_protocol.errors import DependencyError, InvalidSettingError
from backpropagate_protocol.jobs import TrainJob
from backpropagate_protocol.messages import TrainResult
from backpropagate_protocol.prepared import Prepared


class UnslothBackend(TorchBackend):
    """See `base.Backend`. `name` and `device` are known after `warm`."""

    name: ClassVar[str] = "cuda"
    device: ClassVar[Literal["cpu", "cuda"]] = "cuda"

    def warm(self) -> None:
        see_one_gpu()
        os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
        try:
            importlib.import_module("unsloth")
        except (ImportError, NotImplementedError, RuntimeError) as error:
            raise DependencyError(
                f"Unsloth cannot be imported: {str(error).strip().splitlines()[0]}",
                suggestion="Build it an environment of its own with `backprop setup --unsloth`, or train without --unsloth.",
            ) from error
        import torch

        # The class says what the contract asks for; the device is this process's one and only.
        type(self).name = type(self).device = "cuda" if torch.cuda.is_available() else "cpu"
        super().warm()

    def check_trainer(self) -> None:
        """Unsloth has its own opinion of TRL's, and imports with no other."""

    def check(self, job: TrainJob) -> None:
        if job.spec.backend not in ("auto", self.name):
            raise InvalidSettingError(
                f"Unsloth trains on {self.name} here, not on {job.spec.backend}", suggestion="Leave --backend to auto."
            )
        check_unsloth(job)
        super().check(job)

    def check_device(self) -> None:
        if self.device == "cuda":
            CudaBackend().check_device()

    def train(self, session: Session, data: Prepared) -> TrainResult | None:
        from backpropagate_backends import torch_train

        return torch_train.train(session, data, self.name, self.device, unsloth=True)


def check_unsloth(job: TrainJob) -> None:
    """Raises InvalidSettingError for a wish that Unsloth does not serve here."""
    train, lora, data = job.spec.train, job.spec.lora, job.spec.data
    wishes = {
        f"the method {train.method}": train.method != "sft",
        f"mode {train.mode}": train.mode != "lora",
        "--fp8": train.fp8,
        "--use-dora": lora.use_dora,
        "--packing": bool(data.packing),
        "--compile": train.compile,
        "--liger": bool(train.liger),
        f"--attention {train.attention}": train.attention != "auto",
    }
    for wish, asked in wishes.items():
        if asked:
            raise InvalidSettingError(
                f"{wish} does not go with --unsloth, which has its own way there",
                suggestion="Leave one of the two out.",
            )
