"""What happened in a campaign beside what happens in every run: more lines of `events.jsonl`."""

from __future__ import annotations

from backpropagate.measured import LinkScore
from backpropagate.told import Told
from backpropagate_protocol.spec import DataSpec


class CampaignExtended(Told, frozen=True, kw_only=True, tag="campaign_extended"):
    """`--append`: one more run for this campaign, after those that its spec and earlier such events name."""

    data: DataSpec
    name: str


class LinkStarted(Told, frozen=True, kw_only=True, tag="link_started"):
    """A run of the campaign begins or goes on; `run_id` is the campaign's, `link_run` its own."""

    link: int  # from 1
    links: int
    link_run: str
    name: str
    offset: int = 0  # bytes of that run's own events from before: what follows them belongs to this supervisor


class LinkEnded(Told, frozen=True, kw_only=True, tag="link_ended"):
    """A run of the campaign is trained; its adapter is kept."""

    link: int
    link_run: str
    name: str
    adapter: str
    digest: str = ""
    steps: int = 0
    final_loss: float | None = None
    recoveries: int = 0
    seconds: float = 0.0
    samples_seen: int = 0
    order: int = 0
    model_revision: str = ""  # the base's commit that was trained on: the runs after it use the same
    source_digest: str = ""  # of its own file as it was read; its rows are counted in its DataSpec
    backend: str = ""  # that it was trained by
    device: str = ""


class LinkMerged(Told, frozen=True, kw_only=True, tag="link_merged"):
    """What was trained up to this run is one adapter. `coefficient`: the newest run's weight in it."""

    link: int
    folder: str
    rule: str
    coefficient: float
    digest: str = ""
    chosen: bool = False  # of several rules, by their scores (`--merge auto`)


class LinkScored(Told, frozen=True, kw_only=True, tag="link_scored"):
    """What the merged adapter, the newest run's own and the base say to the held-out rows of every task so far."""

    link: int
    scores: tuple[LinkScore, ...]
    names: tuple[str, ...] = ()  # of the tasks, by number
