"""What is wished of the rows: bounds that leave none, and wishes that another one leaves without effect, are refused."""

from __future__ import annotations

from backpropagate_protocol.data_formats import RANDOM
from backpropagate_protocol.errors import InvalidSettingError
from backpropagate_protocol.spec import DataSpec, TrainSpec
from backpropagate_protocol.toy_rules import refused_by_toy


def check_rows(data: DataSpec) -> None:
    """Raises InvalidSettingError for the first wish that cannot be served."""
    least, most = data.trace_tokens
    if data.reasoning_trace and least > most:
        raise InvalidSettingError(
            f"a reasoning trace cannot have at least {least} and at most {most} tokens",
            suggestion="Lower --min-trace-tokens, or raise --max-trace-tokens.",
        )
    if data.reasoning_trace and data.method != "sft":
        raise InvalidSettingError(
            f"reasoning traces are learnt by the method sft, not by {data.method}",
            suggestion="Leave --reasoning-trace out: the method keeps what stands in the rows as it is.",
        )
    if data.max_tokens > data.max_length:
        raise InvalidSettingError(
            f"rows with more than {data.max_tokens} tokens cannot be dropped: they are cut at {data.max_length} tokens",
            suggestion="Lower --max-tokens, or raise --max-length.",
        )
    if 0 < data.max_tokens < data.min_tokens:
        raise InvalidSettingError(
            f"a row cannot have at least {data.min_tokens} and at most {data.max_tokens} tokens",
            suggestion="Lower --min-tokens, or raise --max-tokens.",
        )


def check_order(data: DataSpec, train: TrainSpec) -> None:
    """Raises InvalidSettingError if two orders are wished for at once."""
    if train.group_by_length and data.order != RANDOM:
        raise InvalidSettingError(
            f"rows cannot be in the order {data.order} and grouped by length at once",
            suggestion="Leave out --order or --group-by-length.",
        )


def check_toy(backend: str, data: DataSpec, train: TrainSpec) -> None:
    """Raises InvalidSettingError for the first wish that needs a framework, where there is none."""
    wish = refused_by_toy(data, train) if backend == "toy" else ""
    if wish:
        raise InvalidSettingError(
            f"the backend toy cannot serve {wish}", suggestion="Leave it out, or use --backend auto, cuda or cpu."
        )
