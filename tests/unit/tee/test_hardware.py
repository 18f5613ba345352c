"""Sources of evidence on real machines, against a double of the kernel's and Gramine's behaviour."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from adyton.attest import sgx, snp, tdx
from adyton.attest.devices import NO_DEVICES, Device, device_digest
from adyton.attest.tdx import workload_rtmr3
from adyton.attest.workload_register import events
from adyton.errors import Error, NoDevice, StorageFailed, Timeout, UsageError
from adyton.sim.platform import SimPlatform
from adyton.tee.configfs_tsm import ConfigfsTSM
from adyton.tee.gramine_device import GramineSource
from adyton.tee.hardware import open_hardware
from adyton.tee.sev_guest import SEVGuestDevice, SNPSource
from adyton.tee.source import QuoteSource
from adyton.tee.source_choice import open_source
from adyton.tee.system import KERNEL, System, read_all, write_once
from adyton.tee.tdx_guest import TDXSource, extend_workload
from adyton.values import Measurement
from tests.support.kernel_double import TSM, Gramine, Instance, KernelDouble, SEVGuest, TDXGuest, fail

REPORT_DATA = bytes(range(64))
OTHER_DATA = bytes(64)
WORKLOAD = Measurement(bytes(32))


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> SimPlatform:
    """Where the doubles have well-formed quotes from."""
    return SimPlatform.create(tmp_path_factory.mktemp("hardware") / "platform")


@pytest.fixture
def sgx_quote(platform: SimPlatform) -> Callable[[bytes], bytes]:
    """Makes SGX quotes."""
    return platform.enclave(measurement=WORKLOAD).quote


@pytest.fixture
def tdx_quote(platform: SimPlatform) -> Callable[[bytes, int], bytes]:
    """Makes TDX quotes."""
    source = platform.enclave(measurement=WORKLOAD, shape="tdx")
    return lambda inblob, _level: source.quote(inblob)


def snp_report(report_data: bytes, level: int) -> bytes:
    """A report of the right form (unsigned) over this data for this VMPL."""
    raw = bytearray(1184)
    raw[0:4] = (2).to_bytes(4, "little")
    raw[8:16] = (1 << 17).to_bytes(8, "little")
    raw[0x30:0x34] = level.to_bytes(4, "little")
    raw[0x34:0x38] = (1).to_bytes(4, "little")
    raw[0x50:0x90] = report_data
    return bytes(raw)


# --- configfs-tsm -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read_bytes", [1, 7, 4096])
def test_tsm_report_is_read_whole_in_any_pieces(read_bytes: int) -> None:
    """However little a read gives at a time, the whole report arrives, and the instance is removed."""
    system = TSM("tdx_guest", lambda inblob, _level: inblob * 40, read_bytes=read_bytes)
    system.auxblob = b"certificates" * 9
    report = ConfigfsTSM(system).report(REPORT_DATA, provider="tdx_guest")
    assert (report.outblob, report.auxblob) == (REPORT_DATA * 40, b"certificates" * 9)
    assert system.instances == {}
    assert system.opened == {}


def test_tsm_report_uses_an_instance_of_its_own() -> None:
    """Two reports never share an instance, so nobody writes to ours ([ABI]: an instance per requesting context)."""
    system = TSM("tdx_guest")
    tsm = ConfigfsTSM(system)
    for _ in range(2):
        tsm.report(REPORT_DATA, provider="tdx_guest")
    made = [call for call in system.calls if call.startswith("mkdir")]
    assert len(set(made)) == 2
    assert [call.replace("mkdir", "rmdir") for call in made] == [c for c in system.calls if c.startswith("rmdir")]


def test_tsm_write_that_was_lost_at_close_is_noticed() -> None:
    """A write dropped with EBUSY at close shows only in the generation; it is written again."""
    system = TSM("tdx_guest")
    system.drop_writes = 3
    assert ConfigfsTSM(system).report(REPORT_DATA, provider="tdx_guest").outblob == REPORT_DATA


def test_tsm_whose_writes_are_always_lost_is_given_up() -> None:
    """Without any write that counts there is a refusal, not a report over something else."""
    system = TSM("tdx_guest")
    system.drop_writes = 100
    with pytest.raises(StorageFailed, match="somebody else"):
        ConfigfsTSM(system).report(REPORT_DATA, provider="tdx_guest")
    assert system.instances == {}


def overwrite(instance: Instance) -> None:
    """Somebody else writes other report data to the instance."""
    instance.inblob = OTHER_DATA
    instance.write_generation += 1


@pytest.mark.parametrize("when", ["other_writers", "after_report"])
def test_tsm_write_by_somebody_else_is_noticed(when: str) -> None:
    """A foreign write between ours and the end of the read makes another attempt, never a foreign report."""
    system = TSM("tdx_guest")
    getattr(system, when).extend([overwrite, overwrite])
    assert ConfigfsTSM(system).report(REPORT_DATA, provider="tdx_guest").outblob == REPORT_DATA


def test_tsm_with_a_persistent_other_writer_is_given_up() -> None:
    """Somebody who always writes in between is named as the reason."""
    system = TSM("tdx_guest")
    system.after_report.extend([overwrite] * 100)
    with pytest.raises(StorageFailed, match="somebody else writes"):
        ConfigfsTSM(system).report(REPORT_DATA, provider="tdx_guest")


def test_tsm_generation_wraps_around() -> None:
    """The generation is an unsigned long: the largest is followed by zero."""
    system = TSM("tdx_guest")
    system.first_generation = (1 << 64) - 1
    assert ConfigfsTSM(system).report(REPORT_DATA, provider="tdx_guest").outblob == REPORT_DATA


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EAGAIN, errno.EINTR])
def test_tsm_that_is_busy_is_asked_again(number: int) -> None:
    """EBUSY while an earlier quote is with the host ([tdx-guest.c]) and interruptions are waited out."""
    system = TSM("tdx_guest")
    system.report_errors = [number] * 5
    assert ConfigfsTSM(system).report(REPORT_DATA, provider="tdx_guest").outblob == REPORT_DATA
    assert len(system.slept) == 5
    assert system.slept == sorted(system.slept)


def test_tsm_that_stays_busy_is_a_timeout() -> None:
    """Busy for ever ends after the time for a report, with what to do."""
    system = TSM("tdx_guest")
    system.report_errors = [errno.EBUSY] * 10_000
    with pytest.raises(Timeout, match="stayed busy"):
        ConfigfsTSM(system).report(REPORT_DATA, provider="tdx_guest")
    assert system.now < 200
    assert system.instances == {}


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ETIMEDOUT, Timeout),
        (errno.EIO, StorageFailed),
        (errno.EINVAL, StorageFailed),
        (errno.ENXIO, NoDevice),
        (errno.ENOTTY, NoDevice),
    ],
)
def test_tsm_error_of_the_provider_is_told(number: int, kind: type[Error]) -> None:
    """Whatever the provider fails with is one class of refusal; nothing is left behind."""
    system = TSM("tdx_guest")
    system.report_errors = [number]
    with pytest.raises(kind):
        ConfigfsTSM(system).report(REPORT_DATA, provider="tdx_guest")
    assert system.instances == {}
    assert system.opened == {}


def test_tsm_short_write_is_refused() -> None:
    """A write that takes 20 of 64 bytes is never completed by a second one."""
    system = TSM("tdx_guest", write_bytes=20)
    with pytest.raises(StorageFailed, match="took 20 of 64"):
        ConfigfsTSM(system).report(REPORT_DATA, provider="tdx_guest")
    assert system.instances == {}


@pytest.mark.parametrize("size", [0, 32, 63, 65])
def test_tsm_report_over_another_length_is_refused(size: int) -> None:
    """Report data of another length reaches no device."""
    system = TSM("tdx_guest")
    with pytest.raises(UsageError):
        ConfigfsTSM(system).report(bytes(size), provider="tdx_guest")
    assert system.calls == []


def test_tsm_report_larger_than_any_is_refused() -> None:
    """Nothing is read without end."""
    system = TSM("tdx_guest", lambda inblob, _level: inblob * 1025)
    with pytest.raises(StorageFailed, match="more than"):
        ConfigfsTSM(system).report(REPORT_DATA, provider="tdx_guest")


@pytest.mark.parametrize(
    ("system", "words", "remedy"),
    [
        (TSM(None), "no provider", "modprobe"),
        (KernelDouble(), "no such folder", "CONFIG_TSM_REPORTS"),
        (TSM("sev_guest"), "sev_guest", "adyton doctor"),
    ],
    ids=["no-provider", "no-configfs", "other-provider"],
)
def test_tsm_that_is_not_there_says_what_is_missing(system: System, words: str, remedy: str) -> None:
    """No provider ([tsm.c]: ENXIO), no configfs, or another TEE: each named with what to do."""
    with pytest.raises(NoDevice, match=words) as caught:
        ConfigfsTSM(system).report(REPORT_DATA, provider="tdx_guest")
    assert remedy in str(caught.value.remedy)


@pytest.mark.parametrize("level", [0, 3])
def test_tsm_privilege_level_counts_as_a_write(level: int) -> None:
    """A privilege level is written first and moves the generation as well."""
    system = TSM("sev_guest", snp_report)
    report = ConfigfsTSM(system).report(REPORT_DATA, provider="sev_guest", privilege_level=level)
    assert snp.parse_report(report.outblob).number("vmpl") == level


def test_tsm_privilege_level_below_the_floor_is_refused() -> None:
    """The kernel's EINVAL for a level that this guest may not use is told ([tsm.c]: privlevel_floor)."""
    system = TSM("sev_guest", snp_report)
    system.privlevel_floor = 2
    with pytest.raises(StorageFailed):
        ConfigfsTSM(system).report(REPORT_DATA, provider="sev_guest", privilege_level=1)


