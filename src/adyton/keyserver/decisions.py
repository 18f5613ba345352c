"""Decide one request within a transaction, by the owner's approvals, and record the decision.

Nothing is sent here. The caller first commits the transaction and then answers.
"""

from __future__ import annotations

import base64
import logging
import time
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from adyton.attest.complete import without_event_log
from adyton.attest.sgx import SGXQuote
from adyton.errors import Denied, Error, OutOfOrder, Unavailable
from adyton.keyserver.agreement_lines import Ground, budget_of
from adyton.keyserver.decide import Denial, Grant, Request, decide, decide_in_vain
from adyton.keyserver.folder_roots import given_folders, granted_roots
from adyton.keyserver.public_errors import busy
from adyton.keyserver.record_limits import OWNERS_BYTES
from adyton.keyserver.refusal_texts import (
    cut_details,
    evidence_reason,
    fitting,
    owner_reason,
    reason_parts,
    told_reason,
    unchecked_reason,
)
from adyton.keyserver.refused_programs import Ticket, waits
from adyton.keyserver.request_record import RequestRecord, evidence_parts, warnings_of
from adyton.keyserver.stages import Decided, Outcome, Refused, Release, Unchecked
from adyton.keystore.audit import canonical
from adyton.keystore.audit_facts import DENIAL, RELEASE, WAITS, waiting
from adyton.keystore.names import new_id
from adyton.keystore.tables.keys import KEY
from adyton.release.messages import NOT_KEPT, Payload, Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from adyton.attest.report import VerifiedReport
    from adyton.keyserver.record_limits import RefusalLimits
    from adyton.keyserver.stages import Received, Verified
    from adyton.keystore.transaction import Transaction
    from adyton.values import Digest

log = logging.getLogger("adyton.keyserver")


@dataclass(frozen=True, slots=True)
class _Case:
    """One verified request, its transaction, and the time of the decision."""

    change: Transaction
    verified: Verified
    now: datetime
    at_ms: int

    @property
    def received(self) -> Received:
        return self.verified.received


