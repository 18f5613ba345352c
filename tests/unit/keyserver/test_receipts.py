"""A key server counter-signs what the run itself hands in, with genuine evidence over it, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from adyton.attest.report_data import receipt_report_data
from adyton.errors import Error, OutOfOrder, Unavailable
from adyton.receipt.document import EndEvidence, Receipt
from adyton.receipt.dsse import Envelope, Signature
from adyton.receipt.handed_in import HandedIn, parse_handed_in, with_answer
from adyton.receipt.statement import Statement, canonical, parse_statement
from adyton.release.client import obtain_keys, tell_server
from adyton.release.run_key import RunKey
from adyton.release.run_messages import RECEIPT, RunMessage
from adyton.server.process import server_identity
from tests.support.owner_world import make_world
from tests.support.receipt_world import ReceiptWorld, receipt_world
from tests.support.release_by_hand import entries


@pytest.fixture
def world(tmp_path: Any) -> Iterator[ReceiptWorld]:
    """An owner, her key server and her program."""
    with receipt_world(tmp_path) as made:
        yield made


class Run:
    """A run with its grant, and a statement as its keeper would make it."""

    def __init__(self, world: ReceiptWorld) -> None:
        self.world = world
        self.key = RunKey()
        self.source = world.world.enclave(world.signed)
        where = {"alice": world.server.adyton}
        released = obtain_keys(world.signed, self.source, where, run_key=self.key, timeout_s=10)
        self.grant = released.grants[0].grant
        made = world.make()
        statement = parse_statement(made.receipt.envelope.payload)
        owner = replace(statement.owners[0], grant=self.grant, checkpoint=dict(released.grants[0].checkpoint))
        self.statement = replace(
            statement,
            run_key=self.key.public_bytes,
            owners=(owner,),
            subjects=({"name": "run", "digest": {"sha256": "00" * 32}},),
        )

    def handed_in(self, statement: Statement | None = None, **changes: Any) -> HandedIn:
        """What the run hands in, with changes."""
        payload = (self.statement if statement is None else statement).to_bytes()
        end = EndEvidence(self.source.quote(receipt_report_data(changes.get("over", payload))))
        return HandedIn(Envelope(payload, (Signature.create(changes.get("key", self.key), payload),)), end)

    def tell(self, handed_in: HandedIn | bytes) -> dict[str, Any]:
        """Hand it in over the server's connection."""
        raw = handed_in if isinstance(handed_in, bytes) else handed_in.to_bytes()
        where = {"alice": self.world.server.adyton}
        return dict(tell_server(self.world.signed, "alice", where, self.key, RECEIPT, self.grant, raw, timeout_s=20))


def test_a_receipt_is_counter_signed_once_and_stands_in_the_record(world: ReceiptWorld) -> None:
    """The entry names statement, grant, approvals and verdict; the same message gets the same entry again."""
    run = Run(world)
    before = len(entries(world.world, "receipt"))
    handed_in = run.handed_in()
    first, again = run.tell(handed_in), run.tell(handed_in)
    assert first == again
    assert len(entries(world.world, "receipt")) == before + 1
    body = entries(world.world, "receipt")[-1]
    assert body["receipt"] == run.statement.sha256
    assert body["grant"] == run.grant
    assert body["keys"][0]["approval"].startswith("a-")
    assert next(iter(body["verdict"]["submods"].values()))["ear.status"] in ("affirming", "warning")
    with world.world.store.read() as view:
        assert view.artifact(bytes.fromhex(body["receipt"])) == handed_in.envelope.payload
    world.world.store.verify_audit()
    with_answer(Receipt(envelope=handed_in.envelope, requests=(), end=handed_in.end), first)


