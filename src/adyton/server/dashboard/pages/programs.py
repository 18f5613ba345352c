"""Programs: those that are approved, those that wait, and the forms that approve, revoke, accept and dismiss them."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

from adyton.errors import ManifestError, UsageError
from adyton.keyserver.consent import alter, manifest_of, propose, shown
from adyton.keystore.approval import APPROVED, PENDING, REVOKED, Approval
from adyton.keystore.approval_gaps import gaps
from adyton.keystore.audit_facts import EXPLANATION
from adyton.keystore.clock import now_ms
from adyton.keystore.names import check_name
from adyton.manifest.findings import not_covered, one_line
from adyton.sim.chip import simulated_guest
from adyton.values import Digest, Measurement

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from starlette.requests import Request

    from adyton.keyserver.consent import Mine
    from adyton.keystore.approval import StoredApproval
    from adyton.keystore.audit_facts import Candidate
    from adyton.keystore.reader import Reader
    from adyton.keystore.transaction import Transaction
    from adyton.manifest.findings import Finding
    from adyton.server.dashboard.requests import Form

ACTOR: Final = "dashboard"
SHOWN_WAITING: Final = 5
"""Of so many programs that wait, at most, does a list say what they run: their manifests are read for it."""
MAX_LISTED_BYTES: Final = 256 << 10
"""The largest manifest that is read for a list: the program that waits chose it."""


def programs(reader: Reader) -> dict[str, Any]:
    """What the list of programs shows."""
    order = {PENDING: 0, APPROVED: 1, REVOKED: 2}
    found = sorted(
        reader.approvals(), key=lambda item: (item.approval.app, order[item.state], -item.changed_at.timestamp())
    )
    by_name: dict[str, list[StoredApproval]] = {}
    for item in found:
        by_name.setdefault(item.approval.app, []).append(item)
    at_ms = now_ms()
    usage = {item.id: reader.usage(item.id, "", at_ms) for item in found if item.state != PENDING}
    found_gaps = {item.id: gaps(item.approval) for item in found if item.state != REVOKED}
    return {
        "programs": {app: _by_age(items) for app, items in by_name.items()},
        "candidates": waiting_programs(reader.candidates(), reader),
        "usage": usage,
        "gaps": found_gaps,
    }


def _by_age(items: list[StoredApproval]) -> dict[str, Any]:
    """The approvals of one program: those of its present version and those that wait; and the older ones, to fold.

    The present version is the one of the approval that stands and was changed last.
    """
    standing = [item for item in items if item.state == APPROVED]
    present = max(standing, key=lambda item: item.changed_at).approval.version if standing else None
    shown = [item for item in items if item.state == PENDING or (item in standing and item.approval.version == present)]
    older = [item for item in items if item not in shown]
    return {"shown": shown, "older": older, "still_standing": sum(item.state == APPROVED for item in older)}


def waiting_programs(found: Sequence[Candidate], reader: Reader) -> list[dict[str, Any]]:
    """Programs that wait, each with what it would run and what it changed, as far as it showed it."""
    return [
        {
            "item": item,
            "argv": _argv(reader, item) if number < SHOWN_WAITING else (),
            "explained": [json.loads(entry.body) for entry in reader.entries(kind=EXPLANATION, subject=item.denial)],
        }
        for number, item in enumerate(found)
    ]


def _argv(reader: Reader, item: Candidate) -> tuple[str, ...]:
    """The command line of a program that waits; empty where its manifest is not known, too large, or refused."""
    behind = reader.behind(item.measurement)
    if behind is None or len(behind[0]) > MAX_LISTED_BYTES:
        return ()
    try:
        manifest = manifest_of(reader, _draft(reader, item.measurement, item.tee, item.key, app="x", version="x"))
    except (UsageError, ManifestError):
        return ()
    return () if manifest is None else tuple(map(one_line, manifest.argv or ()))


def candidate(request: Request, reader: Reader, mine: Mine) -> dict[str, Any]:
    """What the page of a program that waits shows; raises UsageError where none waits."""
    try:
        measurement = Measurement.from_hex(request.path_params["measurement"])
    except UsageError:
        raise UsageError("this is no measurement") from None
    found = [
        item
        for item in reader.candidates()
        if item.measurement == measurement and item.key == request.path_params["key"]
    ]
    if not found:
        raise UsageError("this program is not waiting (any more)", remedy="look at Programs")
    guest = _guest(reader, found[0])
    tees = sorted({item.tee for item in found})
    explained = [json.loads(entry.body) for entry in reader.entries(kind="explanation", subject=found[0].denial)]
    refused, draft, manifest, left_open = "", None, None, []
    try:
        draft = _draft(reader, measurement, found[0].tee, found[0].key, app="x", version="x")
        left_open = _left_open(shown(reader, draft, mine), tees)
        manifest = manifest_of(reader, draft)
    except UsageError as error:  # it can be dismissed all the same
        refused, draft = error.message, None
    return {
        "refused": refused,
        "item": found[0],
        "tees": tees,
        "guest": guest,
        "argv": () if manifest is None else tuple(map(one_line, manifest.argv or ())),
        "left_open": left_open,
        "uncovered": () if draft is None else draft.not_covered,
        "explained": explained,
        "apps": sorted({item.approval.app for item in reader.approvals()}),
    }


def approval(request: Request, reader: Reader, mine: Mine) -> dict[str, Any]:
    """What the page of one approval shows; raises UsageError where there is none."""
    item = reader.approval(check_name(request.path_params["id"], "approval id"))
    manifest = manifest_of(reader, item.approval)
    return {
        "item": item,
        "argv": () if manifest is None else tuple(map(one_line, manifest.argv or ())),
        "left_open": _left_open(shown(reader, item.approval, mine), item.approval.tees),
        "uncovered": item.approval.not_covered if manifest is None else not_covered(manifest),
    }


def change_state(transaction: Transaction, sent: Form, mine: Mine, state: str) -> None:
    """Approve or revoke an approval that is stored."""
    chosen = check_name(sent.get("id"), "approval id")
    alter(transaction, chosen, owner=mine, named=sent.allow, actor=ACTOR, state=state)


def dismiss(transaction: Transaction, sent: Form) -> None:
    """Let a program wait no longer."""
    measurement = Measurement.from_hex(sent.get("measurement"))
    if not transaction.dismiss_candidate(measurement, sent.get("key"), actor=ACTOR):
        raise UsageError("this program is not waiting (any more)", remedy="look at Programs")


def accept(transaction: Transaction, sent: Form, mine: Mine) -> None:
    """Approve a program that waits, as it was shown."""
    measurement = Measurement.from_hex(sent.get("measurement"))
    waiting = {(item.measurement, item.tee, item.key): item for item in transaction.candidates()}
    wanted = (measurement, sent.get("tee"), sent.get("key"))
    if wanted not in waiting:
        raise UsageError("this program is not waiting (any more)", remedy="look at Programs")
    guest = _guest(transaction, waiting[wanted])
    if sent.get("guest") != ("" if guest is None else guest.hex()):
        raise UsageError(
            "this program has asked again from another guest image",
            check="guest image",
            expected=sent.get("guest"),
            seen="none" if guest is None else guest.hex(),
            remedy="look at it again",
        )
    draft = _draft(transaction, *wanted, app=sent.get("app"), version=sent.get("version"))
    propose(transaction, draft, owner=mine, named=sent.allow, actor=ACTOR)


def _draft(reader: Reader, measurement: Measurement, tee: str, key: str, *, app: str, version: str) -> Approval:
    """The approval of a program that waits, as it is shown and as it is made."""
    behind = reader.behind(measurement)
    made = Approval(
        key=key,
        app=app,
        version=version,
        tees=(tee,),
        measurement=measurement,
        guest_images=(simulated_guest(),) if tee.startswith("sim-tdx") else (),
        manifest_sha256=Digest(hashlib.sha256(behind[0]).digest()) if behind else None,
        note="approved on the dashboard",
    )
    manifest = manifest_of(reader, made)
    return made if manifest is None else made.changed(not_covered=not_covered(manifest))


def _left_open(found: Iterable[Finding], tees: Collection[str]) -> list[dict[str, Any]]:
    """Findings as a page shows them: those that have to be named first, each with its box."""
    lines = [{"name": item.name, "what": item.what, "exposes": item.exposes_on(tees)} for item in found]
    return sorted(lines, key=lambda line: not line["exposes"])


def _guest(reader: Reader, item: Candidate) -> Measurement | None:
    """The guest image from which a program in a confidential machine last asked; None for an enclave."""
    if not item.tee.startswith(("tdx", "sim-tdx")):
        return None
    for entry in reader.entries(kind="denial", subject=item.denial):
        return Measurement.from_hex(json.loads(entry.body)["measurement"])
    raise UsageError("the refusal of this program is not in the record", remedy="let it ask again")
