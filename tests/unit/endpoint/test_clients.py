"""Who may connect: an ingress that asks its clients for a certificate, or for evidence, and clients that lack it."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ed448
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from adyton.attest.report_data import framed
from adyton.endpoint import ingress as ingress_module
from adyton.endpoint.channel import Credential, client_context
from adyton.endpoint.hello import (
    MAX_ANSWER_BYTES,
    MAX_CLIENT_BYTES,
    PROTOCOL,
    Challenge,
    ClientEvidence,
    message,
    parse_answer,
)
from adyton.endpoint.stream import SecureStream
from adyton.errors import FetchFailed, Mismatch, UsageError
from tests.support.tls_factory import CLIENT, DAY, SERVER, Pair, make_ca, make_leaf
from tests.unit.endpoint.world import Verifier, dialler, echo, evidence_over, ingress_before, listening

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


# --- evidence ----------------------------------------------------------------------------------------------------


class Judging:
    """The policy of an ingress: evidence of the machine for this connection."""

    def __init__(self, trusted: timedelta = timedelta(hours=1)) -> None:
        self.trusted = trusted
        self.calls = 0

    async def __call__(self, shown: ClientEvidence, report_data: bytes) -> timedelta:
        self.calls += 1
        if shown.cpu != evidence_over(report_data):
            raise Mismatch("evidence for another connection", check="report data", expected="this", seen="another")
        return self.trusted


async def honest(report_data: bytes) -> ClientEvidence:
    """A client's own machine."""
    return ClientEvidence(evidence_over(report_data))


def test_client_with_accepted_evidence_is_served_for_as_long_as_it_is_trusted() -> None:
    """Then its connection is cut, whatever passes."""

    async def run() -> None:
        judge = Judging(timedelta(seconds=0.5))
        async with listening(echo) as program, ingress_before(program, judge=judge) as address:
            verified = await dialler(address, prove=honest).dial()
            await verified.stream.write(b"hello")
            assert await verified.stream.read(5) == b"HELLO"
            with pytest.raises(FetchFailed):
                await verified.stream.read(5)
            await verified.stream.close()
        assert judge.calls == 1

    asyncio.run(asyncio.wait_for(run(), 30))


def test_client_whose_evidence_is_refused_reads_why() -> None:
    """The program hears nothing, and the run's notes say it."""
    notes: list[str] = []
    heard: list[bytes] = []

    async def program(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(1))

    async def false(report_data: bytes) -> ClientEvidence:
        return ClientEvidence(evidence_over(report_data[::-1]))

    async def run() -> FetchFailed:
        async with (
            listening(program) as port,
            ingress_before(port, judge=Judging(), note=notes.append) as address,
        ):
            with pytest.raises(FetchFailed) as refused:
                await dialler(address, prove=false).dial()
        return refused.value

    refused = asyncio.run(asyncio.wait_for(run(), 30))
    assert refused.check == "evidence of the client"
    assert refused.seen == "evidence for another connection (expected this; seen another)"
    assert heard == []
    assert notes == ["ingress api: the evidence of a client was refused: report data"]


def test_refused_client_cannot_choose_what_is_noted() -> None:
    """A run tells a limited number of different events. A stranger's own words must not use them up."""
    notes: list[str] = []

    async def run() -> None:
        async with listening(echo) as port, ingress_before(port, judge=Judging(), note=notes.append) as address:
            for word in (b"one", b"two"):
                stream, _ = await half_way(address)
                await stream.write(message(framed(PROTOCOL, word, b"x", b"", b"{}")))
                assert word in await stream.read_message(1 << 12)  # only the client itself reads it
                await stream.close()

    asyncio.run(asyncio.wait_for(run(), 30))
    assert len(notes) == 2
    assert notes[0] == notes[1]


@pytest.mark.parametrize("judged", [True, False])
def test_client_and_ingress_must_agree_on_evidence(judged: bool) -> None:
    """A client without evidence is told to bring it. One with evidence is told that nobody judges it."""
    shown: list[bytes] = []

    async def show(report_data: bytes) -> ClientEvidence:
        shown.append(report_data)
        return await honest(report_data)

    async def run() -> FetchFailed:
        verify = Verifier()
        async with (
            listening(echo) as port,
            ingress_before(port, judge=Judging() if judged else None) as address,
        ):
            with pytest.raises(FetchFailed) as refused:
                await dialler(address, verify, prove=None if judged else show).dial()
        assert verify.calls == 0
        return refused.value

    refused = asyncio.run(asyncio.wait_for(run(), 30))
    assert "--prove" in str(refused.seen)
    assert shown == []


