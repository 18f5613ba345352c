"""Certificate chains under NVIDIA's pinned roots: of a device, and of the signer of a RIM.

A device's chain has five certificates: firmware key, boot ROM key, provisioner, identity, root. The firmware key is
made on the device, so no responder can answer for its certificate. This certificate carries the firmware id (FWID), in
one of two extensions. The serial number of the boot ROM's certificate belongs to one device for life.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography import x509

from adyton.attest import der
from adyton.attest.certificates import Certificate, parse_certificate, split_pem
from adyton.attest.issued import check_issued
from adyton.attest.nvidia.layout import MAX_CHAIN_BYTES
from adyton.errors import BadChain, MalformedQuote

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adyton.attest.certificates import Known
    from adyton.attest.checks import Checks
    from adyton.attest.roots import TrustRoots
    from adyton.values import Digest

DEVICE_CHAIN: Final = ("device key", "boot ROM key", "provisioner CA", "identity CA", "root CA")
RIM_CHAIN: Final = ("RIM signer", "RIM signing CA", "RIM reference value CA", "RIM root CA")

DICE_FWID: Final = "2.23.133.5.4.1"
"""Hopper and LS10: the FWID is the last 48 bytes of the extension."""
DICE_TCB_INFO: Final = "2.23.133.5.4.1.1"
"""Blackwell: DiceTcbInfo (TCG DICE Attestation Architecture 1.1, section 6.1.1). The FWID is in `[6] fwids`."""
_FWIDS: Final = 0xA6
_SHA384: Final = bytes.fromhex("608648016503040202")
_FWID_BYTES: Final = 48
_REFUSE: Final = "refuse the evidence: it is not from a genuine device, or was altered"


@dataclass(frozen=True, slots=True)
class DeviceChain:
    """A verified chain of a device, leaf first."""

    certificates: tuple[Certificate, ...]
    simulated: bool

    @property
    def leaf(self) -> Certificate:
        """The certificate whose key signs reports."""
        return self.certificates[0]

    @property
    def root(self) -> Digest:
        """SHA-256 of the root."""
        return self.certificates[-1].fingerprint

    @property
    def model(self) -> str:
        """The hardware model, such as "GH100 A01 GSP BROM"."""
        return self.certificates[1].common_name

    @property
    def ueid(self) -> str:
        """What NVIDIA's claims call UEID: the serial number of the leaf, in decimal. It changes with the firmware."""
        return str(self.leaf.serial)

    @property
    def serial(self) -> str:
        """The number of the device for life: the serial number of its boot ROM's certificate, in decimal."""
        return str(self.certificates[1].serial)

    @property
    def pdi(self) -> bytes:
        """The identity by which NVSwitches know each other's neighbours: the low 8 bytes of that serial number."""
        return (self.certificates[1].serial & (1 << 64) - 1).to_bytes(8, "big")


def parse_pem_chain(raw: bytes, names: Sequence[str], what: str, known: Known | None = None) -> tuple[Certificate, ...]:
    """Parse a PEM chain of exactly these certificates, leaf first. Raises MalformedQuote."""
    if len(raw) > MAX_CHAIN_BYTES:
        raise MalformedQuote(
            f"the {what} is too long", check=f"size of the {what}", expected=f"{MAX_CHAIN_BYTES} bytes", seen=len(raw)
        )
    return parse_der_chain(split_pem(raw, what), names, what, known)


def parse_der_chain(
    blocks: Sequence[bytes], names: Sequence[str], what: str, known: Known | None = None
) -> tuple[Certificate, ...]:
    """Parse a chain of exactly these certificates (DER), leaf first. Raises MalformedQuote."""
    if len(blocks) != len(names):
        raise MalformedQuote(
            f"the {what} has {len(blocks)} certificates",
            check=f"length of the {what}",
            expected=", ".join(names),
            seen=f"{len(blocks)} certificates",
        )
    return tuple(parse_certificate(block, name, known) for block, name in zip(blocks, names, strict=True))


def check_chain(
    checks: Checks, chain: Sequence[Certificate], pinned: frozenset[Digest], roots: TrustRoots, whose: str
) -> bool:
    """Check that a chain ends in a pinned root (or a simulated one), link by link. Returns whether it is simulated."""
    root = chain[-1]
    simulated = root.fingerprint in roots.sim
    checks.require(
        f"{root.what}: pinned",
        simulated or root.fingerprint in pinned,
        expected=", ".join(sorted(map(str, pinned))),
        seen=root.fingerprint,
        error=BadChain,
        message=f"the chain of the {whose} ends in a root that is not NVIDIA's: SHA-256 {root.fingerprint}",
        remedy=_REFUSE,
    )
    check_links(checks, chain)
    checks.require(
        f"{chain[0].what}: is no CA",
        not chain[0].is_ca and signs_data(chain[0]) and not _has_purpose(chain[0]),
        expected="key usage digitalSignature, no extended key usage (as an OCSP responder has), and not a CA",
        seen="not so",
        error=BadChain,
        remedy=_REFUSE,
    )
    return simulated


