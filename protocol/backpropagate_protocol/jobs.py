"""Job: what one child is asked to do. Exactly one Job per child, sent after its Hello.

A Job holds all that the child needs: it reads no setting, no environment variable of ours, and no file that the Job does
not name.
"""

from __future__ import annotations

import msgspec

from backpropagate_protocol.spec import DataSpec, ModelSpec, RunSpec


class PreparedRef(msgspec.Struct, frozen=True):
    """A prepared data set on disk (see `prepared.py`): its folder and the digest in its manifest."""

    path: str
    digest: str


class TrainJob(msgspec.Struct, frozen=True, kw_only=True, tag="train"):
    """Train from `resume_from` (or from the start) to the end of the spec.

    micro_batch * accumulation == spec.train.effective_batch, always.
    prepared is None in the first attempt: the child validates and tokenises, and says DataReady; every later attempt
    gets that answer back and must not see other data.
    """

    spec: RunSpec
    run_dir: str
    attempt: int  # 1, 2, …
    micro_batch: int
    accumulation: int
    gradient_checkpointing: bool | None
    resume_from: str | None = None  # a verified checkpoint folder
    prepared: PreparedRef | None = None


class ValidateJob(msgspec.Struct, frozen=True, kw_only=True, tag="validate"):
    """Read the data, report, train nothing. Needs no framework (parquet and hub ids excepted)."""

    data: DataSpec
    max_errors: int = 10


class GenerateJob(msgspec.Struct, frozen=True, kw_only=True, tag="generate"):
    """Answer each prompt (one user turn, the model's own template), greedily unless temperature > 0."""

    model: ModelSpec
    adapter: str | None
    prompts: tuple[str, ...]
    backend: str = "auto"
    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0


Job = TrainJob | ValidateJob | GenerateJob
