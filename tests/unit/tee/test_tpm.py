"""The TPM's commands and both sources, against a real software TPM; and against answers that no TPM gives."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from adyton.attest.assess import assess
from adyton.attest.azure.evidence import AzureEvidence
from adyton.attest.collateral import NoCollateral
from adyton.attest.evidence import parse_evidence
from adyton.attest.evidence_policy import Policy
from adyton.attest.roots import TrustRoots
from adyton.attest.tpm.document import TPMQuote
from adyton.attest.tpm.structures import parse_attest
from adyton.attest.workload_register import events, workload_register
from adyton.errors import NoDevice, StorageFailed, Timeout, UsageError
from adyton.sim.platform import SimPlatform
from adyton.sim.software_tpm import SoftwareTPM
from adyton.tee.azure_guest import AK_HANDLE, HCL_REPORT_INDEX, AzureSource
from adyton.tee.source_choice import open_source
from adyton.tee.system import TPM_EVENT_LOG
from adyton.tee.tpm_device import OWNER, DeviceFile, TPMDevice
from adyton.tee.tpm_guest import (
    AK_CHAIN_INDEX,
    TPMSource,
    certify,
    extend_workload,
    read_event_log,
    split_chain,
    store_chain,
)
from adyton.values import Measurement
from tests.support.kernel_double import KernelDouble
from tests.support.software_tpm import needs_swtpm, running_swtpm, software_tpm
from tests.support.tpm_factory import LINUX, UKI, AzureScenario, TPMScenario

WORKLOAD = Measurement(hashlib.sha256(b"workload").digest())
NONCE = hashlib.sha512(b"nonce").digest()


class WithLog(KernelDouble):
    """A kernel that shows an event log."""

    def __init__(self, log: bytes) -> None:
        super().__init__()
        self.log = log

    def exists(self, path: str) -> bool:
        """The log, and no other file."""
        return path == TPM_EVENT_LOG

    def content_of(self, path: str) -> bytes:
        """The log."""
        return self.log


def test_event_log_that_cannot_be_read_is_named() -> None:
    """No such file, an empty one, or one that is too long."""
    for system, error in (
        (KernelDouble(), NoDevice),
        (WithLog(b""), NoDevice),
        (WithLog(bytes(300 << 10)), StorageFailed),
    ):
        with pytest.raises(error):
            read_event_log(system)


@pytest.fixture
def device() -> Iterator[TPMDevice]:
    """A fresh TPM."""
    with software_tpm() as found:
        yield found


@needs_swtpm
def test_pcr_is_extended_as_computed(device: TPMDevice) -> None:
    """PCR 15 begins with zeros and holds the hash over itself and the digest."""
    digest = hashlib.sha256(b"event").digest()
    assert device.read_pcrs()[15] == bytes(32)
    device.extend(15, digest)
    found = device.read_pcrs()
    assert found[15] == hashlib.sha256(bytes(32) + digest).digest()
    assert len(found) == 24


@needs_swtpm
def test_attestation_key_is_the_same_each_time(device: TPMDevice) -> None:
    """The TPM makes it from its seed. Both are flushed, or a TPM runs full."""
    numbers = set()
    for _ in range(5):
        key = device.create_primary()
        numbers.add(key.public.public_numbers())
        device.flush(key.handle)
    assert len(numbers) == 1


@needs_swtpm
def test_nv_memory_gives_back_what_was_written(device: TPMDevice) -> None:
    """More than one chunk; an index that does not exist is None; an index can be removed."""
    data = os.urandom(1700)
    assert device.nv_read(0x01800123) is None
    device.nv_define(0x01800123, len(data))
    device.nv_write(0x01800123, data)
    assert device.nv_read(0x01800123) == data
    device.nv_undefine(0x01800123)
    assert device.nv_public(0x01800123) is None


@needs_swtpm
def test_command_that_the_tpm_refuses_is_named(device: TPMDevice) -> None:
    """An index is defined twice."""
    device.nv_define(0x01800123, 8)
    with pytest.raises(NoDevice) as caught:
        device.nv_define(0x01800123, 8)
    assert caught.value.check == "result of TPM2_NV_DefineSpace"
    with pytest.raises(NoDevice):
        device.quote(0x80000000, NONCE)


@needs_swtpm
def test_workload_is_extended_exactly_once_in_a_boot(device: TPMDevice) -> None:
    """Two events; again: nothing; another workload: refused."""
    extend_workload(WORKLOAD, device)
    wanted = workload_register(WORKLOAD, bank="sha256")
    assert device.read_pcrs()[15] == wanted
    extend_workload(WORKLOAD, device)
    assert device.read_pcrs()[15] == wanted
    with pytest.raises(StorageFailed) as caught:
        extend_workload(Measurement(bytes(32)), device)
    assert caught.value.check == "PCR 15"
    assert device.read_pcrs()[15] == wanted


@needs_swtpm
def test_start_that_was_cut_off_between_the_events_is_completed(device: TPMDevice) -> None:
    """The first event alone is there."""
    device.extend(15, events(WORKLOAD, bank="sha256")[0])
    extend_workload(WORKLOAD, device)
    assert device.read_pcrs()[15] == workload_register(WORKLOAD, bank="sha256")


def boot(device: TPMDevice, machine: TPMScenario) -> None:
    """Extend what a firmware would."""
    device.extend(0, hashlib.sha256(b"firmware").digest())
    device.extend(0, hashlib.sha256(bytes(4)).digest())
    device.extend(2, hashlib.sha256(bytes(4)).digest())
    device.extend(7, hashlib.sha256(b"db").digest())
    for digest in machine.started:
        device.extend(4, digest)


@needs_swtpm
def test_quote_of_a_software_tpm_is_verified_and_accepted(tmp_path: Path, device: TPMDevice) -> None:
    """Certified by a simulated vendor, booted as approved, the workload in PCR 15, the nonce in the quote."""
    platform, machine = SimPlatform.create(tmp_path / "platform"), TPMScenario()
    boot(device, machine)
    certify(device, platform)
    source = TPMSource(device, WORKLOAD, simulated=True, system=WithLog(machine.event_log()))
    quote = parse_evidence(source.quote(NONCE))
    assert isinstance(quote, TPMQuote)
    policy = Policy.from_dict(
        {
            "tees": [f"sim-tpm:{platform.root_fingerprint}"],
            "workloads": [WORKLOAD.hex()],
            "boot_applications": [UKI.hex(), LINUX.hex()],
        }
    )
    roots, now = TrustRoots().with_sim(policy.sim_roots), datetime.now(UTC)
    found = assess(quote.with_event_log(source.event_log()), NoCollateral(), roots, policy, now, report_data=NONCE)
    assert [check.name for check in found.failed] == []
    assert (source.tee, "simulated" in source.notice) == ("sim-tpm", True)


@needs_swtpm
def test_simulated_source_finds_the_socket_of_its_platform(tmp_path: Path) -> None:
    """It has its key certified itself, where the vendor's part is there, and keeps the certificates in the TPM."""
    platform = SimPlatform.create(tmp_path / "p")
    with running_swtpm(tmp_path / "p" / "machine" / "tpm.sock"):
        source = open_source("sim-tpm", measurement=WORKLOAD, platform_dir=platform.directory)
        first = parse_evidence(source.quote(NONCE))
        assert isinstance(source, TPMSource)
        source.close()
    assert isinstance(first, TPMQuote)
    assert first.report_data == NONCE
    assert first.ak_certificates[-1] == platform.root_der


