"""TLS contexts of both sides, with the `ssl` module: TLS 1.3 only, no tickets, no resumption.

The `ssl` module has no call for two settings, so they are set through OpenSSL's own functions (ctypes). The first is a
certificate-verify callback. With it the handshake accepts an enclave's self-signed RA-TLS certificate, which is judged
right after. The handshake still proves that the peer holds the key. The second turns session caching off. Both rely on
CPython to keep the `SSL_CTX *` first in its context object. `_context_pointer` checks this as far as possible, and
refuses to go on otherwise.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import ssl
import sys
from typing import TYPE_CHECKING, Any, Final

from adyton.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_CLIENT_CHAIN_BYTES: Final = 40 * 1024
"""Longest certificate message of a client, in bytes. One RA-TLS certificate with a real quote is 11 KiB."""

_CTRL_SET_SESSION_CACHE_MODE: Final = 44
_CTRL_SET_MAX_CERT_LIST: Final = 51
_VERIFY_CALLBACK: Final = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


def _accept(_store_context: int, _argument: int) -> int:
    """Let the handshake finish. The certificate is judged before anything is answered."""
    return 1


_accept_for_now: Final = _VERIFY_CALLBACK(_accept)


def _openssl() -> ctypes.CDLL:
    import _ssl

    library = ctypes.CDLL(_ssl.__file__)
    for name in ("SSL_CTX_set_cert_verify_callback", "SSL_CTX_ctrl", "SSL_CTX_get_verify_mode"):
        if not hasattr(library, name):
            raise UsageError(
                "this Python's OpenSSL does not offer what the RA-TLS server needs",
                check="OpenSSL of the ssl module",
                expected=name,
                seen="no such function",
                remedy="use a CPython that is linked to a shared OpenSSL 3, or serve without --gramine-listen",
            )
    library.SSL_CTX_set_cert_verify_callback.argtypes = [ctypes.c_void_p, _VERIFY_CALLBACK, ctypes.c_void_p]
    library.SSL_CTX_set_cert_verify_callback.restype = None
    library.SSL_CTX_ctrl.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_void_p]
    library.SSL_CTX_ctrl.restype = ctypes.c_long
    library.SSL_CTX_get_verify_mode.argtypes = [ctypes.c_void_p]
    library.SSL_CTX_get_verify_mode.restype = ctypes.c_int
    return library


def _context_pointer(library: ctypes.CDLL, context: ssl.SSLContext) -> int:
    if sys.implementation.name != "cpython" or not (3, 11) <= sys.version_info[:2] <= (3, 14):
        raise UsageError(
            "the RA-TLS server knows the inside of CPython 3.11 to 3.14 only",
            check="Python of the RA-TLS server",
            expected="CPython 3.11 to 3.14",
            seen=f"{sys.implementation.name} {sys.version.split()[0]}",
            remedy="serve with one of these, or without --gramine-listen",
        )
    pointer = ctypes.c_void_p.from_address(id(context) + object.__basicsize__).value
    if pointer is None or library.SSL_CTX_get_verify_mode(pointer) != 1 | 2:
        raise UsageError(
            "the ssl module's context is not laid out as expected",
            check="Python of the RA-TLS server",
            expected="an SSL_CTX first in the context object",
            seen="something else",
            remedy="serve with Debian's CPython, or without --gramine-listen",
        )
    return pointer


def server_context(certificate: Path, key: Path, *, client_certificate: bool) -> ssl.SSLContext:
    """The key server's context. With `client_certificate` a client must send one.

    Any is accepted here and judged later.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            f"the key server's certificate cannot be used: {certificate}",
            check="server certificate",
            expected="a PEM certificate and its key",
            seen=str(error)[:160],
            remedy="make a new one with adyton init --renew-server",
        ) from None
    context.sni_callback = _note_name
    if client_certificate:
        library = _openssl()
        context.verify_mode = ssl.CERT_REQUIRED
        pointer = _context_pointer(library, context)
        library.SSL_CTX_set_cert_verify_callback(pointer, _accept_for_now, None)
        library.SSL_CTX_ctrl(pointer, _CTRL_SET_SESSION_CACHE_MODE, 0, None)
        library.SSL_CTX_ctrl(pointer, _CTRL_SET_MAX_CERT_LIST, MAX_CLIENT_CHAIN_BYTES, None)
    return context


def _note_name(ssl_object: Any, name: str | None, _context: ssl.SSLContext) -> None:
    ssl_object.adyton_server_name = name


def asked_name(ssl_object: ssl.SSLObject | ssl.SSLSocket) -> str | None:
    """The server name in the client's handshake (SNI), or None."""
    name: str | None = getattr(ssl_object, "adyton_server_name", None)
    return name


def peer_chain(ssl_object: ssl.SSLObject | ssl.SSLSocket) -> list[bytes]:
    """Every certificate of the peer, DER, unverified. Its own comes first."""
    getter: Any = getattr(ssl_object, "get_unverified_chain", None)
    if getter is not None:
        return [bytes(der) for der in getter()]
    import _ssl

    inner: Any = ssl_object._sslobj  # type: ignore[union-attr]
    return [certificate.public_bytes(_ssl.ENCODING_DER) for certificate in inner.get_unverified_chain() or ()]


def client_context(ca_pem: str) -> ssl.SSLContext:
    """The enclave's context: TLS 1.3, the pinned CA and no other, the server's name checked, no key log."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = True
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        context.load_verify_locations(cadata=ca_pem)
    except ssl.SSLError:
        raise UsageError(
            "the pinned CA is not a PEM certificate", check="adyton.owners ca", remedy="build again"
        ) from None
    return context


@contextlib.contextmanager
def _in_memory(raw: bytes) -> Iterator[str]:
    descriptor = os.memfd_create("credential", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, raw)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def use_certificate(context: ssl.SSLContext, certificate_pem: bytes, key_pem: bytes) -> None:
    """Load a certificate and key that exist only in memory. `ssl` needs file names, so they go through a memfd."""
    with _in_memory(certificate_pem) as certificate, _in_memory(key_pem) as key:
        context.load_cert_chain(certificate, key)
