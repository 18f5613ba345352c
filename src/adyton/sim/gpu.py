"""A simulated NVIDIA: a root, GPUs and NVSwitches with reports, RIMs, and OCSP answers, in the real formats.

Evidence under this root is `sim-nvidia-gpu`, never `nvidia-gpu`. It tries and tests protocols, formats, policies and
refusals on machines without a GPU, and protects nothing: whoever can read the keys can sign anything.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from adyton.atomic_file import write_file
from adyton.attest.nvidia import canonical_xml, opaque
from adyton.attest.nvidia.chain import DICE_FWID, DICE_TCB_INFO
from adyton.attest.nvidia.collateral import GPUCollateral, KnownRIM
from adyton.attest.nvidia.evidence import DeviceEvidence
from adyton.attest.nvidia.layout import MAX_RIM_BYTES, MEASUREMENT_BYTES
from adyton.attest.nvidia.ocsp import parse_answer
from adyton.attest.nvidia.rim import C14N, DIGEST_SHA384, DSIG, ECDSA_SHA384, ENVELOPED, HASHES, SWID, parse_rim
from adyton.errors import UsageError
from adyton.sim.files import read_file
from adyton.untrusted import parse_json_object
from adyton.values import Digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from adyton.attest.nvidia.layout import Arch

Key = ec.EllipticCurvePrivateKey

DRIVER: Final = "550.144.03"
VBIOS: Final = "96.00.5E.00.01"
SWITCH_BIOS: Final = "96.10.55.00.01"
DRIVER_INDEXES: Final = tuple(range(14, 35))
"""Measurements that the driver's RIM names. NVDEC0's index 35 comes with them."""
VBIOS_INDEXES: Final = tuple(range(12))
_LINKS: Final = 18
SWITCH_INDEXES: Final = tuple(range(31))
VALID_FOR: Final = timedelta(days=365)
ANSWER_VALID_FOR: Final = timedelta(days=7)

_FOREVER: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
_SHA384: Final = ec.ECDSA(hashes.SHA384())
_MODELS: Final[Mapping[Arch, tuple[str, str, int]]] = {
    "HOPPER": ("GH100", "GH100 A01 GSP", 64),
    "BLACKWELL": ("GB100", "GB100 A01 GSP", 64),
    "LS10": ("LS10", "LS_10 A01 FSP", 31),
}
"""For each architecture: product of its RIMs, start of the names in its certificates, number of measurements."""
_CAS: Final = ("root", "identity", "provisioner", "rim-ca", "rim-signing-ca", "rim-signer")


def measurement(index: int, *, alternative: int = 0) -> bytes:
    """The good digest of a measurement (48 bytes). `alternative` counts the other good ones."""
    return hashlib.sha384(f"simulated measurement {index}.{alternative}".encode()).digest()


def raw_signature(key: Key, data: bytes) -> bytes:
    """A signature of P-384 with SHA-384 as r and s, big-endian, 48 bytes each."""
    r, s = utils.decode_dss_signature(key.sign(data, _SHA384))
    return r.to_bytes(48, "big") + s.to_bytes(48, "big")


# --- certificates -----------------------------------------------------------------------------------------------------


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Simulated, protects nothing"),
        ]
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def issue(
    common_name: str,
    key: Key,
    issuer: x509.Certificate | None,
    issuer_key: Key,
    valid_from: datetime,
    valid_until: datetime,
    *,
    ca: bool,
    serial: int | None = None,
    extensions: Iterable[x509.ExtensionType] = (),
) -> x509.Certificate:
    """A certificate of P-384. Without an issuer it is self-signed."""
    subject = _name(common_name)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number() if serial is None else serial)
        .not_valid_before(valid_from)
        .not_valid_after(valid_until)
        .add_extension(_usage(ca=ca), critical=True)
    )
    if ca:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(issuer_key, hashes.SHA384())


def der_of(certificate: x509.Certificate) -> bytes:
    """The certificate as DER."""
    return certificate.public_bytes(serialization.Encoding.DER)


def _pem(certificates: Iterable[x509.Certificate]) -> bytes:
    return b"".join(item.public_bytes(serialization.Encoding.PEM) for item in certificates)


def _element(tag: int, content: bytes) -> bytes:
    """A DER element with a length of one or two bytes."""
    length = bytes([len(content)]) if len(content) < 128 else b"\x81" + bytes([len(content)])
    return bytes([tag]) + length + content


def fwid_extension(arch: Arch, fwid: bytes, key: Key) -> x509.UnrecognizedExtension:
    """The extension that carries the firmware id: CompositeDeviceID, or DiceTcbInfo on Blackwell."""
    entry = _element(0x30, _element(0x06, bytes.fromhex("608648016503040202")) + _element(0x04, fwid))
    if arch == "BLACKWELL":
        content = _element(0x30, _element(0x80, b"SIMULATED") + _element(0xA6, entry))
        return x509.UnrecognizedExtension(ObjectIdentifier(DICE_TCB_INFO), content)
    spki = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    content = _element(0x30, _element(0x02, b"\x01") + spki + entry)
    return x509.UnrecognizedExtension(ObjectIdentifier(DICE_FWID), content)


# --- the vendor -------------------------------------------------------------------------------------------------------


@dataclass
class SimNVIDIA:
    """The simulated vendor: its authorities, and what they sign. One root is above devices and RIMs."""

    created: datetime
    keys: dict[str, Key] = field(repr=False)
    certificates: dict[str, x509.Certificate] = field(repr=False)

    @classmethod
    def create(cls, now: datetime, *, rim_valid_for: timedelta = VALID_FOR) -> SimNVIDIA:
        """A new vendor with new keys."""
        created = now.replace(microsecond=0)
        keys = {name: ec.generate_private_key(ec.SECP384R1()) for name in _CAS}
        root = issue("Simulated NVIDIA root", keys["root"], None, keys["root"], created, _FOREVER, ca=True)
        found = {"root": root}
        for name, above, until in (
            ("identity", "root", _FOREVER),
            ("provisioner", "identity", _FOREVER),
            ("rim-ca", "root", _FOREVER),
            ("rim-signing-ca", "rim-ca", _FOREVER),
            ("rim-signer", "rim-signing-ca", created + rim_valid_for),
        ):
            found[name] = issue(
                f"Simulated {name}", keys[name], found[above], keys[above], created, until, ca=name != "rim-signer"
            )
        return cls(created, keys, found)

    @property
    def root(self) -> Digest:
        """SHA-256 of the root, as policies name it."""
        return Digest(hashlib.sha256(der_of(self.certificates["root"])).digest())

    @property
    def tee(self) -> str:
        """The name of its devices in a policy."""
        return f"sim-nvidia-gpu:{self.root}"

    def device(self, arch: Arch = "HOPPER", *, pdi: bytes | None = None) -> SimDevice:
        """A new GPU or NVSwitch. `pdi` is its identity at NVSwitches (8 bytes)."""
        fwid = secrets.token_bytes(MEASUREMENT_BYTES)
        boot_key, leaf_key = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
        start = _MODELS[arch][1]
        boot = issue(
            f"{start} BROM",
            boot_key,
            self.certificates["provisioner"],
            self.keys["provisioner"],
            self.created,
            _FOREVER,
            ca=True,
            serial=int.from_bytes(b"\x41" + (secrets.token_bytes(8) if pdi is None else pdi), "big"),
        )
        leaf = issue(
            f"{start} FMC LF",
            leaf_key,
            boot,
            boot_key,
            self.created,
            _FOREVER,
            ca=False,
            extensions=[fwid_extension(arch, fwid, leaf_key)],
        )
        chain = (leaf, boot, *(self.certificates[name] for name in ("provisioner", "identity", "root")))
        return SimDevice(arch=arch, key=leaf_key, chain=chain, fwid=fwid)

    # what it signs

    def rim(
        self, arch: Arch, version: str, indexes: Iterable[int], *, golden: Mapping[int, Sequence[bytes]] | None = None
    ) -> bytes:
        """A RIM in which these indexes are active. `golden` replaces the good digests of some of them."""
        active, replaced = set(indexes), golden or {}
        rows = []
        for index in range(64):
            good = replaced.get(index, (measurement(index), measurement(index, alternative=1)))
            values = good if index in active else (bytes(MEASUREMENT_BYTES),)
            shown = "".join(f' h:Hash{number}="{value.hex()}"' for number, value in enumerate(values))
            rows.append(
                f'<s:Resource type="Measurement" index="{index}" active="{index in active}" '
                f'alternatives="{len(values)}"{shown} name="Measurement_{index}" size="48"/>\n'
            )
        product = _MODELS[arch][0]
        return self.sign_rim(
            f'<SoftwareIdentity xmlns="{SWID}" xmlns:s="{SWID}" xmlns:h="{HASHES}" name="{product}" tagId="sim">\n'
            f'<s:Entity name="Simulated" role="tagCreator"/>\n'
            f'<s:Meta colloquialVersion="{version}" product="{product}" edition="GPU"/>\n'
            f"<s:Payload>\n{''.join(rows)}</s:Payload>\n</SoftwareIdentity>"
        )

    def sign_rim(self, text: str) -> bytes:
        """Put a signature into a document that has none, before the end of its root."""
        digest = hashlib.sha384(canonical_xml.canonical(canonical_xml.parse(text.encode(), limit_bytes=MAX_RIM_BYTES)))
        chain = "".join(
            f"<d:X509Certificate>{base64.b64encode(der_of(self.certificates[name])).decode()}</d:X509Certificate>"
            for name in ("rim-signer", "rim-signing-ca", "rim-ca", "root")
        )
        value = base64.b64encode(digest.digest()).decode()
        signature = (
            f'<d:Signature xmlns:d="{DSIG}"><d:SignedInfo><d:CanonicalizationMethod Algorithm="{C14N}"/>'
            f'<d:SignatureMethod Algorithm="{ECDSA_SHA384}"/><d:Reference URI=""><d:Transforms>'
            f'<d:Transform Algorithm="{ENVELOPED}"/><d:Transform Algorithm="{C14N}"/></d:Transforms>'
            f'<d:DigestMethod Algorithm="{DIGEST_SHA384}"/><d:DigestValue>{value}</d:DigestValue></d:Reference>'
            f"</d:SignedInfo><d:SignatureValue>VALUE</d:SignatureValue>"
            f"<d:KeyInfo><d:X509Data>{chain}</d:X509Data></d:KeyInfo></d:Signature>"
        )
        at = text.rindex("</")
        whole = text[:at] + signature + text[at:]
        root = canonical_xml.parse(whole.encode(), limit_bytes=MAX_RIM_BYTES)
        signed_info = next(element for element in root.walk() if element.local == "SignedInfo")
        made = raw_signature(self.keys["rim-signer"], canonical_xml.canonical(signed_info))
        return whole.replace("VALUE", base64.b64encode(made).decode()).encode()

    def answer(
        self,
        certificate: x509.Certificate,
        issuer: str,
        now: datetime,
        *,
        reason: x509.ReasonFlags | None = None,
        valid_for: timedelta = ANSWER_VALID_FOR,
        delegated: bool = False,
        usage: ObjectIdentifier = ExtendedKeyUsageOID.OCSP_SIGNING,
    ) -> bytes:
        """An OCSP answer about a certificate of this issuer. With a `reason` it is revoked.

        `delegated` answers come from a responder that the issuer named (with this extended key usage).
        """
        above, key = self.certificates[issuer], self.keys[issuer]
        signer, signing_key = above, key
        if delegated:
            signing_key = ec.generate_private_key(ec.SECP384R1())
            eku = x509.ExtendedKeyUsage([usage])
            signer = issue(
                "Simulated responder", signing_key, above, key, now, now + valid_for, ca=False, extensions=[eku]
            )
        builder = ocsp.OCSPResponseBuilder().add_response(
            cert=certificate,
            issuer=above,
            algorithm=hashes.SHA384(),
            cert_status=ocsp.OCSPCertStatus.GOOD if reason is None else ocsp.OCSPCertStatus.REVOKED,
            this_update=now,
            next_update=now + valid_for,
            revocation_time=None if reason is None else now,
            revocation_reason=reason,
        )
        builder = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, signer)
        if delegated:
            builder = builder.certificates([signer])
        return builder.sign(signing_key, hashes.SHA384()).public_bytes(serialization.Encoding.DER)

    def answers(self, devices: Iterable[SimDevice], now: datetime) -> tuple[bytes, ...]:
        """Good answers about every certificate that these devices and the RIMs need."""
        return tuple(raw for raw, _ in self.answers_with_chains(devices, now))

    def answers_with_chains(self, devices: Iterable[SimDevice], now: datetime) -> list[tuple[bytes, str]]:
        """The same, each with the chain (PEM) of the certificate that it is about."""
        above = {
            "provisioner": ("identity", "root"),
            "identity": ("root",),
            "rim-signer": ("rim-signing-ca", "rim-ca", "root"),
            "rim-signing-ca": ("rim-ca", "root"),
            "rim-ca": ("root",),
        }
        found = []
        for name, issuers in above.items():
            chain = [self.certificates[each] for each in (name, *issuers)]
            found.append((self.answer(chain[0], issuers[0], now), _pem(chain).decode()))
        for device in devices:
            made = self.answer(device.chain[1], "provisioner", now, delegated=True)
            found.append((made, _pem(device.chain[1:]).decode()))
        return found

    def rims(self, devices: Iterable[SimDevice]) -> tuple[bytes, ...]:
        """The RIMs of these devices' drivers and VBIOS."""
        wanted: dict[tuple[Arch, str, tuple[int, ...]], None] = {}
        for device in devices:
            if device.arch == "LS10":
                wanted[device.arch, device.vbios, SWITCH_INDEXES] = None
            else:
                wanted[device.arch, device.driver, (*DRIVER_INDEXES, 35)] = None
                wanted[device.arch, device.vbios, VBIOS_INDEXES] = None
        return tuple(self.rim(arch, version, indexes) for arch, version, indexes in wanted)

    def collateral(self, devices: Sequence[SimDevice], now: datetime) -> GPUCollateral:
        """Everything that verifying these devices needs."""
        return GPUCollateral(
            rims=tuple(KnownRIM(parse_rim(raw)) for raw in self.rims(devices)),
            answers=tuple(map(parse_answer, self.answers(devices, now))),
        )

    # its folder

    def save(self, directory: Path) -> None:
        """Write keys and certificates into this folder, which is made if it is missing."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        keys = {
            name: key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ).decode()
            for name, key in self.keys.items()
        }
        chains = {name: _pem([item]).decode() for name, item in self.certificates.items()}
        content = {"created": int(self.created.timestamp()), "keys": keys, "certificates": chains}
        write_file(directory / "vendor.json", json.dumps(content, indent=1).encode(), 0o600)

    @classmethod
    def load(cls, directory: Path) -> SimNVIDIA:
        """Read what `save` wrote. Raises UsageError."""
        raw = read_file(directory / "vendor.json", private=True)
        data = parse_json_object(raw, what="simulated vendor", refuse=UsageError)
        try:
            keys = {name: _key(text) for name, text in data["keys"].items()}
            certificates = {
                name: x509.load_pem_x509_certificate(text.encode()) for name, text in data["certificates"].items()
            }
            return cls(datetime.fromtimestamp(data["created"], UTC), keys, certificates)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UsageError(
                f"{directory} holds no simulated vendor of GPUs",
                check="simulated vendor",
                expected="vendor.json",
                seen="",
            ) from None


def _key(text: str) -> Key:
    key = serialization.load_pem_private_key(text.encode(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("not a key of a curve")
    return key


# --- a device ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SimDevice:
    """A simulated GPU or NVSwitch."""

    arch: Arch
    key: Key = field(repr=False)
    chain: tuple[x509.Certificate, ...] = field(repr=False)
    fwid: bytes
    driver: str = DRIVER
    vbios: str = ""
    changed: Mapping[int, bytes] = field(default_factory=dict)
    """Measurements that are not the good ones."""
    nvdec0: int = opaque.NVDEC0_DISABLED
    feature: int = 1
    ppcie: bool = False
    switches: tuple[bytes, ...] = ()
    """Of a GPU: identities of the NVSwitches at its links."""
    gpus: tuple[bytes, ...] = ()
    """Of an NVSwitch: identities of the GPUs that it connects."""

    def __post_init__(self) -> None:
        if not self.vbios:
            object.__setattr__(self, "vbios", SWITCH_BIOS if self.arch == "LS10" else VBIOS)

    def with_(self, **changes: object) -> SimDevice:
        """The same device in another state."""
        return replace(self, **changes)  # type: ignore[arg-type]

    @property
    def pdi(self) -> bytes:
        """Its identity at NVSwitches (8 bytes)."""
        return (self.chain[1].serial_number & (1 << 64) - 1).to_bytes(8, "big")

    @property
    def ueid(self) -> str:
        """Serial number of its leaf, in decimal."""
        return str(self.chain[0].serial_number)

    @property
    def pem(self) -> bytes:
        """Its certificate chain as PEM, leaf first."""
        return _pem(self.chain)

    def opaque_fields(self) -> list[tuple[int, bytes]]:
        """The fields of its opaque data, in the order of a real report."""
        if self.arch == "LS10":
            ports = b"\0" * 64
            return [
                (opaque.VBIOS_VERSION, self.vbios.encode()),
                (opaque.SWITCH_PDI, self.pdi),
                (opaque.SWITCH_GPU_PDIS, b"".join(self.gpus).ljust(64, b"\0") + ports),
            ]
        parts = bytes(int(part, 16) for part in self.vbios.split("."))
        found = [
            (opaque.VBIOS_VERSION, parts[3::-1] + parts[4:] + bytes(3)),
            (opaque.CHIP_SKU, b"882\0"),
            (opaque.PROJECT, b"1010\0"),
            (opaque.PROJECT_SKU, b"0200\0"),
            (opaque.DRIVER_VERSION, self.driver.encode() + b"\0"),
            (opaque.NVDEC0_STATUS, bytes([self.nvdec0])),
            (opaque.FWID, self.fwid),
            (opaque.PROTECTED_PCIE_STATUS, b"\xaa" if self.ppcie else b"\x55"),
            (opaque.OPAQUE_DATA_VERSION, b"\1\0"),
            (opaque.FEATURE_FLAG, self.feature.to_bytes(2, "little")),
        ]
        if self.switches:
            found.append((opaque.SWITCH_PDI, b"".join(self._link(number) for number in range(_LINKS))))
        return found

    def _link(self, number: int) -> bytes:
        """What a GPU says of the NVSwitch at one link: the identity in reverse, and zeros for the last link, off."""
        return bytes(8) if number == _LINKS - 1 else self.switches[number % len(self.switches)][::-1]

    def unsigned_report(self, nonce: bytes) -> bytes:
        """A report for this nonce (32 bytes) without its signature."""
        count = _MODELS[self.arch][2]
        blocks = b"".join(
            bytes([index + 1, 1, 51, 0, 1, 48, 0]) + self.changed.get(index, measurement(index))
            for index in range(count)
        )
        fields = b"".join(
            kind.to_bytes(2, "little") + len(data).to_bytes(2, "little") + data for kind, data in self.opaque_fields()
        )
        return b"".join(
            [
                b"\x11\xe0\x01\xff" + nonce + b"\0",
                b"\x11\x60\0\0" + bytes([count]) + len(blocks).to_bytes(3, "little") + blocks,
                os.urandom(32),
                len(fields).to_bytes(2, "little") + fields,
            ]
        )

    def sign(self, report: bytes) -> bytes:
        """A report with its signature."""
        return report + raw_signature(self.key, report)

    def report(self, nonce: bytes) -> bytes:
        """A signed report for this nonce (32 bytes)."""
        return self.sign(self.unsigned_report(nonce))

    def evidence(self, nonce: bytes) -> DeviceEvidence:
        """Its evidence for this nonce (32 bytes)."""
        return DeviceEvidence(self.arch, self.pem, self.report(nonce), nonce)


def evidence_json(devices: Iterable[DeviceEvidence]) -> bytes:
    """Evidence as the JSON list that NVIDIA's tools write."""
    rows = [
        {
            "arch": item.arch,
            "certificate": base64.b64encode(item.chain).decode(),
            "evidence": base64.b64encode(item.report).decode(),
            "nonce": (item.nonce or b"").hex(),
        }
        for item in devices
    ]
    return json.dumps(rows, indent=1).encode()
