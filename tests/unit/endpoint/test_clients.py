"""Who may connect: an ingress that asks its clients for a certificate, and clients that have a wrong one, or none."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ed448
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from adyton.endpoint.channel import Credential
from adyton.errors import FetchFailed, UsageError
from tests.support.tls_factory import CLIENT, DAY, SERVER, Pair, make_ca, make_leaf
from tests.unit.endpoint.world import Verifier, dialler, echo, ingress_before, listening

if TYPE_CHECKING:
    from adyton.endpoint.ingress import Ingress


def credential(pair: Pair, *above: Pair) -> Credential:
    """What a client loads from its files."""
    return Credential.load((pair.pem + "".join(one.pem for one in above)).encode(), pair.key_pem.encode())


async def answer_for(address: tuple[str, int], shown: Credential | None) -> bytes:
    """What a client gets that shows this."""
    verified = await dialler(address, credential=shown).dial()
    try:
        await verified.stream.write(b"hello")
        return await verified.stream.read(5)
    finally:
        await verified.stream.close()


def test_client_with_a_certificate_of_the_ca_is_served() -> None:
    """Also under an intermediate CA, and again after the ingress has made a new key."""
    ca = make_ca("theirs")
    middle = make_ca("middle", under=ca)

    async def run() -> None:
        made: list[Ingress] = []
        async with listening(echo) as program, ingress_before(program, made=made, client_ca=ca.pem) as address:
            for shown in (
                credential(make_leaf(ca, "alice", usage=CLIENT)),
                credential(make_leaf(middle, "bob", usage=CLIENT), middle),
            ):
                assert await answer_for(address, shown) == b"HELLO"
            made[0].renew()
            assert await answer_for(address, shown) == b"HELLO"
            with pytest.raises(FetchFailed):
                await answer_for(address, None)

    asyncio.run(asyncio.wait_for(run(), 30))


def wrong(ca: Pair, other: Pair) -> dict[str, tuple[Credential | None, str]]:
    """Clients that must be refused, and the words of the alert."""
    return {
        "no certificate": (None, "certificate required"),
        "another CA": (credential(make_leaf(other, "alice", usage=CLIENT)), "unknown ca"),
        "another CA, shown beside it": (credential(make_leaf(other, "alice", usage=CLIENT), other), "unknown ca"),
        "expired": (
            credential(make_leaf(ca, "alice", usage=CLIENT, start=-2 * DAY, end=timedelta(hours=-1))),
            "certificate expired",
        ),
        "not valid yet": (
            credential(make_leaf(ca, "alice", usage=CLIENT, start=timedelta(hours=1))),
            "bad certificate",
        ),
        "a server's": (credential(make_leaf(ca, "alice", usage=SERVER)), "unsupported certificate"),
        "signed by itself": (credential(make_ca("alice")), "unknown ca"),
        "signed by a client": (
            credential(make_leaf(client := make_leaf(ca, "bob", usage=CLIENT), "alice", usage=CLIENT), client),
            "",
        ),
    }


@pytest.mark.parametrize("what", wrong(make_ca("a"), make_ca("b")))
def test_client_without_the_right_certificate_is_refused_by_name(what: str) -> None:
    """The client reads why, no evidence is made for it, the program hears nothing, and the ingress notes it."""
    ca, other = make_ca("theirs"), make_ca("theirs")
    shown, words = wrong(ca, other)[what]
    notes: list[str] = []
    heard: list[bytes] = []

    async def program(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(1))

    async def run() -> FetchFailed:
        verify = Verifier()
        async with (
            listening(program) as port,
            ingress_before(port, client_ca=ca.pem, note=notes.append) as address,
        ):
            with pytest.raises(FetchFailed) as refused:
                await dialler(address, verify, credential=shown).dial()
        assert verify.calls == 0
        return refused.value

    refused = asyncio.run(asyncio.wait_for(run(), 30))
    assert refused.check == "certificate of the client"
    assert words in str(refused.seen)
    assert "--certificate" in str(refused.remedy)
    assert heard == []
    assert len(notes) == 1
    assert notes[0].startswith("ingress api: a client was refused: ")


def test_certificate_is_not_needed_where_nobody_asks() -> None:
    """A client that has one for another ingress connects as everybody does."""

    async def run() -> bytes:
        async with listening(echo) as program, ingress_before(program) as address:
            return await answer_for(address, credential(make_leaf(make_ca("other"), "alice", usage=CLIENT)))

    assert asyncio.run(asyncio.wait_for(run(), 30)) == b"HELLO"


def test_unusable_files_of_a_client_are_refused_without_showing_the_key() -> None:
    """Another key, no certificate, too many, a key with a password or of a kind that TLS 1.3 clients lack."""
    ca = make_ca("theirs")
    one, two = make_leaf(ca, "alice", usage=CLIENT), make_leaf(ca, "bob", usage=CLIENT)
    locked = one.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    from cryptography.hazmat.primitives.serialization import NoEncryption

    kind = ed448.Ed448PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for certificates, key in (
        (one.pem.encode(), two.key_pem.encode()),
        (b"", one.key_pem.encode()),
        (one.pem.encode() * 9, one.key_pem.encode()),
        (one.pem.encode(), locked),
        (one.pem.encode(), kind),
        (one.pem.encode(), b"\xff"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", one.key_pem.encode()),
    ):
        with pytest.raises(UsageError) as refused:
            Credential.load(certificates, key)
        assert refused.value.check == "--certificate and --key"
        shown = f"{refused.value} {refused.value.details()}"
        assert one.key_pem.splitlines()[1] not in shown
    assert one.key_pem.splitlines()[1] not in repr(credential(one))
