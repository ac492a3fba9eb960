"""The cpu backend: small models anywhere, the same code path as on a GPU, in float32."""

from __future__ import annotations

from typing import ClassVar, Literal

from backpropagate_backends.torch_backend import TorchBackend


class CpuBackend(TorchBackend):
    """Bit-identical across resumes, which is what the exactness tests stand on."""

    name: ClassVar[str] = "cpu"
    device: ClassVar[Literal["cpu", "cuda"]] = "cpu"