def test_tsm_without_auxblob_gives_none() -> None:
    """Where the provider has no auxblob there is nothing to read, and that is no error ([ABI]: depends on the TSM)."""
    system = TSM("tdx_guest")
    system.has_auxblob = False
    assert ConfigfsTSM(system).report(REPORT_DATA, provider="tdx_guest").auxblob == b""


@pytest.mark.parametrize(("number", "words"), [(errno.EACCES, "run as root"), (errno.ENOSPC, "dmesg")])
def test_tsm_instance_that_cannot_be_made_says_why(monkeypatch: pytest.MonkeyPatch, number: int, words: str) -> None:
    """No permission, or anything else: named, with what to do."""
    system = TSM("tdx_guest")

    def refuse(_path: str) -> None:
        raise fail(number)

    monkeypatch.setattr(system, "mkdir", refuse)
    with pytest.raises(NoDevice) as caught:
        ConfigfsTSM(system).report(REPORT_DATA, provider="tdx_guest")
    assert words in str(caught.value.remedy)


def test_tsm_privilege_level_that_is_busy_is_written_again() -> None:
    """EBUSY for a text attribute is told at once ([tsm.c]), and the attempt is made again."""
    system = TSM("sev_guest", snp_report)
    original, failures = system.take, [errno.EBUSY, errno.EBUSY]

    def take(path: str, data: bytes) -> None:
        if path.endswith("/privlevel") and failures:
            raise fail(failures.pop())
        original(path, data)

    system.take = take  # type: ignore[method-assign]
    report = ConfigfsTSM(system).report(REPORT_DATA, provider="sev_guest", privilege_level=1)
    assert snp.parse_report(report.outblob).number("vmpl") == 1
    assert failures == []


