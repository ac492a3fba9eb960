"""Whether MLX may be the backend here, and whether it can do what is wished: said before anything starts."""

from __future__ import annotations

import sys

from backpropagate.doors.environ import environment
from backpropagate_protocol.errors import InvalidSettingError
from backpropagate_protocol.mlx_rules import ALLOW_CPU, apple_silicon, refused_by_mlx
from backpropagate_protocol.spec import RunSpec


def check_place() -> None:
    """Raises InvalidSettingError where MLX has no GPU to run on."""
    if apple_silicon() or (sys.platform == "linux" and environment().get(ALLOW_CPU) == "1"):
        return
    raise InvalidSettingError(
        "--backend mlx needs Apple silicon",
        suggestion=f"Use --backend auto, cuda or cpu. ({ALLOW_CPU}=1 allows MLX's slow CPU build on Linux, to try things.)",
    )


def check_wishes(spec: RunSpec, *, installed: bool) -> RunSpec:
    """`spec`, if MLX is not what it will be trained on, or can do it. Raises InvalidSettingError for what it cannot.

    installed: MLX is in the interpreter that trains, as far as it is known, so that `auto` means it on Apple silicon.
    """
    if spec.backend != "mlx" and not (spec.backend == "auto" and apple_silicon() and installed):
        return spec
    wish = refused_by_mlx(spec)
    if wish:
        means = "MLX" if spec.backend == "mlx" else "MLX, which --backend auto means on this machine,"
        raise InvalidSettingError(f"{means} cannot serve {wish}", suggestion="Leave it out, or use --backend cpu.")
    return spec