def check_links(checks: Checks, chain: Sequence[Certificate]) -> None:
    """Check that each certificate is issued by the next one, the last by itself, and that issuers may issue."""
    root = chain[-1]
    for place, (certificate, issuer) in enumerate(zip(chain, [*chain[1:], root], strict=True)):
        check_issued(checks, certificate, issuer, remedy=_REFUSE)
        if place:
            checks.require(
                f"{certificate.what}: may issue",
                may_issue(certificate, below=place - 1),
                expected="basic constraints with CA true, a sufficient path length, and key usage keyCertSign",
                seen="not so",
                error=BadChain,
                remedy=_REFUSE,
            )


def may_issue(certificate: Certificate, *, below: int) -> bool:
    """Whether a certificate is of a CA that may have this number of CAs below it (RFC 5280, 4.2.1.9)."""
    is_ca, signs = False, False
    for extension in certificate.extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints):
            is_ca = value.ca and (value.path_length is None or value.path_length >= below)
        elif isinstance(value, x509.KeyUsage):
            signs = value.key_cert_sign
        elif extension.critical:
            return False
    return is_ca and signs


def signs_data(certificate: Certificate) -> bool:
    """Whether the key usage is for signatures over data, and no unknown extension is critical."""
    signs = False
    for extension in certificate.extensions:
        if isinstance(extension.value, x509.KeyUsage):
            signs = extension.value.digital_signature
        elif extension.critical and not isinstance(
            extension.value, x509.BasicConstraints | x509.ExtendedKeyUsage | x509.SubjectAlternativeName
        ):
            return False
    return signs


def _has_purpose(certificate: Certificate) -> bool:
    """Whether there is an extended key usage. Keys for OCSP have one, and must sign neither reports nor RIMs."""
    return any(isinstance(extension.value, x509.ExtendedKeyUsage) for extension in certificate.extensions)


def fwid_of(leaf: Certificate) -> bytes | None:
    """The firmware id (48 bytes) in a device key's certificate. None where it has none. Raises MalformedQuote."""
    plain, tcb_info = leaf.unrecognized(DICE_FWID), leaf.unrecognized(DICE_TCB_INFO)
    if plain is not None and tcb_info is not None:
        raise _no_fwid("two extensions that name one")
    if plain is not None:
        return _composite_fwid(plain)
    return None if tcb_info is None else _tcb_info_fwid(tcb_info)


def _composite_fwid(raw: bytes) -> bytes:
    """CompositeDeviceID: SEQUENCE of version, the device's public key, and SEQUENCE of hash OID and FWID."""
    parts = der.children(der.only(raw, der.SEQUENCE))
    if len(parts) != 3 or parts[2][0] != der.SEQUENCE:
        raise _no_fwid("another structure than a composite device id")
    return _fwid(parts[2][1])


def _tcb_info_fwid(raw: bytes) -> bytes:
    """DiceTcbInfo: the first of `[6] fwids`, a list of hash OID and FWID."""
    lists = [content for tag, content in der.children(der.only(raw, der.SEQUENCE)) if tag == _FWIDS]
    entries = der.children(lists[0]) if len(lists) == 1 else []
    if not entries or entries[0][0] != der.SEQUENCE:
        raise _no_fwid("no list of firmware ids")
    return _fwid(entries[0][1])


def _fwid(content: bytes) -> bytes:
    pair = der.children(content)
    if len(pair) != 2 or pair[0] != (der.OID, _SHA384) or pair[1][0] != der.OCTET_STRING:
        raise _no_fwid("a firmware id that is no SHA-384 digest")
    if len(pair[1][1]) != _FWID_BYTES:
        raise _no_fwid(f"{len(pair[1][1])} bytes")
    return pair[1][1]


def _no_fwid(seen: str) -> MalformedQuote:
    return MalformedQuote(
        f"the firmware id in the device key's certificate does not parse: {seen}",
        check="parse of the firmware id",
        expected="SHA-384, 48 bytes",
        seen=seen,
    )
