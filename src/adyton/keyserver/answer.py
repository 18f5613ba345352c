"""Make the answer to a recorded decision. A grant of Adyton's protocol is wrapped and signed here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adyton.errors import StoreError
from adyton.keyserver.stages import Answered, Refused
from adyton.keystore.approval import RA_TLS
from adyton.release.grants import Terms, sign_grant
from adyton.release.messages import wrap_to

if TYPE_CHECKING:
    from datetime import datetime

    from adyton.keyserver.stages import Received, Release
    from adyton.keystore.audit import Checkpoint
    from adyton.keystore.grant_key import GrantKey
    from adyton.release.messages import ServerIdentity


def answered(
    received: Received,
    outcome: Release | Refused,
    checkpoint: Checkpoint,
    *,
    identity: ServerIdentity,
    signer: GrantKey,
    now: datetime,
) -> Answered:
    """The answer to a request. `checkpoint` is that of the record with its decision."""
    if isinstance(outcome, Refused):
        return Answered(outcome.refusal)
    if received.protocol == RA_TLS:
        return Answered(None, payload=outcome.payload, grant_id=outcome.grant_id)
    if received.message is None:
        raise StoreError("a grant of Adyton's own protocol without its request")
    lease = min(grant.lease_until for grant in outcome.grants)
    terms = Terms(
        grant=outcome.grant_id,
        lease_s=max(0, int((lease - now).total_seconds())),
        versions=outcome.versions,
        wrapped=wrap_to(received.message.public_key, outcome.payload.to_bytes(), received.report_data or b""),
        checkpoint=checkpoint.to_dict(),
        roots=outcome.roots,
    )
    granted = sign_grant(signer.private, signer.certificate_der, received.message, identity, terms)
    return Answered(None, granted=granted, grant_id=outcome.grant_id)
