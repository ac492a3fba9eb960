"""MLflow: a server, a database or a folder of files, whichever MLFLOW_TRACKING_URI names; else `mlruns` in the output folder."""

from __future__ import annotations

import time
from collections.abc import Mapping

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from backpropagate.doors.environ import environment
from backpropagate.track.telling import Ended, Fact, Note, Values
from backpropagate.track.tracker import Subject

_RUN_ID = "backpropagate.run_id"  # the tag by which a resume finds its run
_NOTES = "mlflow.note.content"  # shown as the run's description
_BATCH = 500  # a request takes at most 1000 metrics, 100 params
_PARAMS = 100
_LONGEST = 500  # characters of a parameter's value that every version takes
_LINES = 200
_STATUS = {"completed": "FINISHED", "failed": "FAILED"}


class MLflow:
    """Keeps points back until `flush`: one request for many of them."""

    def __init__(self, subject: Subject) -> None:
        self.whole, self.kept = False, ""
        uri = environment().get("MLFLOW_TRACKING_URI") or subject.run_dir.output.mlruns.absolute().as_uri()
        self._client = MlflowClient(tracking_uri=uri)
        self._points: list[Metric] = []
        self._lines: list[str] = []
        self._told_lines = 0
        self._id = self._run(self._experiment(subject.spec.project), subject)

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        try:
            return str(self._client.create_experiment(name))
        except MlflowException:  # somebody else made it meanwhile
            found = self._client.get_experiment_by_name(name)
            if found is None:
                raise
            return str(found.experiment_id)

    def _run(self, experiment: str, subject: Subject) -> str:
        found: list[Run] = self._client.search_runs([experiment], f"tags.`{_RUN_ID}` = '{subject.spec.run_id}'")
        if found:
            run_id = str(found[0].info.run_id)
            self._client.update_run(run_id, status="RUNNING")
            return run_id
        made = self._client.create_run(experiment, tags={_RUN_ID: subject.spec.run_id}, run_name=subject.name)
        settings = [Param(name, str(value)[:_LONGEST]) for name, value in subject.settings.items()]
        for start in range(0, len(settings), _PARAMS):
            self._client.log_batch(made.info.run_id, params=settings[start : start + _PARAMS])
        return str(made.info.run_id)

    def values(self, point: Values) -> None:
        at = int(point.time * 1000)
        self._points += [Metric(name, value, at, point.step) for name, value in point.values.items()]
        if len(self._points) >= _BATCH:
            self._send()

    def note(self, note: Note, *, new: bool) -> None:
        stamp = time.strftime("%H:%M:%S", time.gmtime(note.time))
        self._lines.append(f"{stamp} step {note.step}: {note.text}")

    def facts(self, facts: Mapping[str, Fact]) -> None:
        self._client.log_batch(self._id, tags=[RunTag(name, str(value)) for name, value in facts.items()])

    def _send(self) -> None:
        for start in range(0, len(self._points), _BATCH):
            self._client.log_batch(self._id, metrics=self._points[start : start + _BATCH])
        self._points = []

    def flush(self) -> None:
        self._send()
        if len(self._lines) > self._told_lines:
            self._told_lines = len(self._lines)
            self._client.set_tag(self._id, _NOTES, "\n\n".join(self._lines[-_LINES:]))

    def close(self, ended: Ended | None) -> None:
        self.flush()
        self._client.set_terminated(self._id, _STATUS.get(ended.status, "KILLED") if ended else "KILLED")
