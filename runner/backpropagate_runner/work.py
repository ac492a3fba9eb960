"""One runner's life after its first lines: Hello, the Job, the last word, the end."""

from __future__ import annotations

import os
import platform
import sys
from typing import NoReturn

import msgspec

from backpropagate_protocol.catalogue import CATALOGUE
from backpropagate_protocol.framing import encode
from backpropagate_protocol.jobs import CalibrateJob, ChatJob, GenerateJob, Job, ProbeJob, TrainJob, ValidateJob
from backpropagate_protocol.messages import (
    PROTOCOL_VERSION,
    Answers,
    Done,
    Fault,
    FaultKind,
    Hello,
    Phase,
    Stop,
    Stopped,
    ToParent,
)
from backpropagate_protocol.redact import redact
from backpropagate_runner.channel import Channel, write_on_in
from backpropagate_runner.control import Control
from backpropagate_runner.drill import Drill
from backpropagate_runner.faults import classify
from backpropagate_runner.frameworks import Frameworks
from backpropagate_runner.lifeline import Lifeline
from backpropagate_runner.packages import installed
from backpropagate_runner.runlog import open_log
from backpropagate_runner.train import train
from backpropagate_runner.voice import Voice

_DEFAULT_GRACE = 30.0
# A parent that is alive but stopped (SIGSTOP, a closed lid) will read the last word when it wakes.
_LAST_WORD_SECONDS = 3600.0


class Runner:
    """Holds the parts together. Nothing but `work` makes one."""

    def __init__(self, parent: int, run_id: str, warm: str, descriptors: tuple[int, int]) -> None:
        open_log(run_id)
        self.lifeline = Lifeline(parent)
        self.lifeline.start()
        self.control = Control(self._leave_early)
        self.control.handle_signals()
        self.channel = Channel(*descriptors, self.control.ask, self._parent_gone, self._confused)
        self.voice = Voice(self.channel, self.lifeline)
        self.packages = installed()
        self._grace = _DEFAULT_GRACE
        self._talks = False
        self._drill: Drill | None = None
        self.channel.send(Hello(PROTOCOL_VERSION, os.getpid(), platform.python_version(), self.packages))
        self.channel.start()
        self.frameworks = Frameworks(warm)

    def _parent_gone(self, reason: str) -> None:
        self.lifeline.parent_gone(self._grace)
        self.control.ask_if_not_asked(Stop(reason))

    def _confused(self, reason: str) -> None:
        # Deaf to every further Stop, it must not go on; the newest checkpoint is what remains.
        self.control.end()
        self.channel.send(
            Fault(FaultKind.INTERNAL, "RUNTIME_PROTOCOL", reason, phase=self.voice.where, step=self.voice.step)
        )
        self.channel.flush(5.0)
        os._exit(1)

    def _leave_early(self) -> None:
        self.channel.send(Stopped(self.voice.step, saved=False))
        self.channel.flush(5.0)

    def run(self) -> None:
        message = self.channel.job()
        if message is None:
            os._exit(0)
        last, frame = self._outcome(message.job)
        self.control.end()
        self.channel.send_bytes(frame)
        self.channel.flush(_LAST_WORD_SECONDS)
        if self._drill is not None and isinstance(last, Done):
            self._drill.after_done()
        # Frameworks have hung and crashed while being torn down; nothing of theirs is needed any more.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1 if isinstance(last, Fault) else 0)

    def _outcome(self, job: Job) -> tuple[ToParent, bytes]:
        """The last word and its frame: one that cannot be sent is a failure like any other."""
        self._talks = isinstance(job, ChatJob)
        try:
            last = self._do(job)
            return last, encode(last)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the parent is told
            fault, frame = self._fault(error)
            sys.stderr.write(fault.traceback + "\n")
            return fault, frame

    def _fault(self, error: BaseException) -> tuple[Fault, bytes]:
        try:
            fault = classify(error, self.voice.where, self.voice.step, self.voice.others)
            if self._talks and fault.code == "RUNTIME_TRAINING_FAILED":  # unforeseen, but of no training
                code = "RUNTIME_INTERNAL"
                fault = msgspec.structs.replace(fault, code=code, suggestion=CATALOGUE[code].remedy)
            return fault, encode(fault)
        except Exception as second:  # noqa: BLE001 - a library's exception may not even have a text
            name = redact(type(error).__name__)
            fault = Fault(
                FaultKind.INTERNAL, "RUNTIME_TRAINING_FAILED", f"{name}, and telling it: {type(second).__name__}"
            )
            return fault, encode(fault)

    def _do(self, job: Job) -> ToParent:
        match job:
            case TrainJob():
                if job.log is not None:
                    write_on_in(job.log)
                self._grace = job.spec.safety.grace
                self._drill = Drill(job.spec.faults, job.attempt, self.channel, self.control)
                result = train(job, self.channel, self.control, self.voice, self.frameworks, self.packages, self._drill)
                return result if isinstance(result, Stopped) else Done(result)
            case ValidateJob():
                from backpropagate_runner.report import validated

                return Done(validated(job, self.voice, self.frameworks))
            case GenerateJob():
                self.voice.phase(Phase.IMPORT)
                backend = self.frameworks.backend(job.backend)
                self.voice.phase(Phase.GENERATE)
                return Done(Answers(backend.generate(job)))
            case ProbeJob():
                from backpropagate_backends.probing import try_out

                self.voice.phase(Phase.IMPORT)
                return Done(try_out(job.name))
            case CalibrateJob():
                from backpropagate_runner.calibrate import calibrate

                self._drill = Drill(job.spec.faults, 1, self.channel, self.control)
                return Done(calibrate(job, self.voice, self.frameworks, self._drill))
            case ChatJob():
                from backpropagate_runner.chat import chat

                return chat(job, self.channel, self.voice, self.frameworks)
            case _:
                from backpropagate_runner.stages import do

                return Done(do(job, self.channel, self.control, self.voice, self.frameworks))


def work(parent: int, run_id: str, warm: str, descriptors: tuple[int, int]) -> NoReturn:
    Runner(parent, run_id, warm, descriptors).run()
    raise AssertionError("a runner ends by itself")
