"""A simulated platform: the whole hierarchy of a real one, in the real formats, under a root of its own.

It proves protocol, formats, policy and refusals, and protects nothing: whoever reads its folder has every key.

::

    DIR/
      README                       says that it is simulated
      machine/                     what a chip and its quoting enclaves hold
        machine.json               PCK chain, SVNs, and both QE reports, certified once by the PCK key
        pck.key qe.key td-qe.key   0600
      vendor/                      what the maker of the chip holds
        publication.json           TCB levels and revocations; replaced by each new publication
        root.crt platform-ca.crt processor-ca.crt signing.crt
        root.key platform-ca.key processor-ca.key signing.key   0600

A quote needs `machine/` only. Collateral needs `vendor/` only.
"""

from __future__ import annotations

import base64
import hashlib
import json
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from adyton.atomic_file import write_file
from adyton.attest.devices import NO_DEVICES
from adyton.errors import NoDevice, StorageFailed, TargetExists, UsageError
from adyton.file_lock import file_lock
from adyton.sim.chip import QE_KEYS, Facts, Shape, SimEnclave, enclave_body, td_body
from adyton.sim.files import decrypt_ppid, key_bytes, load_key, read_file
from adyton.untrusted import parse_json_object
from adyton.values import Digest, Measurement

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    from adyton.attest.collateral import Collateral
    from adyton.sim.vendor import CAKind, Publication

Part = Literal["platform", "qe", "td-qe", "module"]
Revocable = Literal["pck", "ca", "signer"]

PARTS: Final[tuple[Part, ...]] = ("platform", "qe", "td-qe", "module")
REVOCABLE: Final[tuple[Revocable, ...]] = ("pck", "ca", "signer")

_BEGIN: Final = "-----BEGIN CERTIFICATE-----"
_END: Final = "-----END CERTIFICATE-----"


def _document(path: Path) -> dict[str, Any]:
    """A file's JSON object. Empty where it is none: the caller refuses that, and says what to do."""
    raw = read_file(path)
    try:
        return parse_json_object(raw, what="file", refuse=UsageError)
    except UsageError:
        return {}


def _last_der(chain: str) -> bytes:
    """DER of the last certificate of a PEM chain."""
    return base64.b64decode(chain[chain.rindex(_BEGIN) + len(_BEGIN) : chain.rindex(_END)])


