"""Transcripts of the policies: a person's words for what happened, and for what the policy answered.

A scenario is a text of blocks. Each block is one or more lines of input (`SECONDS WORDS`), a line `----`, and the actions.
The first block may begin with lines `spec NAME=VALUE …`; lines with # are remarks. `spec stage="convert"`: the scenario is
one of that stage, not of a training.
"""

from __future__ import annotations

from typing import assert_never

import msgspec

from backpropagate.events import CardTrouble, FaultSeen, Heat, MemoryAwaited, Noticed, Recovering, StopRequested
from backpropagate.judge import decisions as d
from backpropagate.judge.plan import Stage
from backpropagate.judge.policy import Policy
from backpropagate.judge.stage import StagePolicy
from backpropagate.judge.start import Start
from backpropagate.judge.vitals import Vitals
from backpropagate_protocol import messages as m
from backpropagate_protocol.catalogue import ExitCode
from backpropagate_protocol.jobs import (
    Candidate,
    CombineJob,
    ConvertJob,
    EvaluateJob,
    PlaceJob,
    PreflightJob,
    ReferenceJob,
    RegisterJob,
    StageJob,
)
from backpropagate_protocol.spec import DataSpec, ExportSpec, ModelSpec, RunSpec, SafetySpec, TrainSpec

RULE = "----"


def spec(effective: int = 8, **safety: object) -> RunSpec:
    return RunSpec(
        run_id="run",
        created="",
        backend="toy",
        output="/out",
        model=ModelSpec(name="toy", path="toy"),
        data=DataSpec(source="/data"),
        train=TrainSpec(effective_batch=effective),
        safety=msgspec.convert(safety, SafetySpec),
    )


_MODEL = ModelSpec(name="tiny", path="/tiny")
_EXPORT = ExportSpec(format="gguf", quantization="q4_k_m", destination="/exports", name="talk")
_JOBS: dict[str, StageJob] = {
    "preflight": PreflightJob(model=_MODEL, export=_EXPORT, adapter="/lora", work="/exports/made"),
    "reference": ReferenceJob(model=_MODEL, adapter="/lora", prompts=("Why?",), out="/exports/made/reference"),
    "convert": ConvertJob(
        model=_MODEL, adapter="/lora", out="/exports/made/f16.gguf", type="f16", name="talk", memory=256
    ),
    "place": PlaceJob(source="/lora", out="/exports/made/lora"),
    "combine": CombineJob(adapters=("/one", "/two"), out="/merged", rule="slao"),
    "evaluate": EvaluateJob(
        model=_MODEL,
        candidates=(Candidate("base", None),),
        tasks=(DataSpec(source="/data", holdout=2),),
        cache="/cache",
    ),
    "register": RegisterJob(gguf="/exports/talk.gguf", name="talk", host="http://127.0.0.1:11434"),
}


def stage(name: str) -> Stage:
    """A stage with a Job that nobody will do."""
    failed = "DEP_OLLAMA_REGISTRATION_FAILED" if name == "register" else "RUNTIME_GGUF_EXPORT_FAILED"
    return Stage(name, _JOBS[name], failed)


def play(text: str) -> str:
    """The same scenario, with the actions that the policy answers now."""
    out: list[str] = []
    blocks = text.strip("\n").split("\n\n")
    settings: dict[str, object] = {}
    for line in blocks[0].splitlines():
        if line.startswith("spec "):
            pairs = (pair.split("=") for pair in line.split()[1:])
            settings.update({name: _value(value) for name, value in pairs})
    micro, wait = settings.pop("micro", 8), settings.pop("wait_for_card", False)
    effective = settings.pop("effective", 8)
    assert isinstance(micro, int)
    assert isinstance(effective, int)
    name = settings.pop("stage", None)
    policy: Policy | StagePolicy
    if isinstance(name, str):
        policy = StagePolicy("run", msgspec.convert(settings, SafetySpec), stage(name))
    else:
        policy = Policy(spec(effective, **settings), Start(micro_batch=micro, wait_for_card=bool(wait)))
    for block in blocks:
        inputs = block.split(f"\n{RULE}")[0].splitlines()
        actions: list[str] = []
        for line in inputs:
            if not line.startswith(("#", "spec ")):
                actions += [_told(action) for action in policy.handle(_heard(line))]
        out.append("\n".join([*inputs, RULE, *actions]))
    return "\n\n".join(out) + "\n"


