"""What the key server does, without its sockets: verify, decide, record durably, and only then answer.

One thread takes requests in batches: it verifies each request's evidence, then opens one transaction for all of them,
decides each in it, commits, and hands out the answers. So a batch costs one write to the disk, and nothing is
answered that the audit record does not hold.
"""

from __future__ import annotations

import hashlib
import json
import logging
import queue
import secrets
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from adyton.attest import ratls
from adyton.attest.checks import text
from adyton.attest.evidence import parse_evidence
from adyton.attest.sgx import SGXQuote
from adyton.attest.tdx import TDXQuote, workload_rtmr3
from adyton.errors import Denied, Error, OutOfOrder, StoreError, Unavailable, UsageError
from adyton.keyserver.audit import Checkpoint, sign_checkpoint
from adyton.keyserver.clock import now_ms
from adyton.keyserver.decide import Denial, Grant, Request, decide
from adyton.keyserver.difference import MAX_LINES, Difference, manifest_differences, part_differences
from adyton.keyserver.names import check_name, new_id
from adyton.keyserver.policy import ADYTON, APPROVED, RA_TLS
from adyton.keyserver.refusal import Reason, evidence_reason, program_of, safe_reason
from adyton.keyserver.view import KEY, Release
from adyton.manifest.measure import workload_measurement
from adyton.net.release import (
    TOKEN_BYTES,
    Explanation,
    Granted,
    Payload,
    Refusal,
    ReleaseRequest,
    ServerIdentity,
    check_challenge,
    make_challenge,
    run_id,
    wrap_to,
)
from adyton.values import Digest, Measurement, Nonce

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from adyton.keyserver.change import Transaction
    from adyton.keyserver.store import Store
    from adyton.net.verification import Verified, Verifier

log = logging.getLogger("adyton.keyserver")

MAX_BATCH: Final = 64
MAX_NOISE_PER_MINUTE: Final = 120
"""Refusals of requests without genuine evidence that are recorded whole; the rest of a minute's are only counted."""

MAX_SHOWN_BYTES_PER_DAY: Final = 128 << 20
"""Manifests of refused programs kept in a day; beyond that a refusal is still explained, but nothing is kept."""

MAX_WAITING: Final = 2000
"""Requests that may wait for the decision thread; one more is told to come again."""


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
    nonce: Nonce | None = None
    public_key: bytes = b""
    future: Future[Answer] = field(default_factory=Future)
    received_at: float = field(default_factory=time.monotonic)
    verified: Verified | None = None
    error: Error | None = None
    grants: tuple[Grant, ...] = ()
    payload: Payload | None = None
    grant_id: str = ""
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Answer:
    """What goes back: a grant with its payload (and, for Adyton's protocol, wrapped), or a refusal."""

    refusal: Refusal | None
    granted: Granted | None = None
    payload: Payload | None = None
    grant_id: str = ""


class _Noise:
    """Keeps a flood of worthless requests from filling the disk: beyond a bound they are counted, not kept."""

    def __init__(self) -> None:
        self._minute = 0
        self._seen = 0

    def is_too_much(self, change: Transaction, at_ms: int) -> bool:
        """Whether this one is beyond the bound; a minute that had too many is summed up when it is over."""
        minute = at_ms // 60_000
        if minute != self._minute:
            left_out = self._seen - MAX_NOISE_PER_MINUTE
            if left_out > 0:
                change.record("noise", "", {"refused_without_evidence": left_out, "minute": self._minute}, at_ms)
            self._minute, self._seen = minute, 0
        self._seen += 1
        return self._seen > MAX_NOISE_PER_MINUTE


class _Shown:
    """Bounds what refused programs may leave in the store: a host can make as many of them as it likes."""

    def __init__(self) -> None:
        self._day = 0
        self._kept_bytes = 0

    def may_keep(self, size_bytes: int, at_ms: int) -> bool:
        """Whether so much more may be kept today."""
        day = at_ms // 86_400_000
        if day != self._day:
            self._day, self._kept_bytes = day, 0
        if self._kept_bytes + size_bytes > MAX_SHOWN_BYTES_PER_DAY:
            return False
        self._kept_bytes += size_bytes
        return True


