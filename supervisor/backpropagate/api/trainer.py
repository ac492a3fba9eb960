"""Trainer: the three lines. Starts the supervisor of a run as a process of its own and follows it.

    from backpropagate import Trainer
    run = Trainer("tiny").train("my_data.jsonl", steps=100)
    print(run.final_loss, run.adapter_path)

Nothing of the training happens in this process: torch is not imported, no thread is started, no signal handler is set. So
it works in a script without `if __name__ == "__main__"`, in a notebook, and in a thread.

A long file, since what `help(Trainer)` shows stands here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from backpropagate.api.callbacks import Calls, TrainingCallback
from backpropagate.api.campaign_result import Campaign, CampaignRun
from backpropagate.api.export_result import Export, ExportSummary
from backpropagate.api.multi_runs import MultiRuns
from backpropagate.api.result import Summary, TrainingRun
from backpropagate.keep import runs
from backpropagate.keep.journal import read
from backpropagate.keep.results import copy_adapter
from backpropagate.wishes.build_spec import build_spec
from backpropagate.wishes.export_run import export_run
from backpropagate.wishes.export_spec import ExportWish
from backpropagate.wishes.later import method_error, without_later
from backpropagate.wishes.notices import notices
from backpropagate.wishes.push_run import PushWish, push_run
from backpropagate.wishes.settings import Settings
from backpropagate.wishes.sources import find
from backpropagate.wishes.together import check_of_export
from backpropagate_protocol.errors import UserInputError, error_for
from backpropagate_protocol.rundir import RunDir
from backpropagate_protocol.spec import RunSpec

__all__ = ["Campaign", "CampaignRun", "Export", "Trainer", "TrainingCallback", "TrainingRun"]

Made = TrainingRun | Campaign | Export | str | os.PathLike[str]


class Trainer(MultiRuns):
    """Wishes for trainings. What is not given comes from the environment, `.env`, `backpropagate.toml`, or the default.

    model                  a hub id, a folder, a preset name, or "tiny"
    output_dir             folder for runs, history and the finished adapter ("./output")
    batch_size             rows on the device at once, to begin with; None or "auto": from the card's memory
    gradient_accumulation  batches in one optimizer step; None: so many that the effective batch is 8
    max_length             tokens in a row (max_seq_length is another name for it)
    progress               show progress: in the notebook cell, or on stderr

    The other arguments are described in docs/settings.md under the same names. Raises InvalidSettingError, UserInputError
    for what cannot be accepted.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        lora_r: int | None = None,
        lora_alpha: int | None = None,
        lora_dropout: float | None = None,
        lora_preset: str | None = None,
        target_modules: str | Sequence[str] | None = None,
        use_dora: bool | None = None,
        use_rslora: bool | None = None,
        init_lora_weights: str | None = None,
        learning_rate: float | None = None,
        batch_size: int | str | None = None,
        gradient_accumulation: int | None = None,
        max_length: int | None = None,
        max_seq_length: int | None = None,
        output_dir: str | os.PathLike[str] | None = None,
        preset: str | None = None,
        method: str | None = None,
        mode: str | None = None,
        backend: str | None = None,
        fp8: bool | None = None,
        reasoning_trace: bool | None = None,
        report_to: str | Sequence[str] | None = None,
        load_in_4bit: bool | None = None,
        gradient_checkpointing: bool | None = None,
        optim: str | None = None,
        seed: int | None = None,
        oom_recovery: bool | None = None,
        run_name: str | None = None,
        runner_python: str | os.PathLike[str] | None = None,
        progress: bool = True,
        **more: object,
    ) -> None:
        given: dict[str, object] = {
            "model": model,
            "lora_r": lora_r,
            "lora_alpha": lora_alpha,
            "lora_dropout": lora_dropout,
            "lora_preset": lora_preset,
            "target_modules": target_modules,
            "use_dora": use_dora,
            "use_rslora": use_rslora,
            "init_lora_weights": init_lora_weights,
            "learning_rate": learning_rate,
            "batch_size": batch_size,
            "gradient_accumulation": gradient_accumulation,
            "max_length": max_length if max_length is not None else max_seq_length,
            "output_dir": output_dir,
            "preset": preset,
            "method": method,
            "mode": mode,
            "backend": backend,
            "fp8": fp8,
            "reasoning_trace": reasoning_trace,
            "report_to": report_to,
            "load_in_4bit": load_in_4bit,
            "gradient_checkpointing": gradient_checkpointing,
            "optim": optim,
            "seed": seed,
            "oom_recovery": oom_recovery,
            "run_name": run_name,
            "runner_python": runner_python,
        }
        given |= without_later(more)
        super().__init__({name: value for name, value in given.items() if value is not None}, progress=progress)
        self.runs: list[TrainingRun] = []
        for setting in Settings(self._given).all():
            del setting  # each was looked up, so a value that cannot be used is known now

    if not TYPE_CHECKING:  # for a type checker, these names do not exist

        def __getattr__(self, name: str) -> object:
            raise method_error(name)

    def train(
        self,
        data: str | os.PathLike[str] | None = None,
        *,
        steps: int | None = None,
        epochs: float | None = None,
        samples: int | None = None,
        batch_size: int | str | None = None,
        gradient_accumulation: int | None = None,
        export: str | None = None,
        ollama_name: str | None = None,
        export_dir: str | os.PathLike[str] | None = None,
        resume: str | None = None,
        callback: TrainingCallback | None = None,
        on_step: Callable[[int, float | None], bool | None] | None = None,
        **more: object,
    ) -> TrainingRun:
        """Trains under supervision and blocks until the run has ended.

        data     a file or a hub id; steps: optimizer steps (100); epochs: instead of steps; samples: only the first N rows
        export   what to make of the result, in the same run: a quantization such as "q4_k_m" (a GGUF of it), or "gguf",
                 "merged", "lora"; it is in `run.export`. ollama_name: register it; export_dir: where it goes
        resume   a run id, a prefix of one, or "latest": go on with that run, with the data and settings it began with

        Ctrl-C (interrupting the cell) saves a checkpoint and returns the run with status "interrupted"; a second one ends it
        at once. Raises the exception of the error's code (`run_id` is set on it) if the run failed, and if the export did:
        the training is then kept, in `trainer.runs[-1]` and on the disk.
        """
        if resume is not None:
            extra = [name for name, value in {"data": data, "steps": steps, "epochs": epochs, "samples": samples, "batch_size": batch_size, "gradient_accumulation": gradient_accumulation, "export": export, "ollama_name": ollama_name, "export_dir": export_dir, **more}.items() if value is not None]  # fmt: skip
            if extra:
                raise UserInputError(
                    f"a resumed run keeps its data and settings; {', '.join(extra)} cannot change them",
                    suggestion="Leave these arguments out, or start a new run.",
                )
            return self.resume(resume, callback=callback, on_step=on_step)
        wishes = {
            name: value
            for name, value in {
                "data": data,
                "steps": steps,
                "epochs": epochs,
                "samples": samples,
                "batch_size": batch_size,
                "gradient_accumulation": gradient_accumulation,
                "export": export,
                "ollama_name": ollama_name,
                "export_dir": export_dir,
                **without_later(more),
            }.items()
            if value is not None
        }
        settings = Settings({**self._given, **wishes})
        check_of_export(settings, wishes)
        spec = build_spec(settings, verbose=settings.flag("debug"))
        self._tell(notices(settings))
        run_dir = runs.create(spec)
        with runs.beginning(run_dir):
            return self._follow(run_dir, Calls(callback, on_step), spec.safety.wait_for_lock)

    def resume(
        self,
        run: str = "latest",
        *,
        callback: TrainingCallback | None = None,
        on_step: Callable[[int, float | None], bool | None] | None = None,
    ) -> TrainingRun:
        """Goes on with an interrupted or failed run of this output folder, from its newest good checkpoint.

        run: a run id, any unique prefix of one, or "latest": the newest that is not complete. Raises RunNotFoundError, and UserInputError
        (STATE_RUN_FINISHED) for a run that is complete.
        """
        run_dir = self._resumable(run, campaigns=False)
        return self._follow(run_dir, Calls(callback, on_step), Settings(self._given).flag("safety.wait"))

    def export(
        self,
        format: str | None = "gguf",
        quantization: str | None = None,
        output_dir: str | os.PathLike[str] | None = None,
        *,
        run: Made | None = None,
        name: str | None = None,
        ollama_name: str | None = None,
        lmstudio: bool = False,
        base: str | os.PathLike[str] | None = None,
        prompts: Sequence[str] = (),
        **more: object,
    ) -> Export:
        """Exports a trained run, proves that the result answers as the trained model does, and blocks until that is done.

        format        "gguf", "merged", "lora", "lora-gguf"; None: gguf if a quantization or Ollama is named, else lora
        quantization  of a GGUF ("q4_k_m"); output_dir: where it goes (exports/RUN in the output folder)
        run           a TrainingRun, a Campaign, a run id, or a folder; None: the newest of this Trainer, else of the output
                      folder
        name          of the file, without quantization and suffix; ollama_name: register it with Ollama under this name
        lmstudio      place it among LM Studio's models, too; base: instead of the base model that the adapter names
        prompts       tried in the proof, besides the ones that every export is tried with

        Raises ExportError and its kinds, DependencyError, UserInputError; TrainingAbortedError after Ctrl-C, which leaves an
        export that can be gone on with.
        """
        wishes = {**self._given, "quantization": quantization, "ollama_name": ollama_name, **without_later(more)}
        settings = Settings(wishes)
        wish = ExportWish(
            format=format,
            destination=None if output_dir is None else os.fspath(output_dir),
            name=name,
            lmstudio=lmstudio,
            prompts=tuple(prompts),
        )
        what = self._made(run)
        chosen = None if base is None else os.fspath(base)
        spec = export_run(settings, what, wish, base=chosen, verbose=settings.flag("debug"))
        self._tell(settings.warnings)
        summary = self._carried_out(spec, "the export")
        assert summary.export is not None
        return summary.export

    def push_to_ollama(self, name: str, quantization: str = "q4_k_m", *, run: Made | None = None) -> Export:
        """Exports a GGUF and registers it with Ollama: then `ollama run NAME`. Raises as `export` does."""
        return self.export("gguf", quantization, run=run, ollama_name=name)

    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool = True,
        what: Made | None = None,
        revision: str | None = None,
        message: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
        card: bool = True,
    ) -> str:
        """Uploads to the hub, with a card that says how it was made; returns the URL.

        repo   "owner/name", made if it is not there; private: who may see it then
        what   an Export, a TrainingRun, a run id, a folder or a GGUF; None: the adapter of the newest run
        token_file  a file that holds the token; without one, HF_TOKEN or that of `hf auth login`

        Raises HubPushError, UserInputError.
        """
        settings = Settings(self._given)
        wish = PushWish(
            repo=repo,
            private=private,
            revision=revision,
            message=message,
            token_file=None if token_file is None else os.fspath(token_file),
            card=card,
        )
        spec = push_run(settings, self._made(what), wish, verbose=settings.flag("debug"))
        summary = self._carried_out(spec, "the upload")
        return summary.url or f"https://huggingface.co/{repo}"

    def save(self, path: str | os.PathLike[str], *, run: Made | None = None) -> Path:
        """Copies the trained adapter (or whole model) to the folder `path`, which must not exist yet; returns it."""
        source = find(self._made(run), Settings(self._given))
        if source.trained is None:
            raise UserInputError(f"{source.name} is a model without an adapter; there is nothing to save")
        return copy_adapter(Path(source.trained), Path(path))

    def _made(self, what: Made | None) -> str:
        """As a command would be told it."""
        if what is None:
            return self._newest
        if isinstance(what, TrainingRun | Campaign):
            return str(what.output_path)
        return str(what.path) if isinstance(what, Export) else os.fspath(what)

    def _carried_out(self, spec: RunSpec, what: str) -> ExportSummary:
        """Supervised to its end. Raises for every end but the good one."""
        run_dir = runs.create(spec)
        summary = ExportSummary(run_dir)
        with runs.beginning(run_dir):
            ended = self._watch(run_dir, [summary], spec.safety.wait_for_lock)
        if ended.status != "completed":
            raise error_for(
                ended.code
                or ("RUNTIME_TRAINING_ABORTED" if ended.status == "interrupted" else "RUNTIME_EXPORT_FAILED"),
                ended.message or f"{what} is {ended.status}",
                suggestion=(ended.suggestion or f"Go on with it: {runs.resuming(run_dir)}").replace(
                    "backprop resume RUN", runs.resuming(run_dir)
                ),
                run_id=spec.run_id,
            )
        return summary

    def _follow(self, run_dir: RunDir, calls: Calls, wait: bool) -> TrainingRun:
        summary = Summary(run_dir)
        for event in read(run_dir.events):  # what earlier supervisors of a resumed run did
            summary.event(event)
        calls.run_dir = run_dir
        ended = self._watch(run_dir, [summary, calls], wait)
        run = replace(summary.run(), callback_error=calls.error)
        self.runs.append(run)
        self._newest = run.run_id
        if ended.status == "failed" or (ended.status == "partial" and runs.load_spec(run_dir).export is not None):
            error = self._failure(run_dir, ended)
            calls.failed(error)
            raise error
        if ended.status == "interrupted" and self._progress:
            sys.stderr.write(f"interrupted at step {run.steps}; go on with: {runs.resuming(run_dir)}\n")
        calls.completed(run)
        return run
