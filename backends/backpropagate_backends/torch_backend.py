"""What the cpu and cuda backends share: the contract, with torch imported only when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import ClassVar, Literal

from backpropagate_backends.base import Conversation, Reporting, Session, Tokenizer
from backpropagate_backends.torch_warm import check_trainer, warm
from backpropagate_protocol.jobs import ChatJob, EvaluateJob, GenerateJob, ReferenceJob, TrainJob
from backpropagate_protocol.measured import Score
from backpropagate_protocol.messages import Made, TrainResult
from backpropagate_protocol.prepared import Prepared
from backpropagate_protocol.spec import ModelSpec

# Ours that import torch at their top; `warm` imports them too, so that nothing is left for the first step.
_OURS = ("torch_train", "torch_generate", "torch_evaluate", "torch_tokenizer")


class TorchBackend:
    """One torch device. See `base.Backend` for what each method promises."""

    name: ClassVar[str]
    device: ClassVar[Literal["cpu", "cuda"]]

    def warm(self) -> None:
        warm(extra=self.device)
        for module in _OURS:
            importlib.import_module(f"backpropagate_backends.{module}")

    def check(self, job: TrainJob) -> None:
        from backpropagate_backends.torch_kernels import check_kernels
        from backpropagate_backends.torch_model import choose_precision
        from backpropagate_backends.torch_wishes import check_wishes

        check_wishes(job)
        self.check_trainer()
        self.check_device()
        check_kernels(job.spec, self.device)
        choose_precision(job.spec.model, self.device, lambda text, level: None, job.spec.train)

    def check_trainer(self) -> None:
        """Raises DependencyError if what trains is too old."""
        check_trainer(self.device)

    def check_device(self) -> None:
        """Raises GPUNotAvailableError if the device cannot be used. The CPU always can."""

    def tokenizer(self, model: ModelSpec) -> Tokenizer:
        from backpropagate_backends.torch_tokenizer import TorchTokenizer

        return TorchTokenizer(model)

    def train(self, session: Session, data: Prepared) -> TrainResult | None:
        from backpropagate_backends import torch_train

        return torch_train.train(session, data, self.name, self.device)

    def generate(self, job: GenerateJob) -> tuple[str, ...]:
        from backpropagate_backends.torch_generate import generate

        self.check_device()
        return generate(job, self.device)

    def reference(self, job: ReferenceJob, stage: Reporting) -> Made:
        from backpropagate_backends.torch_reference import write_reference

        self.check_device()
        return write_reference(job, self.device, stage)

    def evaluate(self, job: EvaluateJob, tasks: Sequence[Prepared], stage: Reporting) -> tuple[Score, ...]:
        from backpropagate_backends import torch_evaluate

        self.check_device()
        return torch_evaluate.evaluate(job, tasks, self.device, stage)

    def chat(self, job: ChatJob) -> Conversation:
        from backpropagate_backends.torch_chat import TorchConversation

        self.check_device()
        return TorchConversation(job, self.device)
