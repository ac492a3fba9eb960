"""What a campaign will have put on the disk when it is over, told before its first run. Pure.

It is an estimate from the shapes in the base's configuration. Where something is not known it is counted too small rather than
too large: a campaign that would have fitted is never refused; one that was let in by mistake still ends resumable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backpropagate.judge.campaign import AUTO, RULES, wishes
from backpropagate_protocol.errors import DiskFullError
from backpropagate_protocol.spec import LoraSpec, RunSpec

_WIDE = 4  # bytes of an adapter's parameter: adapters are float32
_MOMENTS = {"adamw_torch": 8, "auto": 2}  # bytes of optimizer state for one parameter; all others keep 8-bit moments
_EIGHT_BIT = 2
_MERGE = (
    2 * _WIDE
)  # what a merge leaves: the adapter to use and the one to begin from; the state is one of them, or in their stead
_SMALL = 16 << 20  # bytes for each run: configuration, tokenizer, journal, prepared data
_ALL = "all-linear"
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")

Shape = tuple[int, int]  # in, out


@dataclass(frozen=True, slots=True)
class CampaignBytes:
    """Bytes that the campaign will still add, by what for."""

    adapters: int
    checkpoints: int
    merges: int
    result: int
    export: int

    @property
    def total(self) -> int:
        return self.adapters + self.checkpoints + self.merges + self.result + self.export

    def __str__(self) -> str:
        """`11.5 GB for checkpoints, 5.1 GB for merges, …`, the largest first."""
        parts = (
            (self.checkpoints, "for checkpoints"),
            (self.merges, "for merges"),
            (self.adapters, "for adapters"),
            (self.result, "for the result"),
            (self.export, "for the export"),
        )
        return ", ".join(f"{_size(count)} {what}" for count, what in sorted(parts, reverse=True) if count)


def adapter_parameters(config: Mapping[str, object], lora: LoraSpec) -> int | None:
    """How many parameters an adapter for this base has, from its config.json; None if that does not say.

    For each adapted layer r · (in + out), and out more with DoRA. Routed experts are not counted: they are no linear layers.
    """
    shapes = _layer_shapes(config)
    layers = _whole(config, "num_hidden_layers", "n_layer", "num_layers")
    if shapes is None or layers is None:
        return None
    wanted: Sequence[Shape]
    if _ALL in lora.targets:
        wanted = list(shapes.values())
    else:
        known = [target.rpartition(".")[2] for target in lora.targets]
        wanted = [shapes[name] for name in known if name in shapes]
        if not wanted:
            return None
    return layers * sum(lora.r * (i + o) + (o if lora.use_dora else 0) for i, o in wanted)


def _layer_shapes(config: Mapping[str, object]) -> dict[str, Shape] | None:
    """The linear layers of one block, under the names that most families use."""
    inner = config.get("text_config")
    if isinstance(inner, Mapping):  # a model that can also see
        return _layer_shapes(inner)
    hidden = _whole(config, "hidden_size", "n_embd", "d_model")
    heads = _whole(config, "num_attention_heads", "n_head")
    if hidden is None or heads is None:
        return None
    one = _whole(config, "head_dim") or hidden // heads
    queries, keys = heads * one, (_whole(config, "num_key_value_heads") or heads) * one
    shapes = {
        "q_proj": (hidden, queries),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (queries, hidden),
    }
    wide = _whole(config, "intermediate_size", "n_inner", "ffn_dim") or 4 * hidden
    if any(_whole(config, name) for name in _EXPERTS):
        wide = _whole(config, "shared_expert_intermediate_size") or 0
    if wide:
        shapes |= {"up_proj": (hidden, wide), "down_proj": (wide, hidden)}
        if "n_embd" not in config:  # the oldest family has no gate
            shapes["gate_proj"] = (hidden, wide)
    return shapes


def _whole(config: Mapping[str, object], *names: str) -> int | None:
    """The first of these that is a number above 0."""
    inner = config.get("text_config")
    where = inner if isinstance(inner, Mapping) else config
    found = (where.get(name) for name in names)
    return next((value for value in found if isinstance(value, int) and value > 0), None)


def campaign_bytes(
    spec: RunSpec,
    parameters: int,
    *,
    runs: int | None = None,
    done: int = 0,
    kept_after: int | None = None,
    export: int = 0,
) -> CampaignBytes:
    """What the campaign still adds to the disk of its output folder.

    parameters: of one run's adapter (`adapter_parameters`, or what a first run said). runs: how many it has by now, `--append`
    included; None: those of the spec. done: how many of them are trained and merged already. kept_after: how many checkpoints a
    run keeps when it is finished; None: all that it kept while it ran. export: bytes of what it is exported to, if it is, on
    the same disk.
    """
    wanted = wishes(spec)
    left = max(0, (len(wanted.runs) if runs is None else runs) - done)
    one = parameters * _WIDE
    saved = one + parameters * _MOMENTS.get(spec.train.optim, _EIGHT_BIT)
    kept = max(1, spec.safety.keep_checkpoints)
    if spec.train.steps is not None:
        kept = min(kept, max(1, spec.train.steps))
    after = kept if kept_after is None else min(kept, kept_after)
    tried = len(RULES) - 1 if wanted.merge == AUTO and left else 0
    # One more checkpoint than are kept lies there while the newest is being written, in the last run, too.
    checkpoints = saved * ((left - 1) * after + kept + 1) if left else 0
    return CampaignBytes(
        adapters=left * (one + _SMALL),
        checkpoints=checkpoints,
        merges=(min(left, 2) + tried) * parameters * _MERGE,  # an older one is thinned when the next is made
        result=2 * one if left else 0,  # the campaign's own adapter, and `lora`
        export=export,
    )


def check_room(needed: CampaignBytes, free: int | None, where: str, run_id: str | None = None) -> None:
    """Raises DiskFullError (RUNTIME_DISK_FULL) if `needed` is more than the free bytes of the disk of `where`.

    free: None for a file system that states no size; then nothing is refused.
    """
    if free is None or needed.total <= free:
        return
    raise DiskFullError(
        f"the campaign needs about {_size(needed.total)} on the disk of {where}, which has {_size(free)} free: {needed}",
        suggestion="Free space there, or choose another --output, fewer --runs, a smaller --lora-r, or --keep-checkpoints 1.",
        run_id=run_id,
    )


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 10**8 else f"{count / 1e6:,.1f} MB"
