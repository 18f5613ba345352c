"""The two messages: what they hold comes back, and nothing else is read."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.attest.report_data import framed
from adyton.endpoint import hello
from adyton.errors import MalformedQuote

ANSWER = hello.Answer("api", bytes(32), b"evidence", b"log", (b"device",))


def test_challenge_comes_back() -> None:
    """A challenge is read as it was written."""
    found = hello.Challenge(bytes(range(32)))
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
        bytes(300),
    ],
)
def test_false_challenge_is_refused(raw: bytes) -> None:
    """A challenge of another form is refused."""
    with pytest.raises(MalformedQuote):
        hello.parse_challenge(raw)


def test_length_is_capped_before_the_body_is_read() -> None:
    """A length over the cap, or of nothing, is refused by itself."""
    assert hello.body_length(struct.pack(">I", 5), 5) == 5
    for size in (0, 6, 1 << 31):
        with pytest.raises(MalformedQuote):
            hello.body_length(struct.pack(">I", size), 5)


@given(st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    """What is read writes the same bytes again: there is one form."""
    for parse in (hello.parse_answer, hello.parse_challenge):
        try:
            found = parse(raw)
        except MalformedQuote:
            continue
        assert found.to_bytes() == raw
