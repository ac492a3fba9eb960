"""What a policy hears besides its child's beginning and end: of the world around it, and of the work."""

from __future__ import annotations

from backpropagate.judge import decisions as d
from backpropagate_protocol import messages as m

# What a policy is told of the world around the child.
Surroundings = (
    d.CheckpointFound
    | d.SearchFailed
    | d.CardKnown
    | d.CardLimits
    | d.Temperature
    | d.CardVitals
    | d.XidSeen
    | d.CardGone
    | d.MemorySpilled
    | d.SensorLost
    | d.MemoryShort
    | d.MemoryHeld
)
# What a child says of its work while it goes on.
Report = (
    m.DataReady
    | m.Started
    | m.Progress
    | m.CheckpointSaved
    | m.CheckpointFailed
    | m.Notice
    | m.Said
    | m.Turn
    | m.Evaluated
    | m.Rehearsed
    | m.Halved
)
