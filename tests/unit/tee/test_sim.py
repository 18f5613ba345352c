"""The simulated platform makes evidence and collateral that an independent verifier accepts."""

from __future__ import annotations

import hashlib
import json
import stat
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dcap_qvl
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from adyton.attest import dcap, sgx, tdx
from adyton.attest.devices import NO_DEVICES, Device, device_digest
from adyton.attest.report import carries_workload
from adyton.attest.roots import TrustRoots
from adyton.attest.status import TCBStatus
from adyton.attest.tdx import workload_rtmr3
from adyton.attest.workload_register import states
from adyton.errors import NoDevice, Revoked, StorageFailed, TargetExists, UsageError
from adyton.sim.chip import Facts, Shape
from adyton.sim.platform import Part, Revocable, SimPlatform
from adyton.sim.vendor import ORGANISATION, CAKind, Publication
from adyton.tee.source_choice import open_source
from adyton.values import Measurement

MEASUREMENT = Measurement(bytes(range(32)))
REPORT_DATA = bytes(range(64))
SHAPES: tuple[Shape, ...] = ("sgx", "tdx")
CAS: tuple[CAKind, ...] = ("platform", "processor")


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> SimPlatform:
    """A platform that no test changes."""
    return SimPlatform.create(tmp_path_factory.mktemp("sim") / "platform")


def verified(platform: SimPlatform, quote: bytes, shape: Shape, now: datetime | None = None) -> tuple[str, list[str]]:
    """Status and advisories according to dcap-qvl, an independent implementation."""
    moment = now or datetime.now(UTC)
    collateral = dcap_qvl.QuoteCollateralV3.from_json(json.dumps(platform.collateral_dict(moment, tee=shape)))
    report = dcap_qvl.verify_with_root_ca(quote, collateral, platform.root_der, int(moment.timestamp()))
    return report.status, list(report.advisory_ids)


