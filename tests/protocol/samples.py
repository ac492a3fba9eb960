"""One of each message, and the door that writes them as golden frames.

    python -m tests.protocol.samples        writes the frames that are missing under fixtures/wire/

A frame that exists is never written again: it stands for what an older version of us sends.
"""

from __future__ import annotations

from pathlib import Path

from backpropagate_protocol import messages as m
from backpropagate_protocol.framing import encode
from backpropagate_protocol.jobs import GenerateJob, PreparedRef, TrainJob, ValidateJob
from backpropagate_protocol.spec import DataSpec, LoraSpec, ModelSpec, PlannedFault, RunSpec, SafetySpec, TrainSpec

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

TO_CHILD: dict[str, m.ToChild] = {
    "run-train": m.RunJob(TRAIN),
    "run-validate": m.RunJob(ValidateJob(data=DATA, max_errors=3)),
    "run-generate": m.RunJob(GenerateJob(model=MODEL, adapter="/output/lora", prompts=("Hello!", "Grüß dich, 世界"))),
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
}


if __name__ == "__main__":
    WIRE.mkdir(parents=True, exist_ok=True)
    for name, message in (TO_CHILD | TO_PARENT).items():
        path = WIRE / f"{name}.bin"
        if not path.exists():
            path.write_bytes(encode(message))