@needs_swtpm
def test_tpm_without_certificates_is_no_source(device: TPMDevice) -> None:
    """Nobody could verify its quotes."""
    with pytest.raises(NoDevice) as caught:
        TPMSource(device, None)
    assert caught.value.check == "certificates of the attestation key"
    store_chain(device, (b"\x30\x03\x02\x01\x01",))
    with pytest.raises(NoDevice):
        TPMSource(device, None)
    assert device.nv_read(AK_CHAIN_INDEX) == b"\x30\x03\x02\x01\x01"


@pytest.mark.parametrize("raw", [b"", b"\x02\1\1" * 2, b"\x30\x09\1", b"\x30\0" * 6, b"\x30\x84\xff\xff\xff\xff"])
def test_certificates_that_are_none_are_refused(raw: bytes) -> None:
    """What anybody could have written there."""
    with pytest.raises(NoDevice):
        split_chain(raw)


# --- Azure ---


class RSAKey:
    """Makes an RSA key in a software TPM as the paravisor's, and keeps it at the paravisor's handle."""

    @staticmethod
    def install(device: TPMDevice) -> rsa.RSAPublicKey:
        """Make it with raw commands that the product does not need. Returns the public key."""
        attributes = sum(1 << bit for bit in (1, 4, 5, 6, 10, 16, 18))
        public = struct.pack(">HHIH", 1, 0x0B, attributes, 0)
        public += struct.pack(">HHHHIH", 0x10, 0x14, 0x0B, 2048, 0, 0)
        body = struct.pack(">HHH", 4, 0, 0) + struct.pack(">H", len(public)) + public + struct.pack(">HI", 0, 0)
        handles, reader = device._command(0x131, body, handles=(OWNER,), answers=1)
        modulus = reader.sized(4096, "public area")[-256:]
        _, reader = device._command(0x120, struct.pack(">I", AK_HANDLE), handles=(OWNER, handles[0]), authorized=True)
        reader.finish()
        device.flush(handles[0])
        return rsa.RSAPublicNumbers(65537, int.from_bytes(modulus, "big")).public_key()


