"""What follows a training, or comes instead of one: the stages of an export, each a child, one after the other.

What is done is in the journal and is not done again, as long as its output is there. The result gets its final name only
after the proof.
"""

from __future__ import annotations

import errno
import time
from pathlib import Path

import anyio.to_thread

from backpropagate import __version__
from backpropagate.events import Exported
from backpropagate.judge import plan, telling
from backpropagate.judge.decisions import Finish
from backpropagate.judge.plan import Plan, Stage
from backpropagate.judge.verdict import GiveUp
from backpropagate.keep import exports
from backpropagate.keep.exports import ExportReport, ProofReport
from backpropagate.keep.past import TRAINED, Past
from backpropagate.keep.record import iso
from backpropagate.reporter import Reporter
from backpropagate.stages import Stages
from backpropagate.stops import Stops
from backpropagate_protocol import durable
from backpropagate_protocol.errors import CATALOGUE
from backpropagate_protocol.messages import Pushed
from backpropagate_protocol.rundir import ExportDir, RunDir
from backpropagate_protocol.spec import RunSpec

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class Chain:
    """One run's stages besides its training. After `run`: what came of them."""

    def __init__(self, spec: RunSpec, run_dir: RunDir, report: Reporter, stops: Stops, past: Past) -> None:
        """`past` must be among those that `report` tells."""
        self._spec, self._report, self._past = spec, report, past
        self._stages = Stages(spec, run_dir, report, stops, past)
        self.export = past.exported.path if past.exported and Path(past.exported.path).exists() else None
        self.ollama: str | None = None
        self.url: str | None = None

    @property
    def recoveries(self) -> int:
        return self._stages.recoveries

    @property
    def follows(self) -> bool:
        """Whether it was told already that the training before it is over and its adapter published."""
        return TRAINED in self._past.ended

    async def preflight(self, *, trained: bool) -> Finish | None:
        """Whether all of it can work; None if so. Not asked again where something of it is done."""
        if self._spec.export is None or self._under_way():
            return None
        return await self._do(plan.preflight(self._spec, trained=trained))

    def _under_way(self) -> bool:
        if self._past.route is None:
            return False
        first, *_ = plan.stages(self._spec, self._past.route)
        return self.export is not None or self._stages.has(first)

    async def run(self, revision: str) -> Finish:
        """Does what is left to do. `revision`: the base's commit that was trained on; empty: not known."""
        finish = None
        if self._spec.kind == "push":
            finish = await self._do(plan.push(self._spec))
        elif self._spec.export is not None:
            assert self._past.route is not None
            finish = await self._export(plan.export(self._spec, self._past.route, revision or None))
        return finish or telling.completed()

    async def _export(self, chain: Plan) -> Finish | None:
        made, result = Path(chain.made), Path(chain.result)
        if self.export != chain.result and not self._is_published(made, result):
            finish = await self._make(chain) or await self._give_its_name(chain)
            if finish is not None:
                return finish
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

    def _is_published(self, made: Path, result: Path) -> bool:
        _, adapter = plan.subject(self._spec)
        return exports.is_published(self._spec.run_id, made, result, adapter)

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
        finish = await self._stages.do(stage)
        if finish is None and isinstance(self._stages.answer, Pushed):
            self.url = self._stages.answer.url
        return finish

    # --- the result -------------------------------------------------------------------------------------------------

    async def _give_its_name(self, chain: Plan) -> Finish | None:
        """To what is proven its final one, with its report beside it; to what is not, another."""
        failed = self._past.proof is not None and not self._past.proof.passed
        try:
            report = await anyio.to_thread.run_sync(self._written, chain)
            if failed:
                return await self._reject(chain, report)
            await anyio.to_thread.run_sync(exports.publish, Path(chain.made), Path(chain.result), report)
        except OSError as error:
            info = CATALOGUE["RUNTIME_DISK_FULL" if error.errno in _NO_ROOM else chain.making[-1].failed]
            text = f"{chain.result} cannot be written: {error.strerror or error}"
            return telling.gave_up(GiveUp(info.exit, info.code, text, info.remedy))
        self._report.event(
            Exported(
                time=time.time(),
                run_id=self._spec.run_id,
                path=chain.result,
                bytes=report.bytes,
                format=report.format,
                quantization=report.quantization,
                digest=report.digest,
                report=str(ExportDir.report(Path(chain.result))),
            )
        )
        return None

    async def _reject(self, chain: Plan, report: ExportReport) -> Finish:
        made = Path(chain.made)
        aside = await anyio.to_thread.run_sync(exports.reject, made, Path(chain.result), report)
        durable.discard(made.parent)
        missed = ", ".join(check.name for check in report.proof.checks if not check.passed) if report.proof else ""
        info = CATALOGUE["RUNTIME_EXPORT_MISMATCH"]
        text = f"the exported model does not answer as the trained one ({missed}); it is in {aside}"
        return Finish("failed", info.exit, info.code, text, info.remedy)

    def _written(self, chain: Plan) -> ExportReport:
        """The report. Reads the adapter's weights for their digest."""
        export, route, proof = self._spec.export, self._past.route, self._past.proof
        assert export is not None
        assert route is not None
        maker = next(self._past.ended[stage.name] for stage in chain.making if stage.output == chain.made)
        model, adapter = plan.subject(self._spec)
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
            adapter_digest=exports.weights_digest(Path(adapter)) if adapter else "",
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
