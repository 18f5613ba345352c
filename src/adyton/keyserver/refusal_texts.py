"""A refusal in two texts: one for the client, and the owner's reason in her record, under the same id.

The client's text depends only on the client's own request. It does not depend on the owner's data: which programs she
approved, how close this one comes, whether a key of that name exists. So it can confirm no guess. Only the owner sees
the comparison with her approvals.

The two texts have two types. The client's text is a `Refusal`, a message of the release protocol. The owner's reason is
a `Denied`, which no code here can send.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from adyton.check import Check, text
from adyton.errors import BadChain, Denied
from adyton.keystore.audit import canonical
from adyton.release.messages import NOT_KEPT, Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adyton.attest.report import VerifiedReport
    from adyton.errors import Error
    from adyton.keyserver.decide import Denial

MAX_TEXT_CHARACTERS: Final = 600
MAX_DETAIL_BYTES: Final = 4096


def _ask(denial_id: str | None) -> str:
    """The remedy: ask the owner. Without an id the refusal was only counted, because there were too many."""
    if denial_id is None:
        return "try again in a minute: there were so many refusals in this one that the owner's log only counts this"
    return f"ask the owner to look at denial {denial_id} (adyton audit show {denial_id})"


def _cut(value: object) -> str:
    """Cut a text to the limit. Texts of clients go into the record and into the answers to them."""
    shown = text(value)
    return shown if len(shown) <= MAX_TEXT_CHARACTERS else shown[: MAX_TEXT_CHARACTERS - 1] + "…"


def cut_details(error: Error) -> dict[str, str]:
    """An error as data for the record, with each text cut. Names in certificates of others may have any length."""
    return {name: _cut(value) for name, value in error.details().items()}


def reason_parts(reason: Denied) -> dict[str, str]:
    """The owner's reason as data for the record: message, check, expected, seen, remedy."""
    return {name: shown for name, shown in reason.details().items() if name != "error"}


def fitting(detail: dict[str, Any]) -> dict[str, Any]:
    """A denial's detail for the record. Beyond 4 KiB the most different approvals are left out."""
    found = dict(detail)
    while len(canonical(found)) > MAX_DETAIL_BYTES and found.get("approvals"):
        found = {**found, "approvals": found["approvals"][:-1], "more": found["more"] + 1}
    return found


def program_of(report: VerifiedReport) -> str:
    """The program that a report names, in one line."""
    if report.rtmrs is not None:
        return f"guest {report.measurement}, RTMR3 {report.rtmrs[3].hex()}"
    return f"measurement {report.measurement}"


def told_reason(
    report: VerifiedReport, asked: Sequence[str], protocol: str, denial_id: str | None, *, for_this_request: bool
) -> Refusal:
    """The client's text for genuine evidence that got no key. It does not depend on the owner's approvals.

    `asked` are the names in the request. `for_this_request` is whether the evidence was made for it.
    """
    ask = _ask(denial_id)
    if not for_this_request:
        return Refusal(
            denial_id or NOT_KEPT,
            "this evidence was not made for this request",
            "report data",
            "the hash of this very request (challenge, public key, manifest, owner, server, names)",
            report.report_data.hex(),
            f"ask with evidence for a fresh challenge, and for the server that the manifest pins; {ask}",
        )
    keys = ", ".join(repr(name) for name in asked) or "any key"
    platform = f"TCB status {report.status}"
    if report.advisories:
        platform += f" ({', '.join(report.advisories)})"
    if report.debug:
        platform += ", debug"
    return Refusal(
        denial_id or NOT_KEPT,
        _cut(f"the owner has not approved this program, on this platform as it is now, for {keys}"),
        "approval of the program and its platform",
        _cut(f"an approval of the owner that lets this program have {keys} here and now"),
        _cut(f"{program_of(report)}; {platform}; protocol {protocol}"),
        f"{ask}: her record says which line stands in the way, and what differs from what she approved",
    )


def owner_reason(denial: Denial, report: VerifiedReport, denial_id: str | None) -> Denied:
    """The owner's reason for a request that no approval grants, for her record only."""
    ask = _ask(denial_id)
    closest = denial.judged[0] if denial.judged else None
    if closest is None or not closest.is_this_program:
        return Denied(
            f"the owner has not approved this program for key {denial.key!r}",
            check="measurement of the program",
            expected=f"a program that the owner approved for key {denial.key!r}",
            seen=program_of(report),
            remedy=f"{ask}: if she means this program, she approves its measurement; if the program should be the"
            " approved one, something of it was changed: script, library, Adyton itself, argument, environment, mount"
            " or pinned server",
        )
    line = closest.failed[0]
    app = closest.approval.approval
    what = f"{app.app} {app.version}"
    if line.name == "approval":
        state = text(line.seen)
        return Denied(
            f"the owner's approval of {what} for key {denial.key!r} is {state}",
            check="approval",
            expected="an approval that stands",
            seen=state,
            remedy=ask,
        )
    return Denied(
        f"key {denial.key!r} is not released to {what}: {_plural(closest.failed)}",
        check=line.name,
        expected=_cut(line.expected),
        seen=_cut(line.seen),
        remedy=f"{line.remedy}; {ask}" if line.remedy else ask,
    )


def _plural(failed: tuple[Check, ...]) -> str:
    names = [line.name for line in failed]
    return f"{names[0]} does not hold" if len(names) == 1 else f"{', '.join(names)} do not hold"


def unchecked_reason(denial_id: str | None) -> Refusal:
    """The client's text where the key server lacks collateral. The owner's log says what is missing."""
    return Refusal(
        denial_id or NOT_KEPT,
        "the key server could not check this evidence",
        "collateral",
        "current collateral for this platform",
        "none at the key server",
        f"try again in a moment; if it persists, {_ask(denial_id)}",
    )


def evidence_reason(error: Error, denial_id: str | None) -> Refusal:
    """The client's text for evidence that was refused before any approval was read."""
    ask = _ask(denial_id)
    if isinstance(error, BadChain) and (error.check or "").endswith("pinned"):
        return Refusal(
            denial_id or NOT_KEPT,
            f"the owner has approved no program on this platform: {error.message}"[:MAX_TEXT_CHARACTERS],
            "root of the platform's certificates",
            "Intel's or AMD's root, or a simulated root that one of the owner's approvals names (sim:FINGERPRINT)",
            _cut(error.seen),
            f"run on a platform that she approved, or {ask}",
        )
    return Refusal(
        denial_id or NOT_KEPT,
        error.message[:MAX_TEXT_CHARACTERS],
        error.check or "evidence",
        _cut(error.expected or "evidence that verifies"),
        _cut(error.seen or "evidence that does not"),
        f"{_cut(error.remedy)}; {ask}" if error.remedy else ask,
    )
