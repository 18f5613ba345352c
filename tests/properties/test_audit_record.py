"""What the audit record says: the same however it is read on, and another record where a byte of it is another."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adyton.errors import AuditError
from adyton.keystore.audit import Entry, Head, canonical, entry_hash, start_hash, verify_chain
from adyton.keystore.audit_facts import (
    DATA_KEY_ROTATED,
    DENIAL,
    DISMISSED,
    KEY_ADDED,
    POLICY,
    PRUNED,
    RELEASE,
    WAITS,
    Facts,
    facts_of,
    waiting,
)
from adyton.keystore.current_facts import RecordedFacts
from adyton.keystore.ledger import Ledger
from adyton.values import Measurement

STORE = b"s" * 16
APPROVALS = ("a-1", "a-2", "a-3")
KEYS = ("weights", "token")
RUNS = ("run-1", "run-2", "run-3")
PROGRAMS = (Measurement(b"p" * 32), Measurement(b"q" * 32))
FAST = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclass
class Writer:
    """Writes a record as Adyton does: what an entry may say depends on those before it."""

    entries: list[Entry] = field(default_factory=list)
    at_ms: int = 1000
    revisions: dict[str, tuple[int, str]] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    data_key: int = 1
    leases: dict[tuple[str, str], tuple[int, str]] = field(default_factory=dict)

    def write(self, data: st.DataObject) -> None:
        """Add one entry."""
        self.at_ms += data.draw(st.integers(0, 40))
        kind = data.draw(
            st.sampled_from([POLICY, KEY_ADDED, DATA_KEY_ROTATED, RELEASE, RELEASE, DENIAL, DISMISSED, PRUNED, "login"])
        )
        body = getattr(self, f"_{kind.replace('-', '_')}")(data)
        before = self.entries[-1] if self.entries else Entry(0, 0, "", "", start_hash(STORE))
        text = canonical(body)
        digest = entry_hash(before.hash, before.seq + 1, self.at_ms, kind, text)
        self.entries.append(Entry(before.seq + 1, self.at_ms, kind, text, digest))

    def _policy(self, data: st.DataObject) -> dict[str, Any]:
        approval = data.draw(st.sampled_from(APPROVALS))
        number, state = self.revisions.get(approval, (0, "pending"))
        state = "revoked" if state == "revoked" else data.draw(st.sampled_from(["pending", "approved", "revoked"]))
        self.revisions[approval] = number + 1, state
        policy = {"measurement": data.draw(st.sampled_from(PROGRAMS)).hex(), "key": data.draw(st.sampled_from(KEYS))}
        return {"approval": approval, "revision": number + 1, "state": state, "policy": policy}

    def _key_added(self, data: st.DataObject) -> dict[str, Any]:
        name = data.draw(st.sampled_from(KEYS))
        self.versions[name] = self.versions.get(name, 0) + 1
        return {"key": name, "version": self.versions[name], "kind": "key"}

    def _data_key_rotated(self, _data: st.DataObject) -> dict[str, Any]:
        self.data_key += 1
        return {"version": self.data_key}

    def _release(self, data: st.DataObject) -> dict[str, Any]:
        run, items = data.draw(st.sampled_from(RUNS)), []
        for approval in data.draw(st.lists(st.sampled_from(APPROVALS), min_size=1, unique=True)):
            held = self.leases.get((approval, run))
            renewed = held is not None and held[0] > self.at_ms
            until, release = (
                held
                if held is not None and renewed
                else (self.at_ms + data.draw(st.integers(1, 90)), f"r-{self.at_ms}")
            )
            self.leases[approval, run] = until, release
            items.append({"approval": approval, "release": release, "renewed": renewed, "lease_until_ms": until})
        return {"grant": f"g-{len(self.entries)}", "run": run, "keys": items}

    def _denial(self, data: st.DataObject) -> dict[str, Any]:
        body: dict[str, Any] = {"denial": f"d-{len(self.entries)}"}
        if data.draw(st.booleans()):
            program, key = data.draw(st.sampled_from(PROGRAMS)), data.draw(st.sampled_from(KEYS))
            body[WAITS] = waiting(program, "sgx", key)
        return body

    def _candidate_dismissed(self, data: st.DataObject) -> dict[str, Any]:
        return {"measurement": data.draw(st.sampled_from(PROGRAMS)).hex(), "key": data.draw(st.sampled_from(KEYS))}

    def _evidence_pruned(self, _data: st.DataObject) -> dict[str, Any]:
        return {"before_ms": self.at_ms}

    def _login(self, _data: st.DataObject) -> dict[str, Any]:
        return {}


def record(data: st.DataObject, most: int = 30) -> list[Entry]:
    """A record of up to so many entries."""
    writer = Writer()
    for _ in range(data.draw(st.integers(1, most))):
        writer.write(data)
    return writer.entries


def head_of(entries: list[Entry]) -> Head:
    """Where a record ends."""
    return Head(entries[-1].seq, entries[-1].hash) if entries else Head(0, start_hash(STORE))


def ledger_of(entries: list[Entry], *steps: int) -> Ledger:
    """A ledger that read these entries, first up to each of `steps` and then to the end."""

    def load(after: int, to: int) -> Generator[Entry, None, None]:
        yield from entries[after:to]

    ledger = Ledger(STORE)
    for step in (*sorted(steps), len(entries)):
        ledger.follow(head_of(entries[:step]), load)
    return ledger


def says(facts: Facts, at_ms: int = 0) -> tuple[dict[str, Any], list[int]]:
    """Everything that facts say from this time on, to be compared."""
    active = [facts.active(approval, at_ms + later) for approval in APPROVALS for later in range(0, 100, 10)]
    return json.loads(json.dumps(facts.to_dict())), active


@FAST
@given(st.data())
def test_facts_are_the_same_however_a_record_is_split(data: st.DataObject) -> None:
    """Read in one go, in two, and in two with what the first found written down as JSON in between."""
    entries = record(data)
    cut = data.draw(st.integers(0, len(entries)))
    whole, first = facts_of(entries), facts_of(entries[:cut])
    written = Facts.from_dict(json.loads(json.dumps(first.to_dict())))
    end_ms = entries[-1].at_ms
    assert says(facts_of(entries[cut:], first), end_ms) == says(whole, end_ms)
    assert says(facts_of(entries[cut:], written), end_ms) == says(whole, end_ms)


@FAST
@given(st.data())
def test_recorded_facts_are_those_of_the_record_with_what_a_transaction_adds(data: st.DataObject) -> None:
    """Every answer is that of one reading of everything, wherever the transaction began."""
    entries = record(data)
    cut = data.draw(st.integers(0, len(entries)))
    whole, found = facts_of(entries), RecordedFacts(ledger_of(entries[:cut]), cut)
    for entry in entries[cut:]:
        found.note(entry)
    end, at_ms = len(entries), entries[-1].at_ms + data.draw(st.integers(0, 60))
    assert found.newest_changes() == whole.newest_changes(end)
    assert found.key_names() == sorted(whole.keys)
    assert found.data_key() == whole.data_key(end)
    assert found.candidates() == whole.candidates()
    assert found.changes_of(None) == sorted(change.seq for changes in whole.approvals.values() for change in changes)
    assert found.has_changes == any(seq > cut for seq in whole.changes)
    assert found.changed_at() == whole.changed_at(cut)
    for name in KEYS:
        assert found.versions(name) == whole.versions(name, end)
    for approval in APPROVALS:
        assert found.newest_change(approval) == whole.newest_change(approval, end)
        assert found.changes_of(approval) == [change.seq for change in whole.approvals.get(approval, [])]
        for run in RUNS:
            usage = found.usage(approval, run, at_ms, counted=True)
            assert usage.own == whole.lease(approval, run, at_ms)
            assert (usage.runs, usage.active) == (whole.runs.get(approval, 0), whole.active(approval, at_ms))
            assert found.usage(approval, run, at_ms, counted=False).own == usage.own


@FAST
@given(st.data())
def test_ledger_says_of_an_earlier_entry_what_it_said_then(data: st.DataObject) -> None:
    """A reader that began at an entry sees no later change of keys and approvals, whoever reads on meanwhile."""
    entries = record(data)
    cut = data.draw(st.integers(0, len(entries)))
    then, now = RecordedFacts(ledger_of(entries[:cut]), cut), RecordedFacts(ledger_of(entries, cut), cut)
    assert now.newest_changes() == then.newest_changes()
    assert now.key_names() == then.key_names()
    assert now.data_key() == then.data_key()
    assert now.changed_at() == then.changed_at()
    assert now.changes_of(None) == then.changes_of(None)
    assert [now.versions(name) for name in KEYS] == [then.versions(name) for name in KEYS]


@settings(FAST, max_examples=20)
@given(st.data())
def test_ledger_that_goes_on_from_what_was_written_down_is_the_same(data: st.DataObject) -> None:
    """Another process goes on from the JSON, and comes to the same end and the same facts."""
    entries = record(data, 140)
    cut = data.draw(st.integers(0, len(entries)))
    resumed = Ledger(STORE)
    resumed.resume(json.loads(json.dumps(ledger_of(entries[:cut]).to_dict())))
    assert resumed.head == head_of(entries[:cut])

    def load(after: int, to: int) -> Generator[Entry, None, None]:
        yield from entries[after:to]

    resumed.follow(head_of(entries), load)
    assert resumed.to_dict() == ledger_of(entries, cut).to_dict()


@FAST
@given(st.data())
def test_record_with_one_change_is_refused_and_nothing_of_it_counts(data: st.DataObject) -> None:
    """An entry that is altered, left out, or in another's place: no ledger takes any of it, under the head that was."""
    entries = record(data)
    head, broken, at = head_of(entries), list(entries), data.draw(st.integers(0, len(entries) - 1))
    how = data.draw(st.sampled_from(["body", "kind", "time", "missing", "twice", "reordered"]))
    entry = entries[at]
    if how == "missing":
        del broken[at]
    elif how == "twice":
        broken.insert(at, entry)
    elif how == "reordered":
        broken.append(broken.pop(at))
    else:
        altered = {"body": {"body": entry.body + " "}, "kind": {"kind": entry.kind + "x"}, "time": {"at_ms": 1}}[how]
        broken[at] = replace(entry, **altered)  # type: ignore[arg-type]
    if broken == entries:
        return

    def load(_after: int, _to: int) -> Generator[Entry, None, None]:
        yield from broken

    ledger = Ledger(STORE)
    with pytest.raises(AuditError):
        ledger.follow(head, load)
    assert ledger.head == Head(0, start_hash(STORE))
    assert says(Facts()) == says(Facts.from_dict(ledger.to_dict()["facts"]))
    assert verify_chain(STORE, entries) == head
