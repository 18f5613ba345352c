"""The two messages: what they hold comes back, and nothing else is read."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.attest.bundle import DevicePart
from adyton.attest.report_data import framed
from adyton.endpoint import hello
from adyton.errors import MalformedQuote

ANSWER = hello.Answer("api", bytes(32), b"evidence", b"log", (b"device",))


def test_challenge_comes_back() -> None:
    """A challenge is read as it was written."""
    for found in (hello.Challenge(bytes(range(32))), hello.Challenge(bytes(32), proves=True)):
        assert hello.parse_challenge(found.to_bytes()) == found


@pytest.mark.parametrize("answer", [ANSWER, hello.Answer("a", bytes(32), b"e"), hello.Refused("busy")])
def test_answer_comes_back(answer: hello.Answer | hello.Refused) -> None:
    """An answer is read as it was written."""
    assert hello.parse_answer(answer.to_bytes()) == answer


FALSE_ANSWERS = {
    "nothing": b"",
    "another protocol": framed(b"adyton-connect/2", b"refused", b"x"),
    "another kind": framed(hello.PROTOCOL, b"other", b"x"),
    "too few": framed(hello.PROTOCOL, b"evidence"),
    "without evidence": framed(hello.PROTOCOL, b"evidence", b"api", bytes(32), b"", b""),
    "no log": framed(hello.PROTOCOL, b"evidence", b"api", bytes(32), b"e"),
    "name": framed(hello.PROTOCOL, b"evidence", b"a/b", bytes(32), b"e", b""),
    "long name": framed(hello.PROTOCOL, b"evidence", b"a" * 64, bytes(32), b"e", b""),
    "hash": framed(hello.PROTOCOL, b"evidence", b"api", bytes(31), b"e", b""),
    "large evidence": framed(hello.PROTOCOL, b"evidence", b"api", bytes(32), bytes(hello.MAX_CPU_BYTES + 1), b""),
    "large log": framed(hello.PROTOCOL, b"evidence", b"api", bytes(32), b"e", bytes(hello.MAX_EVENT_LOG_BYTES + 1)),
    "empty device": framed(hello.PROTOCOL, b"evidence", b"api", bytes(32), b"e", b"", b""),
    "many devices": framed(hello.PROTOCOL, b"evidence", b"api", bytes(32), b"e", b"", *[b"d"] * 17),
    "second reason": framed(hello.PROTOCOL, b"refused", b"x", b"y"),
    "cut": ANSWER.to_bytes()[:-1],
    "more": ANSWER.to_bytes() + b"\0",
    "over the cap": bytes(hello.MAX_ANSWER_BYTES + 1),
}


@pytest.mark.parametrize("raw", FALSE_ANSWERS.values(), ids=FALSE_ANSWERS)
def test_false_answer_is_refused(raw: bytes) -> None:
    """An answer of another form is refused, and the refusal names the check."""
    with pytest.raises(MalformedQuote) as caught:
        hello.parse_answer(raw)
    assert caught.value.check
    assert caught.value.expected


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        framed(hello.PROTOCOL),
        framed(hello.PROTOCOL, bytes(31)),
        framed(hello.PROTOCOL, bytes(32), b""),
        framed(b"adyton-connect/0", bytes(32)),
        framed(hello.PROTOCOL, bytes(32), b"server"),
        framed(hello.PROTOCOL, bytes(32), b"client", b""),
        bytes(300),
    ],
)
def test_false_challenge_is_refused(raw: bytes) -> None:
    """A challenge of another form is refused."""
    with pytest.raises(MalformedQuote):
        hello.parse_challenge(raw)


def test_evidence_and_judgement_of_a_client_come_back() -> None:
    """Each is read as it was written."""
    shown = hello.ClientEvidence(b"quote", b"log", b'{"a": 1}')
    assert hello.parse_client_evidence(shown.to_bytes()) == shown
    assert hello.parse_judgement(hello.ACCEPTED) is None
    assert hello.parse_judgement(hello.Refused("why").to_bytes()) == hello.Refused("why")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        ANSWER.to_bytes(),
        framed(hello.PROTOCOL, b"client", b"q", b""),
        framed(hello.PROTOCOL, b"client", b"q", b"", b"{}", b""),
        framed(hello.PROTOCOL, b"server", b"q", b"", b"{}"),
        framed(b"adyton-connect/0", b"client", b"q", b"", b"{}"),
        framed(hello.PROTOCOL, b"client", b"", b"", b"{}"),
        framed(hello.PROTOCOL, b"client", b"q", b"", b""),
        framed(hello.PROTOCOL, b"client", bytes(hello.MAX_CPU_BYTES + 1), b"", b"{}"),
        framed(hello.PROTOCOL, b"client", b"q", bytes(hello.MAX_EVENT_LOG_BYTES + 1), b"{}"),
        framed(hello.PROTOCOL, b"client", b"q", b"", bytes(hello.MAX_COLLATERAL_BYTES + 1)),
        bytes(hello.MAX_CLIENT_BYTES + 1),
    ],
)
def test_false_evidence_of_a_client_is_refused(raw: bytes) -> None:
    """Evidence of another form is refused."""
    with pytest.raises(MalformedQuote):
        hello.parse_client_evidence(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        framed(hello.PROTOCOL),
        framed(hello.PROTOCOL, b"accepted", b""),
        framed(hello.PROTOCOL, b"refused"),
        framed(hello.PROTOCOL, b"other", b"x"),
        framed(b"adyton-connect/0", b"accepted"),
        framed(hello.PROTOCOL, b"refused", bytes(hello.MAX_REASON_BYTES + 1)),
        bytes(hello.MAX_JUDGEMENT_BYTES + 1),
    ],
)
def test_false_judgement_is_refused(raw: bytes) -> None:
    """Nothing but the one word is taken for an acceptance."""
    with pytest.raises(MalformedQuote):
        hello.parse_judgement(raw)


def test_device_of_an_answer_comes_back() -> None:
    """Each is read as it was written, up to the largest."""
    for size in (1, 16 << 10):
        part = DevicePart(arch="H" * 32, certificate=bytes(size), evidence=bytes(size))
        assert hello.parse_device(part.to_bytes()) == part
        answer = hello.Answer("api", bytes(32), b"e", b"", (part.to_bytes(),))
        assert hello.parse_answer(answer.to_bytes()) == answer


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"gpu",
        framed(b"HOPPER", b"c"),
        framed(b"HOPPER", b"c", b"e", b""),
        framed(b"", b"c", b"e"),
        framed(b"\xff", b"c", b"e"),
        framed(b"HOPPER", b"", b"e"),
        framed(b"HOPPER", b"c", b""),
        framed(b"HOPPER", bytes((16 << 10) + 1), b"e"),
        bytes(hello.MAX_DEVICE_BYTES + 1),
    ],
)
def test_false_device_is_refused(raw: bytes) -> None:
    """A device's evidence of another form is refused."""
    with pytest.raises(MalformedQuote) as caught:
        hello.parse_device(raw)
    assert caught.value.check


def test_length_is_capped_before_the_body_is_read() -> None:
    """A length over the cap, or of nothing, is refused by itself."""
    assert hello.body_length(struct.pack(">I", 5), 5) == 5
    for size in (0, 6, 1 << 31):
        with pytest.raises(MalformedQuote):
            hello.body_length(struct.pack(">I", size), 5)


@given(st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    """What is read writes the same bytes again: there is one form."""
    for parse in (hello.parse_answer, hello.parse_challenge, hello.parse_client_evidence):
        try:
            found = parse(raw)
        except MalformedQuote:
            continue
        assert found.to_bytes() == raw
