"""TLS 1.3 over bytes in memory, without a socket: what both ends of an endpoint speak.

Python's `ssl` module has no TLS exporter, so this uses pyOpenSSL. There are no tickets and no resumption: each
connection is proved anew. The certificate of an ingress is self-signed. The handshake proves that the peer holds its
key. Who the peer is, its evidence says.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, cast

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import NameOID
from OpenSSL import SSL
from OpenSSL.crypto import X509, X509Store, X509StoreFlags

from adyton.endpoint.binding import EXPORTER_BYTES, EXPORTER_LABEL, Connection
from adyton.endpoint.hello import ALPN
from adyton.errors import FetchFailed, UsageError

RECORD_BYTES: Final = 1 << 14
READ_BYTES: Final = 1 << 18
_SEALED_BYTES: Final = READ_BYTES + (1 << 13)
"""READ_BYTES of plaintext and what their records add: 22 bytes each."""

_SSL_MODE_ENABLE_PARTIAL_WRITE: Final = 1
"""pyOpenSSL sets it. Without it one call seals all records of a write."""
_MAX_CERTIFICATE_DAYS: Final = 90
_MAX_CHAIN: Final = 8
_SIGNERS: Final = (ec.EllipticCurvePrivateKey, ed25519.Ed25519PrivateKey, rsa.RSAPrivateKey)
_Signer = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
_BACKDATED: Final = timedelta(hours=24)
_OP_NO_TICKET: Final = SSL.OP_NO_TICKET


@dataclass(frozen=True, slots=True)
class Credential:
    """What a client shows of itself: its certificate, those above it (without the CA), and the key."""

    chain: tuple[x509.Certificate, ...]
    key: _Signer = field(repr=False)

    @classmethod
    def load(cls, certificates: bytes, key: bytes) -> Credential:
        """Read both from PEM. The key has no password. Raises UsageError, which never shows the key."""
        try:
            chain = tuple(x509.load_pem_x509_certificates(certificates))
            private = load_pem_private_key(key, None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise _unusable("PEM, and the key without a password", type(error).__name__) from None
        if not 1 <= len(chain) <= _MAX_CHAIN:
            raise _unusable(f"1 to {_MAX_CHAIN} certificates", f"{len(chain)}")
        if not isinstance(private, _SIGNERS):
            raise _unusable("a key of an elliptic curve, Ed25519 or RSA", "another kind")
        if chain[0].public_key() != private.public_key():
            raise _unusable("the key of the first certificate", "another key")
        return cls(chain, private)


def _unusable(expected: str, seen: str) -> UsageError:
    return UsageError(
        "the client's certificate and key cannot be used",
        check="--certificate and --key",
        expected=expected,
        seen=seen,
        remedy="give the certificate, then those above it, in one PEM file, and its key in another",
    )


class Identity:
    """The TLS key of an ingress and a certificate over it. It lives in memory only, and is made at each start."""

    def __init__(self, name: str, *, now: datetime | None = None) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        now = now or datetime.now(UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATED)
            .not_valid_after(now + timedelta(days=_MAX_CERTIFICATE_DAYS))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        )
        self.certificate = builder.sign(self.key, hashes.SHA256())
        self.spki_sha256: Final = spki_sha256(self.certificate)


def spki_sha256(certificate: x509.Certificate) -> bytes:
    """SHA-256 of the certificate's SubjectPublicKeyInfo, DER."""
    der = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).digest()


def _context() -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_options(_OP_NO_TICKET)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.clear_mode(_SSL_MODE_ENABLE_PARTIAL_WRITE)
    return context


def server_context(identity: Identity, client_ca: str | None = None) -> SSL.Context:
    """A context for the ingress. A client that does not offer the protocol by ALPN gets no handshake.

    With `client_ca` (PEM) neither does one without a certificate for clients under this CA, which ends every chain.
    """
    context = _context()
    if client_ca is not None:
        store = cast(X509Store, context.get_cert_store())  # OpenSSL makes it with the context
        store.add_cert(X509.from_cryptography(x509.load_pem_x509_certificate(client_ca.encode())))
        store.set_flags(X509StoreFlags.PARTIAL_CHAIN)
        context.set_verify_depth(_MAX_CHAIN)
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    context.use_certificate(identity.certificate)
    context.use_privatekey(identity.key)
    context.check_privatekey()
    context.set_alpn_select_callback(
        lambda _connection, offered: ALPN if ALPN in offered else SSL.NO_OVERLAPPING_PROTOCOLS
    )
    return context


