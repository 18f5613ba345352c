"""`adyton doctor` says what is there and what is missing, for people and for programs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adyton.cli import doctor
from adyton.errors import SandboxFailed
from adyton.tee.machine import Machine
from adyton.values import Finding
from adyton.vfs.owner import Owner
from adyton.workflow import doctor as workflow_doctor
from adyton.workflow import doctor_host


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this user's shows up."""
    monkeypatch.setenv("ADYTON_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ADYTON_SIM_PLATFORM", str(tmp_path / "sim"))


def only(monkeypatch: pytest.MonkeyPatch, *findings: Finding) -> None:
    """The doctor finds just these."""
    monkeypatch.setattr(workflow_doctor, "collect", lambda _machine: list(findings))


GOOD = (
    Finding("sgx", "processor", "missing", "no sgx", "use another machine"),
    Finding("sim", "platform", "ok", "there"),
    Finding("host", "FUSE device", "ok", "/dev/fuse"),
)


def test_doctor_on_this_machine_says_something_about_every_tee() -> None:
    """Every check runs here, none breaks, and the JSON has every group."""
    result = CliRunner().invoke(doctor.app, ["--json"])
    document = json.loads(result.stdout)
    assert result.exit_code == (0 if document["ready"] else doctor.NOT_READY)
    assert {row["group"] for row in document["findings"]} >= {"sgx", "tdx", "snp", "sim", "host", "owner"}
    assert "sim" in document["tees"]
    assert [row for row in document["findings"] if "could not be looked at" in row["seen"]] == []
    assert all(row["remedy"] for row in document["findings"] if row["state"] in ("missing", "warning"))


def test_doctor_names_remedies_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text form has each finding with its remedy, and a verdict."""
    only(monkeypatch, *GOOD)
    result = CliRunner().invoke(doctor.app, [])
    assert result.exit_code == 0
    assert "-> use another machine" in result.stdout
    assert "sim protects nothing" in result.stdout


@pytest.mark.parametrize(("tee", "code"), [("sim", 0), ("sim-tdx", 0), ("sgx", doctor.NOT_READY)])
def test_doctor_for_a_tee_fails_unless_it_can_be_used(monkeypatch: pytest.MonkeyPatch, tee: str, code: int) -> None:
    """`--for` turns the answer into an exit code."""
    only(monkeypatch, *GOOD)
    assert CliRunner().invoke(doctor.app, ["--for", tee]).exit_code == code


def test_doctor_with_something_missing_on_the_host_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without FUSE nothing runs, whatever the TEE."""
    only(monkeypatch, *GOOD, Finding("host", "FUSE device", "missing", "absent", "modprobe fuse"))
    result = CliRunner().invoke(doctor.app, [])
    assert result.exit_code == doctor.NOT_READY
    assert "cannot run here" in result.stdout


def test_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """One check that raises does not hide the others."""
    monkeypatch.setattr(workflow_doctor, "CHECKS", ("no.such.module:check", "adyton.workflow.doctor_host:kernel"))
    found = workflow_doctor.collect(Machine())
    assert (found[0].state, found[1].name) == ("warning", "kernel")
    assert "ModuleNotFoundError" in found[0].seen


def fake_bwrap(folder: Path, status: int, words: str) -> Machine:
    """A machine whose bwrap ends like this."""
    program = folder / "bwrap"
    program.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo "bubblewrap 9" && exit 0\necho "{words}" >&2\nexit {status}\n'
    )
    program.chmod(0o755)
    return Machine(folder, str(folder))


@pytest.fixture
def own_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial runs as this user, who may read the test's folder."""
    monkeypatch.setattr("adyton.runtime.unprivileged.owner", Owner.caller)


@pytest.mark.usefixtures("own_user")
def test_sandbox_that_cannot_start_is_missing_with_its_reason(tmp_path: Path) -> None:
    """User namespaces are tried, and what bubblewrap says is shown."""
    findings = list(doctor_host.sandbox(fake_bwrap(tmp_path, 1, "No permissions to create new namespace")))
    assert [row.state for row in findings] == ["ok", "missing"]
    assert "No permissions" in findings[1].seen
    assert "user namespaces" in str(findings[1].remedy)


@pytest.mark.usefixtures("own_user")
def test_apparmor_that_keeps_namespaces_from_programs_is_named(tmp_path: Path) -> None:
    """Ubuntu's switch, where the trial fails; not where a profile lets it pass."""
    switch = tmp_path / "proc/sys/kernel/apparmor_restrict_unprivileged_userns"
    switch.parent.mkdir(parents=True)
    switch.write_text("1\n")
    findings = list(doctor_host.sandbox(fake_bwrap(tmp_path, 1, "setting up uid map: Permission denied")))
    assert "AppArmor" in str(findings[1].remedy)
    switch.write_text("0\n")
    findings = list(doctor_host.sandbox(fake_bwrap(tmp_path, 1, "setting up uid map: Permission denied")))
    assert "AppArmor" not in str(findings[1].remedy)


@pytest.mark.usefixtures("own_user")
def test_sandbox_whose_keeper_gets_no_view_of_its_own_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bubblewrap may have a profile that lets it, and Python none."""

    def refuse() -> str:
        raise SandboxFailed("no private namespace could be made: Permission denied")

    monkeypatch.setattr("adyton.runtime.namespace.enter", refuse)
    findings = list(doctor_host.sandbox(fake_bwrap(tmp_path, 0, "")))
    assert (findings[1].state, "no private namespace" in findings[1].seen) == ("missing", True)


@pytest.mark.usefixtures("own_user")
def test_sandbox_that_starts_is_ok(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial that ends with 0 is enough, and a private view."""
    monkeypatch.setattr("adyton.runtime.namespace.enter", str)
    assert [row.state for row in doctor_host.sandbox(fake_bwrap(tmp_path, 0, ""))] == ["ok", "ok"]