class KeyService:
    """The key server's decisions; thread-safe. `close` waits for what is under way."""

    def __init__(
        self,
        store: Store,
        verifier: Verifier,
        identity: ServerIdentity,
        audit_key: Ed25519PrivateKey,
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
        self._combine = combine
        self._challenge_lifetime_s = challenge_lifetime_s
        self._clock = clock
        self._on_decision = on_decision or (lambda _outcome, _seconds: None)
        self._waiting: queue.Queue[Job | None] = queue.Queue(MAX_WAITING)
        self._sim_roots: tuple[int, frozenset[Digest]] = (-1, frozenset())
        self._collateral_json: dict[int, tuple[object, bytes]] = {}
        self._noise = _Noise()
        self._shown = _Shown()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="decisions", daemon=True)
        self._thread.start()

    # --- what the sockets call ---------------------------------------------------------------------------------

    def challenge(self) -> tuple[Nonce, int]:
        """A fresh challenge and how many seconds it lives."""
        expires = int(self._clock().timestamp()) + self._challenge_lifetime_s
        return make_challenge(self.store.keyring.challenge_key, expires), self._challenge_lifetime_s

    def release(self, request: ReleaseRequest, peer: str) -> Future[Answer]:
        """Decide a request of Adyton's own protocol."""
        check_challenge(self.store.keyring.challenge_key, request.nonce, self._clock().timestamp())
        return self._submit(
            Job(
                protocol=ADYTON,
                names=request.names,
                evidence=request.evidence,
                run=run_id(request.public_key),
                peer=peer,
                report_data=request.report_data(self.identity),
                manifest_sha256=request.manifest_sha256,
                nonce=request.nonce,
                public_key=request.public_key,
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
            raise Unavailable("the key server is stopping", remedy="try again in a moment")
        try:
            self._waiting.put_nowait(job)
        except queue.Full:
            raise Unavailable(
                "the key server is overloaded",
                check="requests that wait",
                expected=f"at most {MAX_WAITING}",
                remedy="try again in a moment",
            ) from None
        return job.future

    def used(self, grant: str, token: bytes) -> bool:
        """Note that an enclave opened its grant; False where nothing awaits this token."""
        with self.store.write() as change:
            return change.use_grant(grant, token, now_ms())

    def explain(self, explanation: Explanation) -> list[str]:
        """Work out what was changed in a program that was refused, for the owner's log; returns the far side's part.

        Believed only where manifest and runtime parts give the very measurement that the refused evidence carried.
        """
        with self.store.read() as view:
            entries = list(view.entries(kind="denial", subject=explanation.denial))
            if len(entries) != 1:
                raise OutOfOrder("no such denial", check="denial id", seen=explanation.denial)
            if any(view.entries(kind="explanation", subject=explanation.denial)):
                raise OutOfOrder("this denial is explained already", check="denial id", seen=explanation.denial)
            denial = json.loads(entries[0].body)
            workload = self._shown_workload(explanation, denial)
            approvals = [
                stored
                for judged in denial.get("detail", {}).get("approvals", ())
                for stored in view.approvals()
                if stored.id == judged["approval"] and stored.state == APPROVED
            ]
            behind = [
                (stored, view.behind(stored.approval.measurement))
                for stored in approvals
                if stored.approval.measurement is not None
            ]
        best: list[Difference] | None = None
        against = ""
        for stored, known in behind:
            if known is None:
                continue
            found = part_differences(known[1], explanation.runtime_parts)
            found += manifest_differences(known[0], explanation.manifest)
            if best is None or len(found) < len(best):
                best, against = found, f"{stored.approval.app} {stored.approval.version}"
        with self.store.write() as change:
            if self._shown.may_keep(len(explanation.manifest), now_ms()):
                change.remember(workload, explanation.manifest, explanation.runtime_parts)
            body = {
                "denial": explanation.denial,
                "against": against,
                "changed": [line.for_owner() for line in (best or ())[:MAX_LINES]],
                "more": max(0, len(best or ()) - MAX_LINES),
            }
            change.record("explanation", explanation.denial, body, now_ms())
        shown = [line.for_far_side() for line in (best or ())[:MAX_LINES]]
        told = [line for line in shown if line is not None]
        missing = sum(line is None for line in shown)
        return told + ([f"{missing} entries of the approved program are missing"] if missing else [])

    def _shown_workload(self, explanation: Explanation, denial: dict[str, Any]) -> Measurement:
        try:
            parts = {name: Digest.from_hex(value) for name, value in explanation.runtime_parts.items()}
        except UsageError:
            raise OutOfOrder("the runtime's parts are no hashes", check="runtime parts") from None
        workload = workload_measurement(explanation.manifest, self._combine(parts))
        raw = denial.get("evidence")
        if raw is None:
            raise OutOfOrder("that denial had no evidence", check="denial id")
        with self.store.read() as view:
            evidence = view.artifact(bytes.fromhex(raw))
        carried = evidence is not None and _carries(evidence, workload)
        if not carried or "measurement" not in denial:
            raise OutOfOrder(
                "this is not the program whose evidence was refused",
                check="measurement of what was shown",
                expected="manifest and runtime parts that give the measurement in the evidence",
                seen=workload.hex(),
            )
        return workload

    def not_ready(self) -> str | None:
        """Why releases cannot be made at the moment; None where they can."""
        if self._closed:
            return "stopping"
        if self._waiting.qsize() >= MAX_WAITING:
            return "overloaded"
        try:
            with self.store.write():
                pass
        except StoreError as error:
            return error.message
        return None

    def checkpoint(self) -> Checkpoint:
        """A signed statement of where the audit record stands now."""
        with self.store.read() as view:
            head = view.head()
        return sign_checkpoint(self._audit_key, self.store.id, head, now_ms())

    def close(self) -> None:
        """Stop taking requests, finish those that wait, and end the thread."""
        if not self._closed:
            self._closed = True
            self._waiting.put(None)
            self._thread.join()

    # --- the decision thread -----------------------------------------------------------------------------------

    def _work(self) -> None:
        going = True
        while going:
            batch: list[Job] = []
            first = self._waiting.get()
            if first is None:
                return
            batch.append(first)
            while len(batch) < MAX_BATCH:
                try:
                    more = self._waiting.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    going = False
                    break
                batch.append(more)
            self._run(batch)

    def _run(self, batch: list[Job]) -> None:
        try:
            roots = self._accepted_roots()
            for job in batch:
                self._verify(job, roots)
            checkpoint = self._decide_all(batch)
        except Exception as error:
            if len(batch) > 1:
                for job in batch:
                    _reset(job)
                    self._run([job])
                return
            failure = error if isinstance(error, Error) else _internal(error)
            batch[0].future.set_exception(failure)
            self._on_decision("failed", time.monotonic() - batch[0].received_at)
            return
        for job in batch:
            try:
                job.future.set_result(self._answer(job, checkpoint))
            except Exception as error:
                job.future.set_exception(error if isinstance(error, Error) else _internal(error))
            self._on_decision("denied" if job.refusal else "granted", time.monotonic() - job.received_at)

    def _verify(self, job: Job, roots: frozenset[Digest]) -> None:
        if job.error is not None:
            return
        try:
            job.verified = self.verifier.verify(job.evidence, roots, self._clock())
        except Error as error:
            job.error = error

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
        return sign_checkpoint(self._audit_key, self.store.id, head, at_ms)

    def _decide(self, change: Transaction, job: Job, now: datetime, at_ms: int) -> None:
        if job.error is None and job.nonce is not None:
            expires_ms = 1000 * int.from_bytes(job.nonce.raw[:4], "big")
            try:
                change.use_nonce(job.nonce.raw, expires_ms, at_ms)
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
                self._refuse(change, job, decided, at_ms)
                return
            grants.append(decided)
        self._grant(change, job, tuple(grants), at_ms)

    def _judge(self, change: Transaction, job: Job, name: str, now: datetime, at_ms: int) -> Grant | Denial:
        if job.verified is None:
            raise StoreError("a request without verified evidence cannot be judged")
        request = Request(
            key=name,
            run=job.run,
            protocol=job.protocol,
            report_data=job.report_data,
            manifest_sha256=job.manifest_sha256,
        )
        return decide(
            request,
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
        """Gramine's protocol names no key: give the one that this program may have, or say why the closest is not."""
        allowed: list[Grant] = []
        closest: tuple[tuple[bool, int], Denial] | None = None
        for key in sorted({stored.approval.key for stored in change.approvals()}):
            decided = self._judge(change, job, key, now, at_ms)
            if isinstance(decided, Grant):
                allowed.append(decided)
            elif decided.judged:
                best = decided.judged[0]
                distance = not best.is_this_program, len(best.failed)
                if closest is None or distance < closest[0]:
                    closest = distance, decided
        if len(allowed) == 1:
            self._grant(change, job, tuple(allowed), at_ms)
        elif allowed:
            several = Denied(
                "several keys are approved for this program over ra-tls, and the protocol names none",
                check="name of the key",
                expected="one key",
                seen=f"{len(allowed)} keys",
                remedy=f"connect to KEY.keys.{self.identity.server_name}, or approve one key only for ra-tls",
            )
            self._refuse_evidence(change, job, several, at_ms)
        else:
            self._refuse(change, job, closest[1] if closest else Denial("(any)", ()), at_ms)

    # --- outcomes ----------------------------------------------------------------------------------------------

    def _grant(self, change: Transaction, job: Job, grants: tuple[Grant, ...], at_ms: int) -> None:
        keys: dict[str, bytes] = {}
        secret_values: dict[str, bytes] = {}
        listed = []
        for grant in grants:
            info, value = change.reveal(grant.key)
            (keys if info.kind == KEY else secret_values)[grant.key] = value
            lease_ms = int(grant.lease_until.timestamp() * 1000)
            release_id = grant.renews
            if release_id is None:
                release_id = new_id("r")
                change.add_release(
                    Release(release_id, grant.approval.id, job.run, grant.key, info.version, at_ms, lease_ms, None)
                )
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
        job.grants = grants
        job.grant_id = new_id("g")
        token = secrets.token_bytes(TOKEN_BYTES)
        job.payload = Payload(keys, secret_values, token)
        if job.protocol == ADYTON:
            change.add_grant(job.grant_id, hashlib.sha256(token).digest(), at_ms)
        body = {"grant": job.grant_id, "keys": listed, **self._facts(change, job, at_ms)}
        change.record("release", job.grant_id, body, at_ms)

    def _refuse(self, change: Transaction, job: Job, denial: Denial, at_ms: int) -> None:
        if job.verified is None:
            raise StoreError("a request without verified evidence cannot be judged")
        denial_id = new_id("d")
        report = job.verified.report
        reason = safe_reason(denial, report, denial_id)
        self._deny(change, job, denial_id, reason, denial.to_dict(), at_ms)
        unknown = not any(judged.is_this_program for judged in denial.judged)
        if unknown and report.rtmrs is None and change.has_key(denial.key):
            change.note_candidate(report.measurement, report.tee_with_root, denial.key, denial_id, at_ms)

    def _refuse_evidence(self, change: Transaction, job: Job, error: Error, at_ms: int) -> None:
        denial_id = new_id("d")
        if job.verified is None and self._noise.is_too_much(change, at_ms):
            reason = evidence_reason(error, denial_id)
            told = (reason.message, reason.check, reason.expected, reason.seen, reason.remedy)
            job.refusal = Refusal(denial_id, *told)
            return
        self._deny(change, job, denial_id, evidence_reason(error, denial_id), {"evidence": error.details()}, at_ms)

    def _deny(
        self, change: Transaction, job: Job, denial_id: str, reason: Reason, detail: dict[str, Any], at_ms: int
    ) -> None:
        body = {"denial": denial_id, "told": reason.to_dict(), "detail": detail, **self._facts(change, job, at_ms)}
        change.record("denial", denial_id, body, at_ms)
        job.refusal = Refusal(denial_id, reason.message, reason.check, reason.expected, reason.seen, reason.remedy)
        log.info("denied", extra={"denial": denial_id, "peer": job.peer, "check": reason.check})

    def _facts(self, change: Transaction, job: Job, at_ms: int) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "protocol": job.protocol,
            "peer": job.peer,
            "names": list(job.names),
            "run": job.run,
        }
        if job.manifest_sha256 is not None:
            facts["manifest_sha256"] = job.manifest_sha256.hex()
        if job.report_data is not None:
            facts["report_data"] = job.report_data.hex()
        if job.evidence:
            facts["evidence"] = change.keep_artifact("evidence", job.evidence, at_ms).hex()
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

    def _answer(self, job: Job, checkpoint: Checkpoint) -> Answer:
        if job.refusal is not None or job.payload is None:
            return Answer(job.refusal)
        if job.protocol == RA_TLS:
            return Answer(None, payload=job.payload, grant_id=job.grant_id)
        wrapped = wrap_to(job.public_key, job.payload.to_bytes(), job.report_data or b"")
        lease = min(grant.lease_until for grant in job.grants)
        lease_s = max(0, int((lease - self._clock()).total_seconds()))
        return Answer(
            None, granted=Granted(job.grant_id, lease_s, wrapped, checkpoint.to_dict()), grant_id=job.grant_id
        )


def _one_certificate(chain: Sequence[bytes]) -> ratls.RATLSCertificate:
    if len(chain) != 1:
        raise OutOfOrder(
            "an RA-TLS client shows exactly one certificate",
            check="client certificate",
            expected="one self-signed certificate with evidence",
            seen=f"{len(chain)} certificates",
        )
    return ratls.parse_certificate(chain[0])


def _carries(raw: bytes, workload: Measurement) -> bool:
    evidence = parse_evidence(raw)
    if isinstance(evidence, SGXQuote):
        return evidence.report.mrenclave == workload.raw
    if isinstance(evidence, TDXQuote):
        return evidence.report.rtmrs[3] == workload_rtmr3(workload).raw
    return False


def _reset(job: Job) -> None:
    job.grants, job.payload, job.grant_id, job.refusal = (), None, "", None


def _internal(error: Exception) -> Error:
    log.exception("internal error while deciding", exc_info=error)
    return Unavailable("the key server failed at this request", remedy="the owner's log says more")
