"""What follows a training, or comes instead of one: the stages of an export, each a child, one after the other.

What is done is in the journal and is not done again, as long as its output is there. The result gets its final name only
after the proof.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from pathlib import Path

import anyio.to_thread

from backpropagate import __version__
from backpropagate.drive.reporter import Reporter
from backpropagate.drive.stages import Stages
from backpropagate.drive.stops import Stops
from backpropagate.events import Exported, Noticed
from backpropagate.judge import plan, telling
from backpropagate.judge.decisions import Finish
from backpropagate.judge.plan import Plan, Stage
from backpropagate.judge.verdict import GiveUp
from backpropagate.keep import exports, locks
from backpropagate.keep.exports import ExportReport, ProofReport
from backpropagate.keep.past import TRAINED, Past
from backpropagate.keep.record import iso
from backpropagate_protocol import durable, weights
from backpropagate_protocol.catalogue import CATALOGUE
from backpropagate_protocol.errors import BackpropagateError, BusyError, code_of_write
from backpropagate_protocol.messages import Pushed
from backpropagate_protocol.rundir import ExportDir, RunDir
from backpropagate_protocol.spec import RunSpec


class Chain:
    """One run's stages besides its training. After `run`: what came of them."""

    def __init__(
        self, spec: RunSpec, run_dir: RunDir, report: Reporter, stops: Stops, past: Past, held: ExitStack
    ) -> None:
        """`past` must be among those that `report` tells; `held` lets go, at the run's end, of what is locked here."""
        self._spec, self._report, self._past, self._held = spec, report, past, held
        self._claimed: Path | None = None
        self._stages = Stages(spec, run_dir, report, stops, past)
        exported = past.exported.path if past.exported else None
        self.export = exported if exported and self._standing(Path(exported)) else None
        self.ollama: str | None = None
        self.url: str | None = None

    @property
    def recoveries(self) -> int:
        return self._stages.recoveries

    @property
    def follows(self) -> bool:
        """Whether it was told already that the training before it is over and its adapter published."""
        return TRAINED in self._past.ended

    async def preflight(self, *, trained: bool, revision: str) -> Finish | None:
        """Whether all of it can work; None if so. Not asked again where something of it is done.

        Raises BusyError if another export makes a result of this name just now, and ConfigurationError if what has it is
        not ours to replace. After a training the name is taken only when it is needed, which may be in hours.
        """
        if self._spec.export is None:
            return None
        hold = self._spec.kind == "export"
        self._claim(hold=hold)
        if self._under_way():
            return None
        finish = await self._do(plan.preflight(self._spec, trained=trained, revision=revision or None))
        if finish is None:
            self._claim(hold=hold)
        return finish

    def _claim(self, *, hold: bool = True) -> None:
        """What the result is called is known when its route is. hold False: only looks who has the name."""
        if self._past.route is None:
            return
        result = Path(plan.export(self._spec, self._past.route).result)
        if hold and result != self._claimed:
            locks.forget_old_exports()
            try:
                self._held.enter_context(locks.hold(locks.export_lock(result), self._spec.run_id, f"the export to {result}"))  # fmt: skip
            except OSError:
                pass  # no place for the user's locks: nobody can be kept away, and the export goes on
            except BusyError as busy:
                advice = "Wait for it (--wait), or choose another --name or -o (of a training: --export-dir)."
                raise BusyError(busy.message, suggestion=advice, run_id=self._spec.run_id) from None
            self._claimed = result
            with suppress(OSError):
                exports.settle(result)
        exports.check_replaceable(result)

    def _under_way(self) -> bool:
        """Something is done already, of what the export is still made of."""
        if self._past.route is None:
            return False
        chain = plan.export(self._spec, self._past.route)
        if self._standing(Path(chain.result)):
            return True
        if self._changed():
            self._begin_anew("what is exported was changed since the export began; it begins anew")
        elif self.export is None and self._past.exported is not None:
            self._begin_anew(f"{chain.result} is not this run's any more; it is made again")
        return self._past.route is not None and self._stages.has(chain.making[0])

    def _begin_anew(self, why: str) -> None:
        self._report.event(Noticed(time=time.time(), run_id=self._spec.run_id, level="warning", text=why))
        self._past.forget()
        self.discard()

    def discard(self) -> None:
        """What the stages have made so far, but for what has its name."""
        if self._spec.export is not None:
            durable.discard(ExportDir(Path(self._spec.export.destination)).work(self._spec.run_id))

    def _inputs(self) -> str:
        """The digest of what the export is made of; empty if it cannot be read. A run's own adapter never changes."""
        export = self._spec.export
        assert export is not None
        places = [self._spec.model.path, *([export.adapter] if export.adapter and self._spec.kind == "export" else [])]
        try:
            return exports.inputs_digest(*(Path(place) for place in places if Path(place).is_absolute()))
        except OSError:
            return ""

    def _changed(self) -> bool:
        told = self._past.ended.get("preflight")
        now = self._inputs()
        return bool(told and told.digest and now) and told is not None and told.digest != now

    async def run(self, revision: str) -> Finish:
        """Does what is left to do. `revision`: the base's commit that was trained on; empty: not known."""
        finish = None
        if self._spec.kind == "push":
            finish = await self._do(plan.push(self._spec))
        elif self._spec.export is not None:
            try:
                finish = await self._export(revision)
            except BackpropagateError as error:
                finish = telling.refused(error)
        return finish or telling.completed()

    async def _export(self, revision: str) -> Finish | None:
        if self._past.route is None:  # the preflight could not be had before the training
            finish = await self.preflight(trained=True, revision=revision)
            if finish is not None:
                return finish
        assert self._past.route is not None
        self._claim()
        chain = plan.export(self._spec, self._past.route, revision or None)
        made, result = Path(chain.made), Path(chain.result)
        standing = self._standing(result)
        if standing is None:
            finish = await self._make(chain) or await self._give_its_name(chain, revision)
            if finish is not None:
                return finish
        elif self._past.exported is None or self._past.exported.digest != standing.digest:
            self._tell(result, standing)  # a supervisor was cut off before it could
        self.export = chain.result
        for stage in chain.using:
            if self._stages.has(stage):
                continue
            finish = await self._do(stage)
            if finish is not None:
                return finish
        if self._spec.export is not None:
            self.ollama = self._spec.export.ollama_name
        durable.discard(made.parent)
        return None

    def _standing(self, result: Path) -> ExportReport | None:
        """The report of this run's result, if it is there and made of the adapter that the run has now."""
        report = exports.standing(self._spec.run_id, result)
        if report is None or self._spec.kind != "campaign":
            return report
        _, adapter = plan.subject(self._spec)
        now = weights.digest_in(Path(adapter)) if adapter and Path(adapter).is_dir() else ""
        return report if report.adapter_digest == now else None

    async def _make(self, chain: Plan) -> Finish | None:
        done = 0
        while done < len(chain.making) and self._stages.has(chain.making[done]):
            done += 1
        for stage in chain.making[done:]:  # what follows the first that is missing was made of something else
            finish = await self._do(stage)
            if finish is not None:
                return finish
        return None

    async def _do(self, stage: Stage) -> Finish | None:
        finish = await self._stages.do(stage, self._inputs)
        if finish is None and isinstance(self._stages.answer, Pushed):
            self.url = self._stages.answer.url
        return finish

    # --- the result -------------------------------------------------------------------------------------------------

    async def _give_its_name(self, chain: Plan, revision: str) -> Finish | None:
        """To what is proven its final one, with its report beside it; to what is not, another."""
        failed = self._past.proof is not None and not self._past.proof.passed
        try:
            report = await anyio.to_thread.run_sync(self._written, chain, revision)
            if self._changed():
                return self._mixed()
            if failed:
                return await self._reject(chain, report)
            await anyio.to_thread.run_sync(exports.publish, Path(chain.made), Path(chain.result), report)
        except OSError as error:
            info = CATALOGUE[code_of_write(error, chain.making[-1].failed)]
            hint = " (is it open in another program?)" if isinstance(error, PermissionError) else ""
            text = f"{chain.result} cannot be written: {error.strerror or error}{hint}"
            return telling.gave_up(GiveUp(info.exit, info.code, text, info.remedy))
        self._tell(Path(chain.result), report)
        return None

    def _tell(self, result: Path, report: ExportReport) -> None:
        self._report.event(
            Exported(
                time=time.time(),
                run_id=self._spec.run_id,
                path=str(result),
                bytes=report.bytes,
                format=report.format,
                quantization=report.quantization,
                digest=report.digest,
                report=str(ExportDir.report(result)),
            )
        )

    def _mixed(self) -> Finish:
        """Some stages read what was there before, some what is there now: nothing of it can be kept, or judged."""
        self.discard()
        info = CATALOGUE["STATE_RUN_MISMATCH"]
        what = (self._spec.export.adapter if self._spec.export else None) or self._spec.model.path
        text = f"what is exported was changed meanwhile: {what}, or the base model"
        return Finish("failed", info.exit, info.code, text, "`backprop resume RUN` exports what is there now.")

    async def _reject(self, chain: Plan, report: ExportReport) -> Finish:
        made = Path(chain.made)
        aside = await anyio.to_thread.run_sync(exports.reject, made, Path(chain.result), report)
        durable.discard(made.parent)
        missed = ", ".join(check.name for check in report.proof.checks if not check.passed) if report.proof else ""
        info = CATALOGUE["RUNTIME_EXPORT_MISMATCH"]
        text = f"the exported model does not answer as the trained one ({missed}); it is in {aside}"
        return Finish("partial", info.exit, info.code, text, info.remedy)

    def _written(self, chain: Plan, revision: str) -> ExportReport:
        """The report. Reads the adapter's weights for their digest."""
        export, route, proof = self._spec.export, self._past.route, self._past.proof
        assert export is not None
        assert route is not None
        maker = next(self._past.ended[stage.name] for stage in chain.making if stage.output == chain.made)
        model, adapter = plan.subject(self._spec, revision or None)
        return ExportReport(
            run_id=self._spec.run_id,
            created=iso(time.time()),
            result=Path(chain.result).name,
            bytes=maker.bytes,
            digest=maker.digest,
            format=export.format,
            quantization=chain.quantization,
            base_model=model.name,
            base_path=model.path,
            base_revision=model.revision,
            adapter=adapter,
            adapter_digest=weights.digest_in(Path(adapter)) if adapter else "",
            architecture=route.architecture,
            parameters=route.parameters,
            route={"converter": route.converter, "type": route.type, "quantizer": route.quantizer},
            proof=ProofReport(
                passed=proof.passed,
                verifier=proof.verifier,
                checks=proof.checks,
                prompts=proof.prompts,
                positions=proof.positions,
            )
            if proof
            else None,
            versions={"backpropagate": __version__, **self._past.versions},
            notes=(*route.notes, *maker.notes),
        )
