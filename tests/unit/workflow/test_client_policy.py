"""A policy for clients, from a manifest: it names the program, pins the guest, and reads back as it was meant."""

from __future__ import annotations

import json
import shutil
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest

import adyton
from adyton.attest.evidence_policy import Policy
from adyton.attest.nvidia.gpu_policy import GPUPolicy
from adyton.attest.policy.open import accepts_nothing, left_open
from adyton.cli.main import main
from adyton.errors import Error
from adyton.workflow.client_policy import client_policy
from tests.support.image_factory import image_document

ROOT = "ab" * 32
CA = (Path(__file__).parents[2] / "support" / "owner-ca.pem").read_text()
TEMPLATE = """
libos.entrypoint = "/app"
fs.mounts = []
adyton.insecure__stdio = true
"""
INGRESS = """
[[adyton.ingress]]
name = "api"
target = "127.0.0.1:8000"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifests with and without an ingress, for Adyton here, and one for the Adyton in a guest image."""
    folder = tmp_path_factory.mktemp("manifests")
    adyton.init(folder / "home")
    (folder / "image.json").write_text(json.dumps(image_document()))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, text, runtime in (
            ("api", TEMPLATE + INGRESS, None),
            ("none", TEMPLATE, None),
            ("closed", TEMPLATE + INGRESS + f'client_ca = """{CA}"""\nclient_policy = "tees = [\'tdx\']"\n', None),
            ("gpus", TEMPLATE + "adyton.gpus = 2\n" + INGRESS, None),
            ("guest", TEMPLATE + INGRESS, Path("image.json")),
        ):
            Path(f"{name}.manifest.template").write_text(text)
            adyton.build(f"{name}.manifest.template", home=folder / "home", runtime=runtime)
    return folder


def read_back(text: str) -> Policy:
    """The policy in a printed file."""
    return Policy.from_dict(tomllib.loads(text))


def open_names(policy: Policy) -> set[str]:
    """What `adyton policy check` says of it, above low danger."""
    return {item.name for item in left_open(policy, datetime.now(UTC)) if item.danger != "low"}


def test_simulated_enclave(folder: Path) -> None:
    """The workload, and the root as given. What is left open is what a simulation leaves open."""
    found = client_policy(folder / "api.manifest", tee=f"sim:{ROOT}")
    policy = read_back(found.to_toml())
    assert policy == found.policy
    assert policy.tees == {f"sim:{ROOT}"}
    assert policy.workloads == {found.measurement}
    assert found.options == "--policy FILE"
    assert not accepts_nothing(policy)
    assert open_names(policy) == {"tees", "hosts", "profile", "sgx.channel"}


def test_what_clients_have_to_show_is_said(folder: Path) -> None:
    """A certificate and evidence, where some ingress asks for them."""
    found = client_policy(folder / "closed.manifest", tee=f"sim:{ROOT}")
    assert found.options == "--policy FILE --certificate FILE --key FILE --prove TEE"
    assert found.options in found.to_toml()


def test_gpus_of_the_manifest_stand_in_it(folder: Path) -> None:
    """Their number. Whose they may be, its reader adds."""
    found = client_policy(folder / "gpus.manifest", tee=f"sim-tdx:{ROOT}")
    assert read_back(found.to_toml()).gpus == GPUPolicy(count=2)
    assert client_policy(folder / "api.manifest", tee=f"sim-tdx:{ROOT}").policy.gpus is None


def test_simulated_trust_domain(folder: Path) -> None:
    """The simulated guest's registers stand in it, too."""
    policy = read_back(client_policy(folder / "api.manifest", tee=f"sim-tdx:{ROOT}").to_toml())
    assert all((policy.measurements, policy.rtmr0, policy.rtmr1, policy.rtmr2, policy.workloads))