async def half_way(address: tuple[str, int]) -> tuple[SecureStream, bytes]:
    """A client that has read the answer of an ingress with a policy: its stream, and the evidence of the ingress."""
    stream = await SecureStream.open(*await asyncio.open_connection(*address), client_context(), server=False)
    await stream.write(message(Challenge(bytes(32), proves=True).to_bytes()))
    answer = parse_answer(await stream.read_message(MAX_ANSWER_BYTES))
    return stream, answer.cpu  # type: ignore[union-attr]


def test_evidence_of_the_ingress_itself_is_not_a_clients() -> None:
    """Reflected to where it came from, and carried to another connection: neither is for this role and connection."""

    async def run() -> None:
        judge = Judging()
        carried: list[bytes] = []
        async with listening(echo) as program, ingress_before(program, judge=judge) as address:

            async def noted(report_data: bytes) -> ClientEvidence:
                carried.append(evidence_over(report_data))
                return ClientEvidence(carried[-1])

            verified = await dialler(address, prove=noted).dial()
            await verified.stream.close()
            for evidence in (None, carried[0]):
                stream, own = await half_way(address)
                await stream.write(message(ClientEvidence(evidence or own).to_bytes()))
                assert b"refused" in await stream.read_message(1 << 12)
                assert await stream.read() == b""
                await stream.close()
        assert judge.calls == 3

    asyncio.run(asyncio.wait_for(run(), 30))


def test_client_that_sends_too_much_or_nothing_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message over the limit, one of another form, and silence."""
    monkeypatch.setattr(ingress_module, "HELLO_S", 0.5)

    async def run() -> None:
        judge = Judging()
        async with listening(echo) as program, ingress_before(program, judge=judge) as address:
            for sent in (
                message(bytes(MAX_CLIENT_BYTES + 1))[:4],
                message(b"hello"),
                b"GET / HTTP/1.1\r\n\r\n",
                b"",
            ):
                stream, _ = await half_way(address)
                if sent:
                    await stream.write(sent)
                with contextlib.suppress(FetchFailed, ConnectionError):  # cut, or told and closed
                    assert b"refused" in await stream.read_message(1 << 12)
                    assert await stream.read() == b""
                await stream.close()
        assert judge.calls == 0

    asyncio.run(asyncio.wait_for(run(), 30))


def test_clients_that_never_show_their_evidence_keep_nobody_out() -> None:
    """The one that has taken longest is ended for a new one. So strangers cannot hold all places."""

    async def run() -> None:
        judge = Judging()
        async with listening(echo) as program, ingress_before(program, judge=judge) as address:
            silent = [(await half_way(address))[0] for _ in range(ingress_module.MAX_UNPROVED)]
            verified = await dialler(address, prove=honest).dial()
            await verified.stream.write(b"hello")
            assert await verified.stream.read(5) == b"HELLO"
            with pytest.raises((FetchFailed, ConnectionError)):
                await silent[0].read_message(1 << 12)
            for stream in (*silent, verified.stream):
                stream.abort()
        assert judge.calls == 1

    asyncio.run(asyncio.wait_for(run(), 30))


def test_no_more_than_some_clients_wait_for_their_judgement(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more is told to try again."""
    monkeypatch.setattr(ingress_module, "MAX_UNPROVED", 1)

    async def run() -> None:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def slow(_shown: ClientEvidence, _report_data: bytes) -> timedelta:
            begun.set()
            await go_on.wait()
            return timedelta(hours=1)

        async with listening(echo) as program, ingress_before(program, judge=slow) as address:
            first = asyncio.ensure_future(dialler(address, prove=honest).dial())
            await begun.wait()
            with pytest.raises(FetchFailed) as refused:
                await dialler(address, prove=honest).dial()
            assert "too many" in str(refused.value.seen)
            go_on.set()
            await (await first).stream.close()

    asyncio.run(asyncio.wait_for(run(), 30))
