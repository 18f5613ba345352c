"""Which TEE a machine has: every step that is missing is named, on made-up machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from adyton.tee.machine import AMAZON, AZURE_TAG, Machine, tee_findings, usable_tees

READY = {
    "sgx": (
        "/dev/sgx_enclave",
        "/dev/sgx_provision",
        "/usr/bin/gramine-sgx",
        "/var/run/aesmd/aesm.socket",
    ),
    "tdx": (
        "/dev/tdx_guest",
        "/sys/kernel/config/tsm/report/.keep",
        "/sys/devices/virtual/misc/tdx_guest/measurements/rtmr3:sha384",
    ),
    "snp": ("/dev/sev-guest", "/sys/kernel/config/tsm/report/.keep"),
    "tpm": ("/dev/tpmrm0", "/sys/kernel/security/tpm0/binary_bios_measurements"),
}


@pytest.fixture(autouse=True)
def no_platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No simulated platform of this user's shows up."""
    monkeypatch.setenv("ADYTON_SIM_PLATFORM", str(tmp_path / "sim"))


def machine(folder: Path, files: tuple[str, ...], *, flags: str = "fpu", kernel: str = "6.18.1") -> Machine:
    """A machine that has these files."""
    for name in files:
        path = folder / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o755)
    for name, text in (
        ("proc/cpuinfo", f"processor : 0\nvendor_id\t: GenuineIntel\nflags\t\t: {flags}\n"),
        ("proc/sys/kernel/osrelease", f"{kernel}\n"),
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Machine(folder, str(folder / "usr" / "bin"))


def test_bare_machine_has_only_the_simulation(tmp_path: Path) -> None:
    """Without any TEE, `sim` is what can be used, and it says what it protects."""
    findings = tee_findings(machine(tmp_path, ()))
    assert usable_tees(findings) == ("sim",)
    assert any("nothing" in row.seen for row in findings if row.group == "sim")


@pytest.mark.parametrize(("vendor", "tee"), [("GenuineIntel", "az-tdx"), ("AuthenticAMD", "az-snp")])
def test_machine_of_azure_is_named(tmp_path: Path, vendor: str, tee: str) -> None:
    """By its chassis, the TPM and the processor's maker; without the TPM the step is missing."""
    tag = tmp_path / "sys/class/dmi/id/chassis_asset_tag"
    tag.parent.mkdir(parents=True)
    tag.write_text(f"{AZURE_TAG}\n")
    here = machine(tmp_path, READY["tpm"])
    (tmp_path / "proc/cpuinfo").write_text(f"vendor_id\t: {vendor}\nflags\t\t: fpu\n")
    assert usable_tees(tee_findings(here)) == ("tpm", tee, "sim")
    (tmp_path / "dev/tpmrm0").unlink()
    assert usable_tees(tee_findings(here)) == ("sim",)


def test_instance_of_amazon_is_named(tmp_path: Path) -> None:
    """By the maker of the machine, and its TPM. Another maker's TPM is no NitroTPM."""
    vendor = tmp_path / "sys/class/dmi/id/sys_vendor"
    vendor.parent.mkdir(parents=True)
    vendor.write_text(f"{AMAZON}\n")
    here = machine(tmp_path, READY["tpm"])
    assert usable_tees(tee_findings(here)) == ("tpm", "nitrotpm", "sim")
    (tmp_path / "dev/tpmrm0").unlink()
    assert usable_tees(tee_findings(here)) == ("sim",)
    vendor.write_text("QEMU\n")
    assert not [row for row in tee_findings(here) if row.group == "nitrotpm"]


@pytest.mark.parametrize("tee", ["sgx", "tdx", "snp", "tpm"])
def test_machine_with_every_step_can_use_the_tee(tmp_path: Path, tee: str) -> None:
    """With every step there the TEE is usable, with the note that it has never run on hardware."""
    findings = tee_findings(machine(tmp_path, READY[tee], flags="sgx sgx_lc" if tee == "sgx" else "fpu"))
    assert usable_tees(findings) == (tee, "sim")
    assert any("never run on hardware" in row.seen for row in findings if row.group == tee)


@pytest.mark.parametrize(("tee", "lost"), [(tee, name) for tee, names in READY.items() for name in names])
def test_each_missing_step_is_named_with_its_remedy(tmp_path: Path, tee: str, lost: str) -> None:
    """Taking one thing away makes the TEE unusable (or leaves a way round), and says how to get it."""
    rest = tuple(name for name in READY[tee] if name != lost)
    findings = tee_findings(machine(tmp_path, rest, flags="sgx sgx_lc" if tee == "sgx" else "tdx_guest"))
    missing = [row for row in findings if row.group == tee and row.state == "missing"]
    if lost == "/dev/tdx_guest":
        assert missing == []
    elif tee == "snp" and lost.startswith("/sys"):
        assert missing == []
        assert any("serves instead" in row.seen for row in findings)
    else:
        assert len(missing) == 1
        assert missing[0].remedy
        assert tee not in usable_tees(findings)


@pytest.mark.parametrize("flags", ["sgx", "fpu sgx_lc", ""])
def test_processor_without_launch_control_is_named(tmp_path: Path, flags: str) -> None:
    """SGX without flexible launch control is not enough."""
    findings = tee_findings(machine(tmp_path, READY["sgx"], flags=flags))
    assert [row.name for row in findings if row.group == "sgx" and row.state == "missing"] == [
        "processor with SGX and flexible launch control"
    ]


@pytest.mark.parametrize(("kernel", "words"), [("6.1.0-44-amd64", "6.7 or newer"), ("6.12.3", "modprobe")])
def test_configfs_remedy_depends_on_the_kernel(tmp_path: Path, kernel: str, words: str) -> None:
    """An old kernel is to be replaced, a new one only lacks a module."""
    findings = tee_findings(machine(tmp_path, ("/dev/tdx_guest",), kernel=kernel))
    row = next(row for row in findings if row.group == "tdx" and "configfs" in row.name)
    assert words in str(row.remedy)


def test_machine_without_proc_is_no_crash(tmp_path: Path) -> None:
    """Nothing readable at all: everything is missing, nothing raises."""
    assert usable_tees(tee_findings(Machine(tmp_path / "nowhere", ""))) == ("sim",)
