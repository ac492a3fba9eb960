"""How much memory this machine has to give, before a model is loaded into it."""

from __future__ import annotations

import psutil

from backpropagate_protocol.host_memory import host_memory


def free_host_memory() -> int:
    """Bytes that this process could take: what the supervisor counts, too."""
    memory = host_memory()
    return int(psutil.virtual_memory().available) if memory is None else memory.available << 20
