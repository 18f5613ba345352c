"""A run that was granted keys, as the audit record has it: what later messages of the run are verified against."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adyton.errors import AuditError
from adyton.keystore.audit_facts import RELEASE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adyton.keystore.audit import Entry
    from adyton.keystore.reader import Reader


@dataclass(frozen=True, slots=True)
class GrantedRun:
    """One grant of Adyton's own protocol."""

    grant: str
    run: str
    """The id of the run."""
    run_key: bytes
    """Its public key, DER (`release.run_key`)."""
    at_ms: int
    facts: Mapping[str, Any]
    """The body of the audit entry: `keys` (key, version, approval, revision), `names`, `manifest_sha256`, `tee`, …"""

    @classmethod
    def load(cls, view: Reader, grant: str) -> GrantedRun | None:
        """The run with this grant. None where there is none, or where it was granted over another protocol.

        `view` may be a transaction. Raises AuditError where the record was changed.
        """
        for entry in view.entries(kind=RELEASE, subject=grant):
            return cls._of(entry)
        return None

    @classmethod
    def _of(cls, entry: Entry) -> GrantedRun | None:
        try:
            facts = json.loads(entry.body)
            key = facts.get("run_key")
            if key is None:
                return None
            return cls(str(facts["grant"]), str(facts["run"]), base64.b64decode(key), entry.at_ms, facts)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise AuditError(f"audit entry {entry.seq} is no release", check="form of the entry") from None
