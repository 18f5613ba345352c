"""Agreements and the keys of their parties, for tests."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from adyton.agreement.budget import Budget
from adyton.agreement.document import Agreement, Party, Program
from adyton.agreement.in_force import make_statement
from adyton.agreement.signature import Signature, sign_agreement
from adyton.keystore.certificates import make_ca, make_purpose
from adyton.purpose_certificate import AGREEMENTS, IN_FORCE, Purpose
from adyton.values import Digest, Measurement, Nonce

MADE_AT = datetime(2026, 11, 1, tzinfo=UTC)
UNTIL = datetime(2027, 6, 30, 23, 59, 59, tzinfo=UTC)
PROGRAM = Program(measurement=Measurement(bytes(range(32))))


@dataclass(frozen=True)
class Signer:
    """An owner: her CA, and her keys for agreements and for in-force statements."""

    ca: bytes
    agreement: Ed25519PrivateKey
    agreement_certificate: bytes
    in_force: Ed25519PrivateKey
    in_force_certificate: bytes

    @property
    def owner(self) -> Digest:
        """Her fingerprint."""
        return Digest(hashlib.sha256(self.ca).digest())

    def sign(self, agreement: Agreement) -> Signature:
        """Her signature."""
        return sign_agreement(agreement, self.agreement, self.agreement_certificate, self.ca)

    def says(self, agreement: str, challenge: Nonce) -> bytes:
        """Her statement that an agreement is in force."""
        return make_statement(agreement, challenge, self.in_force, self.in_force_certificate, self.ca).to_bytes()


def make_signer(name: str, at: datetime = MADE_AT) -> Signer:
    """An owner with a new CA."""
    ca = make_ca(name, at)
    keys: list[tuple[Ed25519PrivateKey, bytes]] = []
    for purpose in (AGREEMENTS, IN_FORCE):
        keys.append(_key(ca, purpose, name, at))
    der = x509.load_pem_x509_certificate(ca.certificate_pem).public_bytes(serialization.Encoding.DER)
    return Signer(der, *keys[0], *keys[1])


def _key(ca: object, purpose: Purpose, name: str, at: datetime) -> tuple[Ed25519PrivateKey, bytes]:
    private = Ed25519PrivateKey.generate()
    certificate = make_purpose(ca, private.public_key(), name, purpose, at)  # type: ignore[arg-type]
    return private, certificate.public_bytes(serialization.Encoding.DER)


BUDGET = Budget(key="patients", epsilon=3.0, delta=1e-5, noise_multiplier=1.1, sampling_probability=0.01, steps=1000)


def agreement_of(hospital: Digest, vendor: Digest, program: Program = PROGRAM, runs: int = 20) -> Agreement:
    """An agreement of two: the hospital brings `patients` and receives `results`, the vendor brings `model`."""
    return Agreement(
        name="tumour-study",
        program=program,
        parties=(
            Party(name="hospital", owner=hospital, inputs=("patients",), receives=("results",)),
            Party(name="vendor", owner=vendor, inputs=("model",)),
        ),
        runs=runs,
        until=UNTIL,
    )