@pytest.mark.parametrize("ca", CAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_quote_of_a_new_platform_is_up_to_date(tmp_path: Path, shape: Shape, ca: CAKind) -> None:
    """An independent verifier calls a new platform up to date, in both shapes and under both CAs."""
    platform = SimPlatform.create(tmp_path / "platform", ca=ca)
    quote = platform.enclave(measurement=MEASUREMENT, shape=shape).quote(REPORT_DATA)
    assert verified(platform, quote, shape) == ("UpToDate", [])


def test_sgx_quote_carries_what_was_asked_for(platform: SimPlatform) -> None:
    """Every field of the simulated enclave stands where the format has it."""
    enclave = platform.enclave(
        measurement=MEASUREMENT, mrsigner=b"s" * 32, isv_prod_id=7, isv_svn=9, debug=True, shape="sgx"
    )
    report = sgx.parse_quote(enclave.quote(REPORT_DATA)).report
    assert (report.mrenclave, report.mrsigner) == (MEASUREMENT.raw, b"s" * 32)
    assert (report.isv_prod_id, report.isv_svn, report.debug) == (7, 9, True)
    assert report.report_data == REPORT_DATA
    assert enclave.tee == "sim"


GPU = Device(ueid="7", driver="570.158.01", vbios="96.00.88.00.11")


def test_quote_names_its_workload_with_its_devices_only(platform: SimPlatform) -> None:
    """Without evidence of GPUs none is expected; with it exactly these. A register with the workload alone names none.

    So a host cannot hide a GPU that the guest found, and cannot add one.
    """

    def names(register: bytes, *devices: Device) -> bool:
        quote = tdx.parse_quote(platform.enclave(measurement=MEASUREMENT, shape="tdx").quote(REPORT_DATA))
        changed = replace(quote, report=quote.report.replace(rtmr3=register))
        return carries_workload(changed, MEASUREMENT, device_digest(devices))

    one = device_digest([GPU])
    assert names(workload_rtmr3(MEASUREMENT).raw)
    assert names(workload_rtmr3(MEASUREMENT, one).raw, GPU)
    assert not names(workload_rtmr3(MEASUREMENT, one).raw)
    assert not names(workload_rtmr3(MEASUREMENT).raw, GPU)
    assert not names(workload_rtmr3(MEASUREMENT, one).raw, replace(GPU, vbios="96.00.88.00.12"))
    for state in states(MEASUREMENT, bank="sha384")[:2]:
        assert not names(state)


def test_tdx_quote_extends_rtmr3_with_the_measurement(platform: SimPlatform) -> None:
    """In the TDX shape the workload measurement and the devices stand in RTMR3, and nowhere else."""
    enclave = platform.enclave(measurement=MEASUREMENT, shape="tdx")
    report = tdx.parse_quote(enclave.quote(REPORT_DATA)).report
    assert report.rtmrs[3] == workload_rtmr3(MEASUREMENT).raw
    once = hashlib.sha384(bytes(48) + hashlib.sha384(MEASUREMENT.raw).digest()).digest()
    assert report.rtmrs[3] == hashlib.sha384(once + hashlib.sha384(NO_DEVICES).digest()).digest()
    other = platform.enclave(measurement=Measurement(bytes(32)), shape="tdx").quote(REPORT_DATA)
    assert tdx.parse_quote(other).report.rtmrs[:3] == report.rtmrs[:3]
    assert tdx.parse_quote(other).report.rtmrs[3] != report.rtmrs[3]
    assert enclave.tee == "sim-tdx"


@pytest.mark.parametrize("shape", SHAPES)
def test_quote_parses_and_builds_back_to_the_same_bytes(platform: SimPlatform, shape: Shape) -> None:
    """The simulated quote is exactly the format that the parsers of real quotes read."""
    quote = platform.enclave(measurement=MEASUREMENT, shape=shape).quote(REPORT_DATA)
    parsed = sgx.parse_quote(quote) if shape == "sgx" else tdx.parse_quote(quote)
    assert parsed.to_bytes() == quote


@pytest.mark.parametrize("size", [0, 32, 63, 65])
def test_quote_with_report_data_of_wrong_size_is_refused(platform: SimPlatform, size: int) -> None:
    """Report data is never padded or cut."""
    with pytest.raises(UsageError, match="64 bytes"):
        platform.enclave(measurement=MEASUREMENT).quote(bytes(size))


@pytest.mark.parametrize("shape", SHAPES)
def test_raised_tcb_makes_the_platform_out_of_date(tmp_path: Path, shape: Shape) -> None:
    """Newer signed TCB info calls the same platform OutOfDate, under a higher evaluation data number."""
    platform = SimPlatform.create(tmp_path / "platform")
    before = platform.publication()
    after = platform.raise_tcb(advisories=("SIM-SA-00042",))
    assert after.evaluation_number == before.evaluation_number + 1
    quote = platform.enclave(measurement=MEASUREMENT, shape=shape).quote(REPORT_DATA)
    assert verified(platform, quote, shape) == ("OutOfDate", ["SIM-SA-00042"])


def test_every_name_says_that_it_is_simulated(platform: SimPlatform) -> None:
    """Names fit the pattern that verifiers require, and cannot be mistaken for Intel's."""
    chain = x509.load_pem_x509_certificates((platform.pck_chain + platform.signing_chain()).encode())
    names = [certificate.subject.rfc4514_string() for certificate in chain]
    for wanted in ("SGX PCK Certificate", "SGX PCK Platform CA", "SGX Root CA", "SGX TCB Signing"):
        assert any(wanted in name for name in names)
    assert all("Simulated" in name and ORGANISATION in name and "Intel" not in name for name in names)
    assert platform.fmspc.startswith(b"SIM")


def test_root_fingerprint_is_the_same_from_either_part(platform: SimPlatform) -> None:
    """Machine and vendor name the same root."""
    root = x509.load_pem_x509_certificates(platform.pck_chain.encode())[-1]
    assert platform.root_fingerprint.raw == root.fingerprint(hashes.SHA256())
    assert str(platform.root_fingerprint) in (platform.directory / "README").read_text()


def test_private_keys_are_private(platform: SimPlatform) -> None:
    """Every private key has mode 0600 and lies in a folder of mode 0700."""
    keys = list(platform.directory.rglob("*.key"))
    assert len(keys) == 7
    for key in keys:
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700


def test_private_key_readable_by_others_is_refused(tmp_path: Path) -> None:
    """A key that others can read is not used."""
    platform = SimPlatform.create(tmp_path / "platform")
    (platform.directory / "machine" / "qe.key").chmod(0o640)
    with pytest.raises(UsageError, match="open to others"):
        platform.enclave(measurement=MEASUREMENT)


def test_create_in_a_folder_with_content_is_refused(tmp_path: Path) -> None:
    """Nothing that exists is overwritten."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(TargetExists):
        SimPlatform.create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_load_where_no_platform_is_says_how_to_make_one(tmp_path: Path) -> None:
    """A missing platform is `NoDevice` with the command that makes one."""
    with pytest.raises(NoDevice) as caught:
        SimPlatform.load(tmp_path / "none")
    assert "adyton platform new" in str(caught.value.remedy)


def test_quote_needs_only_the_machine_and_collateral_only_the_vendor(tmp_path: Path) -> None:
    """The cloud can hold the machine without the vendor's keys, and the vendor's server no machine's keys."""
    platform = SimPlatform.create(tmp_path / "platform")
    vendor = tmp_path / "elsewhere"
    vendor.mkdir()
    (platform.directory / "vendor").rename(vendor / "vendor")
    quote = SimPlatform.load(platform.directory).enclave(measurement=MEASUREMENT).quote(REPORT_DATA)
    assert verified(SimPlatform.load(vendor), quote, "sgx") == ("UpToDate", [])


def test_documents_keep_their_issue_date_for_half_their_validity(platform: SimPlatform) -> None:
    """Everyone who asks within the same half month gets the same dates; later ones are never older."""
    start = datetime.fromtimestamp(platform.publication().published_at, UTC)

    def dates(moment: datetime) -> tuple[str, str]:
        info = json.loads(platform.tcb_info("sgx", moment))["tcbInfo"]
        return info["issueDate"], info["nextUpdate"]

    assert dates(start) == dates(start + timedelta(days=14, hours=23))
    later = start + timedelta(days=400)
    issue, next_update = (datetime.fromisoformat(text) for text in dates(later))
    assert issue <= later < next_update
    assert next_update - issue == timedelta(days=30)
    quote = platform.enclave(measurement=MEASUREMENT).quote(REPORT_DATA)
    assert verified(platform, quote, "sgx", later)[0] == "UpToDate"


def test_publication_survives_its_json(platform: SimPlatform) -> None:
    """A publication read back is the one that was written."""
    publication = platform.publication()
    assert Publication.from_dict(json.loads(json.dumps(publication.to_dict()))) == publication


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": 99}', '{"format": 1, "ca": "platform"}', "[" * 9999])
def test_damaged_machine_is_refused(tmp_path: Path, content: str) -> None:
    """A machine file of another version, or none at all, is refused by name."""
    platform = SimPlatform.create(tmp_path / "platform")
    (platform.directory / "machine" / "machine.json").write_text(content)
    with pytest.raises(UsageError, match="no simulated machine"):
        SimPlatform.load(platform.directory)


def test_loading_and_quoting_takes_under_20_ms(platform: SimPlatform) -> None:
    """Starting a protected program does not wait for its quote (best of five, since the machine may be busy)."""
    best = 1.0
    for _ in range(5):
        start = time.perf_counter()
        SimPlatform.load(platform.directory).enclave(measurement=MEASUREMENT).quote(REPORT_DATA)
        best = min(best, time.perf_counter() - start)
    assert best < 0.020


@pytest.mark.parametrize("tee", ["sim", "sim-tdx"])
def test_open_source_of_a_simulated_tee_says_so(platform: SimPlatform, tee: str) -> None:
    """A simulated source is opened by name only and carries its notice."""
    source = open_source(tee, measurement=MEASUREMENT, platform_dir=platform.directory)
    assert source.tee == tee
    assert source.notice is not None
    assert "simulated" in source.notice


def test_open_source_finds_the_platform_by_its_variable(platform: SimPlatform, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a folder the environment names the platform."""
    monkeypatch.setenv("ADYTON_SIM_PLATFORM", str(platform.directory))
    assert open_source("sim", measurement=MEASUREMENT).tee == "sim"


def test_open_source_of_an_unknown_tee_is_refused() -> None:
    """A misspelt TEE is refused, with the names there are."""
    with pytest.raises(UsageError, match="no TEE named") as caught:
        open_source("sgx2", measurement=MEASUREMENT)
    assert caught.value.expected is not None
    assert "sim-tdx" in caught.value.expected


def test_open_source_of_a_simulated_tee_without_measurement_is_refused() -> None:
    """A simulated TEE never invents what it runs."""
    with pytest.raises(UsageError, match="needs the workload measurement"):
        open_source("sim")


def judged(platform: SimPlatform, shape: Shape = "sgx") -> TCBStatus:
    """The status that Adyton's own verifier gives a quote of the platform now."""
    raw = platform.enclave(measurement=MEASUREMENT, shape=shape).quote(REPORT_DATA)
    quote = sgx.parse_quote(raw) if shape == "sgx" else tdx.parse_quote(raw)
    roots = TrustRoots().with_sim([platform.root_fingerprint])
    now = datetime.now(UTC)
    return dcap.verify(quote, platform.collateral(now, tee=shape), roots, now).status


@pytest.mark.parametrize(
    ("part", "shape", "lowered"),
    [
        ("platform", "sgx", "SWHardeningNeeded"),
        ("platform", "tdx", "ConfigurationNeeded"),
        ("platform", "sgx", "Revoked"),
        ("qe", "sgx", "OutOfDate"),
        ("qe", "sgx", "Revoked"),
        ("td-qe", "tdx", "OutOfDate"),
        ("module", "tdx", "OutOfDate"),
        ("module", "tdx", "Revoked"),
    ],
)
def test_raised_part_gives_the_status_until_the_upgrade(tmp_path: Path, part: Part, shape: Shape, lowered: str) -> None:
    """Each part's newer levels show in the verdict, and new firmware makes the machine up to date again."""
    platform = SimPlatform.create(tmp_path / "platform")
    old_quote = platform.enclave(measurement=MEASUREMENT, shape=shape).quote(REPORT_DATA)
    platform.raise_tcb(part=part, status=lowered)
    assert judged(platform, shape) == lowered
    platform.upgrade()
    assert judged(platform, shape) is TCBStatus.UP_TO_DATE
    assert verified(platform, platform.enclave(measurement=MEASUREMENT, shape=shape).quote(REPORT_DATA), shape) == (
        "UpToDate",
        [],
    )
    collateral = platform.collateral(tee=shape)
    quote = sgx.parse_quote(old_quote) if shape == "sgx" else tdx.parse_quote(old_quote)
    roots = TrustRoots().with_sim([platform.root_fingerprint])
    assert dcap.verify(quote, collateral, roots, datetime.now(UTC)).status == lowered


@pytest.mark.parametrize(("part", "status"), [("platform", "Fine"), ("qe", "SWHardeningNeeded"), ("module", "")])
def test_raised_part_with_an_unknown_status_is_refused(tmp_path: Path, part: Part, status: str) -> None:
    """Only statuses that the formats know are published."""
    platform = SimPlatform.create(tmp_path / "platform")
    with pytest.raises(UsageError, match="has the status"):
        platform.raise_tcb(part=part, status=status)
    assert platform.publication().evaluation_number == 1


@pytest.mark.parametrize("what", ["pck", "ca", "signer"])
@pytest.mark.parametrize("ca", CAS)
def test_revoked_certificate_refuses_the_quote(tmp_path: Path, what: Revocable, ca: CAKind) -> None:
    """After each revocation the same quote is refused as revoked, by Adyton and by dcap-qvl."""
    platform = SimPlatform.create(tmp_path / "platform", ca=ca)
    before = platform.publication()
    assert judged(platform) is TCBStatus.UP_TO_DATE
    after = platform.revoke(what)
    assert after.crl_number > before.crl_number
    with pytest.raises(Revoked):
        judged(platform)
    quote = platform.enclave(measurement=MEASUREMENT).quote(REPORT_DATA)
    with pytest.raises(Exception, match=r"(?i)revoked"):
        verified(platform, quote, "sgx")


def test_upgraded_machine_escapes_a_revoked_pck_certificate(tmp_path: Path) -> None:
    """New firmware comes with a new PCK key and certificate, which nobody has revoked."""
    platform = SimPlatform.create(tmp_path / "platform")
    platform.revoke("pck")
    platform.upgrade()
    assert judged(platform) is TCBStatus.UP_TO_DATE


def test_platform_without_chain_names_itself_by_its_encrypted_ppid(tmp_path: Path) -> None:
    """Certification data of type 3 carries the PPID that only the vendor can decrypt."""
    platform = SimPlatform.create(tmp_path / "platform", carries_chain=False)
    quote = sgx.parse_quote(platform.enclave(measurement=MEASUREMENT).quote(REPORT_DATA))
    assert (quote.signature.certification_type, len(quote.signature.certification_data)) == (3, 404)
    ppid = platform.decrypt_ppid(quote.signature.certification_data[:384])
    assert ppid is not None
    assert ppid == platform.machine.ppid
    assert platform.decrypt_ppid(bytes(384)) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ca", "root"),
        ("fmspc", "00"),
        ("components", [1] * 15),
        ("components", [256] * 16),
        ("components", [True] * 16),
        ("pcesvn", -1),
        ("pcesvn", "13"),
        ("tee_tcb_svn", "zz"),
        ("pck_chain", 5),
        ("qes", {}),
        ("encrypted_ppid", "00"),
        ("format", 2),
    ],
)
def test_machine_with_a_wrong_fact_is_refused(tmp_path: Path, name: str, value: object) -> None:
    """Every fact of a machine has its type and size, or the machine is refused whole."""
    platform = SimPlatform.create(tmp_path / "platform")
    path = platform.directory / "machine" / "machine.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(UsageError, match="no simulated machine"):
        SimPlatform.load(platform.directory)


def test_machine_survives_its_json(platform: SimPlatform) -> None:
    """A machine read back is the one that was written."""
    assert Facts.from_dict(json.loads(json.dumps(platform.machine.to_dict()))) == platform.machine


@pytest.mark.parametrize("content", [b"", b"nonsense", b"x" * (2 << 20)])
def test_key_file_that_is_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    """A damaged or oversized key file is refused by name, and its content is not shown."""
    platform = SimPlatform.create(tmp_path / "platform")
    path = platform.directory / "machine" / "qe.key"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"qe\.key"):
        platform.enclave(measurement=MEASUREMENT)


def test_platform_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    """A folder that cannot be made is named, and nothing is left behind."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises((StorageFailed, TargetExists)):
        SimPlatform.create(tmp_path / "file" / "platform")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_making_that_fails_midway_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk while a platform is made: no half platform under its name, nor beside it."""

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("adyton.atomic_file.os.fsync", full)
    with pytest.raises(StorageFailed, match="No space left"):
        SimPlatform.create(tmp_path / "platform")
    assert list(tmp_path.iterdir()) == []


def test_publishing_without_the_vendor_is_no_device(tmp_path: Path) -> None:
    """A machine alone cannot publish."""
    platform = SimPlatform.create(tmp_path / "platform")
    (platform.directory / "vendor").rename(tmp_path / "vendor")
    with pytest.raises(NoDevice, match="no vendor's part"):
        platform.raise_tcb()
