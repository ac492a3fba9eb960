"""The driver's error numbers: each has its action of NVIDIA's catalogue."""

from __future__ import annotations

import pytest

from backpropagate.judge.health import Health
from backpropagate.judge.vitals import Recovery, Vitals
from backpropagate.judge.xids import Deed, deed, in_words

# By NVIDIA's names of the immediate actions, as its catalogue has them from Ampere on.
BUCKETS = {
    "RESTART_APP": {8, 11, 13, 25, 31, 32, 39, 40, 41, 60, 68, 69, 70, 71, 72, 75, 76, 77, 80, 82, 83, 84, 85, 86, 88, 89, 94}
    | set(range(96, 106))
    | set(range(126, 136))
    | {139},
    "RESET_GPU": {46, 62, 64, 95, 109, 110, 119, 120, 136, 140, 143, 155, 156, 158},
    "RESTART_BM": {79},
    "RESTART_VM": {151},
    "IGNORE": {37, 38, 43, 44, 63, 66, 67, 92, 93, 106, 107, 121, 137, 141, 152, 153, 157, 160, 161},
    "WORKFLOW_NVLINK": {74, *range(144, 151)},
    "WORKFLOW_XID_48": {48},
    "WORKFLOW_XID_45": {45},
    "XID_154": {154},
    "SOMEBODY_HAS_TO_LOOK": {54, 78, 142, 159},
}  # fmt: skip
ALLOWED = {
    "RESTART_APP": {Deed.RESTART, Deed.RESTART_ONCE},
    "RESET_GPU": {Deed.RESET, Deed.SAVE},
    "RESTART_BM": {Deed.REBOOT},
    "RESTART_VM": {Deed.REBOOT},
    "IGNORE": {Deed.NOTE, Deed.ADVISE},
    "WORKFLOW_NVLINK": {Deed.LINK},
    "WORKFLOW_XID_48": {Deed.VERDICT},
    "WORKFLOW_XID_45": {Deed.NOTE},
    "XID_154": {Deed.NOTE},
    "SOMEBODY_HAS_TO_LOOK": {Deed.ADVISE, Deed.NOTE},
}


def test_every_number_does_what_its_bucket_asks_for_and_no_more() -> None:
    listed = {code: bucket for bucket, codes in BUCKETS.items() for code in codes}
    for code in range(1, 173):
        allowed = ALLOWED[listed[code]] if code in listed else {Deed.NOTE}
        assert deed(code) in allowed, in_words(code)


@pytest.mark.parametrize(
    ("action", "asked"),
    [
        (Recovery.GPU_RESET, Deed.RESET),
        (Recovery.BUS_RESET, Deed.RESET),
        (Recovery.NODE_REBOOT, Deed.REBOOT),
        (Recovery.SYSTEM_REBOOT, Deed.REBOOT),
        (Recovery.DRAIN_AND_RESET, Deed.ADVISE),
        (Recovery.DRAIN_P2P, Deed.ADVISE),
        (99, Deed.ADVISE),
    ],
)
def test_the_drivers_own_verdict_is_told_once_and_followed(action: int, asked: Deed) -> None:
    health = Health()
    assert not health.read(0.0, Vitals(recovery=0))
    [found] = health.read(2.0, Vitals(recovery=action))
    assert (found.source, found.deed) == ("recovery", asked)
    assert not health.read(4.0, Vitals(recovery=action))


def test_a_double_bit_error_is_the_end_unless_the_driver_says_that_nothing_is_to_be_done() -> None:
    old, new = Health(), Health()
    for health in (old, new):
        found = health.xid(0.0, 48)
        assert found is not None
        assert found.deed is Deed.NOTE
    assert [found.deed for found in old.read(1.0, Vitals(recovery=None))] == [Deed.RESET]
    assert not new.read(1.0, Vitals(recovery=0))


def test_a_storm_of_one_number_is_told_once_and_counts_once() -> None:
    health = Health()
    told = [health.xid(float(second), 94) for second in range(30)]
    assert [found.deed for found in told if found is not None] == [Deed.RESTART]
    assert (later := health.xid(200.0, 94)) is not None
    assert later.deed is Deed.RESET


def test_a_broken_link_explains_a_death_and_disturbs_nobody_who_lives() -> None:
    health = Health()
    found = health.xid(0.0, 74)
    assert found is not None
    assert found.deed is Deed.LINK
    blame = health.blame(10.0)
    assert blame is not None
    assert blame.fatal
    assert health.blame(100.0) is None


def test_what_follows_from_an_end_explains_none() -> None:
    health = Health()
    health.xid(0.0, 45)
    health.xid(0.0, 43)
    assert health.blame(1.0) is None


def test_memory_errors_from_before_the_run_are_no_news() -> None:
    health = Health()
    assert not health.read(0.0, Vitals(uncorrected=7))
    [found] = health.read(2.0, Vitals(uncorrected=8, corrected=100))
    assert "lost data once" in found.text
    assert not health.read(4.0, Vitals(uncorrected=8))


def test_broken_memory_is_told_once() -> None:
    health = Health()
    [pending] = health.read(0.0, Vitals(remap_pending=True))
    [failed] = health.read(2.0, Vitals(remap_pending=True, remap_failed=True))
    assert (pending.deed, failed.deed) == (Deed.ADVISE, Deed.ADVISE)
    assert not health.read(4.0, Vitals(remap_pending=True, remap_failed=True))
