"""A stage's Job to the function that does it. What a stage needs is imported only when it is the one."""

from __future__ import annotations

from typing import assert_never

from backpropagate_protocol.jobs import (
    CombineJob,
    ConvertAdapterJob,
    ConvertJob,
    EvaluateJob,
    FetchConverterJob,
    FuseJob,
    MergeJob,
    PlaceJob,
    PlotJob,
    PreflightJob,
    ProveJob,
    PushJob,
    QuantizeJob,
    ReferenceJob,
    RegisterJob,
    StageJob,
)
from backpropagate_protocol.measured import Evaluation, Proof
from backpropagate_protocol.messages import ExportRoute, Made, Phase, Pushed, Registered
from backpropagate_runner.channel import Channel
from backpropagate_runner.control import Control
from backpropagate_runner.drill import Drill
from backpropagate_runner.export.one_thread import on_one_thread
from backpropagate_runner.export.stage import Stage
from backpropagate_runner.frameworks import Frameworks
from backpropagate_runner.voice import Voice

StageResult = ExportRoute | Made | Proof | Registered | Pushed | Evaluation


def do(job: StageJob, channel: Channel, control: Control, voice: Voice, frameworks: Frameworks) -> StageResult:
    """Does the Job. Raises whatever went wrong. A stop ends the process wherever it is: a stage keeps nothing half-made."""

    def stage(phase: Phase) -> Stage:
        made = Stage(phase, voice, Drill(job.faults, job.attempt, channel, control, phase.value).before_step)
        made.advance()
        return made

    match job:
        case PreflightJob():
            from backpropagate_runner.export.preflight import preflight

            return preflight(job, stage(Phase.PREFLIGHT))
        case ReferenceJob():
            voice.phase(Phase.IMPORT)
            backend = frameworks.backend(job.backend)
            return backend.reference(job, stage(Phase.REFERENCE))
        case MergeJob():
            on_one_thread()
            from backpropagate_runner.export.merge import merge

            return merge(job, stage(Phase.MERGE))
        case FuseJob():
            from backpropagate_runner.export.fuse import fuse

            voice.phase(Phase.IMPORT)
            frameworks.backend("mlx")
            return fuse(job, stage(Phase.MERGE))
        case ConvertJob():
            on_one_thread()
            from backpropagate_runner.export.convert import convert

            return convert(job, stage(Phase.CONVERT))
        case ConvertAdapterJob():
            from backpropagate_runner.export.convert_adapter import convert_adapter

            return convert_adapter(job, stage(Phase.CONVERT))
        case QuantizeJob():
            from backpropagate_runner.export.quantize import quantize

            return quantize(job, stage(Phase.QUANTIZE))
        case ProveJob():
            from backpropagate_runner.export.prove import prove

            return prove(job, stage(Phase.PROVE))
        case RegisterJob():
            from backpropagate_runner.export.register import register

            return register(job, stage(Phase.REGISTER))
        case PlaceJob():
            from backpropagate_runner.export.place import place

            return place(job, stage(Phase.PLACE))
        case PushJob():
            from backpropagate_runner.export.push import push

            return push(job, stage(Phase.PUSH))
        case FetchConverterJob():
            from backpropagate_runner.export.fetch_converter import fetch

            return fetch(job, stage(Phase.FETCH))
        case CombineJob():
            on_one_thread()
            from backpropagate_runner.combine.combine import combine

            return combine(job, stage(Phase.COMBINE))
        case EvaluateJob():
            from backpropagate_runner.evaluate import evaluate

            return evaluate(job, voice, frameworks, stage(Phase.EVALUATE))
        case PlotJob():
            from backpropagate_runner.plot import plot

            return plot(job, stage(Phase.PLOT))
        case _:
            assert_never(job)
