"""The key server without its sockets: verify, decide, record durably, and only then answer.

One thread takes requests in batches. It verifies each request's evidence, then opens one transaction for the batch,
decides each request in it, commits, and gives out the answers. So a batch costs one write to the disk, and every answer
is in the audit record. The stages of a request are values (stages.py). Each is made by one function: `receive`,
`_verify`, `Decisions.decide`, `answered`.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, TypeAlias

from adyton.agreement.in_force import proved
from adyton.attest.complete import complete, no_devices
from adyton.collateral.background import Pending
from adyton.errors import AuditError, Error, OutOfOrder, Stale, StoreError, Unavailable
from adyton.keyserver.answer import answered
from adyton.keyserver.decision_queue import MAX_WAITING, DecisionQueue, Waiting
from adyton.keyserver.decisions import Decisions
from adyton.keyserver.folder_roots import FolderRoots
from adyton.keyserver.in_force import Statements
from adyton.keyserver.privacy import settler
from adyton.keyserver.public_errors import busy, public_error
from adyton.keyserver.readiness import Readiness
from adyton.keyserver.receipts import Receipts
from adyton.keyserver.receive import received_chain, received_message
from adyton.keyserver.record_limits import LogLimit, RefusalLimits
from adyton.keyserver.refused_programs import Explainer
from adyton.keyserver.run_messages import Handler, RunMessages
from adyton.keyserver.stages import Refused, Release, Unchecked, Verified
from adyton.keystore.audit import Checkpoint, sign_checkpoint
from adyton.keystore.audit_facts import AWAITED
from adyton.keystore.clock import now_ms
from adyton.release.messages import ServerIdentity, check_challenge, make_challenge
from adyton.release.run_messages import PRIVACY, RECEIPT, ROOT_COMMIT, ROOT_INTENT
from adyton.values import Digest, Nonce

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Future

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from adyton.agreement.in_force import InForce
    from adyton.attest.bundle import DevicePart
    from adyton.attest.complete import DeviceVerifier
    from adyton.attest.report import VerifiedReport
    from adyton.collateral.verifier import VerifiedEvidence, Verifier
    from adyton.keyserver.in_force import StatementSigner
    from adyton.keyserver.stages import Answered, Decided, Outcome, Received
    from adyton.keystore.grant_key import GrantKey
    from adyton.keystore.store import Store
    from adyton.release.in_force_messages import Question
    from adyton.release.messages import ReleaseRequest

log = logging.getLogger("adyton.keyserver")

DeviceFetcher: TypeAlias = "Callable[[tuple[DevicePart, ...], bytes, datetime], Pending | None]"
"""Begins to fetch what genuine devices lack (`GPUVerifier.fetch_for`). None where nothing is fetched."""

_METRIC_NAMES: Final[Mapping[type[Outcome], str]] = {Release: "granted", Refused: "denied", Unchecked: "failed"}


class KeyService:
    """The key server's decisions. Thread-safe. `close` waits for running requests."""

    def __init__(
        self,
        store: Store,
        verifier: Verifier,
        identity: ServerIdentity,
        audit_key: Ed25519PrivateKey,
        grant_key: GrantKey,
        *,
        combine: Callable[[Mapping[str, Digest]], Digest],
        audit_certificates: tuple[bytes, bytes] | None = None,
        verify_devices: DeviceVerifier = no_devices,
        fetch_for_devices: DeviceFetcher = lambda _devices, _nonce, _now: None,
        statement_signer: Callable[[], StatementSigner | None] = lambda: None,
        challenge_lifetime_s: int = 120,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        on_decision: Callable[[str, float], None] | None = None,
    ) -> None:
        self.store = store
        self.identity = identity
        self.verifier = verifier
        self._verify_devices = verify_devices
        self._fetch_for_devices = fetch_for_devices
        self._audit_key = audit_key
        self._grant_key = grant_key
        self.explainer = Explainer(store, combine)
        folders = FolderRoots(store)
        self._statements = Statements(store, statement_signer)
        self._readiness = Readiness(store)
        self._challenge_lifetime_s = challenge_lifetime_s
        self._clock = clock
        self._on_decision = on_decision or (lambda _outcome, _seconds: None)
        handlers: dict[str, Handler] = {
            PRIVACY: settler(store),
            ROOT_INTENT: folders.begin,
            ROOT_COMMIT: folders.commit,
        }
        if audit_certificates is not None:
            receipts = Receipts(
                store,
                verifier,
                identity,
                audit_key,
                audit_certificates,
                roots=self._accepted_roots,
                clock=clock,
            )
            handlers[RECEIPT] = receipts.take
        self.run_messages = RunMessages(store, identity, handlers)
        self._sim_roots: tuple[int, frozenset[Digest]] = (-1, frozenset())
        self._refusal_limits = RefusalLimits()
        self._decisions = Decisions(identity.server_name, self._refusal_limits, identity.ca_sha256)
        self._log_limit = LogLimit()
        self._undecided = 0
        self._undecided_lock = threading.Lock()
        self._closed = False
        self._queue: DecisionQueue[Waiting] = DecisionQueue(self._work, self._record_left_out)

    # --- what the sockets call ---------------------------------------------------------------------------------

    def challenge(self) -> tuple[Nonce, int]:
        """A fresh challenge, and its lifetime in seconds."""
        expires = int(self._clock().timestamp()) + self._challenge_lifetime_s
        return make_challenge(self.store.keyring.challenge_key, expires), self._challenge_lifetime_s

    def release(self, request: ReleaseRequest, peer: str) -> Future[Answered]:
        """Decide a request of Adyton's own protocol.

        Raises OutOfOrder for an expired or foreign challenge, and for what this server does not keep.
        """
        try:
            check_challenge(self.store.keyring.challenge_key, request.nonce, self._clock().timestamp())
        except OutOfOrder as error:
            self.note("challenge refused", peer, error)
            raise
        return self._submit(received_message(request, self.identity, peer))

    def provision(self, chain: Sequence[bytes], server_name: str | None, peer: str) -> Future[Answered]:
        """Decide a request of Gramine's protocol, by the client's certificate chain."""
        return self._submit(received_chain(chain, server_name, self.identity, peer, self._clock()))

    def _submit(self, received: Received) -> Future[Answered]:
        if self._closed:
            raise busy("the key server is stopping", check="key server", expected="one that serves", seen="its end")
        waiting = Waiting(received)
        self._count(1)
        waiting.future.add_done_callback(lambda _future: self._count(-1))
        if not self._queue.put(waiting):
            waiting.future.cancel()
            raise _overloaded()
        return waiting.future

    def _count(self, step: int) -> None:
        with self._undecided_lock:
            self._undecided += step

    def used(self, grant: str, token: bytes) -> bool:
        """Record that an enclave opened its grant. False, without a write, where no grant has this token."""
        with self.store.read() as view:
            state = view.grant_state(grant, token)
        if state != AWAITED:
            return state is not None
        with self.store.write() as change:
            return change.use_grant(grant, token, now_ms())

    def in_force(self, question: Question) -> bytes | None:
        """A signed statement that an agreement is in force. None where this owner does not say so."""
        return self._statements.make(question.agreement, question.challenge, self._clock())

    def note(self, what: str, peer: str, error: Error) -> None:
        """Log a message of an unauthenticated client that is not recorded. The lines a minute are limited."""
        if self._log_limit.may_write(int(self._clock().timestamp() * 1000)):
            log.info(what, extra={"peer": peer, "check": error.check, "reason": error.message[:200]})

    def is_ready(self) -> bool:
        """Whether releases can be made at the moment."""
        return not self._closed and self._queue.is_alive and not self._queue.is_full and self._readiness.works()

    @property
    def waiting(self) -> int:
        """The number of requests that wait for their decision."""
        return self._queue.waiting

    @property
    def undecided(self) -> int:
        """The number of requests without an answer yet."""
        return self._undecided

    def checkpoint(self) -> Checkpoint:
        """A signed checkpoint of the audit record as it is now."""
        with self.store.read() as view:
            head = view.head()
        return sign_checkpoint(self._audit_key, self.store.id, head, now_ms())

    def close(self) -> None:
        """Take no further requests, finish those that wait, and end the thread."""
        if not self._closed:
            self._closed = True
            self._queue.close()
            self.explainer.close()
            self._record_left_out(whole=True)

    # --- the decision thread -----------------------------------------------------------------------------------

    def _work(self, batch: list[Waiting]) -> None:
        self._record_left_out()
        verified = self._verify_all(batch)
        self._run([(waiting, each) for waiting, each in verified if waiting.claim()])

    def _verify_all(self, batch: list[Waiting]) -> list[tuple[Waiting, Verified]]:
        """Verify the requests whose clients still wait. A request that waits for collateral is queued again."""
        try:
            roots = self._accepted_roots()
        except Exception as error:
            if len(batch) > 1:
                return [pair for waiting in batch for pair in self._verify_all([waiting])]
            self._fail(batch[0], error)
            return []
        found: list[tuple[Waiting, Verified]] = []
        for waiting in batch:
            if waiting.future.done():
                continue
            try:
                verified = self._verify(waiting, roots)
            except Exception as error:
                self._fail(waiting, error)
                continue
            if verified is not None:
                found.append((waiting, verified))
        return found

    def _verify(self, waiting: Waiting, roots: frozenset[Digest]) -> Verified | None:
        """Verify a request's evidence. None where it waits for collateral and is queued again.

        The event log and the devices are parsed only where the CPU's evidence is genuine and was made for this request.
        """
        received = waiting.received
        if received.error is not None:
            return Verified(received, received.error)
        now = self._clock()
        in_force: frozenset[InForce] = frozenset()
        try:
            found = self.verifier.verify(received.evidence, roots, now)
            if not isinstance(found, Pending) and received.is_bound(found.report):
                found = self._with_the_rest(received, found, now)
                in_force = _in_force(received, now)
        except Error as error:
            return Verified(received, error)
        if not isinstance(found, Pending):
            return Verified(received, found, in_force)
        if self._park(waiting, found):
            return None
        return Verified(received, found.error())

    def _with_the_rest(self, received: Received, found: VerifiedEvidence, now: datetime) -> VerifiedEvidence | Pending:
        """The evidence with event log and devices, or `Pending` while collateral for the devices is fetched."""
        try:
            return replace(found, report=self._completed(received, found.report, now))
        except (Unavailable, Stale):
            if received.devices:
                pending = self._fetch_for_devices(received.devices, received.device_nonce, now)
                if pending is not None:
                    return pending
            raise

    def _completed(self, received: Received, report: VerifiedReport, now: datetime) -> VerifiedReport:
        return complete(
            report,
            received.event_log,
            received.devices,
            nonce=received.device_nonce,
            verify_devices=self._verify_devices,
            now=now,
        )

    def _park(self, waiting: Waiting, pending: Pending) -> bool:
        """Let a request wait once for its collateral, while others are decided. False where it cannot."""

        def resume() -> None:
            if not self._queue.put(replace(waiting, has_waited=True)) and waiting.claim():
                waiting.future.set_exception(_overloaded())

        return not waiting.has_waited and pending.when_done(resume)

    def _run(self, batch: list[tuple[Waiting, Verified]]) -> None:
        """Decide a batch. If that fails, decide each request alone, so that none can spoil the others."""
        if not batch:
            return
        try:
            decided, checkpoint = self._decide_all([verified for _, verified in batch])
        except Exception as error:
            if len(batch) > 1:
                for pair in batch:
                    self._run([pair])
                return
            self._fail(batch[0][0], error)
            return
        for (waiting, _), each in zip(batch, decided, strict=True):
            self._hand_out(waiting, each, checkpoint)

    def _decide_all(self, batch: list[Verified]) -> tuple[list[Decided], Checkpoint]:
        """Decide these in one transaction. It is committed on return. The checkpoint is that of its record."""
        now = self._clock()
        at_ms = int(now.timestamp() * 1000)
        with self.store.write() as change:
            decided = [self._decisions.decide(change, verified, now, at_ms) for verified in batch]
            head = change.head()
        self._readiness.note(works=True)
        return decided, sign_checkpoint(self._audit_key, self.store.id, head, at_ms)

    def _hand_out(self, waiting: Waiting, decided: Decided, checkpoint: Checkpoint) -> None:
        outcome = decided.outcome
        metric = _METRIC_NAMES[type(outcome)]
        try:
            if isinstance(outcome, Unchecked):
                waiting.future.set_exception(outcome.error)
            else:
                if isinstance(outcome, Refused) and outcome.ticket is not None:
                    self.explainer.expect(outcome.ticket)
                waiting.future.set_result(self._answered(decided.received, outcome, checkpoint))
        except Exception as error:
            metric = "failed"
            waiting.future.set_exception(public_error(error, "answer a request"))
        self._on_decision(metric, time.monotonic() - waiting.received.at_s)

    def _answered(self, received: Received, outcome: Release | Refused, checkpoint: Checkpoint) -> Answered:
        now = self._clock()
        return answered(received, outcome, checkpoint, identity=self.identity, signer=self._grant_key, now=now)

    def _fail(self, waiting: Waiting, error: Exception) -> None:
        if isinstance(error, StoreError | AuditError):
            self._readiness.note(works=False)
        if waiting.claim():
            waiting.future.set_exception(public_error(error, "decide a request"))
            self._on_decision("failed", time.monotonic() - waiting.received.at_s)

    def _record_left_out(self, *, whole: bool = False) -> None:
        """Record the number of refusals that were only counted, for each past minute."""
        at_ms = int(self._clock().timestamp() * 1000)
        sums = self._refusal_limits.sums(None if whole else at_ms)
        if not sums:
            return
        try:
            with self.store.write() as change:
                for left_out in sums:
                    change.record("noise", "", left_out, at_ms)
            self._refusal_limits.recorded(sums)
        except Exception as error:
            log.warning("could not record what was left out", extra={"reason": str(error)[:300]})

    def _accepted_roots(self) -> frozenset[Digest]:
        with self.store.read() as view:
            revision = view.policy_revision()
            if self._sim_roots[0] != revision:
                tees = {tee for stored in view.approvals() for tee in stored.approval.tees}
                roots = frozenset(Digest.from_hex(tee.partition(":")[2]) for tee in tees if ":" in tee)
                self._sim_roots = (revision, roots)
        return self._sim_roots[1]


def _in_force(received: Received, now: datetime) -> frozenset[InForce]:
    """What the statements of other owners prove. They answer the challenge of this request.

    They are verified before any approval is read. So the time that they take says nothing of the approvals.
    """
    message = received.message
    if message is None or not message.in_force:
        return frozenset()
    found, refused = proved(message.in_force, message.nonce, now)
    for error in refused:
        log.info("in-force statement refused", extra={"peer": received.peer, "check": error.check, "seen": error.seen})
    return found


def _overloaded() -> Unavailable:
    return busy(
        "the key server is overloaded",
        check="requests that wait",
        expected=f"at most {MAX_WAITING}",
        seen="more",
        remedy="try again in a moment",
    )
