"""Makes a simulated platform: its keys, certificates, and first publication."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from adyton.atomic_file import write_file
from adyton.sim import vendor
from adyton.sim.chip import (
    COMPONENTS,
    PCEID,
    PCESVN,
    QE_ISVSVN,
    QE_KEYS,
    SHAPES,
    TDX_COMPONENTS,
    certify_qe,
    new_facts,
)
from adyton.sim.files import PPID_PADDING, key_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from pathlib import Path

    from cryptography import x509

    from adyton.sim.chip import Facts, Shape
    from adyton.sim.vendor import CAKind

_PRIVATE: Final = 0o600
_PUBLIC: Final = 0o644
_OLD_COMPONENTS: Final = (6, 6, 2, 2, 3, 1, 0, 3) + (0,) * 8
_OLD_TDX_COMPONENTS: Final = (3, 1, 6) + (0,) * 13
_OLD_DATE: Final = "2024-01-01T00:00:00Z"
_OLD_ADVISORIES: Final = ("SIM-SA-00000",)
_KINDS: Final[tuple[CAKind, ...]] = ("platform", "processor")

_README: Final = """This is a SIMULATED TEE platform, made by `adyton platform new`.

Whoever can read this folder can sign any evidence under its root. It exists to try and to
test protocol, formats, policies and refusals on machines without a TEE. It protects nothing.

root fingerprint (SHA-256 of the root certificate's DER): {fingerprint}
"""


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def issue_pck(
    machine: Facts,
    public_key: ec.EllipticCurvePublicKey,
    ca_key: ec.EllipticCurvePrivateKey,
    created: datetime,
) -> str:
    """A PCK certificate (PEM) for this machine's present SVNs."""
    extension = vendor.sgx_extension(
        machine.ca,
        ppid=machine.ppid,
        components=machine.components,
        pcesvn=machine.pcesvn,
        pceid=machine.pceid,
        fmspc=machine.fmspc,
        instance_id=machine.instance_id,
    )
    return _pem(vendor.pck_certificate(machine.ca, public_key, ca_key, created, extension))


def make_platform(directory: Path, ca: CAKind, created: datetime, *, carries_chain: bool) -> None:
    """Fill an empty folder with a new platform whose PCK certificate is issued by the Platform or Processor CA.

    Without `carries_chain` its quotes name the platform by its PPID, encrypted to the vendor (certification data type
    3), as those of a machine do that was never provisioned with its chain.
    """
    machine_dir, vendor_dir = directory / "machine", directory / "vendor"
    machine_dir.mkdir(mode=0o700)
    vendor_dir.mkdir(mode=0o700)
    names = ("root", "platform-ca", "processor-ca", "signing", "pck", "qe", "td-qe")
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in names}
    certificates = {
        "root": vendor.root_certificate(keys["root"], created),
        "signing": vendor.signing_certificate(keys["signing"].public_key(), keys["root"], created),
    }
    for kind in _KINDS:
        public_key = keys[f"{kind}-ca"].public_key()
        certificates[f"{kind}-ca"] = vendor.ca_certificate(kind, public_key, keys["root"], created)
    machine = new_facts(ca)
    pck = issue_pck(machine, keys["pck"].public_key(), keys[f"{ca}-ca"], created)
    qes = {shape: certify_qe(shape, keys[QE_KEYS[shape]], keys["pck"], cpu_svn=bytes(COMPONENTS)) for shape in SHAPES}
    chain = pck + _pem(certificates[f"{ca}-ca"]) + _pem(certificates["root"])
    machine = replace(machine, pck_chain=chain, qes=qes)
    if not carries_chain:
        ppid_key = rsa.generate_private_key(65537, 3072)
        write_file(vendor_dir / "ppid.key", key_bytes(ppid_key), _PRIVATE)
        machine = replace(machine, encrypted_ppid=ppid_key.public_key().encrypt(machine.ppid, PPID_PADDING))
    write_file(machine_dir / "machine.json", json.dumps(machine.to_dict(), indent=1).encode(), _PUBLIC)
    for name in ("pck", "qe", "td-qe"):
        write_file(machine_dir / f"{name}.key", key_bytes(keys[name]), _PRIVATE)
    for name, certificate in certificates.items():
        write_file(vendor_dir / f"{name}.crt", _pem(certificate).encode(), _PUBLIC)
        write_file(vendor_dir / f"{name}.key", key_bytes(keys[name]), _PRIVATE)
    publication = json.dumps(first_publication(machine, created).to_dict(), indent=1)
    write_file(vendor_dir / "publication.json", publication.encode(), _PUBLIC)
    fingerprint = hashlib.sha256(certificates["root"].public_bytes(serialization.Encoding.DER)).hexdigest()
    write_file(directory / "README", _README.format(fingerprint=fingerprint).encode(), _PUBLIC)