def test_a_run_has_one_receipt(world: ReceiptWorld) -> None:
    """Another statement of the same run is refused: its program has ended once."""
    run = Run(world)
    run.tell(run.handed_in())
    with pytest.raises(Error) as caught:
        run.tell(run.handed_in(replace(run.statement, exit_code=1)))
    assert caught.value.check == "receipt of the run"


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"run_key": RunKey().public_bytes}, "run in the statement"),
        ({"manifest_sha256": "00" * 32}, "manifest in the statement"),
        ({"measurement": "00" * 32}, "workload in the evidence"),
        ({"tee": "sim-tdx"}, "TEE of the evidence"),
        ({"device_digest": "00" * 48}, "devices of the statement"),
        ({"owners": ()}, "run in the statement"),
        ({"ca_sha256": "00" * 32}, "owner in the statement"),
        ({"server_name": "other"}, "server in the statement"),
        ({"versions": {"weights": 2}}, "versions in the statement"),
        ({"checkpoint": {}}, "store of the checkpoint in the statement"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_statement_that_the_record_does_not_bear_out_is_refused(
    world: ReceiptWorld, change: dict[str, Any], check: str
) -> None:
    """The server compares what the statement says of the grant with its own record, and the program with evidence."""
    run = Run(world)
    of_owner = {name: change[name] for name in change if name in ("ca_sha256", "server_name", "versions", "checkpoint")}
    statement = replace(run.statement, owners=(replace(run.statement.owners[0], **of_owner),))
    if not of_owner:
        statement = replace(run.statement, **change)
    with pytest.raises(Error) as caught:
        run.tell(run.handed_in(statement))
    assert caught.value.check == check
    assert run.statement.sha256 not in {body["receipt"] for body in entries(world.world, "receipt")}


def test_evidence_over_something_else_or_none_is_refused(world: ReceiptWorld) -> None:
    """Evidence over another statement, no evidence, and evidence of a platform that nobody approved."""
    run = Run(world)
    with pytest.raises(Error) as caught:
        run.tell(run.handed_in(over=b"another statement"))
    assert caught.value.check == "report data of the evidence at the end"
    good = run.handed_in()
    with pytest.raises(Error):
        run.tell(replace(good, end=EndEvidence(b"none")))
    with make_world(world.folder / "other") as other:
        foreign = other.enclave(world.signed).quote(receipt_report_data(good.envelope.payload))
    with pytest.raises(Error):
        run.tell(replace(good, end=EndEvidence(foreign)))
    with pytest.raises(Error):
        run.tell(run.handed_in(key=RunKey()))


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b'{"envelope":{},"end":{}}', b"\xff", b"{" * 100])
def test_malformed_payloads_are_refused(world: ReceiptWorld, raw: bytes) -> None:
    """The run reads what is wrong."""
    run = Run(world)
    with pytest.raises(Error) as caught:
        run.tell(raw)
    assert not isinstance(caught.value, Unavailable)


def test_two_signatures_are_refused(world: ReceiptWorld) -> None:
    """Only that of the run is handed in."""
    run = Run(world)
    good = run.handed_in()
    twice = replace(good, envelope=replace(good.envelope, signatures=good.envelope.signatures * 2))
    with pytest.raises(Error) as caught:
        run.tell(twice)
    assert caught.value.check == "signatures of the envelope"


def test_answers_in_another_form_are_refused(world: ReceiptWorld) -> None:
    """A hostile server's answer is data."""
    run = Run(world)
    handed_in = run.handed_in()
    members = run.tell(handed_in)
    receipt = Receipt(envelope=handed_in.envelope, requests=(), end=handed_in.end)
    for name in members:
        others: tuple[object, ...] = (None, "", "AAAA", {}, [], 1)
        for value in others:
            with pytest.raises(Error):
                with_answer(receipt, {**members, name: value})
    with pytest.raises(Error):
        with_answer(receipt, {**members, "extra": 1})


def test_what_is_handed_in_comes_as_it_was_sent(world: ReceiptWorld) -> None:
    """The payload of the message round-trips."""
    handed_in = Run(world).handed_in()
    assert parse_handed_in(handed_in.to_bytes()) == handed_in
    document = json.loads(handed_in.to_bytes())
    assert canonical(document) == handed_in.to_bytes()


def test_a_server_without_certificates_counter_signs_nothing(world: ReceiptWorld) -> None:
    """Then the action has no handler."""
    run = Run(world)
    message = RunMessage.create(run.key, server_identity(world.world.home), RECEIPT, run.grant, b"")
    service = world.world.service(audit_certificates=None)
    try:
        with pytest.raises(OutOfOrder) as caught:
            service.run_messages.answer(message)
    finally:
        service.close()
    assert caught.value.check == "action of the message"


def test_verdict_is_by_the_approval_and_may_be_bad(world: ReceiptWorld) -> None:
    """The statement tells what happened. A machine that fell out of the policy meanwhile shows in the verdict."""
    run = Run(world)
    world.world.platform.raise_tcb()
    answer = run.tell(run.handed_in())
    body = json.loads(answer["counter_signature"]["body"])
    assert next(iter(body["verdict"]["submods"].values()))["ear.status"] == "contraindicated"
