"""The owner's verbs from `init` to `restore`, as they are typed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from adyton.attest.guest import MUST_COVER
from adyton.cli import main as command_line
from adyton.collateral.store import CollateralStore
from adyton.keystore.approval import Approval
from adyton.keystore.home import Home
from adyton.keystore.tables import approvals as approvals_module
from adyton.manifest import sigstruct
from adyton.manifest.measure import combine
from adyton.manifest.signed import read_signed
from adyton.runtime import identity
from adyton.sim.chip import simulated_guest
from adyton.sim.platform import SimPlatform
from adyton.values import Digest
from tests.support.image_factory import image_document
from tests.support.owner_world import RUNTIME_PARTS, now, signer_pem

ROOT = "sim:" + "0" * 64
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a verb in a home of its own: exit status, standard output, standard error."""
    monkeypatch.setenv("ADYTON_HOME", str(tmp_path / "owner"))
    monkeypatch.chdir(tmp_path)
    runtime = identity.RuntimeIdentity(combine(RUNTIME_PARTS), RUNTIME_PARTS)
    monkeypatch.setattr(identity, "runtime_identity", lambda: runtime)
    monkeypatch.setattr(sigstruct, "generate_signer", signer_pem)

    def call(*args: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            command_line.main([str(arg) for arg in args])
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    return call


@pytest.fixture
def owner(run: Run, tmp_path: Path) -> tuple[Run, SimPlatform]:
    """An owner with a key, a built program, and a platform whose collateral she has."""
    assert run("init", "--name", "alice")[0] == 0
    assert run("key", "new", "weights")[0] == 0
    (tmp_path / "classify.py").write_text("print('a cat')\n")
    (tmp_path / "app.manifest.template").write_text(
        'libos.entrypoint = "/usr/bin/python3"\nloader.argv = ["python3", "classify.py"]\n'
        'fs.mounts = [{ type = "encrypted", path = "/in", uri = "file:in", key_name = "weights" }]\n'
        'sgx.trusted_files = ["file:classify.py"]\n[adyton.owners.alice]\nca_file = "file:owner/ca.crt"\n'
    )
    status, _, error = run("build", "app.manifest.template", "--no-cache")
    assert status == 0, error
    platform = SimPlatform.create(tmp_path / "platform")
    CollateralStore(tmp_path / "owner" / "collateral").import_bundle(
        platform.collateral(now()).to_json().encode(), now()
    )
    return run, platform


def tee_of(platform: SimPlatform) -> str:
    """The platform as `--tee` names it."""
    return f"sim:{platform.root_fingerprint}"


def document(text: str) -> dict[str, Any]:
    """A JSON document that a verb printed."""
    found: dict[str, Any] = json.loads(text)
    return found


def test_init_twice_is_refused(run: Run) -> None:
    """An identity is never overwritten."""
    status, out, _ = run("init", "--name", "alice", "--json")
    assert status == 0
    assert Path(document(out)["ca"]).exists()
    status, _, error = run("init", "--name", "alice")
    assert status == 2
    assert "already" in error


def test_key_new_list_export_rotate(run: Run, tmp_path: Path) -> None:
    """A key is made, listed without its value, exported to a private file, and rotated."""
    run("init")
    assert run("key", "new", "weights")[0] == 0
    assert run("key", "new", "weights")[0] == 2
    assert run("key", "export", "weights", "-o", "k1")[0] == 0
    assert (tmp_path / "k1").stat().st_mode & 0o777 == 0o600
    assert len((tmp_path / "k1").read_bytes()) == 16
    assert run("key", "export", "weights", "-o", "k1")[0] == 114
    status, out, _ = run("key", "rotate", "weights")
    assert status == 0
    assert "approvals of weights stay" in out
    assert "--key weights@1 --new-key weights" in out
    assert run("key", "export", "weights", "-o", "k2")[0] == 0
    assert (tmp_path / "k1").read_bytes() != (tmp_path / "k2").read_bytes()
    assert run("key", "export", "weights", "--version", 1, "-o", "k3")[0] == 0
    assert (tmp_path / "k1").read_bytes() == (tmp_path / "k3").read_bytes()
    status, out, _ = run("key", "list", "--json")
    assert status == 0
    assert document(out)["keys"][0]["version"] == 2
    for name in ("k1", "k2"):
        assert (tmp_path / name).read_bytes().hex() not in out
    assert run("key", "rotate-store", "--master")[0] == 0
    assert run("key", "export", "weights", "-o", "k4")[0] == 0
    assert (tmp_path / "k4").read_bytes() == (tmp_path / "k2").read_bytes()
    assert run("key", "export", "nosuch", "-o", "k5")[0] == 102
    status, _, error = run("key", "export", "weights", "--version", 3, "-o", "k5")
    assert status == 102
    assert "1 to 2" in error


def test_files_of_an_earlier_version_are_opened_and_never_sealed_under_it(run: Run, tmp_path: Path) -> None:
    """NAME@N opens files; what is sealed gets the newest version."""
    run("init")
    run("key", "new", "weights")
    (tmp_path / "plain").write_bytes(b"numbers")
    assert run("encrypt", "plain", "-o", "sealed", "--key", "weights")[0] == 0
    run("key", "rotate", "weights")
    assert run("decrypt", "sealed", "-o", "p1", "--key", "weights")[0] == 83
    assert run("decrypt", "sealed", "-o", "p1", "--key", "weights@1")[0] == 0
    assert (tmp_path / "p1").read_bytes() == b"numbers"
    assert run("rekey", "sealed", "--key", "weights@1", "--new-key", "weights")[0] == 0
    assert run("decrypt", "sealed", "-o", "p2", "--key", "weights")[0] == 0
    assert run("inspect", "sealed", "--verify", "--key", "weights@2")[0] == 0
    assert run("encrypt", "plain", "-o", "again", "--key", "weights@1")[0] == 2
    assert run("rekey", "sealed", "--key", "weights", "--new-key", "weights@1")[0] == 2
    assert run("decrypt", "sealed", "-o", "p3", "--key", "weights@3")[0] == 102
    for wrong in ("weights@0", "weights@", "weights@1@1", "weights@x"):
        assert run("decrypt", "sealed", "-o", "p3", "--key", wrong)[0] == 102


def test_key_import_and_secret(run: Run, tmp_path: Path) -> None:
    """A key can be brought along; a secret is any small file; both must be private."""
    run("init")
    (tmp_path / "raw").write_bytes(b"k" * 16)
    assert run("key", "new", "brought", "--from", "raw")[0] == 105
    (tmp_path / "raw").chmod(0o600)
    assert run("key", "new", "brought", "--from", "raw")[0] == 0
    assert run("key", "new", "token", "--secret", "raw")[0] == 0
    assert run("key", "new", "both", "--secret", "raw", "--from", "raw")[0] == 2
    assert run("key", "new", "text", "--secret", "raw", "--nul")[0] == 0
    assert run("key", "new", "another", "--nul")[0] == 2
    for name, stored in (("token", b"k" * 16), ("text", b"k" * 16 + b"\0")):
        assert run("key", "export", name, "-o", f"{name}.out")[0] == 0
        assert (tmp_path / f"{name}.out").read_bytes() == stored


def test_approve_shows_what_is_not_covered_and_revoke_takes_it_back(owner: tuple[Run, SimPlatform]) -> None:
    """The measurement that `build` printed is approved, with what it does not cover beside it."""
    run, platform = owner
    status, out, error = run("approve", "app.manifest", "--key", "weights", "--tee", tee_of(platform))
    assert status == 0, error
    signed = read_signed(Path("app.manifest"), combine(RUNTIME_PARTS))
    assert str(signed.measurement) in out
    assert "does not cover" in out
    assert "the clock" in out
    assert "protects nothing" in error
    status, out, _ = run("policy", "show", "--json")
    (approval,) = document(out)["approvals"]
    assert (approval["state"], approval["version"]) == ("approved", "v1")
    assert run("policy", "set", approval["id"], "max_runs=5")[0] == 0
    assert run("policy", "set", approval["id"], "nosuch=5")[0] == 2
    assert run("revoke", approval["id"])[0] == 0
    assert "revision 3: revoked" in run("policy", "show", "--history")[1]
    assert run("revoke")[0] == 2


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--key", "nosuch", "--tee", ROOT], 102),
        (["--key", "weights", "--tee", "sim"], 2),
        (["--key", "weights", "--tee", "tdx"], 2),
        (["--key", "weights", "--tee", ROOT, "--tcb", "Revoked"], 2),
        (["--key", "weights", "--tee", ROOT, "--expires", "soon"], 2),
        (["--key", "weights", "--tee", ROOT, "--expires", "2099-01-31T12:00:00"], 2),
        (["--key", "weights", "--tee", ROOT, "--advisory", "INTEL-SA-00615=2099-01-31T12:00:00"], 2),
    ],
)
def test_approve_what_cannot_be_meant_is_refused(owner: tuple[Run, SimPlatform], words: list[str], status: int) -> None:
    """A wrong name or a platform that says nothing is refused at once, and nothing is stored."""
    run, _ = owner
    assert run("approve", "app.manifest", *words)[0] == status
    assert document(run("policy", "show", "--json")[1])["approvals"] == []