def test_sandbox_without_bubblewrap_is_missing(tmp_path: Path) -> None:
    """No bwrap: the package that has it is named."""
    findings = list(doctor_host.sandbox(Machine(tmp_path, str(tmp_path))))
    assert [(row.name, row.state) for row in findings] == [("bubblewrap", "missing")]
    assert "apt-get install bubblewrap" in str(findings[0].remedy)


@pytest.mark.usefixtures("own_user")
def test_sandbox_trial_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bwrap that never ends is a finding."""

    def hang(*_args: object, **_options: object) -> object:
        raise subprocess.TimeoutExpired("bwrap", 1)

    machine = fake_bwrap(tmp_path, 0, "")
    monkeypatch.setattr(subprocess, "run", hang)
    assert [row.state for row in doctor_host.sandbox(machine)] == ["missing"]


def test_fuse_without_device_and_helper_is_missing(tmp_path: Path) -> None:
    """Device and helper are looked for by themselves."""
    states = {row.name: row.state for row in doctor_host.fuse(Machine(tmp_path, str(tmp_path)))}
    assert (states["FUSE device"], states["fusermount3"]) == ("missing", "missing")


@pytest.mark.parametrize(
    ("table", "state"),
    [
        ("Filename Type Size Used Priority\n", "ok"),
        ("Filename Type Size Used Priority\n/swapfile file 1024 0 -2\n", "warning"),
    ],
)
def test_swap_in_clear_is_a_warning(tmp_path: Path, table: str, state: str) -> None:
    """A swap file writes plaintext to the disk."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "swaps").write_text(table)
    assert [row.state for row in doctor_host.swap(Machine(tmp_path))] == [state]


@pytest.mark.parametrize(
    ("now", "synchronised", "state"),
    [(1_000_000_000.0, True, "warning"), (1.9e9, True, "ok"), (1.9e9, False, "warning")],
)
def test_clock_in_the_past_or_free_running_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, now: float, synchronised: bool, state: str
) -> None:
    """A clock before Adyton's time, or one that nobody keeps, is told."""
    monkeypatch.setattr("adyton.workflow.doctor_host.time.time", lambda: now)
    monkeypatch.setattr(doctor_host, "_synchronised", lambda: synchronised)
    assert [row.state for row in doctor_host.clock(Machine())] == [state]


def test_clock_state_comes_from_the_kernel() -> None:
    """adjtimex(2) answers, whatever the answer."""
    assert doctor_host._synchronised() in (True, False)


@pytest.mark.parametrize(("kilobytes", "state"), [(8_000_000, "ok"), (100_000, "warning")])
def test_little_memory_is_a_warning(tmp_path: Path, kilobytes: int, state: str) -> None:
    """Staged files live in memory."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable:   {kilobytes} kB\n")
    assert [row.state for row in doctor_host.memory(Machine(tmp_path))] == [state]


def test_core_files_piped_to_a_handler_are_told(tmp_path: Path) -> None:
    """A core handler is named."""
    folder = tmp_path / "proc" / "sys" / "kernel"
    folder.mkdir(parents=True)
    (folder / "core_pattern").write_text("|/usr/lib/systemd/systemd-coredump %P\n")
    findings = list(doctor_host.kernel(Machine(tmp_path)))
    assert "systemd-coredump" in findings[1].seen


IN_A_GUEST = "vendor_id : AuthenticAMD\nflags : fpu hypervisor\n"


@pytest.mark.parametrize(
    ("cpuinfo", "files", "state", "words"),
    [
        ("flags : fpu\n", {}, "ok", "no virtual machine"),
        (IN_A_GUEST, {"bus/platform/drivers/vmgenid/VMGENCTR:00": ""}, "ok", "VMGENCTR:00"),
        (IN_A_GUEST, {"bus/acpi/drivers/vmgenid/QEMUVGID:00": ""}, "ok", "QEMUVGID:00"),
        (IN_A_GUEST, {"bus/platform/drivers/vmgenid/bind": ""}, "note", "hypervisor would not tell"),
        (IN_A_GUEST, {"bus/acpi/devices/QEMUVGID:00/modalias": "acpi:QEMUVGID:VM_GEN_COUNTER:"}, "warning", "repeat"),
        (IN_A_GUEST, {"bus/acpi/devices/PNP0303:00/modalias": "acpi:PNP0303:"}, "note", "hypervisor would not tell"),
        (IN_A_GUEST, {}, "note", "hypervisor would not tell"),
    ],
)
def test_clones_are_noticed_where_the_driver_has_its_device(
    tmp_path: Path, cpuinfo: str, files: dict[str, str], state: str, words: str
) -> None:
    """By the kernels before and after 6.10; a driver without a device, or a device without a driver, is not enough."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text(cpuinfo)
    for name, content in files.items():
        (tmp_path / "sys" / name).parent.mkdir(parents=True)
        (tmp_path / "sys" / name).write_text(content)
    (found,) = doctor_host.clones(Machine(tmp_path))
    assert found.state == state
    assert words in found.seen
    assert (found.remedy is None) == (state == "ok")
    assert ("modprobe" in (found.remedy or "")) == (state == "warning")
