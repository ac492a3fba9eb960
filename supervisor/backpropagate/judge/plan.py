"""What follows a training, or comes instead of one: RunSpec to the chain of Jobs. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from backpropagate.judge.prompts import PROMPTS
from backpropagate_protocol.jobs import (
    ConvertAdapterJob,
    ConvertJob,
    FuseJob,
    MergeJob,
    PlaceJob,
    PreflightJob,
    ProveJob,
    PushJob,
    QuantizeJob,
    ReferenceJob,
    RegisterJob,
    StageJob,
)
from backpropagate_protocol.messages import ExportRoute
from backpropagate_protocol.rundir import ExportDir, OutputDir
from backpropagate_protocol.spec import ExportSpec, ModelSpec, PlannedFault, RunSpec

_LMSTUDIO_PUBLISHER = "backpropagate"  # LM Studio lists models by publisher/model/file
_FAILED = {
    "gguf": "RUNTIME_GGUF_EXPORT_FAILED",
    "lora-gguf": "RUNTIME_GGUF_EXPORT_FAILED",
    "merged": "RUNTIME_MERGE_EXPORT_FAILED",
    "mlx": "RUNTIME_MERGE_EXPORT_FAILED",
    "lora": "RUNTIME_LORA_EXPORT_FAILED",
}


@dataclass(frozen=True, slots=True)
class Stage:
    """One child's work other than training.

    output: what is on the disk when it is done; None: it only tells something.
    failed: the code of a failure that has none of its own.
    """

    name: str
    job: StageJob
    failed: str
    output: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """An export's stages. `making` ends with `made` in the work folder; it is then given its name, `result`; `using` follows."""

    making: tuple[Stage, ...]
    made: str
    result: str
    quantization: str | None
    using: tuple[Stage, ...]


def preflight(spec: RunSpec, *, trained: bool, revision: str | None = None) -> Stage:
    """The question whether the whole chain can work. `trained`: the adapter of this run is there already."""
    export = _wanted(spec)
    model, adapter = subject(spec, revision)
    by_training = trains(spec) and not trained
    job = PreflightJob(
        model=spec.model if by_training else model,
        export=export,
        adapter=None if by_training else adapter,
        work=str(_work(spec, export)),
        dora=trains(spec) and spec.lora.use_dora,
        full=full(spec),
        faults=planned_for(spec, "preflight", "preflight"),
    )
    return Stage("preflight", job, _FAILED[export.format])


def trains(spec: RunSpec) -> bool:
    """Whether an adapter comes of the run: a training, or a campaign of several."""
    return spec.kind in ("train", "campaign")


def full(spec: RunSpec) -> bool:
    """Whether a whole model comes of the run, and no adapter."""
    return trains(spec) and spec.train.mode == "full"


def push(spec: RunSpec) -> Stage:
    """The one stage of a run that pushes."""
    assert spec.push is not None
    return Stage("push", PushJob(push=spec.push, faults=planned_for(spec, "push", "push")), "HUB_PUSH_FAILED")


def stages(spec: RunSpec, route: ExportRoute, revision: str | None = None) -> tuple[Stage, ...]:
    """All stages after the preflight, in order."""
    plan = export(spec, route, revision)
    return (*plan.making, *plan.using)


def export(spec: RunSpec, route: ExportRoute, revision: str | None = None) -> Plan:
    """The export's stages, by the route that its preflight found. `revision`: the base's commit that was trained on."""
    wanted = _wanted(spec)
    model, adapter = subject(spec, revision)
    chain = _Chain(spec, wanted, route, model, adapter)
    match wanted.format:
        case "gguf":
            return chain.gguf()
        case "merged":
            return chain.merged()
        case "mlx":
            return chain.mlx()
        case "lora-gguf":
            return chain.lora_gguf()
        case _:
            return chain.lora()


def _wanted(spec: RunSpec) -> ExportSpec:
    assert spec.export is not None
    return spec.export


def _work(spec: RunSpec, wanted: ExportSpec) -> Path:
    return ExportDir(Path(wanted.destination)).work(spec.run_id)


def subject(spec: RunSpec, revision: str | None = None) -> tuple[ModelSpec, str | None]:
    """The base model and the adapter. After a full fine-tune the result is a model of its own, and there is no adapter."""
    model, wanted = spec.model, _wanted(spec)
    if revision:  # a branch may have moved since
        model = msgspec.structs.replace(model, revision=revision)
    if not trains(spec):
        return model, wanted.adapter
    trained = str(OutputDir(Path(spec.output)).run(spec.run_id).adapter)
    if full(spec):
        return msgspec.structs.replace(spec.model, path=trained, revision=None, load_in_4bit=None), None
    return model, trained


def planned_for(spec: RunSpec, name: str, phase: str) -> tuple[PlannedFault, ...]:
    """Those planned for the stage `name`, as its child knows them."""
    return tuple(msgspec.structs.replace(f, stage=phase) for f in spec.faults if f.stage == name)


