"""Approvals: what is written is what is read back, and only what is changed differs."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adyton.attest.guest import TDXGuest, confidential_kind
from adyton.errors import Error
from adyton.keystore.approval import ACCEPTABLE_STATUSES, MAX_LEASE_S, PROTOCOLS, Approval
from adyton.keystore.audit import canonical
from adyton.keystore.tables.manifests import Kept, too_much
from adyton.values import Digest, Measurement

FAST = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", fullmatch=True)
times = st.datetimes(datetime(2024, 1, 1), datetime(2100, 1, 1)).map(  # noqa: DTZ001 - Hypothesis takes naive bounds
    lambda moment: moment.replace(microsecond=0, tzinfo=UTC)
)
digests = st.binary(min_size=32, max_size=32)
texts = st.lists(st.text(max_size=20), max_size=3).map(tuple)
registers = st.binary(min_size=48, max_size=48).filter(any)
tees = st.one_of(
    st.sampled_from(["sgx", "tdx"]),
    digests.map(lambda root: f"sim:{root.hex()}"),
    digests.map(lambda root: f"sim-tdx:{root.hex()}"),
)


@st.composite
def approvals(draw: st.DrawFn) -> Approval:
    """An approval with any of its terms."""
    values: dict[str, Any] = {
        "key": draw(names),
        "app": draw(names),
        "version": draw(names),
        "tees": tuple(draw(st.lists(tees, min_size=1, max_size=3, unique=True))),
        "tcb_statuses": tuple(draw(st.lists(st.sampled_from(ACCEPTABLE_STATUSES), min_size=1, unique=True))),
        "protocols": tuple(draw(st.lists(st.sampled_from(PROTOCOLS), min_size=1, unique=True))),
        "advisories": draw(
            st.dictionaries(st.from_regex(r"INTEL-SA-[0-9]{5}", fullmatch=True), st.none() | times, max_size=3)
        ),
        "allow_debug": draw(st.booleans()),
        "raw_report_data": draw(st.booleans()),
        "expires_at": draw(st.none() | times),
        "max_runs": draw(st.none() | st.integers(0, 1 << 40)),
        "max_active": draw(st.none() | st.integers(0, 1 << 40)),
        "lease_s": draw(st.integers(0, MAX_LEASE_S)),
        "manifest_sha256": draw(st.none() | digests.map(Digest)),
        "evidence": draw(st.sampled_from([{}, {"max_collateral_age_days": 30}])),
        "not_covered": draw(texts),
        "findings": draw(texts),
        "allowed": draw(texts),
        "note": draw(st.text(max_size=40)),
    }
    if draw(st.booleans()):
        values["measurement"] = Measurement(draw(digests))
    else:
        values |= {"mrsigner": Digest(draw(digests))}
        values |= {name: draw(st.integers(0, 0xFFFF)) for name in ("isv_prod_id", "min_isv_svn")}
    if draw(st.booleans()) or any(confidential_kind(tee) for tee in values["tees"]):
        parts = {name: Measurement(draw(registers)) for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2")}
        values["guest_images"] = (TDXGuest(**parts),)
    return Approval(**values)


@FAST
@given(approvals())
def test_approval_is_read_back_as_it_was_written(approval: Approval) -> None:
    """Also through the canonical JSON that the record hashes, which has one form."""
    text = canonical(approval.to_dict())
    found = Approval.from_dict(json.loads(text))
    assert found == approval
    assert canonical(found.to_dict()) == text


@FAST
@given(approvals(), approvals(), st.data())
def test_changed_approval_differs_in_what_was_changed_and_nothing_else(
    approval: Approval, other: Approval, data: st.DataObject
) -> None:
    """A term of another approval in this one's place: all others stay, or the whole is refused."""
    name = data.draw(st.sampled_from(sorted(approval.to_dict().keys() | other.to_dict().keys())))
    try:
        changed = approval.changed(**{name: getattr(other, name)})
    except Error:
        return
    before, after = approval.to_dict(), changed.to_dict()
    assert {entry for entry in before.keys() | after.keys() if before.get(entry) != after.get(entry)} <= {name}
    assert after.get(name) == other.to_dict().get(name)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=12), st.integers(0, 60), st.data())
def test_manifests_that_go_are_the_fewest_and_the_oldest_that_nobody_approved(
    sizes: list[tuple[int, int]], most_bytes: int, data: st.DataObject
) -> None:
    """What is approved stays, what waits goes last, and nothing goes once the rest fits."""
    kept = [Kept(bytes([number]), size, at) for number, (size, at) in enumerate(sizes)]
    chosen = st.sets(st.sampled_from([item.measurement for item in kept])) if kept else st.just(set[bytes]())
    approved, waiting = data.draw(chosen), data.draw(chosen)
    going = too_much(kept, most_bytes, approved=approved, waiting=waiting)
    by_name = {item.measurement: item for item in kept}
    staying = [item for item in kept if item.measurement not in approved and item.measurement not in going]
    assert not set(going) & approved
    assert sum(item.size_bytes for item in staying) <= most_bytes
    if going:
        assert sum(item.size_bytes for item in staying) + by_name[going[-1]].size_bytes > most_bytes
    for name in going:
        gone = by_name[name]
        for item in staying:
            rank = (item.measurement in waiting, item.added_at_ms)
            assert (name in waiting, gone.added_at_ms) <= rank
