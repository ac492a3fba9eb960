"""checkpoints.json: what programs say of checkpoints that the checkpoints themselves cannot know."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from backpropagate_protocol import durable
from backpropagate_protocol.rundir import RunDir

REGISTER_SCHEMA = 1


class Registered(msgspec.Struct, frozen=True, kw_only=True):
    """What was said of one checkpoint. `run_id` and `step` say which; None: nothing was said."""

    run_id: str
    step: int
    validation_loss: float | None = None
    run_boundary: bool | None = None
    protected: bool = False


class Register(msgspec.Struct, frozen=True, kw_only=True):
    """`checkpoints.json`, of a run or of a campaign with all its runs. Fields only grow, each new one with a default."""

    schema: int = REGISTER_SCHEMA
    checkpoints: tuple[Registered, ...] = ()


def read(run_dir: RunDir) -> dict[tuple[str, int], Registered]:
    """By run and step. Empty if there is no register. Raises OSError, and ValueError for one that cannot be read: what is
    protected must not be taken for unprotected."""
    try:
        register = msgspec.json.decode(run_dir.checkpoint_register.read_bytes(), type=Register)
    except FileNotFoundError:
        return {}
    except msgspec.DecodeError as error:
        raise ValueError(f"{run_dir.checkpoint_register} cannot be read: {error}") from error
    return {(each.run_id, each.step): each for each in register.checkpoints}


def write(run_dir: RunDir, said: Iterable[Registered]) -> None:
    """Raises OSError; the old register then stands."""
    register = Register(checkpoints=tuple(sorted(said, key=lambda each: (each.run_id, each.step))))
    durable.write_file(
        run_dir.checkpoint_register, msgspec.json.format(msgspec.json.encode(register), indent=2) + b"\n"
    )