class _Chain:
    """Makes one export's stages."""

    def __init__(
        self, spec: RunSpec, wanted: ExportSpec, route: ExportRoute, model: ModelSpec, adapter: str | None
    ) -> None:
        self._spec, self._wanted, self._route = spec, wanted, route
        self._model, self._adapter = model, adapter
        self._work = _work(spec, wanted)
        self._reference = str(self._work / "reference")

    def gguf(self) -> Plan:
        route, wanted = self._route, self._wanted
        made = str(self._work / f"{route.type}.gguf")
        quantization = route.type  # where Ollama quantizes, what lies on the disk is what it was given
        making = [
            self._referring("reference", self._model, self._adapter, self._reference),
            self._stage(
                "convert",
                ConvertJob(
                    model=self._model,
                    adapter=self._adapter,
                    out=made,
                    type=route.type,
                    name=wanted.name,
                    converter=route.converter or "own",
                    converter_folder=route.converter_folder or wanted.converter_folder,
                    memory=wanted.memory,
                    faults=planned_for(self._spec, "convert", "convert"),
                ),
                made,
            ),
        ]
        if route.quantizer == "llama":
            source, quantization = made, wanted.quantization or route.type
            made = str(self._work / f"{quantization}.gguf")
            job = QuantizeJob(
                source=source,
                out=made,
                quantization=quantization,
                faults=planned_for(self._spec, "quantize", "quantize"),
            )
            making.append(self._stage("quantize", job, made))
        making.append(self._proving(made, "gguf", quantization))
        return self._plan(making, made, quantization)

    def merged(self) -> Plan:
        made, again = str(self._work / "merged"), str(self._work / "merged-reference")
        merged = msgspec.structs.replace(self._model, path=made, revision=None, load_in_4bit=None)
        making = [self._referring("reference", self._model, self._adapter, self._reference)]
        if self._adapter is None:  # a full fine-tune is merged as it is
            making.append(self._placing("merge", self._model.path, made))
        else:
            job = MergeJob(
                model=self._model,
                adapter=self._adapter,
                out=made,
                memory=self._wanted.memory,
                faults=planned_for(self._spec, "merge", "merge"),
            )
            making.append(self._stage("merge", job, made))
        making.append(self._referring("merged-reference", merged, None, again))
        making.append(self._proving(again, "merged", ""))
        return self._plan(making, made, None)

    def mlx(self) -> Plan:
        """What MLX made of it is asked in MLX. What it is compared with is asked in torch, but for a base that only MLX can
        read."""
        assert self._adapter is not None
        fused = self._route.converter == "mlx"
        made, again = str(self._work / "mlx"), str(self._work / "mlx-reference")
        result = msgspec.structs.replace(self._model, path=made, revision=None, load_in_4bit=None)
        backend = "mlx" if fused else "cpu" if self._spec.backend == "mlx" else self._spec.backend
        faults = planned_for(self._spec, "merge", "merge")
        job: StageJob = MergeJob(
            model=self._model,
            adapter=self._adapter,
            out=made,
            memory=self._wanted.memory,
            layout="mlx",
            faults=faults,
        )
        if fused:
            job = FuseJob(model=self._model, adapter=self._adapter, out=made, faults=faults)
        making = [
            self._referring("reference", self._model, self._adapter, self._reference, backend),
            self._stage("merge", job, made),
            self._referring("merged-reference", result, None, again, "mlx"),
            self._proving(again, "fused" if fused else "merged", ""),
        ]
        return self._plan(making, made, None)

    def lora_gguf(self) -> Plan:
        assert self._adapter is not None
        made = str(self._work / "lora.gguf")
        job = ConvertAdapterJob(
            model=self._model,
            adapter=self._adapter,
            out=made,
            name=self._wanted.name,
            faults=planned_for(self._spec, "convert", "convert"),
        )
        return self._plan([self._stage("convert", job, made), self._proving(made, "lora-gguf", "f32")], made, None)

    def lora(self) -> Plan:
        assert self._adapter is not None
        made = str(self._work / "lora")
        return self._plan([self._placing("place", self._adapter, made)], made, None)

    # --- one stage --------------------------------------------------------------------------------------------------

    def _plan(self, making: list[Stage], made: str, quantization: str | None) -> Plan:
        wanted = self._wanted
        result = ExportDir(Path(wanted.destination)).result(wanted.name, wanted.format, quantization)
        using = []
        if wanted.lmstudio is not None:
            place = Path(wanted.lmstudio) / _LMSTUDIO_PUBLISHER / wanted.name / result.name
            using.append(self._placing("lmstudio", str(result), str(place)))
        if wanted.ollama_name is not None:
            register = RegisterJob(
                gguf=str(result),
                name=wanted.ollama_name,
                host=wanted.ollama_host,
                quantize=wanted.quantization if self._route.quantizer == "ollama" else None,
                faults=planned_for(self._spec, "register", "register"),
            )
            using.append(Stage("register", register, "DEP_OLLAMA_REGISTRATION_FAILED"))
        return Plan(tuple(making), made, str(result), quantization, tuple(using))

    def _stage(self, name: str, job: StageJob, output: str | None) -> Stage:
        return Stage(name, job, _FAILED[self._wanted.format], output)

    def _referring(
        self, name: str, model: ModelSpec, adapter: str | None, out: str, backend: str | None = None
    ) -> Stage:
        job = ReferenceJob(
            model=model,
            adapter=adapter,
            prompts=(*PROMPTS, *self._wanted.prompts),
            out=out,
            backend=backend or self._spec.backend,
            moment=self._spec.created,  # the same for both references, whenever they are made
            faults=planned_for(self._spec, name, "reference"),
        )
        return self._stage(name, job, out)

    def _proving(self, target: str, kind: str, quantization: str) -> Stage:
        job = ProveJob(
            reference="" if kind == "lora-gguf" else self._reference,
            target=target,
            kind=kind,
            quantization=quantization,
            model=self._model,
            adapter=self._adapter,
            verifier=self._route.verifier,
            memory=self._wanted.memory,
            faults=planned_for(self._spec, "prove", "prove"),
        )
        return self._stage("prove", job, None)

    def _placing(self, name: str, source: str, out: str) -> Stage:
        return self._stage(name, PlaceJob(source=source, out=out, faults=planned_for(self._spec, name, "place")), out)