REGISTERS = ("--rtmr0", "a1" * 48, "--rtmr1", "b2" * 48, "--rtmr2", "c3" * 48)
MRTD = ("--guest", "d4" * 48)


@pytest.mark.parametrize(
    ("tee", "words", "seen"),
    [
        ("tdx", (), "none"),
        ("tdx", MRTD, "the firmware only"),
        ("tdx", (*MRTD, *REGISTERS[:2]), "--guest, --rtmr0"),
        ("tdx", (*MRTD, *REGISTERS[2:]), "--guest, --rtmr1, --rtmr2"),
        ("tdx", REGISTERS, "--rtmr0, --rtmr1, --rtmr2"),
        ("tdx", (*MRTD, *MRTD, *REGISTERS), "--guest, --guest"),
        ("snp", (), "none"),
        ("snp", MRTD, "a launch digest of the firmware"),
        ("snp", (*MRTD, *REGISTERS), "a launch digest of the firmware"),
        (ROOT.replace("sim", "sim-tdx"), MRTD, "the firmware only"),
    ],
)
def test_approve_guest_that_is_not_pinned_whole_is_refused(
    owner: tuple[Run, SimPlatform], tee: str, words: tuple[str, ...], seen: str
) -> None:
    """Under one firmware a host boots any kernel: check, expected, seen and remedy say so, and nothing is stored."""
    run, _ = owner
    status, _, error = run("approve", "app.manifest", "--key", "weights", "--tee", tee, *words)
    assert status == 2
    shown = " ".join(error.split())
    for part in ("guest image", seen, "--guest-image image.json"):
        assert part in shown
    assert document(run("policy", "show", "--json")[1])["approvals"] == []


