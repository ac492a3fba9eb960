"""How a run ended, as those who started it see it."""

from __future__ import annotations

import msgspec


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `supervise`. `exit_code` is one of errors.ExitCode; step counts optimizer steps.

    `step`, `samples_seen` and `order` are those of what is kept: the result, or the newest checkpoint.
    """

    run_id: str
    status: str  # completed, failed, interrupted, partial
    exit_code: int
    code: str | None = None
    message: str = ""
    suggestion: str = ""
    step: int = 0
    total_steps: int = 0
    adapter: str | None = None
    final_loss: float | None = None
    samples_seen: int = 0
    order: int = 0
    recoveries: int = 0
    export: str | None = None  # the path of what was exported
    ollama: str | None = None  # the name it was registered under
    url: str | None = None  # where it was pushed to
    best_step: int = 0  # the step whose weights the result has, if its held-out loss chose it
    stopped_early: bool = False
