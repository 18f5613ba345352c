"""An approval and its terms: read back as written, and refused where it means nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adyton.attest.guest import MUST_COVER, SNPGuest
from adyton.errors import UsageError
from adyton.keystore.approval import Approval
from adyton.sim.chip import simulated_guest
from adyton.values import Measurement
from tests.support.owner_world import World, now

M = Measurement(b"m" * 32)


def test_approval_round_trips_and_refuses_unknown_entries(world: World) -> None:
    """`to_dict` and `from_dict` are each other's inverse, and a misspelt entry is never ignored."""
    approval = world.approval(
        M,
        advisories={"INTEL-SA-00615": None, "INTEL-SA-00001": now().replace(microsecond=0)},
        expires_at=now().replace(microsecond=0),
        max_runs=3,
        max_active=2,
        lease_s=60,
        guests=(Measurement(bytes(48)),),
        guest_images=(
            simulated_guest(),
            SNPGuest(launch_digest=Measurement(b"l" * 48), launch_digest_covers=MUST_COVER),
        ),
        raw_report_data=True,
        not_covered=("the clock",),
        note="because",
        tcb_statuses=("UpToDate", "SWHardeningNeeded"),
        protocols=("adyton", "ra-tls"),
    )
    assert Approval.from_dict(json.loads(json.dumps(approval.to_dict()))) == approval
    wrong: dict[str, Any]
    for wrong in (
        {"max_run": 1},
        {"max_runs": "1"},
        {"max_runs": True},
        {"tees": "sgx"},
        {"advisories": []},
        {"raw_report_data": 1},
        {"guest_images": [{}]},
        {"guest_images": {}},
    ):
        with pytest.raises(UsageError):
            Approval.from_dict({**approval.to_dict(), **wrong})
    with pytest.raises(UsageError, match="missing"):
        Approval.from_dict({"key": "weights"})


@pytest.mark.parametrize(
    "changes",
    [
        {"tees": ()},
        {"tees": ("sim",)},
        {"tees": ("sim:xyz",)},
        {"measurement": None},
        {"mrsigner": M},
        {"tcb_statuses": ()},
        {"protocols": ()},
        {"protocols": ("https",)},
        {"max_runs": -1},
        {"lease_s": 1 << 40},
        {"advisories": {"bad id": None}},
        {"app": "../x"},
    ],
)
def test_approval_that_says_nothing_or_nonsense_is_refused(world: World, changes: dict[str, Any]) -> None:
    """Empty means nobody, so an approval must say what it means."""
    with pytest.raises(UsageError):
        world.approval(*((changes.pop("measurement"),) if "measurement" in changes else (M,)), **changes)
