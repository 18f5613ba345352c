"""TLS contexts: which Python the RA-TLS server refuses."""

from __future__ import annotations

import ctypes
import ssl
import sys
from types import SimpleNamespace

import pytest

from adyton.errors import UsageError
from adyton.release import tls


def test_python_that_is_not_known_is_refused_with_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """The inside of CPython's context object is known for some versions only."""
    monkeypatch.setattr(sys, "version_info", (3, 15, 0))
    with pytest.raises(UsageError) as caught:
        tls._context_pointer(tls._openssl(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    assert caught.value.check == "Python of the RA-TLS server"
    assert "without --gramine-listen" in str(caught.value.remedy)


def test_context_that_is_laid_out_in_another_way_is_refused() -> None:
    """The pointer counts only where OpenSSL reads the mode there that was set through `ssl`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_NONE
    with pytest.raises(UsageError, match="not laid out"):
        tls._context_pointer(tls._openssl(), context)


def test_openssl_without_a_function_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python that is linked to something else than a shared OpenSSL 3 is refused by name."""
    monkeypatch.setattr(ctypes, "CDLL", lambda _path: SimpleNamespace())
    with pytest.raises(UsageError) as caught:
        tls._openssl()
    assert caught.value.expected == "SSL_CTX_set_cert_verify_callback"
