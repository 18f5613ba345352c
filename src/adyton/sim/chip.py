"""The simulated chip and its quoting enclaves: what makes quotes, without anything of the vendor's.

Kept apart from the vendor's part so that a protected program starts without loading certificate code.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from adyton.attest.enclave import FLAG_DEBUG, FLAG_INIT, FLAG_MODE64, FLAG_PROVISION_KEY, EnclaveReport
from adyton.attest.quote import BODY_SGX, BODY_TD10, TEE_TDX, CertificationType, QuoteHeader, SignatureData, signed_part
from adyton.attest.report_data import check_report_data
from adyton.attest.sgx import SGXQuote
from adyton.attest.tdx import ATTRIBUTE_SEPT_VE_DISABLE, TDReport, TDXQuote, workload_rtmr3
from adyton.errors import UsageError
from adyton.sim.files import raw_public_key, raw_signature

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cryptography.hazmat.primitives.asymmetric import ec

    from adyton.attest.guest import TDXGuest
    from adyton.values import Measurement

Shape = Literal["sgx", "tdx"]
SHAPES: Final[tuple[Shape, ...]] = ("sgx", "tdx")

NOTICE: Final = "simulated TEE: it proves protocol and policy, and protects nothing from this machine's administrator"
FORMAT: Final = 1
QE_KEYS: Final[dict[Shape, str]] = {"sgx": "qe", "tdx": "td-qe"}
QE_MRSIGNERS: Final[dict[Shape, bytes]] = {
    "sgx": hashlib.sha256(b"Adyton simulated QE signer").digest(),
    "tdx": hashlib.sha256(b"Adyton simulated TD QE signer").digest(),
}
QE_PRODUCTS: Final[dict[Shape, int]] = {"sgx": 1, "tdx": 2}
QE_ISVSVN: Final[dict[Shape, int]] = {"sgx": 8, "tdx": 4}
COMPONENTS: Final = (7, 7, 2, 2, 3, 1, 0, 3) + (0,) * 8
TDX_COMPONENTS: Final = (5, 1, 7) + (0,) * 13
PCESVN: Final = 13
PCEID: Final = bytes(2)

_QE_AUTH_DATA: Final = bytes(range(32))
_XFRM: Final = 0xE7
_XFAM: Final = 0x602E7


def _hex(data: Mapping[str, Any], name: str, sizes: tuple[int, ...] | None) -> bytes:
    raw = bytes.fromhex(data[name])
    if sizes is not None and len(raw) not in sizes:
        raise ValueError(f"{name} has {len(raw)} bytes")
    return raw


def _svn(value: object, limit: int) -> int:
    if type(value) is not int or not 0 <= value <= limit:
        raise ValueError(f"{value!r} is no SVN")
    return value


def _components(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) != 16:
        raise ValueError("not 16 components")
    return tuple(_svn(svn, 0xFF) for svn in value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value


def _ca(data: Mapping[str, Any]) -> Literal["platform", "processor"]:
    if data["format"] != FORMAT or data["ca"] not in ("platform", "processor"):
        raise ValueError(f"format {data['format']!r}, CA {data['ca']!r}")
    return "processor" if data["ca"] == "processor" else "platform"


@dataclass(frozen=True, slots=True)
class CertifiedQE:
    """A quoting enclave's report over its attestation key, and the PCK key's signature of it."""

    isv_svn: int
    report: bytes
    signature: bytes
    auth_data: bytes

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CertifiedQE:
        """Parse what `to_dict` made."""
        return cls(
            isv_svn=_svn(data["isvsvn"], 0xFFFF),
            report=_hex(data, "report", (384,)),
            signature=_hex(data, "signature", (64,)),
            auth_data=_hex(data, "auth_data", None),
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "isvsvn": self.isv_svn,
            "report": self.report.hex(),
            "signature": self.signature.hex(),
            "auth_data": self.auth_data.hex(),
        }


@dataclass(frozen=True, slots=True)
class Facts:
    """A machine: its identifiers, the SVNs of its firmware, its PCK chain, its certified quoting enclaves."""

    ca: Literal["platform", "processor"]
    fmspc: bytes
    pceid: bytes
    ppid: bytes
    instance_id: bytes
    qe_id: bytes
    components: tuple[int, ...]
    pcesvn: int
    tee_tcb_svn: bytes
    pck_chain: str
    """PEM: PCK certificate, its CA, root."""
    qes: Mapping[Shape, CertifiedQE]
    encrypted_ppid: bytes | None = None
    """Where quotes only name the machine: its PPID, encrypted to the vendor."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Facts:
        """Parse what `to_dict` made. Raises UsageError where it is not that."""
        try:
            return cls(
                ca=_ca(data),
                fmspc=_hex(data, "fmspc", (6,)),
                pceid=_hex(data, "pceid", (2,)),
                ppid=_hex(data, "ppid", (16,)),
                instance_id=_hex(data, "instance_id", (16,)),
                qe_id=_hex(data, "qe_id", (16,)),
                components=_components(data["components"]),
                pcesvn=_svn(data["pcesvn"], 0xFFFF),
                tee_tcb_svn=_hex(data, "tee_tcb_svn", (16,)),
                pck_chain=_text(data["pck_chain"]),
                qes={shape: CertifiedQE.from_dict(data["qes"][shape]) for shape in SHAPES},
                encrypted_ppid=_hex(data, "encrypted_ppid", (384,)) if "encrypted_ppid" in data else None,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"this is no simulated machine of this version: {error!r}",
                check="file of the simulated machine",
                expected=f"format {FORMAT}, whole",
                seen=f"{error!r}"[:160],
                remedy="make a new platform with `adyton platform new DIR`",
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        found: dict[str, Any] = {
            "format": FORMAT,
            "simulated": NOTICE,
            "ca": self.ca,
            "fmspc": self.fmspc.hex(),
            "pceid": self.pceid.hex(),
            "ppid": self.ppid.hex(),
            "instance_id": self.instance_id.hex(),
            "qe_id": self.qe_id.hex(),
            "components": list(self.components),
            "pcesvn": self.pcesvn,
            "tee_tcb_svn": self.tee_tcb_svn.hex(),
            "pck_chain": self.pck_chain,
            "qes": {shape: qe.to_dict() for shape, qe in self.qes.items()},
        }
        return found if self.encrypted_ppid is None else found | {"encrypted_ppid": self.encrypted_ppid.hex()}


class SimEnclave:
    """One simulated enclave (or trust domain) on a platform: a source of quotes."""

    def __init__(self, machine: Facts, key: ec.EllipticCurvePrivateKey, body: EnclaveReport | TDReport) -> None:
        self._machine = machine
        self._key = key
        self._body = body

    @property
    def tee(self) -> str:
        """`sim` (SGX shape, quote v3) or `sim-tdx` (TDX shape, quote v4)."""
        return "sim" if isinstance(self._body, EnclaveReport) else "sim-tdx"

    @property
    def notice(self) -> str:
        """A note that it is simulated."""
        return NOTICE

    def event_log(self) -> None:
        """None: the registers of its evidence are compared as they stand."""

    def quote(self, report_data: bytes) -> bytes:
        """A quote over these 64 bytes, signed by the simulated quoting enclave's attestation key."""
        check_report_data(report_data)
        user_data = self._machine.qe_id + bytes(4)
        if isinstance(self._body, TDReport):
            header = QuoteHeader.build(version=4, tee_type=TEE_TDX, user_data=user_data)
            td_report = self._body.replace(report_data=report_data)
            return TDXQuote(
                header, td_report, self._sign(signed_part(header, td_report.raw, BODY_TD10), "tdx")
            ).to_bytes()
        header = QuoteHeader.build(
            version=3,
            qe_svn=self._machine.qes["sgx"].isv_svn,
            pce_svn=self._machine.pcesvn,
            user_data=user_data,
        )
        report = self._body.replace(report_data=report_data)
        return SGXQuote(header, report, self._sign(signed_part(header, report.raw, BODY_SGX), "sgx")).to_bytes()

    def _sign(self, message: bytes, shape: Shape) -> SignatureData:
        machine, qe = self._machine, self._machine.qes[shape]
        if machine.encrypted_ppid is None:
            kind, data = CertificationType.PCK_CHAIN, machine.pck_chain.encode() + b"\0"
        else:
            kind = CertificationType.PPID_RSA3072
            svns = bytes(machine.components) + machine.pcesvn.to_bytes(2, "little")
            data = machine.encrypted_ppid + svns + machine.pceid[::-1]
        return SignatureData(
            signature=raw_signature(self._key, message),
            attestation_key=raw_public_key(self._key),
            qe_report=EnclaveReport(qe.report),
            qe_report_signature=qe.signature,
            qe_auth_data=qe.auth_data,
            certification_type=kind,
            certification_data=data,
        )


def new_facts(ca: Literal["platform", "processor"]) -> Facts:
    """The facts of a new machine: random identifiers, and the SVNs of its first firmware. No certificates yet."""
    return Facts(
        ca=ca,
        fmspc=b"SIM" + secrets.token_bytes(3),
        pceid=PCEID,
        ppid=secrets.token_bytes(16),
        instance_id=secrets.token_bytes(16),
        qe_id=secrets.token_bytes(16),
        components=COMPONENTS,
        pcesvn=PCESVN,
        tee_tcb_svn=bytes(TDX_COMPONENTS),
        pck_chain="",
        qes={},
    )


def certify_qe(
    shape: Shape,
    key: ec.EllipticCurvePrivateKey,
    pck_key: ec.EllipticCurvePrivateKey,
    *,
    cpu_svn: bytes,
    isv_svn: int | None = None,
) -> CertifiedQE:
    """A quoting enclave's report over its attestation key, certified by the PCK key: what the PCE does once."""
    binding = hashlib.sha256(raw_public_key(key) + _QE_AUTH_DATA).digest()
    svn = QE_ISVSVN[shape] if isv_svn is None else isv_svn
    report = EnclaveReport.build(
        cpu_svn=cpu_svn,
        flags=FLAG_INIT | FLAG_MODE64 | FLAG_PROVISION_KEY,
        xfrm=_XFRM,
        mrenclave=hashlib.sha256(f"Adyton simulated quoting enclave, {shape}, {svn}".encode()).digest(),
        mrsigner=QE_MRSIGNERS[shape],
        isv_prod_id=QE_PRODUCTS[shape],
        isv_svn=svn,
        report_data=binding + bytes(32),
    )
    signature = raw_signature(pck_key, report.to_bytes())
    return CertifiedQE(isv_svn=svn, report=report.to_bytes(), signature=signature, auth_data=_QE_AUTH_DATA)


def enclave_body(
    machine: Facts,
    measurement: Measurement,
    *,
    mrsigner: bytes | None,
    isv_prod_id: int,
    isv_svn: int,
    debug: bool,
) -> EnclaveReport:
    """The report body of an enclave with this MRENCLAVE. Report data is still zero."""
    if len(measurement.raw) != 32 or len(mrsigner or bytes(32)) != 32:
        raise UsageError("MRENCLAVE and MRSIGNER have 32 bytes each")
    return EnclaveReport.build(
        cpu_svn=bytes(machine.components),
        flags=FLAG_INIT | FLAG_MODE64 | (FLAG_DEBUG if debug else 0),
        xfrm=_XFRM,
        mrenclave=measurement.raw,
        mrsigner=mrsigner or bytes(32),
        isv_prod_id=isv_prod_id,
        isv_svn=isv_svn,
    )


def guest_register(name: str) -> bytes:
    """The 48 bytes that stand for a part of the simulated guest (TDX module, MRTD, RTMR0 to RTMR2)."""
    return hashlib.sha384(f"Adyton simulated guest, {name}".encode()).digest()


def simulated_guest() -> TDXGuest:
    """The one guest that every simulated trust domain boots."""
    from adyton.attest.guest import TDXGuest
    from adyton.values import Measurement

    registers = {name.lower(): Measurement(guest_register(name)) for name in ("MRTD", "RTMR0", "RTMR1", "RTMR2")}
    return TDXGuest(**registers)


def td_body(machine: Facts, measurement: Measurement, *, devices: bytes, debug: bool) -> TDReport:
    """The report body of a trust domain whose RTMR3 was extended with this workload and this device digest."""
    return TDReport.build(
        tee_tcb_svn=machine.tee_tcb_svn,
        mrseam=guest_register("TDX module"),
        td_attributes=ATTRIBUTE_SEPT_VE_DISABLE | int(debug),
        xfam=_XFAM,
        mrtd=guest_register("MRTD"),
        rtmr0=guest_register("RTMR0"),
        rtmr1=guest_register("RTMR1"),
        rtmr2=guest_register("RTMR2"),
        rtmr3=workload_rtmr3(measurement, devices).raw,
    )
