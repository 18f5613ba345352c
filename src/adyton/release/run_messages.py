"""What a run says to a key server after its grant, signed with its run key.

::

    enclave                                             key server
      POST /adyton/v4/run/ACTION  grant, payload,    ->   look the grant up, verify, act, record
                                  signature          <-   200, with the members of this action
                                                          409 where no such grant has this key

    signed = "adyton-release/4 run message\\0" ‖ lp(ACTION) ‖ lp(grant) ‖ lp(SHA-256 of the owner's CA, DER)
             ‖ lp(server name) ‖ lp(payload)
    lp(x)  = length of x as u32, then x                                       (integers big-endian)

The signature is that of `run_key`: ECDSA P-256 with SHA-256, 64 bytes. So a message counts for one action, one grant
and one owner's server. A message may be sent again. An action must give the same answer to the same message, or refuse
it. This module is pure. Both sides use it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from adyton.attest.report_data import framed
from adyton.release.run_key import SIGNATURE_BYTES, RunKey, is_signed_by
from adyton.release.wire import PROTOCOL, b64, check_protocol, identifier, malformed, parse_object, to_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adyton.release.messages import ServerIdentity
    from adyton.typed_document import TypedDocument

PATH_RUN: Final = "/adyton/v4/run"
"""Followed by `/` and the action."""

RECEIPT: Final = "receipt"
ROOT_INTENT: Final = "root-intent"
ROOT_COMMIT: Final = "root-commit"
PRIVACY: Final = "privacy"
ACTIONS: Final = frozenset({RECEIPT, ROOT_INTENT, ROOT_COMMIT, PRIVACY})
"""What a run can say. docs/release-protocol.md has the payload of each."""

MAX_PAYLOAD_BYTES: Final = 256 * 1024
MAX_RUN_MESSAGE_BYTES: Final = 4 * ((MAX_PAYLOAD_BYTES + 2) // 3) + 1024
_LABEL: Final = b"adyton-release/4 run message\0"


@dataclass(frozen=True, slots=True)
class RunMessage:
    """One message of a run, unverified. `grant` names the run."""

    action: str
    grant: str
    payload: bytes
    signature: bytes

    @classmethod
    def create(cls, key: RunKey, server: ServerIdentity, action: str, grant: str, payload: bytes) -> RunMessage:
        """Sign a payload of at most 256 KiB for one action of this server."""
        return cls(action, grant, payload, key.sign(_signed(server, action, grant, payload)))

    def to_bytes(self) -> bytes:
        """As JSON. The action stands in the path."""
        return to_bytes(
            {
                "protocol": PROTOCOL,
                "grant": self.grant,
                "payload": b64(self.payload),
                "signature": b64(self.signature),
            }
        )

    def is_of(self, run_key: bytes, server: ServerIdentity) -> bool:
        """Whether the run with this public key (DER) made this message for this server."""
        return is_signed_by(run_key, self.signature, _signed(server, self.action, self.grant, self.payload))


def parse_run_message(raw: bytes, action: str) -> RunMessage:
    """Parse a message that came for this action, without verifying it. Raises OutOfOrder, VersionMismatch."""
    if action not in ACTIONS:
        raise malformed("action", ", ".join(sorted(ACTIONS)), "another one")
    document = parse_object(raw, MAX_RUN_MESSAGE_BYTES)
    check_protocol(document)
    document.only({"protocol", "grant", "payload", "signature"})
    return RunMessage(
        action=action,
        grant=identifier(document, "grant"),
        payload=document.binary("payload", 0, MAX_PAYLOAD_BYTES),
        signature=document.binary("signature", SIGNATURE_BYTES, SIGNATURE_BYTES),
    )


def run_answer(members: Mapping[str, Any] | None) -> bytes:
    """The answer to a run message: the members of its action. None where no such grant has this key."""
    if members is None:
        return to_bytes({"protocol": PROTOCOL, "status": "unknown"})
    return to_bytes({"protocol": PROTOCOL, "status": "done", "answer": dict(members)})


def parse_run_answer(raw: bytes, limit: int) -> TypedDocument | None:
    """Parse the answer to a run message: the members of its action, or None for `unknown`. Raises OutOfOrder."""
    document = parse_object(raw, limit)
    check_protocol(document)
    if document.get("status") == "unknown":
        document.only({"protocol", "status"})
        return None
    if document.get("status") != "done":
        raise malformed("status", "done or unknown", "something else")
    document.only({"protocol", "status", "answer"})
    return document.inner("answer")


def _signed(server: ServerIdentity, action: str, grant: str, payload: bytes) -> bytes:
    return _LABEL + framed(action.encode(), grant.encode(), server.ca_sha256.raw, server.server_name.encode(), payload)
