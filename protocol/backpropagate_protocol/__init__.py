"""What parent and child agree on: messages, jobs, errors, names on disk. Standard library and msgspec only."""

from backpropagate_protocol.messages import PROTOCOL_VERSION

__all__ = ["PROTOCOL_VERSION"]