def test_approve_guest_that_is_pinned_whole(owner: tuple[Run, SimPlatform]) -> None:
    """All four registers of a TDX guest; a simulated domain boots the simulated guest; an enclave has none."""
    run, platform = owner
    status, out, error = run("approve", "app.manifest", "--key", "weights", "--tee", "tdx", *MRTD, *REGISTERS)
    assert status == 0, error
    assert "MRTD d4d4" in out
    sim_tdx = tee_of(platform).replace("sim:", "sim-tdx:")
    assert run("approve", "app.manifest", "--key", "weights", "--tee", sim_tdx)[0] == 0
    assert run("approve", "app.manifest", "--key", "weights", "--tee", tee_of(platform), *MRTD)[0] == 2
    found = document(run("policy", "show", "--json")[1])["approvals"]
    images = {item["tees"][0]: item["guest_images"] for item in found}
    assert images["tdx"] == [
        {"tee": "tdx", "mrtd": "d4" * 48, "rtmr0": "a1" * 48, "rtmr1": "b2" * 48, "rtmr2": "c3" * 48}
    ]
    assert images[sim_tdx] == [simulated_guest().to_dict()]
    assert all(item["gaps"] == [] for item in found)


def image_of(folder: Path, **changes: Any) -> Path:
    """An image.json whose Adyton is another one than that of this machine."""
    path = folder / "image.json"
    path.write_text(json.dumps({**image_document(), **changes}))
    return path


def without_tables() -> list[dict[str, Any]]:
    """The entries for TDX, without what the host's ACPI tables give."""
    return [{name: value for name, value in entry.items() if name != "acpi"} for entry in image_document()["tdx"]]


def started(boot: str) -> list[dict[str, Any]]:
    """The entries for TDX, started so."""
    return [{**entry, "boot": boot} for entry in without_tables()]


def covering(*parts: str) -> list[dict[str, Any]]:
    """The entries for SEV-SNP, with a launch digest that covers these parts only."""
    return [{**entry, "covers": list(parts)} for entry in image_document()["snp"]]


def test_guest_image_is_built_for_and_approved_on_any_machine(owner: tuple[Run, SimPlatform], tmp_path: Path) -> None:
    """The measurement is that under the Adyton in the image, and the guest is the one of its entry."""
    run, _ = owner
    image, here = image_of(tmp_path), read_signed(Path("app.manifest"), combine(RUNTIME_PARTS)).measurement
    approve = ("approve", "app.manifest", "--key", "weights", "--tee", "tdx", "--guest-image", image)
    status, _, error = run(*approve)
    assert (status, "adyton build --runtime image.json" in " ".join(error.split())) == (73, True)
    status, out, error = run("build", "app.manifest.template", "--no-cache", "--runtime", image)
    assert status == 0, error
    identity_of_image = image_document()["runtime"]["identity"]
    assert f"runtime      {identity_of_image}" in out
    measurement = read_signed(Path("app.manifest"), Digest.from_hex(identity_of_image)).measurement
    assert measurement != here
    status, out, error = run(*approve)
    assert status == 0, error
    assert str(measurement) in out
    (made,) = document(run("policy", "show", "--json")[1])["approvals"]
    entry = image_document()["tdx"][0]
    assert made["guest_images"] == [
        {"tee": "tdx", "mrtd": entry["mrtd"], "rtmr0": entry["acpi"]["rtmr0"]}
        | {name: entry[name] for name in ("rtmr1", "rtmr2")}
    ]
    assert (made["measurement"], made["gaps"]) == (str(measurement), [])
    assert "host-acpi" not in made.get("findings", ())
    assert run("explain-measurement", "app.manifest", "--measurement", measurement)[0] == 0
    explained = run("explain-measurement", "app.manifest", "--runtime", image, "--json")
    assert document(explained[1])["measurements"] == {
        "workload measurement under this runtime": str(measurement),
        "signed measurement": str(measurement),
    }
    assert "--runtime image.json" in run("explain-measurement", "app.manifest")[2]
    Path("before").mkdir()
    assert run("build", "app.manifest.template", "--no-cache", "-o", "before")[0] == 0
    compared = document(run("diff", "before/app.manifest", "app.manifest", "--json")[1])
    assert (compared["runtime_differs"], compared["differences"]) == (True, [])