def upgraded_machine(
    machine: Facts,
    publication: vendor.Publication,
    qe_keys: Mapping[Shape, ec.EllipticCurvePrivateKey],
    ca_key: ec.EllipticCurvePrivateKey,
    ca_chain: str,
    now: datetime,
) -> tuple[Facts, ec.EllipticCurvePrivateKey]:
    """The machine with the newest firmware of this publication, and its new PCK key.

    As on real platforms the PCK key goes with the SVNs: the quoting enclaves keep their attestation keys and have
    them certified anew.
    """
    top = publication.levels[0]
    module_svn = next(levels[0].isvsvn for name, levels in publication.modules if name == f"TDX_{top.tdx[1]:02X}")
    pck_key = ec.generate_private_key(ec.SECP256R1())
    svns: dict[Shape, int] = {"sgx": publication.qe_levels[0].isvsvn, "tdx": publication.td_qe_levels[0].isvsvn}
    changed = replace(
        machine,
        components=top.sgx,
        pcesvn=top.pcesvn,
        tee_tcb_svn=bytes((module_svn, *top.tdx[1:])),
        qes={
            shape: certify_qe(shape, qe_keys[shape], pck_key, cpu_svn=bytes(top.sgx), isv_svn=svns[shape])
            for shape in SHAPES
        },
    )
    chain = issue_pck(changed, pck_key.public_key(), ca_key, now) + ca_chain
    return replace(changed, pck_chain=chain), pck_key


def first_publication(machine: Facts, created: datetime) -> vendor.Publication:
    """The publication in which a new machine is up to date, and one with older firmware would not be."""
    date = created.strftime("%Y-%m-%dT00:00:00Z")
    return vendor.Publication(
        published_at=int(created.timestamp()),
        evaluation_number=1,
        ca=machine.ca,
        fmspc=machine.fmspc,
        pceid=PCEID,
        levels=(
            vendor.Level(COMPONENTS, TDX_COMPONENTS, PCESVN, date, "UpToDate"),
            vendor.Level(_OLD_COMPONENTS, _OLD_TDX_COMPONENTS, PCESVN, _OLD_DATE, "OutOfDate", _OLD_ADVISORIES),
        ),
        qe_levels=(
            vendor.SVNLevel(QE_ISVSVN["sgx"], date, "UpToDate"),
            vendor.SVNLevel(QE_ISVSVN["sgx"] - 2, _OLD_DATE, "OutOfDate", _OLD_ADVISORIES),
        ),
        td_qe_levels=(vendor.SVNLevel(QE_ISVSVN["tdx"], date, "UpToDate"),),
        modules=(
            (
                "TDX_01",
                (
                    vendor.SVNLevel(TDX_COMPONENTS[0], date, "UpToDate"),
                    vendor.SVNLevel(_OLD_TDX_COMPONENTS[0], _OLD_DATE, "OutOfDate", _OLD_ADVISORIES),
                ),
            ),
            ("TDX_03", (vendor.SVNLevel(3, date, "UpToDate"),)),
        ),
    )