def client_context(credential: Credential | None = None) -> SSL.Context:
    """A context for the client. It accepts any certificate. The evidence over its key decides before a byte is sent.

    `credential` is for an ingress that asks for a certificate.
    """
    context = _context()
    if credential is not None:
        context.use_certificate(credential.chain[0])
        for above in credential.chain[1:]:
            context.add_extra_chain_cert(above)
        context.use_privatekey(credential.key)
    context.set_alpn_protos([ALPN])
    context.set_verify(SSL.VERIFY_NONE)
    return context


class Channel:
    """One TLS connection. Bytes from the network go in by `receive`, bytes for it come out by `outgoing`."""

    def __init__(self, context: SSL.Context, *, server: bool) -> None:
        self._tls = SSL.Connection(context, None)
        if server:
            self._tls.set_accept_state()
        else:
            self._tls.set_connect_state()
        self._server = server
        self.closed_by_peer = False
        """Whether the peer ended its side as TLS wants it. Without that, the end may be an attacker's cut."""

    def handshake(self) -> bool:
        """Go on with the handshake as far as the received bytes allow. True once it is done. Raises FetchFailed."""
        try:
            self._tls.do_handshake()
        except SSL.WantReadError:
            return False
        except SSL.Error as error:
            raise _failed("handshake", error) from error
        if self._tls.get_alpn_proto_negotiated() != ALPN:
            raise FetchFailed(
                "the peer does not speak Adyton's endpoint protocol",
                check="protocol of the connection (ALPN)",
                expected=ALPN.decode(),
                seen=ascii(self._tls.get_alpn_proto_negotiated()[:40])[2:-1] or "none",
                remedy="connect to the port of an ingress, not to another server",
            )
        return True

    def facts(self, nonce: bytes, own_spki: bytes | None = None) -> Connection:
        """What evidence on this connection is bound to. An ingress gives its `own_spki`, a client takes the peer's."""
        exporter = self._tls.export_keying_material(EXPORTER_LABEL, EXPORTER_BYTES, nonce)
        if own_spki is None:
            own_spki = self._peer_spki()
        return Connection(nonce, own_spki, exporter)

    def _peer_spki(self) -> bytes:
        try:
            certificate = self._tls.get_peer_certificate(as_cryptography=True)
            if certificate is not None:
                return spki_sha256(certificate)
            seen = "none"
        except (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm) as error:  # OpenSSL is less strict
            seen = str(error)[:160]
        raise FetchFailed(
            "the peer has no certificate that can be read",
            check="certificate of the ingress",
            expected="an X.509 certificate of version 3",
            seen=seen,
            remedy="connect to the port of an ingress",
        )

    def receive(self, data: bytes) -> None:
        """Take bytes that came from the network."""
        sent = 0
        while sent < len(data):
            sent += self._tls.bio_write(data[sent:])

    def read(self) -> bytes:
        """Plaintext that the received bytes hold. Empty where more must come, or after the peer's end."""
        found: list[bytes] = []
        while True:
            try:
                found.append(self._tls.recv(RECORD_BYTES))
            except SSL.WantReadError:
                break
            except SSL.ZeroReturnError:
                self.closed_by_peer = True
                break
            except SSL.Error as error:
                raise _failed("record", error) from error
        return b"".join(found)

    def write(self, data: bytes) -> None:
        """Seal plaintext. What goes over the network is then in `outgoing`. Raises FetchFailed."""
        view = memoryview(data)
        while view:
            try:
                view = view[self._tls.send(view[: 1 << 20]) :]
            except SSL.Error as error:
                raise _failed("record", error) from error

    def end(self) -> None:
        """Say that nothing more will be written."""
        try:
            self._tls.shutdown()
        except SSL.Error:
            return

    def outgoing(self) -> bytes:
        """Bytes for the network."""
        found: list[bytes] = []
        with contextlib.suppress(SSL.WantReadError):
            while len(more := self._tls.bio_read(_SEALED_BYTES)) == _SEALED_BYTES:
                found.append(more)
            found.append(more)
        return b"".join(found)


def _failed(what: str, error: SSL.Error) -> FetchFailed:
    reasons = error.args[0] if error.args and isinstance(error.args[0], list) else []
    seen = "; ".join(str(reason[-1]) for reason in reasons) or "the connection ended"
    if "alert" in seen and ("certificate" in seen or "unknown ca" in seen):
        return FetchFailed(
            f"the ingress refuses this client: {seen}",
            check="certificate of the client",
            expected="one under the CA that the manifest of the program pins for its clients",
            seen=seen,
            remedy="give it with --certificate FILE --key FILE; ask whoever runs the program for one",
        )
    return FetchFailed(
        f"TLS failed at a {what}: {seen}",
        check="TLS of the endpoint",
        expected="TLS 1.3 with " + ALPN.decode(),
        seen=seen,
        remedy="connect to the port of an ingress; if it is one, something between alters the bytes",
    )
