"""Asking for a key server's address: one address or nothing, whatever the asking process meets."""

from __future__ import annotations

import os
import sys
import time

import pytest

from adyton.image.guest_names import resolve


def asking(code: str) -> list[str]:
    """A process that answers by this code."""
    return [sys.executable, "-I", "-c", f"import os, sys, time; {code}"]


@pytest.fixture(autouse=True)
def root() -> None:
    """Only root can give its rights away."""
    if os.geteuid() != 0:
        pytest.skip("another user can be taken by root only")


@pytest.mark.parametrize(
    ("code", "address"),
    [
        ("print('10.0.0.7' if sys.argv[1] == 'keys.example' else '')", "10.0.0.7"),
        ("print('10.0.0.7' if (os.getuid(), os.getgid(), os.getgroups()) == (65534, 65534, []) else '')", "10.0.0.7"),
        ("print('127.0.0.1')", None),
        ("print('224.0.0.1')", None),
        ("print('::1')", None),
        ("print('10.0.0.7 evil\\n10.0.0.8')", None),
        ("print('1' * 100000)", None),
        ("sys.stdout.buffer.write(bytes([255]) * 20)", None),
        ("sys.exit(1)", None),
    ],
)
def test_answer_is_one_address_of_a_machine_or_nothing(code: str, address: str | None) -> None:
    """From a process with the rights of nobody."""
    found = resolve(["keys.example"], asking(code), 5)
    assert {name: str(value) for name, value in found.items()} == ({} if address is None else {"keys.example": address})


def test_process_that_does_not_end_is_ended() -> None:
    """A name server may never answer."""
    started_s = time.monotonic()
    assert resolve(["a"], asking("time.sleep(60)"), 0.3) == {}
    assert time.monotonic() - started_s < 20


def test_real_resolver_knows_no_name_that_cannot_be() -> None:
    """`.invalid` is nobody's (RFC 6761)."""
    assert resolve(["adyton.invalid"]) == {}
