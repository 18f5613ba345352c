"""Event logs: real ones replay to what their quotes and publishers say, and every rule of the parser fires."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from adyton.attest.tdx import parse_quote
from adyton.attest.tpm.event_log import (
    MAX_EVENT_BYTES,
    MAX_EVENTS,
    MAX_LOG_BYTES,
    SHA1,
    SHA256,
    SHA384,
    SHA512,
    parse_event_log,
    replay_extends,
)
from adyton.errors import MalformedQuote
from tests.support.tpm_factory import TPMScenario, event, log_head

QUOTED = {
    "eventlogs/ccel-live.bin": "eventlogs/quote-live.bin",
    "tdx/cos-113-ccel_data.bin": "tdx/tdx-v4-00806f-cos113.quote.bin",
}
ALONE = {
    "eventlogs/ccel-gcp.bin": 21,
    "eventlogs/ccel-ovmf.bin": 20,
    "eventlogs/tpm-cos-101-amd-sev.bin": 48,
    "eventlogs/tpm-rhel8-uefi.bin": 82,
    "eventlogs/tpm-ubuntu-2404-amd-sevsnp.bin": 116,
}
GCE_FIRMWARE = "24af52a4f429b71a3184a6d64cddad17e54ea030e2aa6576bf3a5a3d8bd3328f"
"""PCR 0 of a Google Compute Engine machine of that time, as Google's own verifier lists it."""
BANKS = (SHA1, SHA256)


@pytest.mark.shared_vectors
@pytest.mark.parametrize(("log", "quote"), QUOTED.items())
def test_log_of_a_trust_domain_replays_to_its_quote(shared_vectors: Path, log: str, quote: str) -> None:
    """Every RTMR of the quote is what the log gives; one without events is zeros."""
    found = parse_event_log((shared_vectors / "evidence" / log).read_bytes())
    rtmrs = parse_quote((shared_vectors / "evidence" / quote).read_bytes()).report.rtmrs
    assert found.confidential
    replayed = found.replay(SHA384)
    assert tuple(replayed.get(index + 1, bytes(48)) for index in range(4)) == rtmrs


@pytest.mark.shared_vectors
@pytest.mark.parametrize(("log", "events"), ALONE.items())
def test_log_without_a_quote_parses_and_replays_in_every_bank(shared_vectors: Path, log: str, events: int) -> None:
    """Each bank gives a value for each register that has events."""
    found = parse_event_log((shared_vectors / "evidence" / log).read_bytes())
    assert len(found.events) == events
    registers = [set(found.replay(bank)) for bank in found.algorithms]
    assert registers[0]
    assert all(each == registers[0] for each in registers)


@pytest.mark.shared_vectors
def test_log_of_a_cloud_machine_replays_to_its_published_firmware(shared_vectors: Path) -> None:
    """PCR 0 is the value that the cloud's verifier knows for this firmware."""
    found = parse_event_log((shared_vectors / "evidence/eventlogs/tpm-rhel8-uefi.bin").read_bytes())
    assert found.replay(SHA256)[0].hex() == GCE_FIRMWARE


def test_made_log_replays_to_the_registers_of_its_machine() -> None:
    """Two independent ways to the same values."""
    machine = TPMScenario()
    found = parse_event_log(machine.event_log())
    assert all(value == machine.pcrs()[index] for index, value in found.replay(SHA256).items())
    assert found.extended(4, SHA256) == tuple(machine.started)
    assert replay_extends(machine.started) == machine.pcrs()[4]


def test_startup_locality_is_where_pcr_0_begins() -> None:
    """PCR 0 of a machine with a hardware root of measurement begins at the locality, not at zeros."""
    note = event(0, bytes(32), kind=3, data=b"StartupLocality\0\x03", banks=BANKS)
    found = parse_event_log(log_head(BANKS) + note + event(0, b"a" * 32, banks=BANKS))
    plain = parse_event_log(log_head(BANKS) + event(0, b"a" * 32, banks=BANKS))
    assert found.replay(SHA256)[0] != plain.replay(SHA256)[0]


def test_startup_locality_that_comes_late_is_refused() -> None:
    """It could otherwise reset a register in the middle of the log."""
    note = event(0, bytes(32), kind=3, data=b"StartupLocality\0\x03", banks=BANKS)
    found = parse_event_log(log_head(BANKS) + event(0, b"a" * 32, banks=BANKS) + note)
    with pytest.raises(MalformedQuote) as caught:
        found.replay(SHA256)
    assert caught.value.check == "event log: startup locality"


def test_replay_in_a_bank_that_the_log_lacks_is_refused() -> None:
    """A log of SHA-256 says nothing of SHA-512."""
    with pytest.raises(MalformedQuote) as caught:
        parse_event_log(TPMScenario().event_log()).replay(SHA512)
    assert caught.value.check == "event log: banks"


def _one(index: int = 4, count: int = 2, first: int = SHA1, size: int = 0) -> bytes:
    digests = struct.pack("<H", first) + bytes(20) + struct.pack("<H", SHA256) + bytes(32)
    return struct.pack("<III", index, 1, count) + digests + struct.pack("<I", size)


HEAD = log_head(BANKS)
FAULTS = {
    "too-long": (bytes(MAX_LOG_BYTES + 1), "event log: size"),
    "empty": (b"", "event log: head"),
    "sha1-only": (struct.pack("<II20sI", 0, 8, bytes(20), 4) + bytes(4), "event log: head"),
    "head-with-digest": (HEAD[:8] + b"\x01" + HEAD[9:], "event log: head"),
    "head-index": (struct.pack("<I", 2) + HEAD[4:], "event log: head"),
    "no-banks": (log_head(()), "event log: banks"),
    "bank-twice": (log_head((SHA256, SHA256)), "event log: banks"),
    "bank-size": (HEAD.replace(struct.pack("<HH", SHA1, 20), struct.pack("<HH", SHA1, 21)), "event log: banks"),
    "vendor-info": (HEAD[:-1] + b"\x05", "event log: banks"),
    "cut": (HEAD + _one()[:-2], "event log: length"),
    "cut-data": (HEAD + _one(size=5) + b"1234", "event log: length"),
    "big-event": (HEAD + _one(size=MAX_EVENT_BYTES + 1), "event log: size of an event"),
    "no-such-pcr": (HEAD + _one(index=24), "event log: register of an event"),
    "ccel-register": (log_head(BANKS, 1) + _one(index=5), "event log: register of an event"),
    "too-few-digests": (HEAD + _one(count=1), "event log: digests of an event"),
    "foreign-bank": (HEAD + _one(first=0x99), "event log: digests of an event"),
    "digest-twice": (
        HEAD + struct.pack("<III", 1, 1, 2) + 2 * (struct.pack("<H", SHA1) + bytes(20)) + bytes(4),
        "event log: digests of an event",
    ),
    "ccel-end": (log_head(BANKS, 1) + b"\xff" * 9 + b"x", "event log: end"),
    "too-many": (
        log_head((SHA256,)) + (MAX_EVENTS + 1) * event(4, bytes(32), banks=(SHA256,)),
        "event log: number of events",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faulty_log_is_refused_by_its_own_check(name: str) -> None:
    """One fault, one check."""
    raw, check = FAULTS[name]
    with pytest.raises(MalformedQuote) as caught:
        parse_event_log(raw)
    assert caught.value.check == check
    assert caught.value.remedy
