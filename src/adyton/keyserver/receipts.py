"""Counter-sign the receipts of runs: verify the evidence at the end, record the statement, and sign the record's head.

The server takes one statement for each grant. It takes it only from the run itself, with genuine evidence of that
program over this very statement. The verdict is by the approval that granted the key, and stands in the entry. It may
be a bad one: the statement tells what happened, and the entry what the server thinks of the machine.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from adyton import __version__
from adyton.attest.assess import assess
from adyton.attest.complete import with_event_log
from adyton.attest.evidence import parse_evidence
from adyton.attest.explain import ear_claims
from adyton.attest.guest import confidential_kind
from adyton.attest.report_data import receipt_report_data
from adyton.attest.roots import TrustRoots
from adyton.collateral.background import Pending
from adyton.errors import EvidenceError, OutOfOrder, StoreError
from adyton.keyserver.decide import evidence_policy
from adyton.keyserver.public_errors import busy
from adyton.keystore.audit import Head, sign_checkpoint
from adyton.keystore.audit_facts import RECEIPT
from adyton.receipt.counter import entry_body
from adyton.receipt.document import CounterSignature
from adyton.receipt.dsse import Signature
from adyton.receipt.handed_in import answer, parse_handed_in
from adyton.receipt.statement import parse_statement
from adyton.receipt.verify import check_program

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from adyton.attest.assess import Assessment
    from adyton.collateral.verifier import VerifiedEvidence, Verifier
    from adyton.keyserver.run_messages import VerifiedMessage
    from adyton.keystore.audit import Entry
    from adyton.keystore.granted_run import GrantedRun
    from adyton.keystore.store import Store
    from adyton.receipt.handed_in import HandedIn
    from adyton.receipt.statement import Statement
    from adyton.release.messages import ServerIdentity
    from adyton.values import Digest

_EAR_KEPT: Final = ("ear.status", "ear.trustworthiness-vector", "ear.appraisal-policy-id")
"""The members of a verdict that the entry keeps. The rest follows from the evidence."""


class Receipts:
    """The action `receipt` of one key server. Thread-safe."""

    def __init__(
        self,
        store: Store,
        verifier: Verifier,
        identity: ServerIdentity,
        audit_key: Ed25519PrivateKey,
        certificates: tuple[bytes, bytes],
        *,
        roots: Callable[[], frozenset[Digest]],
        clock: Callable[[], datetime],
    ) -> None:
        """`certificates` are those of the audit key and of the owner's CA, DER."""
        self._store = store
        self._verifier = verifier
        self._identity = identity
        self._audit_key = audit_key
        self._certificate, self._ca = certificates
        self._roots = roots
        self._clock = clock

    def take(self, message: VerifiedMessage) -> Mapping[str, Any]:
        """Counter-sign what a run handed in.

        Raises OutOfOrder for what does not hold, Unavailable where there is no collateral at the moment.
        """
        run = message.run
        try:
            handed_in = parse_handed_in(message.payload)
            statement = parse_statement(handed_in.envelope.payload)
            if len(handed_in.envelope.signatures) != 1:
                raise _refused("signatures of the envelope", "that of the run", f"{len(handed_in.envelope.signatures)}")
            handed_in.envelope.signatures[0].check_run(run.run_key, handed_in.envelope.payload)
            owner = self._check_statement(statement, run)
            found = self._verifier.verify(handed_in.end.cpu, self._roots(), self._clock())
            if isinstance(found, Pending):
                raise busy("the collateral is being fetched", check="collateral", expected="some", seen="none yet")
            verdict = self._verdict(handed_in, statement, run, found)
        except EvidenceError as error:
            raise OutOfOrder(f"the receipt is not counter-signed: {error.message}", checks=error.checks) from None
        return self._recorded(handed_in, run, owner, found, verdict)

    def _check_statement(self, statement: Statement, run: GrantedRun) -> str:
        """Compare a statement with what the record says of the run. Returns the owner's name in it."""
        own = [owner for owner in statement.owners if owner.grant == run.grant]
        if statement.run_key != run.run_key or len(own) != 1:
            raise _refused("run in the statement", "the run that hands it in, with its grant", "another")
        (owner,) = own
        versions = {item["key"]: item["version"] for item in run.facts["keys"]}
        for check, seen, expected in (
            ("owner in the statement", owner.ca_sha256, self._identity.ca_sha256.hex()),
            ("server in the statement", owner.server_name, self._identity.server_name),
            ("versions in the statement", dict(owner.versions), versions),
            ("manifest in the statement", statement.manifest_sha256, run.facts.get("manifest_sha256")),
            ("store of the checkpoint in the statement", owner.checkpoint.get("store_id"), self._store.id.hex()),
        ):
            if seen != expected:
                raise _refused(check, str(expected)[:200], str(seen)[:200])
        return owner.name

    def _verdict(
        self, handed_in: HandedIn, statement: Statement, run: GrantedRun, found: VerifiedEvidence
    ) -> dict[str, Any]:
        """The verdict on genuine evidence over this statement, by the approval of the grant, in the manner of EAR."""
        binding = receipt_report_data(handed_in.envelope.payload)
        if found.report.report_data != binding:
            raise _refused("report data of the evidence at the end", "this statement", "something else")
        check_program(found.report, statement)
        with self._store.read() as view:
            key = run.facts["keys"][0]
            approval = view.revision(key["approval"], key["revision"])
            log = view.artifact(bytes.fromhex(run.facts["event_log"])) if "event_log" in run.facts else None
        if approval is None:
            raise StoreError("the approval of a grant is not there")
        policy = evidence_policy(approval, confidential_kind(found.report.tee))
        roots = TrustRoots().with_sim(self._roots()).with_tpm(policy.every_tpm_root)
        evidence = with_event_log(parse_evidence(handed_in.end.cpu), log)
        now = self._clock()
        return _kept(assess(evidence, found.collateral, roots, policy, now, report_data=binding))

    def _recorded(
        self, handed_in: HandedIn, run: GrantedRun, owner: str, found: VerifiedEvidence, verdict: dict[str, Any]
    ) -> Mapping[str, Any]:
        """Record the statement once, and answer with the entry and a checkpoint of it."""
        payload = handed_in.envelope.payload
        name = hashlib.sha256(payload).hexdigest()
        collateral = found.collateral.to_json().encode()
        at_ms = int(self._clock().timestamp() * 1000)
        with self._store.write() as change:
            first = change.artifact(bytes.fromhex(run.facts["collateral"]))
            if first is None:
                raise StoreError("the collateral of a grant is not there")
            entry: Entry | None = next(iter(change.entries(kind=RECEIPT, subject=run.grant)), None)
            if entry is None:
                change.keep_artifact(RECEIPT, payload, at_ms)
                body = entry_body(
                    name,
                    run.grant,
                    run.at_ms,
                    [_key(item) for item in run.facts["keys"]],
                    verdict,
                    collateral=change.keep_artifact("collateral", collateral, at_ms).hex(),
                    first_collateral=run.facts["collateral"],
                )
                previous = change.head().hash
                entry = change.record(RECEIPT, run.grant, body, at_ms)
            else:
                previous, collateral = _taken_before(entry, name, change.hash_of(entry.seq - 1), change.artifact)
        checkpoint = sign_checkpoint(self._audit_key, self._store.id, Head(entry.seq, entry.hash), entry.at_ms)
        signed = CounterSignature(
            owner=owner,
            seq=entry.seq,
            at_ms=entry.at_ms,
            body=entry.body,
            previous=previous,
            checkpoint=checkpoint.to_dict(),
            certificate=self._certificate,
            ca=self._ca,
        )
        return answer(Signature.of_owner(self._audit_key, payload), signed, collateral, first)


