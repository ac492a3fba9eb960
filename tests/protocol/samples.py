"""One of each message, and the door that writes them as golden frames.

    python -m tests.protocol.samples        writes the frames that are missing under fixtures/wire/

A frame that exists is never written again: it stands for what an older version of us sends.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from backpropagate_protocol import messages as m
from backpropagate_protocol.framing import encode
from backpropagate_protocol.jobs import (
    CalibrateJob,
    Candidate,
    ChatJob,
    CombineJob,
    ConvertAdapterJob,
    ConvertJob,
    EvaluateJob,
    FetchConverterJob,
    FuseJob,
    GenerateJob,
    MergeJob,
    PlaceJob,
    PlotJob,
    PreflightJob,
    PreparedRef,
    ProbeJob,
    ProveJob,
    PushJob,
    QuantizeJob,
    ReferenceJob,
    RegisterJob,
    TrainJob,
    ValidateJob,
)
from backpropagate_protocol.measured import Calibrated, Check, Evaluation, Proof, Score
from backpropagate_protocol.probes import WORKS, ProbeReport
from backpropagate_protocol.spec import (
    CampaignSpec,
    DataSpec,
    ExportSpec,
    LoraSpec,
    ModelSpec,
    PlannedFault,
    Portion,
    PushSpec,
    RunSpec,
    SafetySpec,
    TrainSpec,
)

WIRE = Path(__file__).resolve().parents[2] / "fixtures" / "wire" / f"v{m.PROTOCOL_VERSION}"

MODEL = ModelSpec(name="tiny", path="/models/tiny", revision="main", load_in_4bit=False)
DATA = DataSpec(source="/data/talks.jsonl", samples=100)
SPEC = RunSpec(
    run_id="0b0e5a52-8d5f-4f43-9f0e-6a3f9a1f8f55",
    created="2026-01-02T03:04:05Z",
    backend="cpu",
    output="/output",
    model=MODEL,
    data=DATA,
    lora=LoraSpec(preset="fast", r=16, alpha=32, targets=("q_proj", "v_proj")),
    train=TrainSpec(steps=20, batch_size=4),
    safety=SafetySpec(save_steps=5),
    name="golden",
    faults=(PlannedFault(kind="oom", step=7), PlannedFault(kind="sigkill", step=9, attempt=2)),
)
TRAIN = TrainJob(
    spec=SPEC,
    run_dir="/output/runs/0b0e5a52-8d5f-4f43-9f0e-6a3f9a1f8f55",
    attempt=2,
    micro_batch=2,
    accumulation=4,
    gradient_checkpointing=None,
    resume_from="/output/runs/0b0e5a52-8d5f-4f43-9f0e-6a3f9a1f8f55/checkpoints/step-00000005",
    prepared=PreparedRef(path="/output/cache/abc", digest="d" * 64),
)

WEEKS = (
    DataSpec(source="/data/week-1.jsonl", holdout=20),
    DataSpec(
        source="/data/week-2.jsonl",
        start=1_000,
        samples=500,
        holdout=20,
        replay=(Portion(source="/data/week-1.jsonl", stop=1_000, take=50, seed=43),),
    ),
)
CAMPAIGN = "/output/runs/0b0e5a52-8d5f-4f43-9f0e-6a3f9a1f8f55"
LINK = msgspec.structs.replace(
    TRAIN,
    spec=msgspec.structs.replace(
        SPEC,
        run_id="5d3c3b0e-5a8f-5f0a-9d57-0c7a4f0f6f0e",
        data=WEEKS[1],
        name="week-2",
        campaign=CampaignSpec(runs=WEEKS, names=("week-1", "week-2"), merge="auto", early_stop=2, replay=0.1),
        parent=SPEC.run_id,
        link=2,
        init_adapter=f"{CAMPAIGN}/merges/run-001/next",
    ),
)
HELD_OUT = DataSpec(source="/data/week-1.jsonl", holdout=20, part="held-out", samples=1_280)

WORK = "/exports/.export-0b0e5a52.partial"
EXPORT = ExportSpec(
    format="gguf",
    quantization="q4_k_m",
    destination="/exports",
    name="talk",
    adapter="/output/lora",
    ollama_name="me/talk:v1",
    lmstudio="/models",
    prompts=("And mine?",),
)
PUSH = PushSpec(folder="/exports", repo="me/talk", private=False, dry_run=True, card="# talk")
FAULTS = (PlannedFault(kind="sigkill", step=3, stage="convert"),)

TO_CHILD: dict[str, m.ToChild] = {
    "run-train": m.RunJob(TRAIN),
    "run-validate": m.RunJob(ValidateJob(data=DATA, max_errors=3)),
    "run-generate": m.RunJob(GenerateJob(model=MODEL, adapter="/output/lora", prompts=("Hello!", "Grüß dich, 世界"))),
    "run-chat": m.RunJob(ChatJob(gguf="/exports/talk-Q4_K_M.gguf", temperature=0.5)),
    "run-preflight": m.RunJob(PreflightJob(model=MODEL, export=EXPORT, adapter=None, work=WORK, dora=True)),
    "run-reference": m.RunJob(
        ReferenceJob(model=MODEL, adapter="/output/lora", prompts=("Hello!", "世界"), out=f"{WORK}/reference")
    ),
    "run-merge": m.RunJob(MergeJob(model=MODEL, adapter="/output/lora", out=f"{WORK}/merged", memory=256)),
    "run-fuse": m.RunJob(FuseJob(model=MODEL, adapter="/output/lora", out=f"{WORK}/mlx")),
    "run-convert": m.RunJob(
        ConvertJob(
            model=MODEL,
            adapter="/output/lora",
            out=f"{WORK}/f16.gguf",
            type="f16",
            name="talk",
            memory=128,
            faults=FAULTS,
            attempt=2,
        )
    ),
    "run-convert-adapter": m.RunJob(
        ConvertAdapterJob(model=MODEL, adapter="/output/lora", out=f"{WORK}/lora.gguf", name="talk")
    ),
    "run-quantize": m.RunJob(
        QuantizeJob(source=f"{WORK}/f16.gguf", out=f"{WORK}/q4_k_m.gguf", quantization="q4_k_m", threads=4)
    ),
    "run-prove": m.RunJob(
        ProveJob(
            reference=f"{WORK}/reference",
            target=f"{WORK}/q4_k_m.gguf",
            kind="gguf",
            quantization="q4_k_m",
            model=MODEL,
            adapter="/output/lora",
            verifier="llama",
        )
    ),
    "run-register": m.RunJob(
        RegisterJob(gguf="/exports/talk-F16.gguf", name="talk", host="http://127.0.0.1:11434", quantize="q4_k_m")
    ),
    "run-place": m.RunJob(PlaceJob(source="/exports/talk-Q4_K_M.gguf", out="/models/talk-Q4_K_M.gguf")),
    "run-push": m.RunJob(PushJob(push=PUSH)),
    "run-train-link": m.RunJob(LINK),
    "run-combine": m.RunJob(
        CombineJob(
            adapters=("/output/runs/one/adapter", "/output/runs/two/adapter"),
            out=f"{CAMPAIGN}/merges/run-002",
            rule="slao",
            previous=f"{CAMPAIGN}/merges/run-001",
            floor=0.25,
            seed=42,
            faults=(PlannedFault(kind="sigkill", step=2, stage="combine"),),
        )
    ),
    "run-evaluate": m.RunJob(
        EvaluateJob(
            model=MODEL,
            candidates=(Candidate("merged", f"{CAMPAIGN}/merges/run-002/merged"), Candidate("base", None)),
            tasks=(HELD_OUT,),
            cache="/output/cache",
            backend="cpu",
        )
    ),
    "run-plot": m.RunJob(PlotJob(report=f"{CAMPAIGN}/campaign.json", out=(f"{CAMPAIGN}/campaign.svg",))),
    "run-fetch": m.RunJob(FetchConverterJob()),
    "run-calibrate": m.RunJob(CalibrateJob(spec=SPEC, micro_batch=4, scratch="/tmp/scratch")),
    "run-probe": m.RunJob(ProbeJob(name="card")),
    "say": m.Say((("user", "Hello!"), ("assistant", "Hi."), ("user", "世界?"))),
    "stop": m.Stop("ctrl-c", save=True),
    "save": m.Save(),
    "ping": m.Ping(),
}

TO_PARENT: dict[str, m.ToParent] = {
    "hello": m.Hello(m.PROTOCOL_VERSION, 4711, "3.11.9", {"torch": "2.13.0", "trl": "1.16.0"}),
    "phase": m.PhaseChanged(m.Phase.TOKENIZE, 512, 10_000, "rows"),
    "data": m.DataReady("/output/cache/abc", "d" * 64, "sharegpt", 100, 1, 12_345, 6_789, 2, "e" * 64),
    "started": m.Started("cpu", "cpu", 5, 20, 40, 2, 4, 1_000_000, 2_000_000, "fp32", notes=("a note",)),
    "progress": m.Progress(6, 20, 48, 0xDEADBEEF, 2.5, 1e-4, 0.75, 4_096, 0.25, 0.48, 7_000, 8_000),
    "evaluated": m.Evaluated(6, 2.625, 10, 1_234, 0.5, True, {"accuracy": 0.5}),
    "checkpoint": m.CheckpointSaved("step-00000005", 5, 40, 0xC0FFEE, 0.5, 10_000_000, 2.75),
    "checkpoint_failed": m.CheckpointFailed(10, "RUNTIME_DISK_FULL", "no space left on the device", 1),
    "notice": m.Notice("warning", "the card is warm"),
    "fault": m.Fault(
        m.FaultKind.OOM,
        "RUNTIME_GPU_OOM",
        "out of memory",
        "a shorter --max-length",
        "Traceback …",
        m.Phase.TRAIN,
        7,
        900,
        12,
    ),
    "stopped": m.Stopped(9, saved=True),
    "done-trained": m.Done(m.TrainResult("/output/lora", 20, 160, 0xBADCAFE, 0.125, "f" * 64)),
    "done-report": m.Done(m.DataReport("alpaca", 99, 1, ("line 7: no answer",), {"chat": 98})),
    "done-answers": m.Done(m.Answers(("Hello!", "世界"))),
    "rehearsed": m.Rehearsed(2, 2_048, 1.5, 20_000),
    "halved": m.Halved(7, 1, 8, "CUDA out of memory", 900, 12),
    "said": m.Said("Wel"),
    "turn": m.Turn("World.", 2, 0.5),
    "done-route": m.Done(
        m.ExportRoute(
            architecture="Qwen2ForCausalLM",
            parameters=494_032_768,
            converter="own",
            converter_folder="",
            type="f16",
            quantizer="ollama",
            verifier="llama",
            bytes=988_000_000,
            work_bytes=2_000_000_000,
            free_bytes=90_000_000_000,
            ollama_version="0.33.0",
            notes=("a note",),
        )
    ),
    "done-made": m.Done(m.Made(f"{WORK}/f16.gguf", 988_000_000, "a" * 64, ("a note",))),
    "done-proof": m.Done(
        Proof(
            False,
            "llama",
            (Check("tokens", True, detail="15 prompts"), Check("kl", False, 0.5, 0.01, "nats")),
            15,
            213,
        )
    ),
    "done-calibrated": m.Done(
        Calibrated(
            "cuda:0 NVIDIA GeForce RTX 4080",
            4,
            10,
            12_000,
            12_600,
            16_376,
            2_345.5,
            2_048,
            1_000,
            312.5,
            "nf4+bf16",
            "paged_adamw_8bit",
        )
    ),
    "done-probed": m.Done(ProbeReport("card", WORKS, "one training step", 1.5)),
    "done-evaluated": m.Done(
        Evaluation((Score("merged", 0, 1.25, 0.5, 4_096, 64), Score("base", 0, 3.5, 0.125, 4_096, 64)))
    ),
    "done-registered": m.Done(m.Registered("talk", "b" * 64, "0.33.0", True, 988_000_000)),
    "done-pushed": m.Done(m.Pushed("https://hub.example/me/talk", "c" * 40, (("README.md", 7), ("talk.gguf", 988)))),
}


if __name__ == "__main__":
    WIRE.mkdir(parents=True, exist_ok=True)
    for name, message in (TO_CHILD | TO_PARENT).items():
        path = WIRE / f"{name}.bin"
        if not path.exists():
            path.write_bytes(encode(message))
