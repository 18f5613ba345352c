"""What the key server does, without its sockets: verify, decide, record durably, and only then answer.

One thread takes requests in batches: it verifies each request's evidence, then opens one transaction for all of them,
decides each in it, commits, and hands out the answers. So a batch costs one write to the disk, and nothing is
answered that the audit record does not hold.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from adyton.attest import ratls
from adyton.attest.sgx import SGXQuote
from adyton.check import text
from adyton.collateral.background import Fetching
from adyton.errors import AuditError, Denied, Error, OutOfOrder, StoreError, Unavailable
from adyton.keyserver.decide import Denial, Grant, Request, decide, decide_in_vain
from adyton.keyserver.decision_queue import MAX_WAITING, Batches
from adyton.keyserver.explainer import Explainer, Ticket, waits
from adyton.keyserver.public_errors import busy, for_far_side
from adyton.keyserver.readiness import Readiness
from adyton.keyserver.record_limits import (
    MAX_EVIDENCE_BYTES_PER_DAY,
    MAX_EVIDENCE_KEPT_BYTES,
    OWNERS_BYTES,
    Budget,
    Lines,
    Refusals,
)
from adyton.keyserver.refusal import (
    cut_details,
    evidence_reason,
    fitting,
    owner_reason,
    program_of,
    reason_parts,
    told_reason,
    unchecked_reason,
)
from adyton.keystore.approval import ADYTON, RA_TLS
from adyton.keystore.audit import Checkpoint, canonical, sign_checkpoint
from adyton.keystore.clock import now_ms
from adyton.keystore.facts import DENIAL, RELEASE, WAITS, waiting
from adyton.keystore.names import check_name, new_id
from adyton.keystore.prune import prune_refused
from adyton.keystore.reader import AWAITED, KEY
from adyton.keystore.transaction import REFUSED
from adyton.release.grants import Granted, Terms, sign_grant
from adyton.release.messages import (
    Payload,
    Refusal,
    ReleaseRequest,
    ServerIdentity,
    check_challenge,
    make_challenge,
    run_id,
    wrap_to,
)
from adyton.values import Digest, Nonce

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from adyton.collateral.verifier import Verified, Verifier
    from adyton.keystore.grant_key import GrantKey
    from adyton.keystore.store import Store
    from adyton.keystore.transaction import Transaction

log = logging.getLogger("adyton.keyserver")

MAX_UNPROVEN_NAMES: Final = 4
"""Of the names that somebody asked for without genuine evidence, so many are recorded."""


@dataclass(slots=True, eq=False)
class Job:
    """One request on its way through the decision thread."""

    protocol: str
    names: tuple[str, ...]
    evidence: bytes
    run: str
    peer: str
    report_data: bytes | None
    manifest_sha256: Digest | None = None
    request: ReleaseRequest | None = None
    """The request itself, where it came over Adyton's own protocol."""
    future: Future[Answer] = field(default_factory=Future)
    received_at: float = field(default_factory=time.monotonic)
    verified: Verified | None = None
    error: Error | None = None
    grants: tuple[Grant, ...] = ()
    versions: Mapping[str, int] = field(default_factory=dict)
    """Which version of each key was granted."""
    payload: Payload | None = None
    grant_id: str = ""
    refusal: Refusal | None = None
    ticket: Ticket | None = None
    """What lets the refusal be explained, once it stands in the record."""
    unchecked: Unavailable | None = None
    """Why it could not be checked, in words for the far side."""
    parked: bool = False
    """Whether it waits for collateral to be fetched, beside the queue."""
    has_waited: bool = False

    def reset(self) -> None:
        """Forget what a decision that did not come to its end left here."""
        self.grants, self.versions, self.payload, self.grant_id = (), {}, None, ""
        self.refusal, self.ticket, self.unchecked = None, None, None

    def claim(self) -> bool:
        """Whether somebody still waits for the answer; from now on it will be given."""
        if self.future.done():
            return False
        return self.future.running() or self.future.set_running_or_notify_cancel()

    @property
    def platform(self) -> str | None:
        """The genuine platform that made its evidence for this very request; None where there is none such.

        Over RA-TLS report data names the certificate's key, and the handshake proved that the client holds it.
        """
        if self.verified is None or self.report_data is None:
            return None
        report = self.verified.report
        if not hmac.compare_digest(report.report_data, self.report_data):
            return None
        chip = report.platform.get("ppid", report.platform.get("chip_id", ""))
        return f"{report.root_fingerprint} {text(chip)}"


