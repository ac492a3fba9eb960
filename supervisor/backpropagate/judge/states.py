"""The states of a supervised run, and how patient the policy is in each. Pure; seconds."""

from __future__ import annotations

from enum import Enum

from backpropagate_protocol.messages import Phase

BACKOFF = (0.0, 0.5, 2.0, 8.0, 30.0)  # seconds before the n-th respawn without progress
DISK_PATIENCE = 3  # checkpoints that failed in a row
KILL_PATIENCE = 15.0  # from Kill to an exit; after that the kernel itself holds the process
DUMP_TIME = 2.0  # for writing the stacks
COOLING_PATIENCE = 1800.0
BLIND_COOLING = 300.0  # if the sensor is lost while we wait for the card to cool
BEFORE_TRAINING = frozenset({Phase.IMPORT, Phase.VALIDATE, Phase.TOKENIZE, Phase.LOAD})


class State(Enum):
    """Where a run is, as the supervisor sees it."""

    NEW = "new"
    READYING = "readying"  # a child starts; its Job waits for Hello, for the checkpoint and for the card
    WORKING = "working"  # it has its Job
    STOPPING = "stopping"  # it was asked to save and stop
    KILLING = "killing"  # it was killed; its exit is awaited
    CLOSING = "closing"  # it said Done; its exit is awaited
    WAITING = "waiting"  # no child; the next one is due at a known time
    COOLING = "cooling"  # no child; the card must cool down first
    ENDED = "ended"


WITHOUT_CHILD = frozenset({State.NEW, State.WAITING, State.COOLING})