def test_guest_that_is_left_out_of_an_approval_is_named(owner: tuple[Run, SimPlatform], tmp_path: Path) -> None:
    """Of two firmwares one pins its ACPI tables: the other's guest is not approved, and that is said."""
    run, _ = owner
    (other,) = without_tables()
    other |= {"firmware": {"name": "other.fd", "sha256": "77" * 32}, "mrtd": "78" * 48}
    image = image_of(tmp_path, tdx=[*image_document()["tdx"], other])
    assert run("build", "app.manifest.template", "--no-cache", "--runtime", image)[0] == 0
    approve = ("approve", "app.manifest", "--key", "weights", "--tee", "tdx", "--guest-image", image)
    status, _, error = run(*approve)
    assert status == 0, error
    assert "not approved: the guest under the firmware other.fd" in " ".join(error.split())
    (made,) = document(run("policy", "show", "--json")[1])["approvals"]
    assert len(made["guest_images"]) == 1
    assert "not approved" not in run(*approve, "--rtmr0", "79" * 48)[2]


def test_instance_of_amazon_is_approved_by_the_sha384_registers(owner: tuple[Run, SimPlatform], tmp_path: Path) -> None:
    """PCR 4 and 11 of the boot from the disk. Nothing is open to the host: it is whom one trusts."""
    run, _ = owner
    image = image_of(tmp_path)
    approve = ("approve", "app.manifest", "--key", "weights", "--tee", "nitrotpm")
    assert run("build", "app.manifest.template", "--no-cache")[0] == 0
    for words in ((), ("--guest", "a1" * 48)):
        status, _, error = run(*approve, *words)
        assert (status, "PCRs 4 and 11" in " ".join(error.split())) == (2, True), error
    assert run("build", "app.manifest.template", "--no-cache", "--runtime", image)[0] == 0
    assert run(*approve, "--pcr7", "a1" * 32, "--guest-image", image)[0] == 2
    status, _, error = run(*approve, "--guest-image", image)
    assert status == 0, error
    (made,) = document(run("policy", "show", "--json")[1])["approvals"]
    pcrs = document(Path(image).read_text())["pcrs"]["disk-boot"]["sha384"]
    assert made["guest_images"] == [{"tee": "nitrotpm", "pcr4": pcrs["4"], "pcr11": pcrs["11"]}]
    assert made["gaps"] == []


@pytest.mark.parametrize("tee", ["tdx", "snp"])
def test_host_acpi_is_left_open_by_name_only(owner: tuple[Run, SimPlatform], tmp_path: Path, tee: str) -> None:
    """Refused without the word; with it warned of, recorded, and shown wherever the approval is."""
    run, _ = owner
    image = image_of(tmp_path, tdx=without_tables())
    assert run("build", "app.manifest.template", "--no-cache", "--runtime", image)[0] == 0
    approve = ("approve", "app.manifest", "--key", "weights", "--tee", tee, "--guest-image", image)
    status, _, error = run(*approve)
    assert status == 2
    assert "--allow-host-acpi" in " ".join(error.split())
    status, out, error = run(*approve, "--allow-host-acpi")
    assert status == 0, error
    assert "warning: nothing pins the ACPI tables" in " ".join(error.split())
    assert "exposes: host-acpi" in error
    assert "open (the host writes the ACPI tables)" in out
    (made,) = document(run("policy", "show", "--json")[1])["approvals"]
    assert (made["allowed"], made["gaps"], made["guest_images"][0]["host_acpi"]) == (["host-acpi"], [], True)
    shown = run("policy", "show")[1]
    assert "(host-acpi)" in shown
    assert "the host writes the ACPI tables" in shown