@dataclass(frozen=True, slots=True, repr=False)
class Answer:
    """What goes back: a grant with its payload (and, for Adyton's protocol, wrapped), or a refusal."""

    refusal: Refusal | None
    granted: Granted | None = None
    payload: Payload | None = None
    grant_id: str = ""


class KeyService:
    """The key server's decisions; thread-safe. `close` waits for what is under way."""

    def __init__(
        self,
        store: Store,
        verifier: Verifier,
        identity: ServerIdentity,
        audit_key: Ed25519PrivateKey,
        grant_key: GrantKey,
        *,
        combine: Callable[[Mapping[str, Digest]], Digest],
        challenge_lifetime_s: int = 120,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        on_decision: Callable[[str, float], None] | None = None,
    ) -> None:
        self.store = store
        self.identity = identity
        self.verifier = verifier
        self._audit_key = audit_key
        self._grant_key = grant_key
        self.explainer = Explainer(store, combine)
        self._readiness = Readiness(store)
        self._challenge_lifetime_s = challenge_lifetime_s
        self._clock = clock
        self._on_decision = on_decision or (lambda _outcome, _seconds: None)
        self._sim_roots: tuple[int, frozenset[Digest]] = (-1, frozenset())
        self._collateral_json: dict[int, tuple[object, bytes]] = {}
        self._refusals = Refusals()
        self._refused_evidence = Budget(MAX_EVIDENCE_BYTES_PER_DAY)
        self._unpruned_bytes = MAX_EVIDENCE_KEPT_BYTES
        self._lines = Lines()
        self._undecided = 0
        self._undecided_lock = threading.Lock()
        self._closed = False
        self._batches: Batches[Job] = Batches(self._work, self._record_left_out)

    # --- what the sockets call ---------------------------------------------------------------------------------

    def challenge(self) -> tuple[Nonce, int]:
        """A fresh challenge and how many seconds it lives."""
        expires = int(self._clock().timestamp()) + self._challenge_lifetime_s
        return make_challenge(self.store.keyring.challenge_key, expires), self._challenge_lifetime_s

    def release(self, request: ReleaseRequest, peer: str) -> Future[Answer]:
        """Decide a request of Adyton's own protocol."""
        try:
            check_challenge(self.store.keyring.challenge_key, request.nonce, self._clock().timestamp())
        except OutOfOrder as error:
            self.note("challenge refused", peer, error)
            raise
        return self._submit(
            Job(
                protocol=ADYTON,
                names=request.names,
                evidence=request.evidence,
                run=run_id(request.public_key),
                peer=peer,
                report_data=request.report_data(self.identity),
                manifest_sha256=request.manifest_sha256,
                request=request,
            )
        )

    def provision(self, chain: Sequence[bytes], server_name: str | None, peer: str) -> Future[Answer]:
        """Decide a request of Gramine's protocol, by the certificate chain that the client showed."""
        job = Job(protocol=RA_TLS, names=(), evidence=b"", run="", peer=peer, report_data=None)
        try:
            certificate = _one_certificate(chain)
            now = self._clock()
            if not certificate.not_before <= now <= certificate.not_after:
                raise OutOfOrder(
                    "the RA-TLS certificate is not valid now",
                    check="validity of the RA-TLS certificate",
                    expected=f"{certificate.not_before:%Y-%m-%d} to {certificate.not_after:%Y-%m-%d}",
                    seen=f"{now:%Y-%m-%d %H:%M:%S}",
                    remedy="compare the clocks of both machines",
                )
            job.evidence = certificate.quote
            job.report_data = certificate.expected_report_data
            job.run = hashlib.sha256(certificate.spki).hexdigest()[:32]
            job.names = self._named_key(server_name)
        except Error as error:
            job.error = error
        return self._submit(job)

    def _named_key(self, server_name: str | None) -> tuple[str, ...]:
        suffix = f".keys.{self.identity.server_name}"
        if server_name and server_name.endswith(suffix):
            return (check_name(server_name.removesuffix(suffix)),)
        return ()

    def _submit(self, job: Job) -> Future[Answer]:
        if self._closed:
            raise busy("the key server is stopping", check="key server", expected="one that serves", seen="its end")
        self._count(1)
        job.future.add_done_callback(lambda _future: self._count(-1))
        if not self._batches.put(job):
            job.future.cancel()
            raise _overloaded()
        return job.future

    def _count(self, step: int) -> None:
        with self._undecided_lock:
            self._undecided += step

    def used(self, grant: str, token: bytes) -> bool:
        """Note that an enclave opened its grant; False, and nothing written, where there is none with this token."""
        with self.store.read() as view:
            state = view.grant_state(grant, token)
        if state != AWAITED:
            return state is not None
        with self.store.write() as change:
            return change.use_grant(grant, token, now_ms())

    def note(self, what: str, peer: str, error: Error) -> None:
        """Log what a stranger sent and nothing is recorded of; so many lines a minute."""
        if self._lines.may_write(int(self._clock().timestamp() * 1000)):
            log.info(what, extra={"peer": peer, "check": error.check, "reason": error.message[:200]})

    def is_ready(self) -> bool:
        """Whether releases can be made at the moment."""
        return not self._closed and self._batches.is_alive and not self._batches.is_full and self._readiness.works()

    @property
    def waiting(self) -> int:
        """How many requests wait for their decision."""
        return self._batches.waiting

    @property
    def undecided(self) -> int:
        """How many requests have no answer yet."""
        return self._undecided

    def checkpoint(self) -> Checkpoint:
        """A signed statement of where the audit record stands now."""
        with self.store.read() as view:
            head = view.head()
        return sign_checkpoint(self._audit_key, self.store.id, head, now_ms())

    def close(self) -> None:
        """Stop taking requests, finish those that wait, and end the thread."""
        if not self._closed:
            self._closed = True
            self._batches.close()
            self.explainer.close()
            self._record_left_out(whole=True)

    # --- the decision thread -----------------------------------------------------------------------------------

    def _work(self, batch: list[Job]) -> None:
        self._record_left_out()
        self._run(batch)

    def _run(self, batch: list[Job]) -> None:
        """Decide a batch; where that fails each of its requests alone, so that none can spoil the others'."""
        try:
            wanted = self._prepared(batch)
            checkpoint = self._decide_all(wanted) if wanted else None
        except Exception as error:
            if len(batch) > 1:
                for job in batch:
                    self._run([job])
                return
            self._fail(batch[0], error)
            return
        for job in wanted:
            self._hand_out(job, checkpoint)

    def _prepared(self, batch: list[Job]) -> list[Job]:
        """Verify the evidence of those for whose answer somebody still waits; what is decided then, is recorded."""
        roots = self._accepted_roots()
        verified = [job for job in batch if not (job.future.done() or job.parked) and self._verify(job, roots)]
        return [job for job in verified if job.claim()]

    def _fail(self, job: Job, error: Exception) -> None:
        if isinstance(error, StoreError | AuditError):
            self._readiness.note(works=False)
        if job.claim():
            job.future.set_exception(for_far_side(error, "decide a request"))
            self._on_decision("failed", time.monotonic() - job.received_at)

    def _hand_out(self, job: Job, checkpoint: Checkpoint | None) -> None:
        outcome = "failed" if job.unchecked else "denied" if job.refusal else "granted"
        try:
            if job.unchecked is not None:
                job.future.set_exception(job.unchecked)
            else:
                if job.ticket is not None:
                    self.explainer.expect(job.ticket)
                job.future.set_result(self._answer(job, checkpoint))
        except Exception as error:
            outcome = "failed"
            job.future.set_exception(for_far_side(error, "answer a request"))
        self._on_decision(outcome, time.monotonic() - job.received_at)

    def _verify(self, job: Job, roots: frozenset[Digest]) -> bool:
        """Verify its evidence; False where it waits for collateral, and comes again."""
        job.reset()
        if job.error is not None:
            return True
        try:
            job.verified = self.verifier.verify(job.evidence, roots, self._clock())
        except Fetching as error:
            return not self._park(job, error)
        except Error as error:
            job.error = error
        return True

    def _park(self, job: Job, fetching: Fetching) -> bool:
        """Let a request wait for its collateral, once, while the others are decided; False where it cannot."""

        def resume() -> None:
            job.parked = False
            if not self._batches.put(job) and job.claim():
                job.future.set_exception(_overloaded())

        if not job.has_waited:
            job.parked = job.has_waited = True
            if fetching.when_done(resume):
                return True
            job.parked = False
        job.error = fetching.error
        return False

    def _record_left_out(self, *, whole: bool = False) -> None:
        """Record how many refusals were counted only, in each minute that is over."""
        at_ms = int(self._clock().timestamp() * 1000)
        sums = self._refusals.sums(None if whole else at_ms)
        if not sums:
            return
        try:
            with self.store.write() as change:
                for left_out in sums:
                    change.record("noise", "", left_out, at_ms)
            self._refusals.recorded(sums)
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

    def _decide_all(self, batch: list[Job]) -> Checkpoint:
        now = self._clock()
        at_ms = int(now.timestamp() * 1000)
        with self.store.write() as change:
            for job in batch:
                self._decide(change, job, now, at_ms)
            head = change.head()
        self._readiness.note(works=True)
        return sign_checkpoint(self._audit_key, self.store.id, head, at_ms)

    def _decide(self, change: Transaction, job: Job, now: datetime, at_ms: int) -> None:
        if isinstance(job.error, Unavailable):
            self._could_not_check(change, job, job.error, at_ms)
            return
        if job.error is None and job.request is not None:
            nonce = job.request.nonce.raw
            expires_ms = 1000 * int.from_bytes(nonce[:4], "big")
            try:
                change.use_nonce(nonce, expires_ms, at_ms)
            except OutOfOrder as error:
                self._refuse_evidence(change, job, error, at_ms)
                return
        if job.error is not None or job.verified is None:
            self._refuse_evidence(change, job, job.error or OutOfOrder("there is no evidence"), at_ms)
            return
        grants: list[Grant] = []
        if not job.names:
            self._decide_by_measurement(change, job, now, at_ms)
            return
        for name in job.names:
            decided = self._judge(change, job, name, now, at_ms)
            if isinstance(decided, Denial):
                decide_in_vain(_request(job, name), job.verified.report, change.approvals(), now)
                self._refuse(change, job, decided, at_ms)
                return
            grants.append(decided)
        self._grant(change, job, tuple(grants), at_ms)

    def _judge(self, change: Transaction, job: Job, name: str, now: datetime, at_ms: int) -> Grant | Denial:
        if job.verified is None:
            raise StoreError("a request without verified evidence cannot be judged")
        return decide(
            _request(job, name),
            job.verified.report,
            change.approvals(name),
            lambda stored: change.usage(
                stored.id,
                job.run,
                at_ms,
                counted=stored.approval.max_runs is not None or stored.approval.max_active is not None,
            ),
            now,
        )

    def _decide_by_measurement(self, change: Transaction, job: Job, now: datetime, at_ms: int) -> None:
        """Gramine's protocol names no key: give the one that this program may have, or say why the closest is not.

        A key whose runs are used up counts as one that it may have: else the last run of one key would hand out
        another in its place.
        """
        allowed: list[Grant] = []
        used_up: list[Denial] = []
        closest: tuple[tuple[bool, int], Denial] | None = None
        for key in sorted({stored.approval.key for stored in change.approvals()}):
            decided = self._judge(change, job, key, now, at_ms)
            if isinstance(decided, Grant):
                allowed.append(decided)
            elif decided.is_used_up:
                used_up.append(decided)
            elif decided.judged:
                best = decided.judged[0]
                distance = not best.is_this_program, len(best.failed)
                if closest is None or distance < closest[0]:
                    closest = distance, decided
        if len(allowed) + len(used_up) > 1:
            several = Denied(
                "several keys are approved for this program over ra-tls, and the protocol names none",
                check="name of the key",
                expected="one key",
                seen=f"{len(allowed) + len(used_up)} keys",
                remedy=f"connect to KEY.keys.{self.identity.server_name}, or approve one key only for ra-tls",
            )
            detail = {"evidence": cut_details(several)}
            self._refuse_genuine(change, job, detail, at_ms, lambda known: evidence_reason(several, known).parts(), {})
        elif allowed:
            self._grant(change, job, tuple(allowed), at_ms)
        elif used_up:
            self._refuse(change, job, used_up[0], at_ms)
        else:
            self._refuse(change, job, closest[1] if closest else Denial("(any)", ()), at_ms)

    # --- outcomes ----------------------------------------------------------------------------------------------

    def _grant(self, change: Transaction, job: Job, grants: tuple[Grant, ...], at_ms: int) -> None:
        keys: dict[str, bytes] = {}
        secret_values: dict[str, bytes] = {}
        versions: dict[str, int] = {}
        listed = []
        for grant in grants:
            info, value = change.reveal(grant.key)
            (keys if info.kind == KEY else secret_values)[grant.key] = value
            versions[grant.key] = info.version
            lease_ms = int(grant.lease_until.timestamp() * 1000)
            release_id = grant.renews
            if release_id is None:
                release_id = new_id("r")
            listed.append(
                {
                    "key": grant.key,
                    "version": info.version,
                    "approval": grant.approval.id,
                    "revision": grant.approval.revision,
                    "app": grant.approval.approval.app,
                    "app_version": grant.approval.approval.version,
                    "release": release_id,
                    "renewed": grant.renews is not None,
                    "lease_until_ms": lease_ms,
                }
            )
        job.grants, job.versions = grants, versions
        job.grant_id = new_id("g")
        job.payload = Payload(keys, secret_values, change.token_of(job.grant_id))
        evidence = change.keep_released(job.evidence, at_ms).hex()
        body = {"grant": job.grant_id, "keys": listed, "evidence": evidence, **self._facts(change, job, at_ms)}
        change.record(RELEASE, job.grant_id, body, at_ms)
        named = {"keys": ",".join(grant.key for grant in grants), "app": grants[0].approval.approval.app}
        log.info("released", extra={"grant": job.grant_id, "peer": job.peer, **named})

    def _refuse(self, change: Transaction, job: Job, denial: Denial, at_ms: int) -> None:
        if job.verified is None:
            raise StoreError("a request without verified evidence cannot be judged")
        report = job.verified.report
        unknown = not any(judged.is_this_program for judged in denial.judged)
        proven = unknown and job.platform is not None and isinstance(report.evidence, SGXQuote)
        waiting_for: dict[str, Any] = {}
        if proven and change.has_key(denial.key):
            waiting_for = {WAITS: waiting(report.measurement, report.tee_with_root, denial.key)}
        detail = denial.to_dict()
        bound = job.platform is not None
        listed = fitting(detail) if bound else {"key": denial.key, "approvals": [], "more": 0}
        reason_of = (lambda known: reason_parts(owner_reason(denial, report, known))) if bound else None
        denial_id = self._refuse_genuine(change, job, listed, at_ms, reason_of, waiting_for)
        if denial_id is None:
            return
        job.ticket = Ticket(
            denial=denial_id,
            platform=job.platform or "",
            evidence=report.evidence,
            tee=report.tee_with_root,
            key=denial.key,
            approvals=tuple(judged["approval"] for judged in detail["approvals"]),
            waits=job.platform is not None and waits(detail),
            made_at=time.monotonic(),
        )

    def _refuse_genuine(
        self,
        change: Transaction,
        job: Job,
        detail: dict[str, Any],
        at_ms: int,
        reason_of: Callable[[str | None], dict[str, str]] | None,
        waiting_for: Mapping[str, Any],
    ) -> str | None:
        """Refuse genuine evidence: the far side is told the same whatever the reason is; the record has it.

        Without a reason of its own it is what the far side is told: the evidence was not made for this request.
        """
        if job.verified is None:
            raise StoreError("a request without verified evidence cannot be judged")
        report, bound = job.verified.report, job.platform is not None

        def told(known: str | None) -> Refusal:
            return told_reason(report, job.names, job.protocol, known, for_this_request=bound)

        return self._deny(change, job, told, detail, at_ms, reason_of=reason_of, waiting_for=waiting_for)

    def _refuse_evidence(self, change: Transaction, job: Job, error: Error, at_ms: int) -> None:
        detail = {"evidence": cut_details(error)}
        self._deny(change, job, lambda known: evidence_reason(error, known), detail, at_ms)

    def _could_not_check(self, change: Transaction, job: Job, error: Unavailable, at_ms: int) -> None:
        """No verdict; but the owner should know what was missing."""
        self._deny(change, job, unchecked_reason, {"unchecked": cut_details(error)}, at_ms)
        if job.refusal is not None:
            told = job.refusal
            job.unchecked = busy(
                told.message, check=told.check, expected=told.expected, seen=told.seen, remedy=told.remedy
            )

    def _deny(
        self,
        change: Transaction,
        job: Job,
        told_of: Callable[[str | None], Refusal],
        detail: dict[str, Any],
        at_ms: int,
        *,
        reason_of: Callable[[str | None], dict[str, str]] | None = None,
        waiting_for: Mapping[str, Any] = MappingProxyType({}),
    ) -> str | None:
        """Refuse, and record it, with what waits since then, unless there were too many lately: its id."""
        platform = job.platform
        denial_id = new_id("d") if self._refusals.may_keep(platform, at_ms) else None
        told = job.refusal = told_of(denial_id)
        if denial_id is not None:
            reason = told.parts() if reason_of is None else reason_of(denial_id)
            body = {
                "denial": denial_id,
                "told": told.parts(),
                "reason": reason,
                "detail": detail,
                **self._facts(change, job, at_ms),
                **self._refused_facts(change, job, at_ms),
            }
            change.record(DENIAL, denial_id, {**body, **waiting_for}, at_ms)
            size = len(canonical(body))  # without what waits: who counts refusals must not learn whether a key exists
            if platform is not None:
                size += OWNERS_BYTES - len(canonical(detail)) - len(canonical(reason))
            self._refusals.wrote(platform, size, at_ms)
            log.info("denied", extra={"denial": denial_id, "peer": job.peer, "check": reason["check"]})
        return denial_id

    def _refused_facts(self, change: Transaction, job: Job, at_ms: int) -> dict[str, Any]:
        """What is kept of refused evidence: genuine evidence itself, within bounds; of all other its hash.

        Anybody can make evidence that does not verify, as much of it as he likes.
        """
        if not job.evidence:
            return {}
        if job.verified is None or not self._refused_evidence.has_room(at_ms, len(job.evidence)):
            return {"evidence_sha256": hashlib.sha256(job.evidence).hexdigest()}
        self._refused_evidence.spend(len(job.evidence), at_ms)
        sha256 = change.keep_artifact(REFUSED, job.evidence, at_ms)
        self._unpruned_bytes += len(job.evidence)
        if self._unpruned_bytes > MAX_EVIDENCE_KEPT_BYTES // 16:  # the sum reads what is kept: not for every refusal
            prune_refused(change, MAX_EVIDENCE_KEPT_BYTES, at_ms)
            self._unpruned_bytes = 0
        return {"evidence": sha256.hex()}

    def _facts(self, change: Transaction, job: Job, at_ms: int) -> dict[str, Any]:
        names = list(job.names)
        facts: dict[str, Any] = {
            "protocol": job.protocol,
            "peer": job.peer,
            "names": names if job.verified is not None else names[:MAX_UNPROVEN_NAMES],
            "run": job.run,
        }
        if job.manifest_sha256 is not None:
            facts["manifest_sha256"] = job.manifest_sha256.hex()
        if job.report_data is not None:
            facts["report_data"] = job.report_data.hex()
        if job.verified is not None:
            report = job.verified.report
            facts |= {
                "tee": report.tee_with_root,
                "program": program_of(report),
                "measurement": report.measurement.hex(),
                "mrsigner": str(report.mrsigner) if report.mrsigner else "",
                "status": str(report.status),
                "advisories": list(report.advisories),
                "debug": report.debug,
                "platform": {str(name): text(value)[:200] for name, value in report.platform.items()},
            }
            if job.verified.collateral is not None:
                raw = self._collateral_bytes(job.verified.collateral)
                facts["collateral"] = change.keep_artifact("collateral", raw, at_ms).hex()
        return facts

    def _collateral_bytes(self, collateral: Any) -> bytes:
        known = self._collateral_json.get(id(collateral))
        if known is None or known[0] is not collateral:
            if len(self._collateral_json) > 64:
                self._collateral_json.clear()
            known = self._collateral_json[id(collateral)] = (collateral, collateral.to_json().encode())
        return known[1]

    def _answer(self, job: Job, checkpoint: Checkpoint | None) -> Answer:
        if job.refusal is not None or job.payload is None or checkpoint is None:
            return Answer(job.refusal)
        if job.protocol == RA_TLS:
            return Answer(None, payload=job.payload, grant_id=job.grant_id)
        if job.request is None:
            raise StoreError("a grant of Adyton's own protocol without its request")
        lease = min(grant.lease_until for grant in job.grants)
        terms = Terms(
            grant=job.grant_id,
            lease_s=max(0, int((lease - self._clock()).total_seconds())),
            versions=job.versions,
            wrapped=wrap_to(job.request.public_key, job.payload.to_bytes(), job.report_data or b""),
            checkpoint=checkpoint.to_dict(),
        )
        signer = self._grant_key
        granted = sign_grant(signer.private, signer.certificate_der, job.request, self.identity, terms)
        return Answer(None, granted=granted, grant_id=job.grant_id)


def _one_certificate(chain: Sequence[bytes]) -> ratls.RATLSCertificate:
    if len(chain) != 1:
        raise OutOfOrder(
            "an RA-TLS client shows exactly one certificate",
            check="client certificate",
            expected="one self-signed certificate with evidence",
            seen=f"{len(chain)} certificates",
        )
    return ratls.parse_certificate(chain[0])


def _request(job: Job, key: str) -> Request:
    """What a job asks for, of one of the keys that it names."""
    return Request(
        key=key,
        run=job.run,
        protocol=job.protocol,
        report_data=job.report_data,
        manifest_sha256=job.manifest_sha256,
    )


def _overloaded() -> Unavailable:
    return busy(
        "the key server is overloaded",
        check="requests that wait",
        expected=f"at most {MAX_WAITING}",
        seen="more",
        remedy="try again in a moment",
    )
