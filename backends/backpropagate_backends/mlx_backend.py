"""The mlx backend: Apple silicon through MLX and mlx-lm; on Linux their CPU build, for tests."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from backpropagate_backends.base import Conversation, Reporting, Session, Tokenizer
from backpropagate_backends.mlx_warm import warm
from backpropagate_protocol.jobs import ChatJob, EvaluateJob, FuseJob, GenerateJob, ReferenceJob, TrainJob
from backpropagate_protocol.measured import Score
from backpropagate_protocol.messages import Made, TrainResult
from backpropagate_protocol.prepared import Prepared
from backpropagate_protocol.spec import ModelSpec

# Ours that import MLX at their top; `warm` imports them too, so that nothing is left for the first step. Not what tokenises:
# that needs torch, which no attempt but the first has to hold in memory.
_OURS = ("mlx_train", "mlx_evaluate")


class MlxBackend:
    """Bit-identical across resumes on one machine. See `base.Backend` for what each method promises."""

    name = "mlx"

    def warm(self) -> None:
        warm()
        for module in _OURS:
            importlib.import_module(f"backpropagate_backends.{module}")

    def check(self, job: TrainJob) -> None:
        from backpropagate_backends.mlx_wishes import check_wishes

        check_wishes(job)

    def tokenizer(self, model: ModelSpec) -> Tokenizer:
        from backpropagate_backends.torch_tokenizer import TorchTokenizer

        return TorchTokenizer(model)

    def train(self, session: Session, data: Prepared) -> TrainResult | None:
        from backpropagate_backends import mlx_train

        return mlx_train.train(session, data, self.name)

    def generate(self, job: GenerateJob) -> tuple[str, ...]:
        from backpropagate_backends.mlx_generate import generate

        return generate(job)

    def reference(self, job: ReferenceJob, stage: Reporting) -> Made:
        from backpropagate_backends.mlx_reference import write_reference

        return write_reference(job, stage)

    def fuse(self, job: FuseJob, folder: Path, stage: Reporting) -> None:
        """See `base.Fuser`."""
        from backpropagate_backends import mlx_fuse

        mlx_fuse.fuse(job, folder, stage)

    def evaluate(self, job: EvaluateJob, tasks: Sequence[Prepared], stage: Reporting) -> tuple[Score, ...]:
        from backpropagate_backends import mlx_evaluate

        return mlx_evaluate.evaluate(job, tasks, stage)

    def chat(self, job: ChatJob) -> Conversation:
        from backpropagate_backends.mlx_generate import MlxConversation

        return MlxConversation(job)