def _key(item: Mapping[str, Any]) -> dict[str, Any]:
    return {name: item[name] for name in ("key", "version", "approval", "revision", "app", "app_version")}


def _taken_before(
    entry: Entry, name: str, previous: bytes | None, artifact: Callable[[bytes], bytes | None]
) -> tuple[bytes, bytes]:
    """The hash before the entry on the same statement, and its collateral. Raises OutOfOrder for another statement."""
    import json

    body = json.loads(entry.body)
    if body["receipt"] != name:
        raise OutOfOrder(
            "this run has a receipt already, with another statement",
            check="receipt of the run",
            expected=body["receipt"],
            seen=name,
            remedy="a run has one receipt",
        )
    collateral = artifact(bytes.fromhex(body["collateral"]))
    if previous is None or collateral is None:
        raise StoreError("what a receipt was counter-signed with is not there")
    return previous, collateral


def _kept(assessment: Assessment) -> dict[str, Any]:
    claims = ear_claims(assessment, verifier=f"adyton {__version__}")
    submods = {
        tee: {name: value for name, value in found.items() if name in _EAR_KEPT}
        for tee, found in claims["submods"].items()
    }
    return {**claims, "submods": submods}


def _refused(check: str, expected: str, seen: str) -> OutOfOrder:
    return OutOfOrder(
        f"the receipt is not counter-signed: {check}",
        check=check,
        expected=expected,
        seen=seen,
        remedy="use an Adyton of the same version on both sides",
    )