def _value(text: str) -> object:
    return msgspec.json.decode(text)


def _heard(line: str) -> d.Input:
    """One line of input. Words of the form name=value are options."""
    time, verb, *rest = line.split()
    now = float(time)
    words = [word for word in rest if "=" not in word]
    options = dict(word.split("=", 1) for word in rest if "=" in word)
    number = {name: int(value) for name, value in options.items() if value.lstrip("-").isdigit()}
    match verb:
        case "begin":
            return d.Begin(now)
        case "garbage":
            return d.RunnerGarbled(now, "a frame is no message of ours")
        case "exit":
            return d.RunnerExited(now, _death(words))
        case "spawn-failed":
            return d.SpawnFailed(now, "No such file or directory")
        case "found":
            return d.CheckpointFound(now, None if words == ["none"] else _checkpoint(int(words[0])))
        case "unreadable":
            return d.SearchFailed(now, "step-00000005: Input/output error")
        case "tick":
            return d.Tick(now, float(options.get("late", 0)))
        case "stop":
            return d.StopAsked(now, words[0], ExitCode.INTERRUPTED if words[0] == "ctrl-c" else ExitCode.TRY_LATER)
        case "kill":
            return d.StopAsked(now, "kill", ExitCode.INTERRUPTED, kill=True)
        case "card":
            return d.CardKnown(now, number.get("micro"))
        case "limits":
            return d.CardLimits(now, number["slowdown"], number["shutdown"])
        case "celsius":
            return d.Temperature(now, int(words[0]), number.get("slowdown"), number.get("shutdown"))
        case "xid":
            return d.XidSeen(now, int(words[0]))
        case "vitals":
            return d.CardVitals(now, msgspec.convert(number, Vitals))
        case "card-gone":
            return d.CardGone(now, "GPU is lost")
        case "shared":
            return d.MemorySpilled(now, int(words[0]), number["used"], number["total"])
        case "sensor-lost":
            return d.SensorLost(now, "no answer", hung="hung" in words)
        case "held":
            held = words[0] != "0"
            return d.MemoryHeld(
                now, int(words[0]), f"blender (pid 4711, {words[0]} MiB)" if held else "", (4711,) if held else ()
            )
        case "memory-short":
            return d.MemoryShort(now, "macOS calls its memory pressure critical")
        case _:
            return d.RunnerSaid(now, _message(verb, words, number, options))