class SimPlatform:
    """One simulated platform in a folder: `create` or `load` it, then `enclave(…).quote(…)` and `collateral(…)`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    # making and loading

    @classmethod
    def create(
        cls, directory: Path, *, ca: CAKind = "platform", now: datetime | None = None, carries_chain: bool = True
    ) -> SimPlatform:
        """Make a new platform with fresh keys. Raises TargetExists where the folder has anything in it.

        Without `carries_chain` its quotes only name the platform (certification data type 3), and the PCK
        certificate has to be asked for.
        """
        import shutil
        import tempfile

        from adyton.sim.factory import make_platform

        created = (now or datetime.now(UTC)).replace(microsecond=0)
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise TargetExists(
                f"{directory} exists and is not empty",
                check="folder of the new platform",
                expected="a folder that does not exist yet, or an empty one",
                remedy="choose another folder, or remove that one",
            )
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            beside = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        except OSError as error:
            raise StorageFailed(f"cannot write beside {directory}: {error.strerror}") from error
        try:
            make_platform(beside, ca, created, carries_chain=carries_chain)
            beside.rename(directory)
        except OSError as error:
            raise StorageFailed(f"cannot make {directory}: {error.strerror}") from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return cls(directory)

    @classmethod
    def load(cls, directory: Path) -> SimPlatform:
        """Open an existing platform, or either part of one. Raises NoDevice where there is none."""
        platform = cls(directory)
        if platform.has_machine or not (directory / "vendor").is_dir():
            _ = platform.machine
        return platform

    @property
    def has_machine(self) -> bool:
        """Whether the machine's part is here (a vendor's server need not have it)."""
        return (self.directory / "machine").is_dir()

    @cached_property
    def machine(self) -> Facts:
        """The machine's public facts. Raises NoDevice where there are none, UsageError where they are damaged."""
        path = self.directory / "machine" / "machine.json"
        return Facts.from_dict(_document(path))

    @cached_property
    def root_der(self) -> bytes:
        """The simulated root certificate, DER."""
        path = self.directory / "vendor" / "root.crt"
        return _last_der(read_file(path).decode("ascii", "replace") if path.is_file() else self.pck_chain)

    @cached_property
    def root_fingerprint(self) -> Digest:
        """SHA-256 of the root certificate's DER: what a policy names as `sim:<fingerprint>`."""
        return Digest(hashlib.sha256(self.root_der).digest())

    @property
    def fmspc(self) -> bytes:
        """The platform's FMSPC (6 bytes), which begins with the letters SIM."""
        return self.machine.fmspc

    @property
    def pck_chain(self) -> str:
        """The PCK certificate, its CA and the root, PEM."""
        return self.machine.pck_chain

    # evidence

    def enclave(
        self,
        *,
        measurement: Measurement,
        mrsigner: bytes | None = None,
        isv_prod_id: int = 0,
        isv_svn: int = 0,
        debug: bool = False,
        devices: bytes = NO_DEVICES,
        shape: Shape = "sgx",
    ) -> SimEnclave:
        """An enclave that reports this measurement.

        In the SGX shape it is MRENCLAVE (32 bytes). In the TDX shape it is extended into RTMR3 with the device digest
        `devices` (`adyton.attest.tdx.workload_rtmr3`), and `mrsigner`, `isv_prod_id` and `isv_svn` do not exist.
        """
        key = load_key(self.directory / "machine" / f"{QE_KEYS[shape]}.key")
        if shape == "tdx":
            return SimEnclave(self.machine, key, td_body(self.machine, measurement, devices=devices, debug=debug))
        body = enclave_body(
            self.machine,
            measurement,
            mrsigner=mrsigner,
            isv_prod_id=isv_prod_id,
            isv_svn=isv_svn,
            debug=debug,
        )
        return SimEnclave(self.machine, key, body)

    # what the vendor says

    def publication(self) -> Publication:
        """The vendor's present publication, as it lies on disk now."""
        from adyton.sim.vendor import Publication

        return Publication.from_dict(_document(self.directory / "vendor" / "publication.json"))

    def _vendor_certificate(self, name: str) -> x509.Certificate:
        from cryptography.x509 import load_pem_x509_certificate

        return load_pem_x509_certificate(read_file(self.directory / "vendor" / f"{name}.crt"))

    def _vendor_key(self, name: str) -> ec.EllipticCurvePrivateKey:
        return load_key(self.directory / "vendor" / f"{name}.key")

    def certify_ak(self, public_key: ec.EllipticCurvePublicKey, now: datetime | None = None) -> tuple[bytes, bytes]:
        """Certify a TPM's attestation key: its certificate and the root, DER. It needs the vendor's part."""
        from cryptography.hazmat.primitives import serialization

        from adyton.sim import vendor

        created = (now or datetime.now(UTC)).replace(microsecond=0)
        leaf = vendor.ak_certificate(public_key, self._vendor_key("root"), created)
        return leaf.public_bytes(serialization.Encoding.DER), self.root_der

    def _vendor_chain(self, name: str) -> str:
        vendor = self.directory / "vendor"
        return (read_file(vendor / f"{name}.crt") + read_file(vendor / "root.crt")).decode("ascii", "replace")

    def root_crl(self, now: datetime) -> bytes:
        """The root's CRL (DER) as it is served at `now`."""
        from adyton.sim import vendor

        publication = self.publication()
        root, key = self._vendor_certificate("root"), self._vendor_key("root")
        serials = publication.revoked_by_root
        validity = vendor.ROOT_CRL_VALIDITY
        return vendor.revocation_list(root, key, serials, publication, now, validity=validity)

    def pck_crl(self, ca: CAKind, now: datetime) -> bytes:
        """The CRL (DER) of the Platform or the Processor CA as it is served at `now`."""
        from adyton.sim import vendor

        publication = self.publication()
        issuer, key = self._vendor_certificate(f"{ca}-ca"), self._vendor_key(f"{ca}-ca")
        serials = publication.revoked_by_ca if ca == publication.ca else ()
        return vendor.revocation_list(issuer, key, serials, publication, now)

    def decrypt_ppid(self, encrypted: bytes) -> bytes | None:
        """The PPID that is encrypted to this vendor. None where it is not, or the vendor never handed out a key."""
        path = self.directory / "vendor" / "ppid.key"
        return decrypt_ppid(path, encrypted) if path.is_file() else None

    def crl_chain(self, ca: CAKind) -> str:
        """The issuer chain (PEM: CA, root) of a PCK CRL."""
        return self._vendor_chain(f"{ca}-ca")

    def signing_chain(self) -> str:
        """The issuer chain (PEM: TCB signing certificate, root) of the signed documents."""
        return self._vendor_chain("signing")

    def tcb_info(self, tee: Shape, now: datetime) -> bytes:
        """The signed TCB info for SGX or TDX, as PCS serves it at `now`."""
        from adyton.sim import vendor

        document = vendor.tcb_info(self.publication(), tee, now)
        return vendor.signed_document("tcbInfo", document, self._vendor_key("signing"))

    def qe_identity(self, tee: Shape, now: datetime) -> bytes:
        """The signed identity of the QE (SGX) or TD QE (TDX), as PCS serves it at `now`."""
        from adyton.sim import vendor

        document = vendor.qe_identity(self.publication(), tee, now)
        return vendor.signed_document("enclaveIdentity", document, self._vendor_key("signing"))

    def evaluation_numbers(self, tee: Shape, now: datetime) -> bytes:
        """The signed list of evaluation data numbers, as PCS serves it at `now`."""
        from adyton.sim import vendor

        document = vendor.evaluation_numbers(self.publication(), tee, now)
        return vendor.signed_document("tcbEvaluationDataNumbers", document, self._vendor_key("signing"))

    def collateral_dict(self, now: datetime, *, tee: Shape = "sgx") -> dict[str, str]:
        """Everything that verifying one quote of this platform needs, in the shape of QuoteCollateralV3."""
        tcb_info = self.tcb_info(tee, now).decode()
        identity = self.qe_identity(tee, now).decode()
        ca = self.publication().ca
        return {
            "pck_crl_issuer_chain": self.crl_chain(ca),
            "root_ca_crl": self.root_crl(now).hex(),
            "pck_crl": self.pck_crl(ca, now).hex(),
            "tcb_info_issuer_chain": self.signing_chain(),
            "tcb_info": tcb_info[len('{"tcbInfo":') : tcb_info.rindex(',"signature"')],
            "tcb_info_signature": json.loads(tcb_info)["signature"],
            "qe_identity_issuer_chain": self.signing_chain(),
            "qe_identity": identity[len('{"enclaveIdentity":') : identity.rindex(',"signature"')],
            "qe_identity_signature": json.loads(identity)["signature"],
        }

    def collateral(self, now: datetime | None = None, *, tee: Shape = "sgx") -> Collateral:
        """The same as a `Collateral`."""
        from adyton.attest.collateral import Collateral

        return Collateral.from_json(json.dumps(self.collateral_dict(now or datetime.now(UTC), tee=tee)))

    # what changes

    @contextmanager
    def _publishing(self) -> Iterator[Publication]:
        """The present publication, with the vendor's folder locked against another publisher."""
        vendor = self.directory / "vendor"
        if not vendor.is_dir():
            raise NoDevice(
                f"{self.directory} has no vendor's part",
                check="simulated vendor",
                remedy="name the folder that `adyton platform new` made",
            )
        with file_lock(vendor):
            yield self.publication()

    def _publish(self, publication: Publication) -> None:
        content = json.dumps(publication.to_dict(), indent=1).encode()
        write_file(self.directory / "vendor" / "publication.json", content, 0o644)

    def raise_tcb(
        self,
        *,
        now: datetime | None = None,
        part: Part = "platform",
        status: str = "OutOfDate",
        advisories: tuple[str, ...] = ("SIM-SA-00001",),
    ) -> Publication:
        """Publish newer TCB info: a level above every present one is UpToDate, and what was UpToDate gets `status`.

        `part` says whose levels: the platform's, the QE's, the TD QE's or the TDX module's. The evaluation data number
        goes up by one. A machine whose firmware stays as it is then has `status`; `upgrade` brings it up to date.
        """
        _check_status(part, status)
        moment = now or datetime.now(UTC)
        with self._publishing() as before:
            after = before.raised(moment, part, status, advisories)
            self._publish(after)
            return after

    def revoke(self, what: Revocable, *, now: datetime | None = None) -> Publication:
        """Revoke the PCK certificate, the CA that issued it, or the certificate that signs TCB info."""
        from cryptography.x509 import load_pem_x509_certificates

        moment = now or datetime.now(UTC)
        with self._publishing() as before:
            if what == "pck":
                serial = load_pem_x509_certificates(self.pck_chain.encode())[0].serial_number
                after = before.later(moment, revoked_by_ca=(*before.revoked_by_ca, serial))
            else:
                name = f"{before.ca}-ca" if what == "ca" else "signing"
                serial = self._vendor_certificate(name).serial_number
                after = before.later(moment, revoked_by_root=(*before.revoked_by_root, serial))
            self._publish(after)
            return after

    def upgrade(self, *, now: datetime | None = None) -> None:
        """Give the machine the newest firmware: its SVNs become those of the highest levels, under a new PCK key.

        Quotes that are made from now on are judged by the new SVNs. Older quotes keep what they say.
        """
        from adyton.sim.factory import upgraded_machine

        moment = (now or datetime.now(UTC)).replace(microsecond=0)
        with self._publishing() as publication:
            folder = self.directory / "machine"
            keys = {shape: load_key(folder / f"{name}.key") for shape, name in QE_KEYS.items()}
            ca = publication.ca
            chain = self._vendor_chain(f"{ca}-ca")
            machine, pck_key = upgraded_machine(
                self.machine, publication, keys, self._vendor_key(f"{ca}-ca"), chain, moment
            )
            write_file(folder / "pck.key", key_bytes(pck_key), 0o600)
            write_file(folder / "machine.json", json.dumps(machine.to_dict(), indent=1).encode(), 0o644)
        del self.machine


def _check_status(part: Part, status: str) -> None:
    from adyton.attest.status import IN_IDENTITY, IN_TCB_INFO

    allowed = sorted(str(name) for name in (IN_TCB_INFO if part == "platform" else IN_IDENTITY))
    if part not in PARTS or status not in allowed:
        raise UsageError(
            f"no level of the {part} has the status {status!r}",
            check="TCB status",
            expected=", ".join(allowed),
            seen=status,
        )