def azure(device: TPMDevice) -> AzureScenario:
    """Install a paravisor's key and report. Returns the scenario of the test AMD under it."""
    machine = AzureScenario(size=2048)  # swtpm allows no more in one index
    machine.tpm.ak_key = RSAKey.install(device)  # type: ignore[assignment]
    report = machine.hcl_report()
    device.nv_define(HCL_REPORT_INDEX, len(report))
    device.nv_write(HCL_REPORT_INDEX, report)
    return machine


def service(machine: AzureScenario) -> Callable[[str, str, bytes | None], bytes]:
    """Azure's service for certificates."""
    from adyton.attest.certificates import parse_certificate

    def ask(method: str, path: str, body: bytes | None) -> bytes:
        assert (method, path, body) == ("GET", "/metadata/THIM/amd/certification", None)
        return json.dumps({"vcekCert": parse_certificate(machine.snp.leaf(), "VCEK").pem, "tcbm": "x"}).encode()

    return ask


@needs_swtpm
def test_evidence_of_an_azure_double_is_verified_and_accepted(device: TPMDevice) -> None:
    """The paravisor's report in NV memory, its key at its handle, a real TPM's quote, and a test AMD's report."""
    machine = azure(device)
    boot(device, machine.tpm)
    source = AzureSource(device, WORKLOAD, tee="az-snp", ask=service(machine), system=WithLog(machine.tpm.event_log()))
    evidence = parse_evidence(source.quote(NONCE))
    assert isinstance(evidence, AzureEvidence)
    built = machine.snp.built()
    policy = Policy.from_dict(machine.policy(workloads=[WORKLOAD.hex()]))
    found = assess(
        evidence.with_event_log(source.event_log()),
        built.collateral,
        built.roots,
        policy,
        built.now,
        report_data=NONCE,
    )
    assert [check.name for check in found.failed] == []
    assert "Microsoft's paravisor" in source.notice


@needs_swtpm
def test_azure_source_refuses_what_is_not_there(device: TPMDevice) -> None:
    """No report; another TEE than the one named; a service that answers with something else."""
    with pytest.raises(NoDevice) as caught:
        AzureSource(device, None, tee="az-snp")
    assert caught.value.check == f"NV index {HCL_REPORT_INDEX:#x}"
    machine = azure(device)
    with pytest.raises(NoDevice) as caught:
        AzureSource(device, None, tee="az-tdx")
    assert caught.value.seen == "az-snp"
    for answer in (b"", b"[]", b'{"vcekCert": 1}', b'{"vcekCert": "x"}'):
        with pytest.raises(NoDevice):
            AzureSource(device, None, tee="az-snp", ask=lambda *_, answer=answer: answer).quote(NONCE)
    device.nv_write(HCL_REPORT_INDEX, b"XXXX")
    with pytest.raises(NoDevice):
        AzureSource(device, None, tee="az-snp", ask=service(machine))


# --- answers that no TPM gives ---


class Answers:
    """A TPM that answers with what it is told."""

    def __init__(self, *answers: bytes | OSError | Timeout) -> None:
        self.answers = list(answers)
        self.asked: list[bytes] = []

    def exchange(self, command: bytes, timeout_s: float) -> bytes:
        """The next answer; the last one again and again."""
        self.asked.append(command)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if not isinstance(answer, bytes):
            raise answer
        return answer

    def close(self) -> None:
        """Nothing."""


def response(body: bytes = b"", code: int = 0, tag: int = 0x8001) -> bytes:
    """A response with a right head."""
    return struct.pack(">HII", tag, 10 + len(body), code) + body


