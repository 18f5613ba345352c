"""TLS to a server outside that shows itself under one pinned CA, over bytes in memory, with the `ssl` module.

The CA is the only trust there is: no list of the machine's is read. It may be an intermediate one. The certificate must
name the server in its subjectAltName (RFC 9525), by its DNS name or its IP address. A connection that ends without
close_notify was cut (RFC 8446, section 6.1), and is told apart from one that ended.
"""

from __future__ import annotations

import contextlib
import ssl
from typing import TYPE_CHECKING

from adyton.endpoint.channel import READ_BYTES
from adyton.endpoint.stream import PlainStream
from adyton.errors import FetchFailed

if TYPE_CHECKING:
    import asyncio


def pinned_context(ca: str) -> ssl.SSLContext:
    """TLS 1.2 or 1.3, this CA (PEM) and no other, and the server's name checked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies chain and name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    context.hostname_checks_common_name = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=ca)
    return context


class PinnedStream:
    """Plaintext over such a connection, in the terms of `Source` and `Sink`."""

    def __init__(self, wire: PlainStream, context: ssl.SSLContext, server_name: str) -> None:
        self._wire = wire
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)
        self._ahead = b""

    @classmethod
    async def open(
        cls, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: ssl.SSLContext, server_name: str
    ) -> PinnedStream:
        """Make the handshake. Raises FetchFailed where the server is not the one that is named."""
        stream = cls(PlainStream(reader, writer), context, server_name)
        while True:
            try:
                stream._tls.do_handshake()
            except ssl.SSLWantReadError:
                await stream._flush()
                await stream._more("the handshake")
            except ssl.SSLError as error:
                with contextlib.suppress(OSError):
                    await stream._flush()  # an alert says why
                raise _failed(error, server_name) from error
            else:
                await stream._flush()
                return stream

    async def _more(self, what: str) -> None:
        data = await self._wire.read(READ_BYTES)
        if not data:
            raise FetchFailed(
                f"the server cut the connection in {what}",
                check="end of the connection",
                expected="close_notify",
                seen="the end, without it",
                remedy="see whether the server runs; something between may have cut it",
            )
        self._incoming.write(data)

    async def _flush(self) -> None:
        data = self._outgoing.read()
        if data:
            await self._wire.write(data)

    async def read(self, size: int = READ_BYTES) -> bytes:
        """Some plaintext. Empty at the server's end. Raises FetchFailed where the end was cut or a record is false."""
        if self._ahead:
            found, self._ahead = self._ahead[:size], self._ahead[size:]
            return found
        while True:
            try:
                return self._tls.read(size)
            except ssl.SSLWantReadError:
                await self._flush()  # a key update asks for an answer
                await self._more("a response")
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLError as error:
                raise _failed(error) from error

    async def write(self, data: bytes) -> None:
        """Send plaintext. Waits while the network is slower."""
        view = memoryview(data)
        while view:
            try:
                view = view[self._tls.write(view) :]
            except ssl.SSLError as error:
                raise _failed(error) from error
            await self._flush()

    async def end(self) -> None:
        """End this side's direction. The other one stays open."""
        self._take_what_came()
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
        await self._flush()

    def _take_what_came(self) -> None:
        """Read what lies here already, at most READ_BYTES and a record. `unwrap` fails where it meets plaintext."""
        with contextlib.suppress(ssl.SSLError):  # an end or a false record shows again at the next read
            while data := self._tls.read(READ_BYTES):
                self._ahead += data

    def abort(self) -> None:
        """Cut the connection."""
        self._wire.abort()

    async def close(self) -> None:
        """Close the connection at once."""
        with contextlib.suppress(OSError):
            await self.end()
        await self._wire.close()


def _failed(error: ssl.SSLError, server_name: str | None = None) -> FetchFailed:
    seen = getattr(error, "verify_message", None) or error.reason or str(error)
    named = isinstance(error, ssl.SSLCertVerificationError)
    return FetchFailed(
        f"TLS failed: {seen}",
        check="certificate of the server" if named else "TLS with the server",
        expected=f"a certificate for {server_name} under the pinned CA" if named else "TLS 1.2 or 1.3",
        seen=str(seen)[:200],
        remedy="pin the CA that signs this server's certificate, and dial the name that is in it"
        if named
        else "see what listens there; something between may alter the bytes",
    )