@pytest.mark.parametrize(
    ("words", "changes", "named"),
    [
        (("tdx", "--rtmr0", "a1" * 48), {}, "--rtmr0"),
        (("tdx", "--guest", "a1" * 48), {}, "ACPI tables of the host"),
        (("tdx", "--guest", "a1" * 48, "--rtmr0", "a1" * 48), {"tdx": started("kernel-boot")}, "started from the disk"),
        (("tdx", "--guest", "a1" * 48, "--guest", "a2" * 48, "--rtmr0", "a1" * 48), {}, "--guest"),
        (("tpm", "--guest", "a1" * 48), {}, "--guest"),
        (("tdx", "--pcr7", "a1" * 32), {}, "--pcr7"),
        (("tpm", "--rtmr0", "a1" * 48), {}, "--rtmr0"),
        (("tdx", "--rtmr2", "a1" * 48), {}, "--rtmr2"),
        (("tdx", "--paravisor", "a1" * 48), {}, "--paravisor"),
        (("az-snp", "--paravisor", "a1" * 32), {}, "--paravisor"),
        (("az-snp", "--paravisor", "00" * 48), {}, "--paravisor"),
        (("az-snp",), {}, "paravisor"),
        (("az-tdx",), {}, "paravisor"),
        (("tdx",), {"tdx": []}, "entries for tdx"),
        (("snp", "--allow-host-acpi"), {"snp": []}, "entries for snp"),
        (("snp", "--allow-host-acpi"), {"snp": covering()}, "launch digest"),
        (
            ("snp", "--allow-host-acpi"),
            {"snp": covering("kernel")},
            "launch digest",
        ),
        ((ROOT,), {}, "--tee"),
        ((ROOT.replace("sim", "sim-tdx"),), {}, "--guest-image"),
        (("tdx",), {"format": "adyton-guest-image/2"}, "guest image: format"),
    ],
)
def test_guest_image_that_does_not_fit_is_refused(
    owner: tuple[Run, SimPlatform], tmp_path: Path, words: tuple[str, ...], changes: dict[str, Any], named: str
) -> None:
    """Contradicting options, entries that are missing or cover too little, a simulated platform, another format."""
    run, _ = owner
    good = image_of(tmp_path)
    assert run("build", "app.manifest.template", "--no-cache", "--runtime", good)[0] == 0
    tee, *options = words
    image = image_of(tmp_path, **changes)
    status, _, error = run(
        "approve", "app.manifest", "--key", "weights", "--tee", tee, "--guest-image", image, *options
    )
    assert status == 2
    assert named in " ".join(error.split())
    assert document(run("policy", "show", "--json")[1])["approvals"] == []


def test_rtmr0_of_ones_own_machine_completes_an_entry(owner: tuple[Run, SimPlatform], tmp_path: Path) -> None:
    """An entry without the host's tables, and the register that she computed."""
    run, _ = owner
    image = image_of(tmp_path, tdx=without_tables())
    assert run("build", "app.manifest.template", "--no-cache", "--runtime", image)[0] == 0
    words = ("--tee", "tdx", "--guest-image", image, "--rtmr0", "a1" * 48)
    status, _, error = run("approve", "app.manifest", "--key", "weights", *words)
    assert status == 0, error
    (made,) = document(run("policy", "show", "--json")[1])["approvals"]
    assert (made["guest_images"][0]["rtmr0"], made.get("allowed")) == ("a1" * 48, None)


def test_image_is_approved_under_the_firmware_of_a_cloud(owner: tuple[Run, SimPlatform], tmp_path: Path) -> None:
    """Google's MRTD is in no document. Kernel, command line and initrd are the image's, as started from its disk."""
    run, _ = owner
    image = image_of(tmp_path, tdx=[*started("disk-boot"), *image_document()["tdx"]])
    assert run("build", "app.manifest.template", "--no-cache", "--runtime", image)[0] == 0
    approve = ("approve", "app.manifest", "--key", "weights", "--tee", "tdx", "--guest-image", image, *MRTD)
    status, _, error = run(*approve, "--rtmr0", "a1" * 48)
    assert status == 0, error
    assert "not approved" not in error
    (made,) = document(run("policy", "show", "--json")[1])["approvals"]
    entry = image_document()["tdx"][0]
    registers = {name: entry[name] for name in ("rtmr1", "rtmr2")}
    assert made["guest_images"] == [{"tee": "tdx", "mrtd": MRTD[1], "rtmr0": "a1" * 48, **registers}]
    assert run(*approve, "--allow-host-acpi", "--version", "open")[0] == 0
    approvals = document(run("policy", "show", "--json")[1])["approvals"]
    opened = next(item for item in approvals if item["version"] == "open")
    assert opened["guest_images"] == [{"tee": "tdx", "mrtd": MRTD[1], "host_acpi": True, **registers}]


@pytest.mark.parametrize("tee", ["az-snp", "az-tdx"])
def test_paravisor_is_approved_with_the_guest_above_it(
    owner: tuple[Run, SimPlatform], tmp_path: Path, tee: str
) -> None:
    """Both are named, and both are shown."""
    run, _ = owner
    image = image_of(tmp_path)
    assert run("build", "app.manifest.template", "--no-cache", "--runtime", image)[0] == 0
    words = ("--tee", tee, "--guest-image", image, "--paravisor", "a1" * 48)
    status, out, error = run("approve", "app.manifest", "--key", "weights", *words)
    assert status == 0, error
    assert f"paravisor below it: {'a1' * 48}" in out
    (made,) = document(run("policy", "show", "--json")[1])["approvals"]
    assert (made["guests"], made["gaps"]) == (["a1" * 48], [])


def test_policy_set_cannot_approve_for_snp(owner: tuple[Run, SimPlatform]) -> None:
    """She writes herself what the digest covers, as a host advised her: it counts for nothing and is not stored."""
    run, platform = owner
    assert run("approve", "app.manifest", "--key", "weights", "--tee", tee_of(platform))[0] == 0
    (made,) = document(run("policy", "show", "--json")[1])["approvals"]
    image = {"tee": "snp", "launch_digest": "d4" * 48, "launch_digest_covers": list(MUST_COVER), "host_acpi": True}
    named = (f"guest_images={json.dumps([image])}", "--allow", "host-acpi")
    for words in (named, (f'guests=["{"d4" * 48}"]',)):
        status, _, error = run("policy", "set", made["id"], 'tees=["snp"]', *words)
        assert status == 2
        shown = " ".join(error.split())
        for part in ("guest image", "--guest-image image.json", "document"):
            assert part in shown
    (still,) = document(run("policy", "show", "--json")[1])["approvals"]
    assert (still["tees"], still["revision"]) == (made["tees"], 1)