SELECTION = struct.pack(">IHB", 1, 0x0B, 3) + b"\xff\0\0"
WRONG = {
    "empty": (b"", "answer to TPM2_PCR_Read"),
    "size": (struct.pack(">HII", 0x8001, 99, 0), "answer to TPM2_PCR_Read"),
    "tag": (response(tag=0x8003), "answer to TPM2_PCR_Read"),
    "refused": (response(code=0x101), "result of TPM2_PCR_Read"),
    "cut": (response(b"\0\0"), "length of the answer of the TPM"),
    "bank": (response(bytes(4) + SELECTION.replace(b"\x0b", b"\x04") + bytes(4)), "answer to TPM2_PCR_Read"),
    "count": (response(bytes(4) + SELECTION + struct.pack(">I", 7)), "answer to TPM2_PCR_Read"),
    "digest": (
        response(bytes(4) + SELECTION + struct.pack(">I", 8) + 8 * (b"\0\x14" + bytes(20))),
        "answer to TPM2_PCR_Read",
    ),
    "rest": (
        response(bytes(4) + SELECTION + struct.pack(">I", 8) + 8 * (b"\0\x20" + bytes(32)) + b"\0"),
        "end of the answer of the TPM",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_answer_is_refused_by_its_own_check(name: str) -> None:
    """Never a PCR value that was not read whole."""
    raw, check = WRONG[name]
    with pytest.raises(NoDevice) as caught:
        TPMDevice(Answers(raw)).read_pcrs()
    assert caught.value.check == check
    assert caught.value.remedy


def test_busy_tpm_is_asked_again_until_the_time_is_over() -> None:
    """TPM_RC_RETRY, then an answer; or no end."""
    good = response()
    busy = Answers(response(code=0x922), response(code=0x90A), good)
    TPMDevice(busy, sleep=lambda _: None).flush(1)
    assert len(busy.asked) == 3
    now = iter(range(1000))
    with pytest.raises(Timeout):
        TPMDevice(Answers(response(code=0x922)), clock_s=lambda: next(now), sleep=lambda _: None).flush(1)


def test_late_answer_is_never_taken_for_another_commands() -> None:
    """After a time-out nothing more is sent: the next answer would be that of the command before."""
    device = TPMDevice(Answers(Timeout("late"), response()))
    for _ in range(2):
        with pytest.raises(Timeout):
            device.flush(1)


def test_connection_that_breaks_is_no_device() -> None:
    """An error of the operating system."""
    with pytest.raises(NoDevice) as caught:
        TPMDevice(Answers(OSError(errno.EIO, "broken"))).flush(1)
    assert caught.value.check == "connection to the TPM"


def test_arguments_beyond_their_limits_are_a_usage_error() -> None:
    """Nothing reaches the TPM."""
    device = TPMDevice(Answers(b""))
    for call in (
        lambda: device.extend(24, bytes(32)),
        lambda: device.extend(15, bytes(20)),
        lambda: device.quote(1, b""),
        lambda: device.quote(1, bytes(65)),
        lambda: device.nv_define(1, 0),
    ):
        with pytest.raises(UsageError):
            call()


def test_device_file_exchanges_whole_messages_and_times_out() -> None:
    """A socket pair stands for the device file."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.send(response())
        file = DeviceFile(os.dup(ours.fileno()))
        assert file.exchange(b"command", 5) == response()
        assert theirs.recv(100) == b"command"
        with pytest.raises(Timeout):
            file.exchange(b"command", 0.01)
        file.close()


def test_device_that_another_process_uses_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel says EBUSY while another process's command is under way. Another error, or no end of it, is told."""
    real, refusals = os.write, [errno.EBUSY] * 3

    def write(descriptor: int, data: bytes) -> int:
        if refusals:
            number = refusals.pop()
            raise OSError(number, os.strerror(number))
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.send(response())
        file = DeviceFile(os.dup(ours.fileno()))
        assert file.exchange(b"command", 5) == response()
        assert theirs.recv(100) == b"command"
        refusals += [errno.EBUSY] * 1000
        with pytest.raises(OSError, match="busy"):
            file.exchange(b"command", 0.02)
        refusals[:] = [errno.EIO]
        with pytest.raises(OSError, match="Input/output"):
            file.exchange(b"command", 5)
        file.close()


def test_device_that_is_not_there_says_so(tmp_path: Path) -> None:
    """Neither file nor socket."""
    with pytest.raises(NoDevice) as caught:
        DeviceFile.open(str(tmp_path / "none"))
    assert caught.value.check == "TPM"
    with pytest.raises(NoDevice) as caught:
        SoftwareTPM(tmp_path / "none")
    assert caught.value.check == "software TPM"


def test_tpm_that_signs_another_nonce_is_refused() -> None:
    """A broken TPM, or one between us and it."""
    from adyton.tee.tpm_guest import consistent_quote

    machine = TPMScenario()
    message = machine.attest().to_bytes()
    assert parse_attest(message).extra_data == machine.nonce

    class Fixed(TPMDevice):
        def read_pcrs(self, *, bank: str = "sha256") -> list[bytes]:
            return [bytes(32)] * 24

    device = Fixed(Answers(b""))
    with pytest.raises(NoDevice) as caught:
        consistent_quote(device, lambda: (message, machine.signature(message)), b"other")
    assert caught.value.check == "nonce of the quote"
    with pytest.raises(NoDevice) as caught:
        consistent_quote(device, lambda: (message, machine.signature(message)), machine.nonce)
    assert caught.value.check == "PCR digest of the quote"