@pytest.mark.parametrize("text", ["", "many\n", "-1\n"])
def test_tsm_generation_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A generation that does not parse is never taken for zero."""
    system = TSM("tdx_guest")
    original = system.content_of
    monkeypatch.setattr(
        system, "content_of", lambda path: text.encode() if path.endswith("generation") else original(path)
    )
    with pytest.raises(StorageFailed, match="generation"):
        ConfigfsTSM(system).report(REPORT_DATA, provider="tdx_guest")


# --- TDX --------------------------------------------------------------------------------------------------------------


def test_tdx_source_extends_rtmr3_once_and_quotes(tdx_quote: Callable[[bytes, int], bytes]) -> None:
    """Workload and devices go into RTMR3 once per boot, in this order; a second start of the workload adds nothing."""
    system = TDXGuest(tdx_quote)
    for _ in range(3):
        source = TDXSource(WORKLOAD, system)
        assert system.rtmr3 == workload_rtmr3(WORKLOAD).raw
        assert system.extended == list(events(WORKLOAD, bank="sha384"))
    assert tdx.parse_quote(source.quote(REPORT_DATA)).report_data == REPORT_DATA
    assert source.tee == "tdx"
    assert "never on TDX hardware" in source.notice


def test_tdx_register_with_something_else_is_refused() -> None:
    """A trust domain that ran something else before cannot pass for this workload."""
    system = TDXGuest()
    extend_workload(Measurement(b"\1" * 32), system)
    before = system.rtmr3
    with pytest.raises(StorageFailed, match="something else") as caught:
        extend_workload(WORKLOAD, system)
    assert "boot the trust domain" in str(caught.value.remedy)
    assert system.rtmr3 == before


def test_tdx_start_that_was_cut_off_between_the_two_events_is_completed() -> None:
    """The second event is added, the first is not repeated."""
    system = TDXGuest()
    write_once(system, TDXGuest.RTMR3, events(WORKLOAD, bank="sha384")[0])
    extend_workload(WORKLOAD, system)
    assert system.rtmr3 == workload_rtmr3(WORKLOAD).raw
    assert system.extended == list(events(WORKLOAD, bank="sha384"))


@pytest.mark.parametrize("devices", [NO_DEVICES, device_digest([Device(ueid="7", driver="570", vbios="96")])])
def test_tdx_register_of_another_set_of_devices_is_refused(devices: bytes) -> None:
    """After a boot with a GPU none can be dropped, and after one without none can be added."""
    other = device_digest([Device(ueid="8", driver="570", vbios="96")])
    system = TDXGuest()
    extend_workload(WORKLOAD, system, devices=other)
    before = system.rtmr3
    with pytest.raises(StorageFailed, match="something else"):
        extend_workload(WORKLOAD, system, devices=devices)
    assert system.rtmr3 == before == workload_rtmr3(WORKLOAD, other).raw


def test_tdx_register_with_a_third_event_is_refused() -> None:
    """Exactly two events: whatever came after them makes it another boot."""
    system = TDXGuest()
    extend_workload(WORKLOAD, system)
    write_once(system, TDXGuest.RTMR3, bytes(48))
    with pytest.raises(StorageFailed, match="something else"):
        extend_workload(WORKLOAD, system)


def test_tdx_without_registers_in_sysfs_is_refused() -> None:
    """An older kernel cannot extend RTMR3, and the refusal names the one that can."""
    system = TDXGuest()
    system.rtmr3 = None
    with pytest.raises(NoDevice) as caught:
        TDXSource(WORKLOAD, system)
    assert "6.16" in str(caught.value.remedy)


def test_tdx_quote_over_other_report_data_is_refused(platform: SimPlatform) -> None:
    """A quote that comes back over other data than was asked for is never handed on."""
    other = platform.enclave(measurement=WORKLOAD, shape="tdx").quote(OTHER_DATA)
    with pytest.raises(StorageFailed, match="other report data"):
        TDXSource(None, TDXGuest(lambda _inblob, _level: other)).quote(REPORT_DATA)


# --- SEV-SNP ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("configfs", [True, False])
@pytest.mark.parametrize("certificates", [b"", b"table" * 100])
def test_snp_source_uses_configfs_or_the_device(configfs: bool, certificates: bytes) -> None:
    """Where the kernel has no configfs-tsm the ioctl serves; both give report and certificates."""
    source = SNPSource(SEVGuest(snp_report, configfs=configfs, certificates=certificates), vmpl=2)
    made = source.chip_report(REPORT_DATA)
    assert made.certificates == certificates
    report = snp.parse_report(source.quote(REPORT_DATA))
    assert (report.report_data, report.number("vmpl")) == (REPORT_DATA, 2)
    assert source.tee == "snp"
    assert "never on SEV-SNP hardware" in source.notice


def test_snp_certificates_that_need_more_room_are_asked_for_again() -> None:
    """Too little room is EIO with the length needed ([sev]); the second request has it."""
    table = b"c" * 40_000
    made = SEVGuestDevice(SEVGuest(snp_report, configfs=False, certificates=table)).extended_report(REPORT_DATA)
    assert made.certificates == table


def test_snp_certificates_without_end_are_refused() -> None:
    """A host that wants ever more room is not followed."""
    system = SEVGuest(snp_report, configfs=False, certificates=b"c" * (2 << 20))
    with pytest.raises(StorageFailed, match="do not fit"):
        SEVGuestDevice(system).extended_report(REPORT_DATA)


def test_snp_plain_report_needs_no_certificates() -> None:
    """SNP_GET_REPORT gives the report alone."""
    raw = SEVGuestDevice(SEVGuest(snp_report)).report(REPORT_DATA, vmpl=1)
    assert snp.parse_report(raw).number("vmpl") == 1


@pytest.mark.parametrize(("status", "words"), [(0x16, "invalid parameters"), (0x27, "no key"), (5, "refused")])
def test_snp_firmware_that_refuses_is_told(status: int, words: str) -> None:
    """A status other than 0 in the response is a refusal of the firmware."""
    system = SEVGuest(snp_report)
    system.status = status
    with pytest.raises(StorageFailed, match=words):
        SEVGuestDevice(system).report(REPORT_DATA)


def test_snp_report_of_another_size_is_refused() -> None:
    """Only reports of 1184 bytes are taken."""
    system = SEVGuest(snp_report)
    system.size = 1000
    with pytest.raises(StorageFailed, match="1000 bytes"):
        SEVGuestDevice(system).report(REPORT_DATA)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        ((errno.EIO, 0x17, 0), StorageFailed, "firmware error 0x17"),
        ((errno.ETIMEDOUT, 0, 2), Timeout, "throttles"),
        ((errno.ENOTTY, 0, 0), StorageFailed, "boot the guest"),
        ((errno.EACCES, 0, 0), NoDevice, "as root"),
    ],
)
def test_snp_device_error_is_told(error: tuple[int, int, int], kind: type[Error], words: str) -> None:
    """Each error of the ioctl becomes one refusal with what to do; the device is closed."""
    system = SEVGuest(snp_report)
    system.error = error
    with pytest.raises(kind) as caught:
        SEVGuestDevice(system).report(REPORT_DATA)
    assert words in f"{caught.value.message} {caught.value.remedy}"
    assert system.opened == {}


@pytest.mark.parametrize("level", [-1, 4])
def test_snp_report_for_another_vmpl_is_refused(level: int) -> None:
    """There are four VMPLs."""
    with pytest.raises(UsageError):
        SEVGuestDevice(SEVGuest(snp_report)).report(REPORT_DATA, vmpl=level)


def test_snp_without_any_device_names_both() -> None:
    """Neither interface: the refusal names both."""
    with pytest.raises(NoDevice, match="tsm") as caught:
        SNPSource(KernelDouble()).quote(REPORT_DATA)
    assert "/dev/sev-guest" in caught.value.message


def test_snp_report_over_other_report_data_is_refused() -> None:
    """A report over other data than was asked for is never handed on."""
    system = SEVGuest(lambda _data, level: snp_report(OTHER_DATA, level))
    with pytest.raises(StorageFailed, match="other report data"):
        SNPSource(system).quote(REPORT_DATA)


# --- Gramine ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read_bytes", [1, 100, 8192])
def test_gramine_quote_is_over_what_was_written(sgx_quote: Callable[[bytes], bytes], read_bytes: int) -> None:
    """One write of 64 bytes, then the quote, read whole."""
    source = GramineSource(Gramine(b"dcap", sgx_quote, read_bytes=read_bytes))
    assert sgx.parse_quote(source.quote(REPORT_DATA)).report_data == REPORT_DATA
    assert source.tee == "sgx"
    assert "never on SGX hardware" in source.notice


@pytest.mark.parametrize("kind", [b"none", b"epid", b""])
def test_gramine_without_dcap_is_refused(sgx_quote: Callable[[bytes], bytes], kind: bytes) -> None:
    """Other attestation types are named, with the manifest line that changes it."""
    with pytest.raises(NoDevice, match="no DCAP attestation"):
        GramineSource(Gramine(kind, sgx_quote))


def test_gramine_that_is_not_there_says_so() -> None:
    """Outside Gramine there is no /dev/attestation."""
    with pytest.raises(NoDevice, match="does not run inside Gramine"):
        GramineSource(KernelDouble())


def test_gramine_short_write_is_refused(sgx_quote: Callable[[bytes], bytes]) -> None:
    """A short write would be filled up with zeros, so it is refused."""
    with pytest.raises(StorageFailed, match="took 20 of 64"):
        GramineSource(Gramine(b"dcap", sgx_quote, write_bytes=20)).quote(REPORT_DATA)


def test_gramine_quote_torn_by_another_writer_is_refused(sgx_quote: Callable[[bytes], bytes]) -> None:
    """Report data that somebody else wrote between write and open is noticed in the quote."""
    system = Gramine(b"dcap", sgx_quote)

    def intrude() -> None:
        system.user_report_data = OTHER_DATA

    system.before_quote.append(intrude)
    source = GramineSource(system)
    with pytest.raises(StorageFailed, match="other report data"):
        source.quote(REPORT_DATA)
    assert sgx.parse_quote(source.quote(REPORT_DATA)).report_data == REPORT_DATA


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOENT, NoDevice), (errno.EACCES, StorageFailed)])
def test_gramine_that_makes_no_quote_is_told(
    sgx_quote: Callable[[bytes], bytes], number: int, kind: type[Error]
) -> None:
    """A quote that cannot be made is told with what to look at."""
    system = Gramine(b"dcap", sgx_quote)
    system.quote_error = number
    with pytest.raises(kind):
        GramineSource(system).quote(REPORT_DATA)


# --- the choice, and the real system calls ----------------------------------------------------------------------------


def test_open_hardware_opens_the_source_of_the_name(
    sgx_quote: Callable[[bytes], bytes], tdx_quote: Callable[[bytes, int], bytes]
) -> None:
    """Each name opens its own source, and every one says that it has never run on hardware."""
    sources: list[QuoteSource] = [
        open_hardware("sgx", None, Gramine(b"dcap", sgx_quote)),
        open_hardware("tdx", WORKLOAD, TDXGuest(tdx_quote)),
        open_hardware("snp", WORKLOAD, SEVGuest(snp_report)),
    ]
    assert [source.tee for source in sources] == ["sgx", "tdx", "snp"]
    assert all("never on" in str(source.notice) for source in sources)
    with pytest.raises(UsageError):
        open_hardware("sim", None, KernelDouble())


@pytest.mark.skipif(Path("/dev/attestation/attestation_type").exists(), reason="this is Gramine")
def test_open_source_of_sgx_outside_gramine_is_no_device() -> None:
    """On this machine there is no enclave, and `sgx` never falls back to a simulation."""
    with pytest.raises(NoDevice):
        open_source("sgx", measurement=WORKLOAD)


def test_kernel_reads_writes_and_makes_folders(tmp_path: Path) -> None:
    """The real system calls do what the double's do, on ordinary files."""
    folder, file = tmp_path / "instance", tmp_path / "instance" / "file"
    KERNEL.mkdir(str(folder))
    file.touch()
    write_once(KERNEL, str(file), b"x" * 9000)
    assert read_all(KERNEL, str(file), 9000) == b"x" * 9000
    with pytest.raises(StorageFailed):
        read_all(KERNEL, str(file), 8999)
    file.unlink()
    KERNEL.rmdir(str(folder))
    assert not folder.exists()
    before = KERNEL.monotonic()
    KERNEL.sleep(0.001)
    assert KERNEL.monotonic() > before


def test_kernel_ioctl_reaches_the_driver(tmp_path: Path) -> None:
    """An ioctl that a file does not know is the driver's ENOTTY."""
    file = tmp_path / "file"
    file.touch()
    descriptor = KERNEL.open(str(file), 0)
    try:
        with pytest.raises(OSError, match="Inappropriate ioctl") as caught:
            KERNEL.ioctl(descriptor, 0xC4405401, bytearray(1088))
        assert caught.value.errno == errno.ENOTTY
    finally:
        KERNEL.close(descriptor)


def test_double_extends_as_tdx_does() -> None:
    """The double's register follows RTMR = SHA-384(RTMR, digest)."""
    system = TDXGuest()
    digest = hashlib.sha384(b"event").digest()
    write_once(system, TDXGuest.RTMR3, digest)
    assert system.rtmr3 == hashlib.sha384(bytes(48) + digest).digest()
