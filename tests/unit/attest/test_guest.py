"""Guests of confidential machines: only such as are pinned whole can be expressed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adyton.attest.guest import MUST_COVER, SNPGuest, TDXGuest, confidential_kind, parse_guest
from adyton.errors import UsageError
from adyton.sim.chip import simulated_guest
from adyton.values import Measurement

TDX: dict[str, Any] = {"tee": "tdx", "mrtd": "11" * 48, "rtmr0": "22" * 48, "rtmr1": "33" * 48, "rtmr2": "44" * 48}
OPEN: dict[str, Any] = {"tee": "tdx", "mrtd": "11" * 48, "host_acpi": True, "rtmr1": "33" * 48, "rtmr2": "44" * 48}
TPM: dict[str, Any] = {"tee": "tpm", "boot_applications": ["66" * 32, "77" * 32], "pcr11": "88" * 32}
SNP: dict[str, Any] = {
    "tee": "snp",
    "launch_digest": "55" * 48,
    "launch_digest_covers": list(MUST_COVER),
    "host_acpi": True,
}


@pytest.mark.parametrize("document", [TDX, OPEN, SNP, TPM, {**TPM, "pcr7": "99" * 32}, simulated_guest().to_dict()])
def test_guest_round_trips(document: dict[str, Any]) -> None:
    """Plain data and back."""
    assert parse_guest(json.loads(json.dumps(document))).to_dict() == document


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        "tdx",
        {},
        {**TDX, "tee": "sgx"},
        {**TDX, "tee": ["tdx"]},
        *({name: value for name, value in TDX.items() if name != left_out} for left_out in TDX),
        *({name: value for name, value in SNP.items() if name != left_out} for left_out in SNP),
        *({name: value for name, value in OPEN.items() if name != left_out} for left_out in OPEN),
        *({name: value for name, value in TPM.items() if name != left_out} for left_out in TPM),
        *(
            {**TPM, "boot_applications": value}
            for value in ([], "66" * 32, ["66" * 48], ["00" * 32], [1], ["66" * 32] * 17)
        ),
        *({**TPM, name: value} for name in ("pcr7", "pcr11") for value in ("00" * 32, "66" * 48, None, ["66" * 32])),
        {**TPM, "pcr0": "66" * 32},
        {**TPM, "host_acpi": True},
        {**TDX, "host_acpi": True},
        {**TDX, "host_acpi": False},
        *({**OPEN, "host_acpi": value} for value in (False, 1, "true", None)),
        *({**SNP, "host_acpi": value} for value in (False, 1, "true", None)),
        {**OPEN, "rtmr0": None},
        {**SNP, "launch_digest_covers": ["acpi", *MUST_COVER]},
        {**TDX, "rtmr3": "55" * 48},
        {**TDX, "rtmr1": "00" * 48},
        {**TDX, "rtmr2": "33" * 32},
        {**TDX, "rtmr2": ["33" * 48]},
        {**TDX, "rtmr2": "3 " * 48},
        {**SNP, "launch_digest_covers": []},
        {**SNP, "launch_digest_covers": ["kernel"]},
        {**SNP, "launch_digest_covers": [*MUST_COVER, "world"]},
        {**SNP, "launch_digest_covers": list(reversed(MUST_COVER))},
        {**SNP, "launch_digest_covers": True},
        {**SNP, "launch_digest_covers": [1, 2, 3]},
        {**SNP, "launch_digest": "00" * 48},
    ],
)
def test_guest_that_leaves_anything_open_is_refused(document: object) -> None:
    """A register that is missing, empty, of another size or ill-typed; a digest that covers less; anything unknown."""
    with pytest.raises(UsageError):
        parse_guest(document)


def test_guest_cannot_be_made_by_hand_with_less() -> None:
    """The values themselves refuse, not only the parser."""
    register = Measurement(b"r" * 48)
    with pytest.raises(UsageError):
        TDXGuest(mrtd=register, rtmr0=register, rtmr1=Measurement(bytes(48)), rtmr2=register)
    with pytest.raises(UsageError):
        SNPGuest(launch_digest=register, launch_digest_covers=())


def test_only_the_hosts_acpi_tables_can_be_left_open_and_the_guest_says_so() -> None:
    """In its text, and by `host_acpi`; the other registers stay pinned."""
    left_open, pinned, snp = parse_guest(OPEN), parse_guest(TDX), parse_guest(SNP)
    assert [guest.host_acpi for guest in (left_open, pinned, snp)] == [True, False, True]
    for guest in (left_open, snp):
        assert "open (the host writes the ACPI tables)" in str(guest)
    policy = left_open.policy()
    assert (policy.rtmr0, len(policy.rtmr1), len(policy.rtmr2), len(policy.measurements)) == (frozenset(), 1, 1, 1)


@pytest.mark.parametrize(
    ("tee", "kind"),
    [
        ("tdx", "tdx"),
        ("sim-tdx:" + "0" * 64, "tdx"),
        ("sim-tdx", "tdx"),
        ("snp", "snp"),
        ("sgx", None),
        ("sim:" + "0" * 64, None),
    ],
)
def test_confidential_kind(tee: str, kind: str | None) -> None:
    """Simulated hardware is of the kind that it simulates."""
    assert confidential_kind(tee) == kind