def test_trust_domain(folder: Path) -> None:
    """Every register of the guest comes from its image, and only machines and dates are left to the reader."""
    found = client_policy(folder / "guest.manifest", tee="tdx", image=folder / "image.json")
    policy, entry = read_back(found.to_toml()), image_document()["tdx"][0]
    assert policy == found.policy
    assert {item.hex() for item in policy.measurements} == {entry["mrtd"]}
    assert {item.hex() for item in policy.rtmr0} == {entry["acpi"]["rtmr0"]}
    assert {item.hex() for item in policy.rtmr1} == {entry["rtmr1"]}
    assert {item.hex() for item in policy.rtmr2} == {entry["rtmr2"]}
    assert policy.workloads == {found.measurement}
    assert open_names(policy) == {"hosts"}


def test_several_ways_to_boot_are_alternatives(folder: Path) -> None:
    """A TPM's PCR 11 differs with the way to boot. Values of two ways are never mixed."""
    found = client_policy(folder / "guest.manifest", tee="az-snp", image=folder / "image.json")
    alternatives = list(read_back(found.to_toml()).alternatives())
    assert all(one.workloads and one.pcrs and one.boot_applications for one in alternatives)
    assert len({frozenset(one.pcrs.items()) for one in alternatives}) == len(alternatives)


def test_instance_of_amazon_is_pinned_by_pcr_4_and_11(folder: Path) -> None:
    """In SHA-384, as its documents show them, and with the workload."""
    found = client_policy(folder / "guest.manifest", tee="nitrotpm", image=folder / "image.json")
    policy = read_back(found.to_toml())
    assert policy.workloads == {found.measurement}
    assert {number: {len(value) for value in values} for number, values in policy.pcrs.items()} == {4: {48}, 11: {48}}


def test_sev_snp_needs_the_manifests_hash(folder: Path) -> None:
    """Its evidence names no program, so the option stands beside the policy."""
    found = client_policy(folder / "guest.manifest", tee="snp", image=folder / "image.json", allow_host_acpi=True)
    policy = read_back(found.to_toml())
    assert not policy.workloads
    assert policy.measurements
    assert f"--manifest-sha256 {found.manifest_sha256}" in found.to_toml()


@pytest.mark.parametrize(
    ("manifest", "options", "check"),
    [
        ("none", {"tee": f"sim:{ROOT}"}, "adyton.ingress"),
        ("api", {"tee": "sgx"}, "--tee"),
        ("api", {"tee": "nitro"}, "--tee"),
        ("api", {"tee": "sim"}, "platform (--tee)"),
        ("api", {"tee": "tdx", "image": "image.json"}, "signed workload measurement"),
        ("api", {"tee": "tdx"}, "--image"),
        ("api", {"tee": f"sim:{ROOT}", "allow_host_acpi": True}, "--allow-host-acpi"),
        ("api", {"tee": f"sim-tdx:{ROOT}", "rtmr0": "00"}, "--rtmr0"),
        ("guest", {"tee": "snp", "image": "image.json"}, "ACPI tables of the host"),
        ("guest", {"tee": "snp", "image": "image.json", "rtmr0": "11" * 48}, "--rtmr0"),
    ],
)
def test_what_would_pin_too_little_is_refused(folder: Path, manifest: str, options: dict[str, str], check: str) -> None:
    """Each by name, before a line is printed."""
    given = {name: folder / value if name == "image" else value for name, value in options.items()}
    with pytest.raises(Error) as refused:
        client_policy(folder / f"{manifest}.manifest", **given)  # type: ignore[arg-type]
    assert refused.value.check == check


def test_verb_prints_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On standard output, to be redirected into a file; and a manifest whose signature is gone is refused."""
    words = ["connect", "--print-policy", str(folder / "api.manifest"), "--tee", f"sim:{ROOT}"]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert not ended.value.code
    assert read_back(capsys.readouterr().out).tees == {f"sim:{ROOT}"}
    shutil.copy(folder / "api.manifest", folder / "unsigned.manifest")
    for wrong in (
        ["connect", "--print-policy", str(folder / "unsigned.manifest"), "--tee", f"sim:{ROOT}"],
        ["connect", "--print-policy", str(folder / "api.manifest")],
        ["connect", "localhost:1", *words[1:]],
        ["connect", "localhost:1", "--policy", "x", "--tee", "tdx"],
        ["connect", "--policy", "x"],
    ):
        with pytest.raises(SystemExit) as ended:
            main(wrong)
        assert ended.value.code
        assert not capsys.readouterr().out
