"""Make the receipt of a run: in the keeper, after the program has ended and its files are flushed.

The keeper makes the run's key before it asks for keys, so that the first evidence binds it. At the end it hashes what
the program wrote, states what was taken and made, signs that with the run's key, and gets evidence over it. Then each
owner's key server counter-signs. Where one cannot be reached, the receipt lacks her counter-signature, and the run says
so.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from adyton import __version__
from adyton.attest.report_data import receipt_report_data
from adyton.dates import timestamp
from adyton.errors import Error, IntegrityError, Unavailable, UsageError
from adyton.receipt.counter import verify_counter_signature
from adyton.receipt.document import MAX_RECEIPT_BYTES, EndEvidence, Receipt
from adyton.receipt.dsse import MAX_PAYLOAD_BYTES, Envelope, Signature
from adyton.receipt.handed_in import HandedIn, with_answer
from adyton.receipt.statement import (
    Input,
    MountFiles,
    Output,
    OwnerGrant,
    Statement,
    commitment_key,
    listing_bytes,
    shown_path,
    subjects_of,
)
from adyton.release.client import identity_of, tell_server
from adyton.release.run_key import RunKey
from adyton.release.run_messages import RECEIPT
from adyton.storage.stored_digest import stored_digest

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from adyton.manifest.model import Manifest
    from adyton.manifest.signed import SignedManifest
    from adyton.release.client import GrantInfo, Released
    from adyton.runtime.run_plan import Plan
    from adyton.tee.source import QuoteSource
    from adyton.values import Key128

TRIES: Final = 3
"""How often a key server is asked that could not check at the moment."""

WAIT_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class MountStates:
    """The files of one mount that the run took (stored path, root before) and made (stored path, root after)."""

    source: str
    key_name: str
    taken: Sequence[tuple[str, bytes]]
    made: Sequence[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Concluded:
    """How a run ended, for its receipt."""

    exit_code: int
    mounts: Sequence[MountStates]
    keys: Mapping[str, Key128]


@dataclass(frozen=True, slots=True)
class Predecessor:
    """A receipt whose outputs may be inputs of this run: SHA-256 of its statement, and its roots (hex)."""

    statement: str
    roots: frozenset[str]


class ReceiptMaker:
    """The receipt of one run. It is made in the keeper, and so is its key."""

    def __init__(
        self,
        signed: SignedManifest,
        source: QuoteSource,
        servers: Mapping[str, str],
        *,
        limits: Mapping[str, object],
        devices: bytes,
        given_by_host: str,
        plaintext: bool,
        predecessors: Sequence[Predecessor],
    ) -> None:
        """`limits` is `limits_of` the plan. `devices` is the digest of the GPUs.

        With `plaintext` the receipt names SHA-256 values of plaintexts.
        """
        self._signed = signed
        self._limits = limits
        self._source = source
        self._servers = servers
        self._devices = devices
        self._given_by_host = given_by_host
        self._plaintext = plaintext
        self._predecessors = predecessors
        self._key: RunKey | None = None
        self._started_at = ""
        self._grants: tuple[GrantInfo, ...] = ()

    def begin(self) -> RunKey:
        """Make the run's key. Called once, in the keeper, before keys are asked for."""
        self._key = RunKey()
        self._started_at = _now()
        return self._key

    def released(self, released: Released) -> None:
        """Note what the key servers granted."""
        self._grants = released.grants

    def conclude(
        self,
        ended: Concluded,
        note: Callable[[str], None],
        *,
        reading: AbstractContextManager[None],
        progress: Callable[[], None],
    ) -> bytes:
        """The receipt as the bytes of its file. Raises Error where what was written is not what the run wrote.

        `note` is told what the receipt lacks. The outputs are read within `reading`, and `progress` is called.
        """
        key = self._key
        if key is None:
            raise UsageError("the run has no key")
        listings: dict[str, bytes] = {}
        taken = [(mount, [Input(shown_path(path), root.hex()) for path, root in mount.taken]) for mount in ended.mounts]
        with reading:
            made = [(mount, self._outputs(mount, ended.keys, key, progress)) for mount in ended.mounts]
        inputs = [self._listed(mount, entries, listings) for mount, entries in taken if entries]
        outputs = [(self._listed(mount, entries, listings), entries) for mount, entries in made if entries]
        roots = {entry.root for _, entries in taken for entry in entries}
        statement = Statement(
            run_key=key.public_bytes,
            tee=self._source.tee,
            measurement=self._signed.measurement.hex(),
            manifest_sha256=self._signed.manifest_sha256.hex(),
            runtime=self._signed.runtime.hex(),
            adyton=__version__,
            device_digest=self._devices.hex(),
            arguments=self._given_by_host,
            exit_code=ended.exit_code,
            started_at=self._started_at,
            finished_at=_now(),
            owners=tuple(map(self._owner, self._grants)),
            inputs=tuple(inputs),
            outputs=tuple(mount for mount, _ in outputs),
            limits=self._limits,
            predecessors=self._chained(roots, note),
            subjects=subjects_of(outputs, key.public_bytes),
        )
        payload = statement.to_bytes()
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise UsageError(
                "the statement of the receipt is too long",
                check="length of the statement",
                expected=f"at most {MAX_PAYLOAD_BYTES} bytes",
                seen=f"{len(payload)} bytes",
                remedy="mount fewer folders by themselves: one mount may hold any number of files",
            )
        end = EndEvidence(self._source.quote(receipt_report_data(payload)))
        if not self._grants:
            end = EndEvidence(end.cpu, self._source.event_log())
        receipt = Receipt(
            envelope=Envelope(payload, (Signature.create(key, payload),)),
            requests=tuple(grant.request.to_bytes() for grant in self._grants if grant.request is not None),
            end=end,
            listings=listings,
        )
        _check_length(receipt)
        return self._counter_signed(receipt, statement, key, note).to_bytes()

    # --- what was taken and made ------------------------------------------------------------------------------------

    def _outputs(
        self, mount: MountStates, keys: Mapping[str, Key128], run_key: RunKey, progress: Callable[[], None]
    ) -> list[Output]:
        key = keys[mount.key_name]
        secret = commitment_key(key, run_key.public_bytes)
        found = []
        for path, root in sorted(mount.made):
            digest = stored_digest(path or ".", key, secret, sealed_as=path, progress=progress)
            if digest.root != root:
                raise IntegrityError(
                    f"{path} is not as the run left it",
                    check="root of the output",
                    expected=root.hex(),
                    seen=digest.root.hex(),
                    remedy="something changed it at the end of the run: look for who writes there, and run it again",
                )
            found.append(
                Output(
                    name=shown_path(path),
                    sha256=digest.sha256.hex(),
                    commitment=digest.commitment.hex(),
                    root=root.hex(),
                    plaintext_sha256=digest.plaintext_sha256.hex() if self._plaintext else None,
                )
            )
        return sorted(found, key=lambda output: output.name)

    def _listed(
        self, mount: MountStates, entries: Sequence[Output] | Sequence[Input], listings: dict[str, bytes]
    ) -> MountFiles:
        raw = listing_bytes(entries)
        name = hashlib.sha256(raw).hexdigest()
        listings[name] = raw
        grant = next((grant for grant in self._grants if mount.key_name in grant.versions), None)
        return MountFiles(
            source=shown_path(mount.source),
            key=mount.key_name,
            owner="" if grant is None else grant.owner,
            version=0 if grant is None else grant.versions[mount.key_name],
            files=len(entries),
            listing=name,
        )

    def _chained(self, roots: set[str], note: Callable[[str], None]) -> tuple[str, ...]:
        for each in self._predecessors:
            if not each.roots & roots:
                note(f"the receipt {each.statement[:16]} made nothing that this run took: it is no predecessor")
        return tuple(sorted({each.statement for each in self._predecessors if each.roots & roots}))

    # --- the rest of the statement --------------------------------------------------------------------------------

    def _owner(self, grant: GrantInfo) -> OwnerGrant:
        server = identity_of(self._signed, grant.owner)
        return OwnerGrant(
            name=grant.owner,
            ca_sha256=server.ca_sha256.hex(),
            server_name=server.server_name,
            grant=grant.grant,
            versions=dict(grant.versions),
            checkpoint=dict(grant.checkpoint),
        )

    # --- counter-signatures -----------------------------------------------------------------------------------------

    def _counter_signed(
        self, receipt: Receipt, statement: Statement, key: RunKey, note: Callable[[str], None]
    ) -> Receipt:
        handed_in = HandedIn(receipt.envelope, receipt.end).to_bytes()
        for grant, owner in zip(self._grants, statement.owners, strict=True):
            try:
                members = self._ask(key, grant, handed_in)
                found = with_answer(receipt, members)
                signed, signature = found.counter_signatures[-1], found.envelope.signatures[-1]
                verify_counter_signature(signed, signature, statement, owner, receipt.envelope.payload)
                _check_length(found)
            except Error as error:
                note(f"the receipt is not counter-signed by {grant.owner}: {error.message}")
                continue
            receipt = found
        return receipt

    def _ask(self, key: RunKey, grant: GrantInfo, handed_in: bytes) -> Mapping[str, object]:
        for left in reversed(range(TRIES)):
            try:
                return tell_server(self._signed, grant.owner, self._servers, key, RECEIPT, grant.grant, handed_in)
            except Unavailable:
                if not left:
                    raise
                time.sleep(WAIT_S)
        raise Unavailable("the key server was not asked")


def _check_length(receipt: Receipt) -> None:
    size = len(receipt.to_bytes())
    if size > MAX_RECEIPT_BYTES:
        raise UsageError(
            "the receipt is too long",
            check="length of the receipt",
            expected=f"at most {MAX_RECEIPT_BYTES} bytes",
            seen=f"{size} bytes",
            remedy="the run took or made too many files: the outputs are kept, and have no receipt",
        )


def limits_of(plan: Plan, manifest: Manifest) -> dict[str, object]:
    """What else than its inputs could reach the program, and what nobody controls."""
    return {
        "network": plan.network,
        "stdin": plan.stdin_from_host,
        "stdio": manifest.adyton.insecure_stdio,
        "allowed_files": len(plan.allowed),
        "names_from_host": plan.domain_names_from_host,
        "gpus": manifest.adyton.gpus,
        "clock": "host",
        "nondeterminism": "not controlled",
    }


def _now() -> str:
    return timestamp(datetime.now(UTC))
