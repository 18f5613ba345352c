"""The policy for an ingress's clients: whose evidence it accepts, and what is refused at build."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

import adyton
from adyton.attest.bundle import MAX_CPU_BYTES
from adyton.endpoint.hello import ClientEvidence
from adyton.errors import AppraisalFailed, EvidenceError, MalformedManifest, MalformedQuote, Mismatch
from adyton.manifest.ingress import Ingress
from adyton.sim.platform import SimPlatform
from adyton.values import Measurement
from adyton.workflow.client_judge import Judge, check_client_policy, client_judge

BOUND = bytes(range(64))
PROGRAM = Measurement(bytes(range(32)))


def ingress(policy: str) -> Ingress:
    """An ingress with this policy for its clients."""
    return Ingress("api", ("0.0.0.0", 8443), ("127.0.0.1", 8000), 10, client_policy=policy)


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> SimPlatform:
    """A client's machine."""
    return SimPlatform.create(tmp_path_factory.mktemp("client") / "platform")


def policy_for(platform: SimPlatform, program: Measurement = PROGRAM, more: str = "") -> str:
    """A policy that accepts this program on this machine."""
    return f'tees = ["sim:{platform.root_fingerprint}"]\nmeasurements = ["{program.hex()}"]\n{more}'


def shown(platform: SimPlatform, report_data: bytes = BOUND, program: Measurement = PROGRAM) -> ClientEvidence:
    """What a client on this machine shows."""
    quote = platform.enclave(measurement=program, mrsigner=bytes(32)).quote(report_data)
    return ClientEvidence(quote, b"", platform.collateral().to_json().encode())


@pytest.fixture
def judge(platform: SimPlatform) -> Judge:
    """Accepts the program on the client's machine."""
    return client_judge(ingress(policy_for(platform)))


def test_accepted_client_is_trusted_for_a_bounded_time(platform: SimPlatform, judge: Judge) -> None:
    """As long as its collateral lasts, and a day at the most. A policy may be JSON."""
    assert timedelta(minutes=5) < judge(shown(platform), BOUND) <= timedelta(hours=24)
    text = f'{{"tees": ["sim:{platform.root_fingerprint}"], "measurements": ["{PROGRAM.hex()}"]}}'
    assert client_judge(ingress(text))(shown(platform), BOUND)


def test_other_clients_are_refused(platform: SimPlatform, judge: Judge, tmp_path: Path) -> None:
    """Another connection, another program, another machine, another machine's collateral, none, and nonsense."""
    with pytest.raises(AppraisalFailed):
        judge(shown(platform, BOUND[::-1]), BOUND)
    with pytest.raises(AppraisalFailed, match="measurement"):
        judge(shown(platform, program=Measurement(bytes(32))), BOUND)
    other = SimPlatform.create(tmp_path / "other")
    with pytest.raises(EvidenceError):
        judge(shown(other), BOUND)
    good = shown(platform)
    with pytest.raises(EvidenceError):
        judge(ClientEvidence(good.cpu, b"", shown(other).collateral), BOUND)
    for collateral in (b"{}", b"[]", b"", b"\xff", good.collateral[:-9], b"{" * 100_000):
        with pytest.raises(MalformedQuote):
            judge(ClientEvidence(good.cpu, b"", collateral), BOUND)
    for cpu in (b"", b"{}", bytes(MAX_CPU_BYTES), good.cpu[:-1], b"{" * 10_000):
        with pytest.raises(EvidenceError):
            judge(ClientEvidence(cpu, b"", good.collateral), BOUND)
    with pytest.raises(Mismatch):
        judge(ClientEvidence(good.cpu, b"log", good.collateral), BOUND)


@pytest.mark.parametrize(
    "policy",
    ["nonsense = 1", "tees = 1", "{", "tees = [", "measurements = []", "tees = []", '{"tees": []}', "# nothing"],
)
def test_policy_that_cannot_be_read_or_accepts_nobody_is_refused_at_build(policy: str, tmp_path: Path) -> None:
    """By the key's name, before anything is written."""
    with pytest.raises(MalformedManifest) as refused:
        check_client_policy(ingress(policy))
    assert refused.value.check == "manifest key adyton.ingress.client_policy"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        adyton.init(tmp_path / "home")
        (tmp_path / "clients.toml").write_text(policy)
        (tmp_path / "api.manifest.template").write_text(
            'libos.entrypoint = "/app"\nfs.mounts = []\nadyton.insecure__stdio = true\n'
            '[[adyton.ingress]]\nname = "api"\ntarget = "127.0.0.1:80"\nclient_policy_file = "file:clients.toml"\n'
        )
        with pytest.raises(MalformedManifest):
            adyton.build("api.manifest.template", home=tmp_path / "home")
        assert not (tmp_path / "api.manifest").exists()