class Decisions:
    """Decides requests within the record's limits. For one thread."""

    def __init__(self, server_name: str, limits: RefusalLimits, owner: Digest | None = None) -> None:
        self._server_name = server_name
        self._owner = owner
        self._limits = limits
        self._record = RequestRecord()

    def decide(self, change: Transaction, verified: Verified, now: datetime, at_ms: int) -> Decided:
        """Decide one request, and record the decision in this transaction.

        The nonce is used up before any approval is read, so a repeated request is always refused.
        """
        return Decided(verified.received, self._outcome(_Case(change, verified, now, at_ms)))

    def _outcome(self, case: _Case) -> Outcome:
        result = case.verified.result
        if isinstance(result, Unavailable):
            return self._unchecked(case, result)
        if isinstance(result, Error):
            return self._refuse_evidence(case, result)
        try:
            _use_nonce(case)
        except OutOfOrder as error:
            return self._refuse_evidence(case, error)
        if not case.received.names:
            return self._decide_by_measurement(case, result.report)
        return self._decide_by_name(case, result.report)

    def _decide_by_name(self, case: _Case, report: VerifiedReport) -> Outcome:
        """Grant all keys that the request names, or none."""
        grants: list[Grant] = []
        for name in case.received.names:
            decided = self._judge(case, report, name)
            if isinstance(decided, Denial):
                request = self._request(case, name)
                decide_in_vain(request, report, case.change.approvals(), case.now, _grounds(case))
                return self._refuse(case, report, decided)
            grants.append(decided)
        return self._grant(case, tuple(grants))

    def _decide_by_measurement(self, case: _Case, report: VerifiedReport) -> Outcome:
        """For Gramine's protocol, which names no key: grant the key that this program may have, or refuse.

        A key whose runs are used up counts as one that it may have. Otherwise a program would get another key after the
        last run of the first.
        """
        allowed: list[Grant] = []
        used_up: list[Denial] = []
        closest: tuple[tuple[bool, int], Denial] | None = None
        for key in sorted({stored.approval.key for stored in case.change.approvals()}):
            decided = self._judge(case, report, key)
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
                remedy=f"connect to KEY.keys.{self._server_name}, or approve one key only for ra-tls",
            )
            detail = {"evidence": cut_details(several)}
            return Refused(
                self._refuse_genuine(case, report, detail, lambda known: evidence_reason(several, known).parts())
            )
        if allowed:
            return self._grant(case, tuple(allowed))
        if used_up:
            return self._refuse(case, report, used_up[0])
        return self._refuse(case, report, closest[1] if closest else Denial("(any)", ()))

    def _judge(self, case: _Case, report: VerifiedReport, key: str) -> Grant | Denial:
        change = case.change
        return decide(
            self._request(case, key),
            report,
            change.approvals(key),
            lambda stored: change.usage(
                stored.id,
                case.received.run,
                case.at_ms,
                counted=stored.approval.max_runs is not None or stored.approval.max_active is not None,
            ),
            case.now,
            _grounds(case),
        )

    def _request(self, case: _Case, key: str) -> Request:
        """The request for one of the named keys."""
        received = case.received
        return Request(
            key=key,
            run=received.run,
            protocol=received.protocol,
            report_data=received.report_data,
            manifest_sha256=received.manifest_sha256,
            in_force=case.verified.in_force,
            owner=self._owner,
        )

    # --- outcomes ----------------------------------------------------------------------------------------------

    def _grant(self, case: _Case, grants: tuple[Grant, ...]) -> Release:
        change, received = case.change, case.received
        keys: dict[str, bytes] = {}
        secret_values: dict[str, bytes] = {}
        versions: dict[str, int] = {}
        listed: list[dict[str, Any]] = []
        for grant in grants:
            info, value = change.reveal(grant.key)
            (keys if info.kind == KEY else secret_values)[grant.key] = value
            versions[grant.key] = info.version
            listed.append(
                {
                    "key": grant.key,
                    "version": info.version,
                    "approval": grant.approval.id,
                    "revision": grant.approval.revision,
                    "app": grant.approval.approval.app,
                    "app_version": grant.approval.approval.version,
                    "release": new_id("r") if grant.renews is None else grant.renews,
                    "renewed": grant.renews is not None,
                    "lease_until_ms": int(grant.lease_until.timestamp() * 1000),
                }
            )
            if grant.approval.approval.agreement:
                listed[-1]["agreement"] = grant.approval.approval.agreement
                budget = budget_of(grant.approval.approval, _grounds(case)(grant.approval.approval.agreement))
                if budget is not None and grant.renews is None:
                    listed[-1]["privacy_steps"] = budget.steps
        grant_id = new_id("g")
        payload = Payload(keys, secret_values, change.token_of(grant_id))
        kept = {name: change.keep_released(part, case.at_ms).hex() for name, part in evidence_parts(received).items()}
        facts = self._record.facts(change, case.verified, case.at_ms)
        roots = {} if received.message is None else granted_roots(change, received.message.folders)
        if received.message is not None:
            facts["run_key"] = base64.b64encode(received.message.run_key).decode()
        facts |= {"folders": given_folders(roots)} if roots else {}
        warned = warnings_of(grants)
        facts |= {"warnings": warned} if warned else {}
        change.record(RELEASE, grant_id, {"grant": grant_id, "keys": listed, **kept, **facts}, case.at_ms)
        named = {"keys": ",".join(grant.key for grant in grants), "app": grants[0].approval.approval.app}
        log.info("released", extra={"grant": grant_id, "peer": received.peer, **named})
        return Release(grant_id, grants, versions, payload, roots)

    def _refuse(self, case: _Case, report: VerifiedReport, denial: Denial) -> Refused:
        """Refuse genuine evidence without a matching approval. The owner's record lists the closest approvals."""
        platform = case.verified.platform
        bound = platform is not None
        unknown = not any(judged.is_this_program for judged in denial.judged)
        waiting_for: dict[str, Any] = {}
        if unknown and bound and isinstance(report.evidence, SGXQuote) and case.change.has_key(denial.key):
            waiting_for = {WAITS: waiting(report.measurement, report.tee_with_root, denial.key)}
        detail = denial.to_dict()
        listed = fitting(detail) if bound else {"key": denial.key, "approvals": [], "more": 0}
        reason_of = (lambda known: reason_parts(owner_reason(denial, report, known))) if bound else None
        refusal = self._refuse_genuine(case, report, listed, reason_of, waiting_for)
        if refusal.denial == NOT_KEPT:
            return Refused(refusal)
        ticket = Ticket(
            denial=refusal.denial,
            platform=platform or "",
            report=without_event_log(report),
            key=denial.key,
            approvals=tuple(judged["approval"] for judged in detail["approvals"]),
            waits=bound and waits(detail),
            made_at=time.monotonic(),
        )
        return Refused(refusal, ticket)

    def _refuse_genuine(
        self,
        case: _Case,
        report: VerifiedReport,
        detail: dict[str, Any],
        reason_of: Callable[[str | None], dict[str, str]] | None,
        waiting_for: Mapping[str, Any] = MappingProxyType({}),
    ) -> Refusal:
        """Refuse genuine evidence. The client's text never depends on the reason. The record has the reason.

        Without `reason_of` the reason is the client's text: the evidence was not made for this request.
        """
        received, bound = case.received, case.verified.platform is not None

        def told(known: str | None) -> Refusal:
            return told_reason(report, received.names, received.protocol, known, for_this_request=bound)

        return self._deny(case, told, detail, reason_of=reason_of, waiting_for=waiting_for)

    def _refuse_evidence(self, case: _Case, error: Error) -> Refused:
        detail = {"evidence": cut_details(error)}
        return Refused(self._deny(case, lambda known: evidence_reason(error, known), detail))

    def _unchecked(self, case: _Case, error: Unavailable) -> Unchecked:
        """Record a request that could not be checked, so that the owner knows what was missing."""
        told = self._deny(case, unchecked_reason, {"unchecked": cut_details(error)})
        return Unchecked(
            busy(told.message, check=told.check, expected=told.expected, seen=told.seen, remedy=told.remedy)
        )

    def _deny(
        self,
        case: _Case,
        told_of: Callable[[str | None], Refusal],
        detail: dict[str, Any],
        *,
        reason_of: Callable[[str | None], dict[str, str]] | None = None,
        waiting_for: Mapping[str, Any] = MappingProxyType({}),
    ) -> Refusal:
        """Refuse, and record the refusal with the waiting programs.

        Beyond the limits it is only counted, without an id.
        """
        change, platform, at_ms = case.change, case.verified.platform, case.at_ms
        denial_id = new_id("d") if self._limits.may_keep(platform, at_ms) else None
        told = told_of(denial_id)
        if denial_id is None:
            return told
        reason = told.parts() if reason_of is None else reason_of(denial_id)
        body = {
            "denial": denial_id,
            "told": told.parts(),
            "reason": reason,
            "detail": detail,
            **self._record.facts(change, case.verified, at_ms),
            **self._record.refused_evidence(change, case.verified, at_ms),
        }
        change.record(DENIAL, denial_id, {**body, **waiting_for}, at_ms)
        size = len(canonical(body))  # without what waits: who counts refusals must not learn whether a key exists
        if platform is not None:
            size += OWNERS_BYTES - len(canonical(detail)) - len(canonical(reason))
        self._limits.wrote(platform, size, at_ms)
        log.info("denied", extra={"denial": denial_id, "peer": case.received.peer, "check": reason["check"]})
        return told


def _use_nonce(case: _Case) -> None:
    """Use up the challenge of Adyton's own protocol. Raises OutOfOrder where it was used before.

    RA-TLS has none: there the handshake proves that the client holds the key of its certificate.
    """
    message = case.received.message
    if message is not None:
        nonce = message.nonce.raw
        case.change.use_nonce(nonce, 1000 * int.from_bytes(nonce[:4], "big"), case.at_ms)


def _grounds(case: _Case) -> Callable[[str], Ground]:
    """The agreements of this owner by id, each with the runs that it already had."""

    def ground_of(agreement: str) -> Ground:
        if not agreement:
            return Ground(None)
        change = case.change
        return Ground(change.agreement(agreement), change.agreed_runs(agreement), change.privacy_steps(agreement))

    return ground_of