def test_sim_tdx_goes_the_whole_way_and_an_older_approval_says_why_not(
    owner: tuple[Run, SimPlatform], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evidence of a simulated domain is released; an approval of an older Adyton, which pins its MRTD, is not."""
    run, platform = owner
    signed = read_signed(Path("app.manifest"), combine(RUNTIME_PARTS))
    quote = platform.enclave(measurement=signed.measurement, shape="tdx").quote(bytes(64))
    Path("quote").write_bytes(quote)
    home = Home.open(Path("owner"))
    CollateralStore(home.collateral_path).import_bundle(platform.collateral(now(), tee="tdx").to_json().encode(), now())
    sim_tdx = tee_of(platform).replace("sim:", "sim-tdx:")
    old = Approval(
        key="weights",
        app="app",
        version="v0",
        tees=(sim_tdx,),
        measurement=signed.measurement,
        guests=(simulated_guest().mrtd,),
        manifest_sha256=signed.manifest_sha256,
    )
    store = home.open_store()
    with monkeypatch.context() as older, store.write() as change:
        older.setattr(approvals_module, "check_sound", lambda _approval: None)
        change.add_approval(old, actor="test")
    store.close()
    status, out, error = run("policy", "test", "quote")
    assert status == 95, error
    assert "FAIL guest image" in out
    assert "pinned whole" in error
    shown = run("policy", "show")[1]
    assert f"releases nothing under {sim_tdx}: guest image" in shown
    assert "the firmware only" in shown
    assert run("approve", "app.manifest", "--key", "weights", "--tee", sim_tdx)[0] == 0
    status, out, error = run("policy", "test", "quote")
    assert status == 0, error


def test_raw_report_data_is_warned_of_and_kept_to_sim(owner: tuple[Run, SimPlatform]) -> None:
    """Build says what it is and who refuses it; approve shows it and refuses it for a confidential machine."""
    run, platform = owner
    template = Path("app.manifest.template")
    template.write_text(template.read_text() + "\n[adyton]\ninsecure__raw_report_data = true\n")
    status, _, error = run("build", template, "--no-cache")
    assert status == 0, error
    assert "warning (weakened): adyton.insecure__raw_report_data" in error
    for tee in ("sim-tdx", "tdx", "snp"):
        assert f"warning: {tee} refuses adyton.insecure__raw_report_data" in error
    refused = document(run("build", template, "--no-cache", "--json")[1])["refused_by_tees"]
    assert {item["tee"] for item in refused} == {
        *("sim-tdx", "tdx", "snp", "tpm", "sim-tpm", "az-snp", "az-tdx", "nitrotpm")
    }
    assert run("build", template, "--no-cache", "--strict")[0] != 0
    for words in (["tdx", *MRTD, *REGISTERS], ["snp"], [tee_of(platform).replace("sim:", "sim-tdx:")]):
        status, _, error = run("approve", "app.manifest", "--key", "weights", "--tee", *words)
        assert status == 71
        assert "insecure__raw_report_data" in error
    for tee in ("tdx", "snp", "sim-tdx"):
        assert run("run", "app.manifest", "--tee", tee, "--key-server", "127.0.0.1:1")[0] == 71
    typed = ("approve", "app.manifest", "--key", "weights", "--tee", tee_of(platform))
    assert "--allow raw-report-data" in run(*typed)[2]
    status, out, error = run(*typed, "--allow", "raw-report-data")
    assert status == 0, error
    assert "its own 64 bytes" in out
    (approval,) = document(run("policy", "show", "--json")[1])["approvals"]
    assert approval["raw_report_data"] is True


def test_policy_test_names_the_line_that_stands_in_the_way(owner: tuple[Run, SimPlatform]) -> None:
    """A dry run says whether evidence would get the key, and if not why, and releases nothing."""
    run, platform = owner
    signed = read_signed(Path("app.manifest"), combine(RUNTIME_PARTS))
    quote = platform.enclave(measurement=signed.measurement, mrsigner=signed.mrsigner.raw).quote(bytes(64))
    Path("quote").write_bytes(quote)
    assert run("policy", "test", "quote")[0] in (92, 101)
    run("approve", "app.manifest", "--key", "weights", "--tee", tee_of(platform))
    status, out, error = run("policy", "test", "quote")
    assert status == 0, error
    assert "would be released" in out
    platform.raise_tcb()
    store = CollateralStore(Path("owner/collateral"))
    store.import_bundle(platform.collateral(now()).to_json().encode(), now())
    status, out, error = run("policy", "test", "quote")
    assert status == 95
    assert "FAIL TCB status: expected UpToDate, seen OutOfDate" in out
    assert run("audit", "list", "--kind", "release", "--json")[1].count("grant") == 0


def test_approve_with_further_requirements(owner: tuple[Run, SimPlatform]) -> None:
    """`--require` takes what a policy of `verify` can say, and refuses what the approval says itself."""
    run, platform = owner
    Path("require.toml").write_text("min_evaluation_number = 99\n")
    words = ("approve", "app.manifest", "--key", "weights", "--tee", tee_of(platform), "--require", "require.toml")
    assert run(*words)[0] == 0
    signed = read_signed(Path("app.manifest"), combine(RUNTIME_PARTS))
    quote = platform.enclave(measurement=signed.measurement, mrsigner=signed.mrsigner.raw).quote(bytes(64))
    Path("quote").write_bytes(quote)
    status, out, _ = run("policy", "test", "quote")
    assert status == 95
    assert "FAIL TCB evaluation data number" in out
    for wrong in ("any_program = true\n", "nosuch = 1\n", 'tees = ["sgx"]\n'):
        Path("require.toml").write_text(wrong)
        assert run(*words)[0] == 2


def test_audit_list_show_verify_checkpoint_export(owner: tuple[Run, SimPlatform], tmp_path: Path) -> None:
    """The record is listed, shown, verified, exported; an altered export is refused."""
    run, platform = owner
    run("approve", "app.manifest", "--key", "weights", "--tee", tee_of(platform))
    assert "policy" in run("audit", "list")[1]
    assert run("audit", "show", "weights")[0] == 0
    assert run("audit", "show", "d-nosuch")[0] == 2
    assert run("audit", "checkpoint", "-o", "cp.json")[0] == 0
    status, out, _ = run("audit", "verify", "--checkpoint", "cp.json", "--json")
    assert (status, document(out)["entries"]) == (0, 4)
    assert run("audit", "export", "-o", "record.jsonl")[0] == 0
    assert run("audit", "verify", "--export", "record.jsonl")[0] == 0
    text = (tmp_path / "record.jsonl").read_text()
    for altered in (text.replace("weights", "weirdos"), text[: len(text) // 2], "\n".join(text.splitlines()[:-1])):
        (tmp_path / "record.jsonl").write_text(altered)
        assert run("audit", "verify", "--export", "record.jsonl")[0] == 106
    (tmp_path / "cp.json").write_text(json.dumps({**json.loads((tmp_path / "cp.json").read_text()), "seq": 2}))
    assert run("audit", "verify", "--checkpoint", "cp.json")[0] == 106


def test_audit_prune_and_what_is_said_of_it(owner: tuple[Run, SimPlatform], tmp_path: Path) -> None:
    """What was pruned is recorded, shown of its entry, and noted at the export; a bad date is refused."""
    run, _ = owner
    store = Home.open(tmp_path / "owner").open_store()
    with store.write() as change:
        named = change.keep_artifact("evidence", b"quote", 1000).hex()
        change.record(
            "denial", "d-1", {"denial": "d-1", "told": {"message": "no"}, "peer": "p", "evidence": named}, 1000
        )
    store.close()
    assert run("audit", "export", "-o", "whole.jsonl", "--evidence", "whole")[2] == ""
    for when in ("2999-01-01", "yesterday"):
        assert run("audit", "prune", "--before", when)[0] == 2
    status, out, error = run("audit", "prune", "--before", "2020-01-01", "--json")
    assert status == 0, error
    assert document(out) == {"removed": 1, "size_bytes": 5}
    assert "evidence itself: pruned on" in run("audit", "show", "d-1")[1]
    assert "pruned" in document(run("audit", "show", "d-1", "--json")[1])["entries"][0]["gone"]["evidence"]
    assert "1 pieces of evidence" in run("audit", "export", "-o", "record.jsonl", "--evidence", "evidence")[2]
    assert run("audit", "verify")[0] == 0
    assert "evidence-pruned" in run("audit", "list")[1]


def test_backup_and_restore_with_shares(owner: tuple[Run, SimPlatform], tmp_path: Path) -> None:
    """A split backup, two of three shares, another home: the same keys."""
    run, _ = owner
    run("key", "export", "weights", "-o", "before")
    status, out, error = run("backup", "-o", "b.adyton", "--split", "2/3", "--shares", "shares", "--json")
    assert status == 0, error
    first, _, third = document(out)["shares"]
    assert run("restore", "b.adyton", "--home", "new", "--share", first)[0] == 2
    status, out, error = run("restore", "b.adyton", "--home", "new", "--share", first, "--share", third)
    assert status == 0, error
    assert "1 keys" in out
    assert run("key", "export", "weights", "-o", "after", "--home", "new")[0] == 0
    assert (tmp_path / "before").read_bytes() == (tmp_path / "after").read_bytes()
    assert run("backup", "-o", "c.adyton", "--split", "2of3", "--shares", "shares")[0] == 2


def test_backup_with_a_passphrase_file(owner: tuple[Run, SimPlatform], tmp_path: Path) -> None:
    """The passphrase comes from a private file or the terminal, never from the command line."""
    run, _ = owner
    (tmp_path / "pass").write_text("correct horse battery\n")
    (tmp_path / "pass").chmod(0o600)
    assert run("backup", "-o", "b.adyton", "--passphrase-file", "pass")[0] == 0
    assert run("restore", "b.adyton", "--home", "new", "--passphrase-file", "pass")[0] == 0
    (tmp_path / "pass").write_text("another one, wrong\n")
    status, _, error = run("restore", "b.adyton", "--home", "other", "--passphrase-file", "pass")
    assert status == 83
    assert "passphrase" in error
    assert not (tmp_path / "other").exists()


def test_policy_test_compares_the_manifest_that_is_named(owner: tuple[Run, SimPlatform]) -> None:
    """With --manifest the line about it is judged as the key server would."""
    run, platform = owner
    run("approve", "app.manifest", "--key", "weights", "--tee", tee_of(platform))
    signed = read_signed(Path("app.manifest"), combine(RUNTIME_PARTS))
    quote = platform.enclave(measurement=signed.measurement, mrsigner=signed.mrsigner.raw).quote(bytes(64))
    Path("quote").write_bytes(quote)
    assert "manifest" not in run("policy", "test", "quote")[1]
    assert run("policy", "test", "quote", "--manifest", "app.manifest")[0] == 0
    Path("other.manifest").write_text(Path("app.manifest").read_text() + "\n")
    status, out, _ = run("policy", "test", "quote", "--manifest", "other.manifest")
    assert status == 95
    assert "FAIL manifest" in out


def test_init_renew_server(run: Run, tmp_path: Path) -> None:
    """A new certificate for the server with the names that it now has, the CA as it was."""
    run("init")
    home = tmp_path / "owner"
    before = hashlib.sha256((home / "server.crt").read_bytes()).digest()
    assert run("init", "--renew-server")[0] == 0
    after = hashlib.sha256((home / "server.crt").read_bytes()).digest()
    assert after != before
    names = ("adyton-key-server", "keys.example.org", "192.0.2.7")
    assert run("init", "--renew-server", *(word for name in names for word in ("--server-name", name)))[0] == 0
    assert Home.open(home).config.server_names == names
    assert run("init", "--renew-server")[0] == 0
    certificate = x509.load_pem_x509_certificate((home / "server.crt").read_bytes())
    alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "keys.example.org" in alternatives.get_values_for_type(x509.DNSName)
    assert run("key", "list")[0] == 0


def test_init_with_a_server_name_keeps_the_name_that_manifests_pin(run: Run, tmp_path: Path) -> None:
    """A manifest that names no server_name pins adyton-key-server: every certificate has it, also a renewed one."""
    assert run("init", "--server-name", "keys.example.org")[0] == 0
    for more in ((), ("192.0.2.7",)):
        words = ("keys.example.org", *more)
        if more:
            assert run("init", "--renew-server", *(part for name in words for part in ("--server-name", name)))[0] == 0
        certificate = x509.load_pem_x509_certificate((tmp_path / "owner" / "server.crt").read_bytes())
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = alternatives.get_values_for_type(x509.DNSName)
        assert {"keys.example.org", "adyton-key-server"} <= set(names)
        assert {"*.keys.keys.example.org", "*.keys.adyton-key-server"} <= set(names)
        assert Home.open(tmp_path / "owner").config.server_names == (*words, "adyton-key-server")


def test_init_renew_server_keeps_the_name_that_manifests_pin(run: Run, tmp_path: Path) -> None:
    """Another first name would make every manifest ask for a server that is not there; a bad one is no name."""
    run("init")
    files = {path.name: path.read_bytes() for path in (tmp_path / "owner").glob("*.*")}
    status, _, error = run("init", "--renew-server", "--server-name", "keys.example.org")
    assert status == 2
    assert "adyton-key-server" in error
    for name in ("schlüssel.example", "a b", ""):
        words = ("--server-name", "adyton-key-server", "--server-name", name)
        assert run("init", "--renew-server", *words)[0] == 2
    assert {path.name: path.read_bytes() for path in (tmp_path / "owner").glob("*.*")} == files


def test_serve_without_anything_to_serve_or_with_a_bad_address_is_refused(run: Run) -> None:
    """`serve` says what it needs; a port that is taken is *could not*, not a traceback."""
    import socket

    assert run("serve")[0] == 2
    run("init")
    assert run("serve", "--listen", "nowhere")[0] == 2
    assert run("serve", "--listen", "127.0.0.1:0", "--log-format", "xml")[0] == 2
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status, _, error = run("serve", "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert status == 110
    assert "cannot listen" in error


@pytest.mark.parametrize("verb", [["key", "list"], ["policy", "show"], ["audit", "list"], ["serve", "--listen", "a:1"]])
def test_verb_without_a_home_says_how_to_make_one(run: Run, verb: list[str]) -> None:
    """Before `init` every verb says what to do."""
    status, _, error = run(*verb)
    assert status == 114
    assert "adyton init" in error
