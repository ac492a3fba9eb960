"""The GPU's sensors, read in a helper process: NVML can hang for ever when a driver is wedged, and must not take us along."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import anyio
import msgspec
from anyio.streams.buffered import BufferedByteReceiveStream

from backpropagate.doors import line_helper
from backpropagate.judge.vitals import Vitals
from backpropagate.sensors.holders import Holder

FIRST_SAMPLE_SECONDS = 15.0  # a cold driver loads for seconds
SILENCE_SECONDS = 20.0
INTERVAL = 2.0
_LINE = 1 << 16


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One reading. Celsius, MiB, watts, percent; 0 where the card does not say. `error`: there will be no more."""

    uuid: str = ""
    name: str = ""
    celsius: int = 0
    slowdown: int = 0  # the card throttles from here
    shutdown: int = 0  # and switches itself off here
    memory_used: int = 0
    memory_total: int = 0
    power: float = 0.0
    power_limit: float = 0.0
    utilization: int = 0
    error: str = ""
    holders: tuple[Holder, ...] | None = None  # processes that compute on it; None: the driver does not say
    to_slowdown: int | None = None  # degrees that the hottest part has left, by the card's own account
    to_shutdown: int | None = None
    vitals: Vitals = Vitals()
    xids: tuple[int, ...] = ()  # errors that the driver reported just now; a line that has some has no figures
    gone: bool = False  # `error` says that the card is lost
    absent: bool = False  # or that there is none, or no driver: it is no use asking again


class SensorError(Exception):
    """There is nothing to read, or it fell silent; the message says why.

    hung: the driver did not answer. gone: it answered that the card is lost. absent: there is none to be asked.
    """

    def __init__(self, message: str, *, hung: bool = False, gone: bool = False, absent: bool = False) -> None:
        super().__init__(message)
        self.hung, self.gone, self.absent = hung, gone, absent


def helper_command(device: str, interval: float, script: Path | None, count: int = 0) -> list[str]:
    """`device`: an index or a UUID, as CUDA_VISIBLE_DEVICES has it. `count`: samples until it ends; 0: no end."""
    argv = [
        "-m",
        "backpropagate.sensors.gpu_helper",
        "--device",
        device,
        "--interval",
        str(interval),
        "--count",
        str(count),
    ]
    return argv + (["--script", str(script)] if script else [])


async def samples(
    device: str, script: Path | None = None, interval: float = INTERVAL, silence: float = SILENCE_SECONDS
) -> AsyncGenerator[Sample]:
    """Readings, as they come; to be closed (aclosing) by who stops reading. Raises SensorError when there are no more, and after a silence."""
    try:
        async with line_helper.helper(helper_command(device, interval, script)) as helper:
            assert helper.stdout is not None
            lines = BufferedByteReceiveStream(helper.stdout)
            patience = FIRST_SAMPLE_SECONDS
            while True:
                line = b""
                with anyio.move_on_after(patience):
                    try:
                        line = await lines.receive_until(b"\n", _LINE)
                    except anyio.DelimiterNotFound as error:
                        raise SensorError("the helper process said more than can be") from error
                    except (anyio.IncompleteRead, anyio.EndOfStream, anyio.BrokenResourceError) as error:
                        raise SensorError("the helper process ended") from error
                if not line:
                    raise SensorError(f"no answer from the driver within {patience:.0f} s", hung=True)
                sample = msgspec.json.decode(line, type=Sample)
                if sample.error:
                    raise SensorError(sample.error, gone=sample.gone, absent=sample.absent)
                yield sample
                patience = silence + interval
    except (OSError, msgspec.DecodeError) as error:
        raise SensorError(str(error)) from error
