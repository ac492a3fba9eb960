"""Weights & Biases: online where a login is known, else a folder in the run directory that `wandb sync` sends later."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Literal

import wandb

from backpropagate.track.telling import Ended, Fact, Note, Values
from backpropagate.track.tracker import Subject
from backpropagate_protocol import durable
from backpropagate_protocol.redact import redact

_LINES = 200
_INIT_SECONDS = 20.0  # well within what the end of a run waits for: then there is still time to write it offline
_STEP = "step"  # curves are drawn over it: the library's own count of calls would not survive a resume


class WeightsAndBiases:
    """One run of the same id for all supervisors.

    An offline folder cannot be gone on with: a resume tells the whole run anew, offline or not, and the old folder goes.
    """

    def __init__(self, subject: Subject) -> None:
        earlier = [path for path in subject.run_dir.wandb.glob("offline-run-*") if path.is_dir()]
        self._lines: list[str] = []
        self._told_lines = 0
        self._run, self.kept = _begin(subject)
        self.whole = bool(self._run.offline or earlier)
        self._run.define_metric(_STEP, hidden=True)
        self._run.define_metric("*", step_metric=_STEP)
        if self.whole:
            for path in earlier:
                durable.discard(path)

    def values(self, point: Values) -> None:
        self._run.log({**point.values, _STEP: point.step, "_timestamp": point.time})

    def note(self, note: Note, *, new: bool) -> None:
        stamp = time.strftime("%H:%M:%S", time.gmtime(note.time))
        self._lines.append(f"{stamp} step {note.step}: {note.text}")

    def facts(self, facts: Mapping[str, Fact]) -> None:
        self._run.summary.update(dict(facts))

    def flush(self) -> None:
        """Its own process has what was told; that one outlives this one until it is written."""
        if len(self._lines) > self._told_lines:
            self._told_lines = len(self._lines)
            self._run.summary["events"] = "\n".join(self._lines[-_LINES:])

    def close(self, ended: Ended | None) -> None:
        self.flush()
        self._run.finish(exit_code=ended.exit_code if ended else 1)


def _begin(subject: Subject) -> tuple[wandb.Run, str]:
    """And why it is offline, if that was not wished for. Offline where the service does not take the run: a key that has expired or a network that is down costs nothing."""
    if not subject.spec.report_offline:
        before = set(subject.run_dir.wandb.glob("run-*"))
        try:
            return _init(subject, "online"), ""
        except wandb.Error as error:
            wandb.teardown()
            for empty in set(subject.run_dir.wandb.glob("run-*")) - before:
                durable.discard(empty)
            sys.stderr.write(redact(f"{error}\n"))
            return _init(subject, "offline"), "W&B takes no run now: it is kept offline, for `wandb sync` afterwards"
    return _init(subject, "offline"), ""


def _init(subject: Subject, mode: Literal["online", "offline"]) -> wandb.Run:
    quiet = wandb.Settings(
        console="off",
        silent=True,
        init_timeout=_INIT_SECONDS,
        disable_git=True,
        disable_code=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )
    return wandb.init(
        project=subject.spec.project,
        id=subject.spec.run_id,
        name=subject.name,
        dir=str(subject.run_dir.wandb.parent),
        config=subject.settings,
        mode=mode,
        resume="allow" if mode == "online" else None,
        settings=quiet,
    )
