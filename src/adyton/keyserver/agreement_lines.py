"""The lines of an approval that rests on an agreement: does it stand, is it for this, and do the others still say so?

Pure. The owner's own part comes from her audit record, that of the other parties from statements that the TEE brings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from adyton.check import Check
from adyton.dates import is_over
from adyton.errors import Unavailable
from adyton.keystore.audit_facts import AGREEMENT_COMPLETE

if TYPE_CHECKING:
    from datetime import datetime

    from adyton.agreement.budget import Budget
    from adyton.agreement.document import Program
    from adyton.agreement.in_force import InForce
    from adyton.keystore.approval import Approval
    from adyton.keystore.tables.agreements import StoredAgreement
    from adyton.values import Digest

STATE_LINE: Final = "agreement"
END_LINE: Final = "end of the agreement"
PROGRAM_LINE: Final = "program of the agreement"
KEY_LINE: Final = "key of the agreement"
PARTIES_LINE: Final = "other parties of the agreement"
RUNS_LINE: Final = "runs of the agreement"
PRIVACY_LINE: Final = "privacy budget of the agreement"


@dataclass(frozen=True, slots=True)
class Ground:
    """The agreement that an approval names, as this owner's record has it, and the runs that it already had."""

    stored: StoredAgreement | None
    runs: int = 0
    privacy_steps: int = 0
    """The steps that runs used of its privacy budget, or that are reserved for them."""


def agreement_lines(
    approval: Approval, ground: Ground, in_force: frozenset[InForce], owner: Digest | None, now: datetime
) -> list[Check]:
    """Every line of an approval that its agreement brings, except the number of runs. Empty without an agreement.

    `in_force` is what the statements of other parties prove for this request, `owner` this owner's own fingerprint.
    """
    if not approval.agreement:
        return []
    stored = ground.stored
    standing = stored is not None and stored.state == AGREEMENT_COMPLETE
    seen = "not signed here" if stored is None else stored.state
    remedy = "sign it (adyton agreement sign), have all others sign, and approve it with their signatures"
    lines = [Check(STATE_LINE, "signed by all parties, and not revoked", seen, standing, remedy)]
    if stored is None:
        return lines
    agreement = stored.agreement
    lines.append(
        Check(END_LINE, agreement.until, now, not is_over(agreement.until, now), "draft, sign and approve a new one")
    )
    lines.append(
        Check(
            PROGRAM_LINE,
            agreement.program,
            approval.identity(),
            _is_of(approval, agreement.program),
            "approve the program that was agreed on",
        )
    )
    own = None if owner is None else agreement.party_of(owner)
    keys = frozenset[str]() if own is None else own.keys
    lines.append(
        Check(
            KEY_LINE,
            sorted(keys) or "keys of this owner, who is no party of it",
            approval.key,
            approval.key in keys,
            "approve the keys that the agreement names for you",
        )
    )
    others = [party for party in agreement.parties if own is None or party.name != own.name]
    saying = {item.owner for item in in_force if item.agreement == agreement.id}
    silent = [party.name for party in others if party.owner not in saying]
    lines.append(
        Check(
            PARTIES_LINE,
            f"a fresh statement that it is in force from {', '.join(party.name for party in others)}",
            f"none from {', '.join(silent)}" if silent else "all of them",
            not silent,
            f"start the run with --agreement {agreement.id}, and the key server of every party within reach"
            " (--key-server); a party that revoked gives no statement",
        )
    )
    return lines


def agreed_runs_line(approval: Approval, ground: Ground, *, free: bool) -> list[Check]:
    """Whether the agreement lets one more run have a key. A run within its lease is `free`."""
    if not approval.agreement or ground.stored is None:
        return []
    most = ground.stored.agreement.runs
    return [
        Check(
            RUNS_LINE,
            f"at most {most}",
            f"{ground.runs} runs had a key, and this is another",
            free or ground.runs < most,
            "draft, sign and approve a new agreement, if all parties mean more",
        )
    ]


def privacy_line(approval: Approval, ground: Ground, *, free: bool) -> list[Check]:
    """Whether one more run fits into the privacy budget of the agreement. A run within its lease is `free`."""
    budget = budget_of(approval, ground)
    if budget is None:
        return []
    expected = f"epsilon at most {budget.epsilon:g} at delta {budget.delta:g}"
    remedy = "draft, sign and approve a new agreement, if all parties mean more"
    try:
        after = budget.epsilon_of(ground.privacy_steps + budget.steps)
    except Unavailable as error:
        return [Check(PRIVACY_LINE, expected, f"not counted: {error.seen}", free, error.remedy)]
    seen = f"epsilon {after:.6g} with this run"
    return [Check(PRIVACY_LINE, expected, seen, free or after <= budget.epsilon, remedy)]


def budget_of(approval: Approval, ground: Ground) -> Budget | None:
    """The privacy budget that a release by this approval uses. None where its agreement has none for this key."""
    budget = None if not approval.agreement or ground.stored is None else ground.stored.agreement.privacy
    return budget if budget is not None and budget.key == approval.key else None


def _is_of(approval: Approval, program: Program) -> bool:
    """Whether an approval names exactly the program of the agreement, in the same way."""
    if program.measurement is not None:
        return approval.measurement == program.measurement
    named = (approval.mrsigner, approval.isv_prod_id)
    svn = approval.min_isv_svn
    return named == (program.signer, program.product) and svn is not None and svn >= program.min_svn
