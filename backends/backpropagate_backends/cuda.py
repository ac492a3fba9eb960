"""The cuda backend: one NVIDIA GPU, bf16, 4-bit base weights where bitsandbytes is there."""

from __future__ import annotations

import os
from typing import ClassVar, Literal

from backpropagate_backends.torch_backend import TorchBackend
from backpropagate_protocol.errors import GPUNotAvailableError

_VISIBLE = "CUDA_VISIBLE_DEVICES"


class CudaBackend(TorchBackend):
    """Promises the same samples across resumes; the same bits only as far as the kernels do."""

    name: ClassVar[str] = "cuda"
    device: ClassVar[Literal["cpu", "cuda"]] = "cuda"

    def warm(self) -> None:
        see_one_gpu()
        super().warm()

    def check_device(self) -> None:
        """Raises GPUNotAvailableError that says which part is missing: the build of torch, the driver, or the card."""
        import torch

        if torch.cuda.is_available():
            return
        if torch.version.cuda is None:
            raise GPUNotAvailableError(
                f"torch {torch.__version__} is a build without CUDA",
                suggestion="Install the CUDA build of torch (see the README), or use --backend cpu.",
            )
        if os.environ.get(_VISIBLE) in ("", "-1"):
            raise GPUNotAvailableError(
                f"{_VISIBLE} hides every GPU", suggestion=f"Unset {_VISIBLE}, or use --backend cpu."
            )
        raise GPUNotAvailableError(
            f"torch {torch.__version__} is built for CUDA {torch.version.cuda} but finds no driver or no card",
            suggestion="Check that `nvidia-smi` works and that the driver is new enough, or use --backend cpu.",
        )


def see_one_gpu() -> None:
    """TRL refuses to train where torch sees several GPUs. Read when CUDA starts, so it must be set before."""
    visible = os.environ.get(_VISIBLE)
    if visible is None:
        os.environ[_VISIBLE] = "0"
    elif "," in visible:
        os.environ[_VISIBLE] = visible.split(",")[0].strip()