def _message(verb: str, words: list[str], number: dict[str, int], options: dict[str, str]) -> m.ToParent:
    step = int(words[0]) if words and words[0].isdigit() else number.get("step", 0)
    match verb:
        case "hello":
            return m.Hello(number.get("protocol", m.PROTOCOL_VERSION), 100, "3.11", {})
        case "phase":
            return m.PhaseChanged(m.Phase(words[0]))
        case "data":
            return m.DataReady("/cache/x", "digest", "text", 100, 0, 1000, 1000, 0)
        case "started":
            micro, accumulation = number.get("micro", 8), number.get("accumulation", 1)
            device = options.get("device", "toy")
            return m.Started("toy", device, step, 100, 8 * step, micro, accumulation, 1, 1, "fp32")
        case "progress":
            return m.Progress(step, 100, 8 * step, step, 1.0, step_seconds=float(number.get("seconds", 1)))
        case "rehearsed":
            return m.Rehearsed(number.get("micro", 8), 512, 1.0)
        case "halved":
            micro = number["micro"]
            return m.Halved(step, micro, number.get("accumulation", 8 // micro), "out of memory")
        case "saved":
            return m.CheckpointSaved(f"step-{step:08d}", step, 8 * step, step, float(number.get("seconds", 1)), 1000)
        case "not-saved":
            return m.CheckpointFailed(step, "RUNTIME_DISK_FULL", "no space", number["failures"])
        case "fault":
            kind = m.FaultKind(words[0])
            needed, free = number.get("needed", 0), number.get("free", 0)
            phase = m.Phase(options.get("phase", "train"))
            code, text = options.get("code", _CODES[kind]), options.get("says", f"a fault: {words[0]}")
            return m.Fault(kind, code, text, "", "", phase, step, needed, free, number.get("others", 0))
        case "stopped":
            return m.Stopped(step, saved=True)
        case "done" if words == ["made"]:
            return m.Done(m.Made("/exports/made/f16.gguf", 1000))
        case "done":
            return m.Done(m.TrainResult("/out/adapter", 100, 800, 100, 0.5))
        case _:
            raise ValueError(f"a scenario has no word {verb!r}")


_CODES = {
    m.FaultKind.OOM: "RUNTIME_GPU_OOM",
    m.FaultKind.HOST_OOM: "RUNTIME_HOST_OOM",
    m.FaultKind.CUDA: "RUNTIME_GPU_ERROR",
    m.FaultKind.GPU_LOST: "RUNTIME_GPU_LOST",
    m.FaultKind.GPU_BUSY: "STATE_BUSY",
    m.FaultKind.DIVERGED: "RUNTIME_LOSS_DIVERGED",
    m.FaultKind.DISK: "RUNTIME_DISK_FULL",
    m.FaultKind.USER: "INPUT_DATASET_PARSE_FAILED",
    m.FaultKind.CHECKPOINT: "STATE_CHECKPOINT_INVALID",
    m.FaultKind.INTERNAL: "RUNTIME_TRAINING_FAILED",
}


def _death(words: list[str]) -> d.Death:
    if words[0].isdigit():
        return d.Death(int(words[0]), f"exited with {words[0]}")
    return d.Death(-9, f"was killed by {words[0]}", host_oom="oom" in words, device_oom="device-oom" in words)


def _checkpoint(step: int) -> d.Found:
    return d.Found(f"step-{step:08d}", step, 8 * step, step, 100)


def _told(action: d.Action) -> str:
    match action:
        case d.Spawn():
            return f"spawn {action.attempt}{f', warm {action.warm}' if action.warm else ''}"
        case d.FindCheckpoint():
            return "find checkpoint"
        case d.Assign():
            begin = action.checkpoint.name if action.checkpoint else "the start"
            extra = " with gradient checkpointing" if action.gradient_checkpointing else ""
            data = " on prepared data" if action.prepared else ""
            return f"assign {action.attempt}: {action.micro_batch} x {action.accumulation} from {begin}{data}{extra}"
        case d.Give():
            memory = getattr(action.job, "memory", None)
            backend = getattr(action.job, "backend", "")
            extra = f" within {memory} MiB" if memory else f" on {backend}" if backend else ""
            return f"give {action.stage}, attempt {action.job.attempt}{extra}"
        case d.Send():
            return f"send {action.message}"
        case d.Terminate():
            return "terminate"
        case d.DumpStacks():
            return f"dump stacks: {action.reason}"
        case d.Kill():
            return f"kill: {action.reason}"
        case d.Quarantine():
            return f"quarantine {action.name}: {action.reason}"
        case d.Emit():
            return f"tell {_event(action)}"
        case d.Finish():
            code = f" {action.code}: {action.message}" if action.code else ""
            return f"finish {action.status} {int(action.exit_code)}{code}"
        case _:
            assert_never(action)


def _event(emit: d.Emit) -> str:
    match emit.event:
        case FaultSeen() as e:
            where = e.stage or f"step {e.step}"
            return f"fault {e.kind} in attempt {e.attempt}, {where}, {e.phase}: {e.message}"
        case Recovering() as e if e.stage:
            return f"recovering in {e.delay:g} s, {e.stage}: {e.reason}"
        case Recovering() as e:
            begin = e.checkpoint or "the start"
            return f"recovering in {e.delay:g} s with {e.micro_batch} x {e.accumulation} from {begin}: {e.reason}"
        case MemoryAwaited() as e:
            return f"memory awaited for at most {e.seconds:g} s: {e.memory} MiB, held by {e.holders}"
        case Heat() as e:
            return f"heat {e.level} at {e.celsius}"
        case CardTrouble() as e:
            return f"card, to {e.deed}: {e.text}"
        case StopRequested() as e:
            time = f", {e.seconds:g} s" if e.seconds else ""
            return f"stop for {e.reason}, {'saving' if e.save else 'not saving'}{time}"
        case Noticed() as e:
            return f"{e.level}: {e.text}"
        case _:
            raise AssertionError(f"the policy has no business telling {emit.event}")
