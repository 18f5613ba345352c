"""A pinned CA: exactly one certificate of a CA, in its one canonical text, so that what is shown is what is trusted.

TLS libraries take every certificate that a PEM text holds. A second one, or bytes around it, would hence be trusted
without being shown: whatever is not the one text of one CA certificate is refused, for every key of a manifest.
"""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING, Final

from adyton.errors import MalformedManifest

if TYPE_CHECKING:
    from cryptography import x509

MAX_CA_CHARS: Final = 64 << 10


def check_ca(pem: str, key: str) -> str:
    """The canonical PEM text of a pinned CA certificate. Only spaces and line ends may differ from it.

    Raises MalformedManifest, naming the manifest key, for several certificates, anything beside the certificate, and a
    certificate that is no CA's (RFC 5280, 4.2.1.9 and 4.2.1.3).
    """
    canonical = ca_within(pem, key)
    if "".join(pem.split()) != "".join(canonical.split()):
        raise _refused(key, "holds something beside the certificate", f"{len(pem)} characters")
    return canonical


def ca_within(text: str, key: str) -> str:
    """The canonical text of the one CA certificate in a file, without the words around it. Raises MalformedManifest."""
    from cryptography.hazmat.primitives.serialization import Encoding

    found = _one(text, key)
    if _has_no_extensions(found):
        raise _refused(
            key,
            "does not say that it may sign other certificates",
            "a certificate of version 1, which has no extensions, as sample PKIs make it",
            'make it anew, with: openssl req -x509 -addext "basicConstraints=critical,CA:TRUE" …',
        )
    if not _is_ca(found, key):
        raise _refused(key, "is no certificate of a CA", "a certificate that may sign no others")
    return found.public_bytes(Encoding.PEM).decode()


def ca_sha256(pem: str) -> str:
    """SHA-256 of the certificate (DER) in a text that `check_ca` let pass, as hex digits."""
    import ssl

    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()


def _one(pem: str, key: str) -> x509.Certificate:
    from cryptography import x509

    found = []
    if len(pem) <= MAX_CA_CHARS:
        with contextlib.suppress(ValueError):
            found = x509.load_pem_x509_certificates(pem.encode("utf-8", "replace"))
    if len(found) != 1:
        raise _refused(key, "is not one PEM certificate", f"{len(found)} certificates")
    return found[0]


def _has_no_extensions(certificate: x509.Certificate) -> bool:
    from cryptography import x509

    return certificate.version is x509.Version.v1


def _is_ca(certificate: x509.Certificate, key: str) -> bool:
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        extensions = certificate.extensions
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = next((item.value for item in extensions if isinstance(item.value, x509.KeyUsage)), None)
    except x509.ExtensionNotFound:
        return False
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, UnsupportedAlgorithm) as error:
        raise _refused(key, "has extensions that do not parse", type(error).__name__) from None
    return constraints.ca and (usage is None or usage.key_cert_sign)


def _refused(
    key: str,
    why: str,
    seen: str,
    remedy: str = "give one PEM certificate of a CA; an owner's is ca.crt in her home (adyton init made it)",
) -> MalformedManifest:
    return MalformedManifest(
        f"{key} {why}",
        check=f"manifest key {key}",
        expected="exactly one certificate, of a CA, and nothing beside it (PEM)",
        seen=seen,
        remedy=remedy,
    )
