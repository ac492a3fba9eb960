"""A campaign that its disk cannot hold is refused before anything is trained."""

from __future__ import annotations

import msgspec
import pytest

from backpropagate.events import LinkStarted
from backpropagate.keep import journal
from backpropagate.wishes.models import bundled_tiny
from backpropagate_protocol.spec import LoraSpec
from tests.conftest import Oracle
from tests.system.campaigns import campaign_of, home, link_home
from tests.system.supervised import run_here

pytestmark = pytest.mark.slow


def test_what_no_disk_could_hold_is_refused_before_the_first_run(oracle: Oracle) -> None:
    spec = campaign_of(oracle.output(), runs=2)
    spec = msgspec.structs.replace(
        spec, model=msgspec.structs.replace(spec.model, path=str(bundled_tiny())), lora=LoraSpec(r=10**15)
    )
    outcome, _ = run_here(spec)
    assert (outcome.status, outcome.code, outcome.exit_code) == ("interrupted", "RUNTIME_DISK_FULL", 75)
    assert "the campaign needs about" in outcome.message
    assert not [event for event in journal.read(home(spec).events) if isinstance(event, LinkStarted)]
    assert not link_home(spec, 1).path.exists()
