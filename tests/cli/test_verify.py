"""`adyton verify`: its verb contract, through the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from adyton.attest import ratls
from adyton.attest.policy.hosts import sign_hosts
from adyton.attest.report_data import ProgramEvidence
from adyton.collateral.store import CollateralStore
from adyton.errors import AppraisalFailed, BadChain, FetchFailed, MalformedQuote, Stale, StorageFailed
from adyton.sim.platform import SimPlatform
from adyton.values import Measurement
from tests.support.amd_factory import SNPScenario
from tests.support.evidence_factory import LONG, MRENCLAVE, NOW, REPORT_DATA, Scenario
from tests.support.tpm_factory import AzureScenario, TPMScenario

AT = str(int(NOW.timestamp()))
UNBOUND = "allow_missing_report_data = true\n"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the verb in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "adyton", "verify", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def _json(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture
def simulated(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Evidence under a simulated root, its collateral, and a policy that it meets."""
    scenario = Scenario(simulated=True)
    built = scenario.built()
    (tmp_path / "quote.bin").write_bytes(built.quote)
    (tmp_path / "collateral.json").write_text(built.collateral.to_json())
    root = next(iter(built.roots.sim))
    policy = tmp_path / "policy.toml"
    policy.write_text(f'tees = ["sim:{root}"]\nmeasurements = ["{MRENCLAVE.hex()}"]\n' + UNBOUND)
    return tmp_path / "quote.bin", tmp_path / "collateral.json", policy


def test_verify_of_accepted_evidence_exits_zero(simulated: tuple[Path, Path, Path]) -> None:
    """The policy is met: exit 0, an explanation, a verdict."""
    quote, collateral, policy = simulated
    done = run(quote, "--collateral", collateral, "--at", AT, "--policy", policy, "--report-data", REPORT_DATA.hex())
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("verdict")
    assert "ACCEPTED" in done.stdout
    assert "bound to this key? yes" in done.stdout
    assert done.stderr == ""


def test_verify_at_a_date_is_its_last_second(simulated: tuple[Path, Path, Path]) -> None:
    """What expires in the course of that day counts as expired."""
    quote, collateral, policy = simulated
    done = run(quote, "--collateral", collateral, "--at", "2026-01-15", "--policy", policy)
    assert "2026-01-15 23:59:59 UTC" in done.stdout


def test_verify_json_has_the_contract(simulated: tuple[Path, Path, Path]) -> None:
    """One JSON document with what the contract names."""
    quote, collateral, policy = simulated
    done = run(quote, "--collateral", collateral, "--at", "2026-01-15T12:00:00Z", "--policy", policy, "--json")
    document = _json(done)
    assert done.returncode == 0
    assert document["tee"] == "sim"
    assert document["verdict"] == "accepted"
    assert document["status"] == "UpToDate"
    assert document["measurement"] == MRENCLAVE.hex()
    assert document["bound"] is None
    assert all(check["ok"] for check in document["checks"])


def test_verify_without_expected_report_data_refuses(simulated: tuple[Path, Path, Path]) -> None:
    """A copy of somebody else's evidence is genuine, too: what is compared with nothing is not accepted."""
    quote, collateral, policy = simulated
    policy.write_text(policy.read_text().replace(UNBOUND, ""))
    done = run(quote, "--collateral", collateral, "--at", AT, "--policy", policy, "--json")
    document = _json(done)
    assert done.returncode == AppraisalFailed.exit_code
    assert [check["name"] for check in document["checks"] if not check["ok"]] == ["report data"]


def test_verify_takes_a_signed_list_of_hosts(simulated: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """The policy names the key, the command line the file; without the file, or with another's, it is no policy."""
    quote, collateral, policy = simulated
    keys = [ed25519.Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2)]
    document = {"until": "2027-01-31", "ppids": [{"id": bytes(range(16)).hex(), "until": "2027-01-31"}]}
    for number, key in enumerate(keys):
        (tmp_path / f"hosts{number}.json").write_text(sign_hosts(document, key))
    named = f'[[hosts.signed]]\nkey = "{keys[0].public_key().public_bytes_raw().hex()}"\n'
    policy.write_text(policy.read_text() + named)
    common = (quote, "--collateral", collateral, "--at", AT, "--policy", policy)
    both = ("--hosts", tmp_path / "hosts1.json", "--hosts", tmp_path / "hosts0.json")
    assert run(*common, *both).returncode == 0
    without = run(*common)
    assert without.returncode == 2
    assert "--hosts FILE" in without.stderr
    other = run(*common, "--hosts", tmp_path / "hosts1.json")
    assert other.returncode == 2
    assert "signature" in other.stderr


def test_verify_json_says_what_is_short(tmp_path: Path) -> None:
    """`tcb_shortfalls` has part, component, seen, needed, date and advisories; the text says it too."""
    scenario = Scenario(simulated=True)
    scenario.qe["isv_svn"] = 7
    built = scenario.built()
    (tmp_path / "quote.bin").write_bytes(built.quote)
    (tmp_path / "collateral.json").write_text(built.collateral.to_json())
    root = next(iter(built.roots.sim))
    (tmp_path / "policy.toml").write_text(f'tees = ["sim:{root}"]\nany_program = true\n' + UNBOUND)
    words = ("--collateral", tmp_path / "collateral.json", "--at", AT, "--policy", tmp_path / "policy.toml")
    (only,) = _json(run(tmp_path / "quote.bin", *words, "--json"))["tcb_shortfalls"]
    assert {name: only[name] for name in ("part", "component", "seen", "needed", "date", "advisories")} == {
        "part": "QE",
        "component": "ISVSVN",
        "seen": 7,
        "needed": 8,
        "date": "2025-05-01T00:00:00Z",
        "advisories": ["TEST-SA-2"],
    }
    text = run(tmp_path / "quote.bin", *words).stdout
    assert "QE: ISVSVN is 7, needed 8 since 2025-05-01 (TEST-SA-2)" in text
    assert "update the host's quoting enclave" in text


def test_verify_without_policy_refuses_but_explains(simulated: tuple[Path, Path, Path]) -> None:
    """Without a policy nothing is accepted, and a simulated root is not trusted."""
    quote, collateral, _ = simulated
    done = run(quote, "--collateral", collateral, "--at", AT, "--json")
    document = _json(done)
    assert done.returncode == BadChain.exit_code
    assert document["verdict"] == "refused"
    assert document["error"]["check"] == "root CA: pinned"


def test_verify_with_unmet_policy_exits_with_its_code(simulated: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Genuine evidence that the policy does not accept."""
    quote, collateral, policy = simulated
    policy.write_text(policy.read_text().replace(MRENCLAVE.hex(), "11" * 32))
    done = run(quote, "--collateral", collateral, "--at", AT, "--policy", policy)
    assert done.returncode == AppraisalFailed.exit_code
    assert "failed: measurement" in done.stdout
    other = run(quote, "--collateral", collateral, "--at", AT, "--policy", policy, "--report-data", "00" * 64, "--json")
    failed = [check["name"] for check in _json(other)["checks"] if not check["ok"]]
    assert failed == ["measurement", "report data"]


def test_verify_what_a_program_asked_for(tmp_path: Path) -> None:
    """Named by its data and its workload, which the policy can name, too; other data or another workload is refused."""
    platform = SimPlatform.create(tmp_path / "platform")
    workload = Measurement(bytes(range(32)))
    source = platform.enclave(measurement=workload)
    (tmp_path / "quote").write_bytes(ProgramEvidence(source.quote, workload).over(b"hello"))
    (tmp_path / "collateral.json").write_text(platform.collateral().to_json())
    policy = tmp_path / "policy.json"
    rules = {"tees": [f"sim:{platform.root_fingerprint}"], "workloads": [workload.hex()]}
    policy.write_text(json.dumps(rules))

    def judged(*words: str) -> tuple[int, list[str]]:
        common = ("--collateral", tmp_path / "collateral.json", "--policy", policy, "--json")
        done = run(tmp_path / "quote", *common, *words)
        if done.returncode == 2:
            return 2, [done.stderr]
        return done.returncode, [check["name"] for check in _json(done)["checks"] if not check["ok"]]

    data = b"hello".hex()
    assert judged("--program-data", data) == (0, [])
    assert judged("--program-data", data.ljust(128, "0"), "--workload", workload.hex()) == (0, [])
    refused = (AppraisalFailed.exit_code, ["report data"])
    assert judged("--program-data", b"hullo".hex()) == refused
    assert judged("--program-data", data, "--workload", "11" * 32) == refused
    assert judged("--report-data", data.ljust(128, "0")) == refused
    for wrong in (
        ("--program-data", data, "--report-data", "00" * 64),
        ("--workload", workload.hex()),
        ("--program-data", "xy"),
        ("--program-data", "68 65"),
        ("--program-data", "00" * 65),
        ("--program-data", data, "--workload", "11" * 48),
    ):
        assert judged(*wrong)[0] == 2, wrong
    policy.write_text(json.dumps(rules | {"workloads": [workload.hex(), "11" * 32]}))
    assert judged("--program-data", data)[0] == 2
    assert judged("--program-data", data, "--workload", workload.hex()) == (0, [])


def test_verify_at_another_time_is_stale(simulated: tuple[Path, Path, Path]) -> None:
    """Collateral that has expired refuses, with its own code."""
    quote, collateral, policy = simulated
    done = run(quote, "--collateral", collateral, "--at", "2026-03-01T00:00:00+01:00", "--policy", policy)
    assert done.returncode == Stale.exit_code
    assert "expired at" in done.stdout


def test_verify_of_what_is_no_evidence_is_refused_as_malformed(tmp_path: Path) -> None:
    """Bytes that are no evidence: refused, in words and as JSON."""
    (tmp_path / "noise.bin").write_bytes(b"noise" * 300)
    done = run(tmp_path / "noise.bin", "--collateral", tmp_path)
    assert done.returncode == MalformedQuote.exit_code
    assert "quote version" in done.stderr
    document = _json(run(tmp_path / "noise.bin", "--json"))
    assert document["verdict"] == "refused"
    assert document["checks"][0]["ok"] is False


def test_verify_that_cannot_check_has_codes_of_its_own(simulated: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """No collateral, or no file: could not check, which is not a refusal."""
    quote, _, policy = simulated
    (tmp_path / "empty").mkdir()
    none = run(quote, "--collateral", tmp_path / "empty", "--policy", policy, "--json")
    assert none.returncode == FetchFailed.exit_code
    assert _json(none)["verdict"] == "unchecked"
    nowhere = run(quote, "--home", tmp_path / "nobody", "--policy", policy)
    assert nowhere.returncode == FetchFailed.exit_code
    assert "adyton collateral fetch" in nowhere.stderr
    absent = run(tmp_path / "absent.bin", "--json")
    assert absent.returncode == StorageFailed.exit_code
    assert _json(absent)["genuine"] is None


@pytest.mark.parametrize(
    "arguments",
    [
        ["--at", "yesterday"],
        ["--at", "2026-01-15T12:00:00"],
        ["--report-data", "00"],
        ["--report-data", "zz" * 64],
        ["--policy", "bad.toml"],
        ["--token", "token.jwt"],
    ],
)
def test_verify_with_wrong_arguments_is_a_usage_error(
    simulated: tuple[Path, Path, Path], arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be meant is exit code 2, before anything is judged."""
    quote, collateral, _ = simulated
    monkeypatch.chdir(quote.parent)
    Path("bad.toml").write_text("tees = [")
    assert run(quote, "--collateral", collateral, *arguments).returncode == 2


def test_verify_chooses_among_several_collateral_files(simulated: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """A folder with collateral of other platforms and other times: the fitting, valid, newest is taken."""
    quote, collateral, policy = simulated
    folder = tmp_path / "folder"
    folder.mkdir()
    other = Scenario(simulated=True)
    other.tcb_info["fmspc"] = "ffffffffffff"
    (folder / "a.json").write_text(other.collateral().to_json())
    old = Scenario(simulated=True)
    old.tcb_info["nextUpdate"] = "2026-01-06T00:00:00Z"
    old.tcb_info["tcbEvaluationDataNumber"] = 99
    (folder / "b.json").write_text(old.collateral().to_json())
    (folder / "c.json").write_text(Scenario(simulated=True, tdx=True).collateral().to_json())
    (folder / "d.json").write_bytes(collateral.read_bytes())
    done = run(quote, "--collateral", folder, "--at", AT, "--policy", policy, "--json")
    assert done.returncode == 0, done.stdout
    assert _json(done)["tcb_evaluation_data_number"] == 20


def test_verify_takes_bundles_documents_and_the_store(tmp_path: Path) -> None:
    """Collateral as a bundle, as a folder of single documents, and from the owner's store without being named."""
    platform = SimPlatform.create(tmp_path / "platform")
    now = datetime.now(UTC)
    store = CollateralStore(tmp_path / "home" / "collateral")
    shapes: tuple[Literal["sgx", "tdx"], ...] = ("sgx", "tdx")
    for shape in shapes:
        store.import_bundle(platform.collateral(now, tee=shape).to_json().encode(), now)
    (tmp_path / "bundle.json").write_bytes(store.export_bundle())
    workload = Measurement(b"\x42" * 32)
    policy = tmp_path / "policy.json"
    root = platform.root_fingerprint
    policy.write_text(
        json.dumps(
            {
                "tees": [f"sim:{root}", f"sim-tdx:{root}"],
                "workloads": [workload.hex()],
                "allow_missing_report_data": True,
            }
        )
    )
    for shape in shapes:
        quote = tmp_path / f"{shape}.bin"
        quote.write_bytes(platform.enclave(measurement=workload, shape=shape).quote(bytes(64)))
        for option, where in (
            ("--collateral", tmp_path / "bundle.json"),
            ("--collateral", tmp_path / "home" / "collateral"),
            ("--home", tmp_path / "home"),
        ):
            done = run(quote, option, where, "--policy", policy, "--json")
            assert done.returncode == 0, done.stdout + done.stderr
            assert _json(done)["tee"] == ("sim" if shape == "sgx" else "sim-tdx")


def test_verify_of_ratls_certificate_checks_its_binding(simulated: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """An RA-TLS certificate is evidence too, bound to its own key."""
    _, collateral, policy = simulated

    def quote_of(report_data: bytes) -> bytes:
        scenario = Scenario(simulated=True)
        scenario.body["report_data"] = report_data
        return scenario.built().quote

    key = ec.derive_private_key(9, ec.SECP384R1())
    raw = ratls.make_certificate(key, quote_of, not_before=LONG[0], not_after=LONG[1])
    (tmp_path / "cert.der").write_bytes(raw)
    done = run(tmp_path / "cert.der", "--collateral", collateral, "--at", AT, "--policy", policy, "--json")
    assert done.returncode == 0, done.stdout
    assert _json(done)["bound"] is True
    bad = ratls.make_certificate(key, lambda _: quote_of(bytes(64)), not_before=LONG[0], not_after=LONG[1])
    (tmp_path / "bad.der").write_bytes(bad)
    refused = run(tmp_path / "bad.der", "--collateral", collateral, "--at", AT, "--policy", policy)
    assert refused.returncode == AppraisalFailed.exit_code
    assert "bound to this key? NO" in refused.stdout


def test_verify_writes_a_signed_token(simulated: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """The EAR-style token is signed with the key given, also for a refusal."""
    quote, collateral, _ = simulated
    key = ec.derive_private_key(9, ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "key.pem").write_bytes(pem)
    token = tmp_path / "token.jwt"
    done = run(quote, "--collateral", collateral, "--at", AT, "--token", token, "--token-key", tmp_path / "key.pem")
    assert done.returncode == BadChain.exit_code
    claims = jwt.decode(token.read_text().strip(), key.public_key(), algorithms=["ES256"])
    assert claims["submods"]["sgx"]["ear.status"] == "contraindicated"


def test_verify_of_snp_report_takes_loose_certificates(tmp_path: Path) -> None:
    """AMD's certificates as they come from AMD's service; under a test root they are refused by name."""
    built = SNPScenario().built()
    (tmp_path / "report.bin").write_bytes(built.report)
    for name, raw in (("vcek", built.collateral.leaf), ("ask", built.collateral.ask), ("ark", built.collateral.ark)):
        (tmp_path / f"{name}.der").write_bytes(raw)
    loose = [part for name in ("vcek", "ask", "ark") for part in ("--collateral", tmp_path / f"{name}.der")]
    done = run(tmp_path / "report.bin", *loose, "--at", AT, "--json")
    assert done.returncode == BadChain.exit_code
    document = _json(done)
    assert document["tee"] == "snp"
    assert document["error"]["check"] == "ARK: pinned"


@pytest.mark.shared_vectors
def test_verify_of_real_evidence(shared_vectors: Path, tmp_path: Path) -> None:
    """A real SGX quote, a real TDX quote and a real SEV-SNP report with policies that name them."""
    folder = shared_vectors / "evidence"
    policy = tmp_path / "policy.toml"
    policy.write_text(
        'tees = ["sgx", "tdx", "snp"]\nany_program = true\nallow_missing_report_data = true\n'
        'statuses = ["UpToDate", "SWHardeningNeeded"]\n'
        "allow_missing_crl = true\n"
        '[[exemptions]]\nname = "INTEL-SA-00615"\nowner = "a test"\nuntil = 2030-01-01\n'
        "[min_tcb.Milan]\nbootloader = 3\ntee = 0\nsnp = 8\nmicrocode = 115\n"
        '[snp.products.Milan]\naccept_until = 2030-01-01\nreason = "a test"\n'
    )
    sgx = run(
        folder / "sgx/sgx-00606a-automata-evm.quote.bin",
        "--collateral",
        folder / "collateral",
        "--at",
        "1756530546",
        "--policy",
        policy,
    )
    assert sgx.returncode == 0, sgx.stdout + sgx.stderr
    assert "exempted by a test" in sgx.stdout
    tdx = run(
        folder / "tdx/tdx-v5-90c06f-google.quote.bin",
        "--collateral",
        folder / "collateral/tdx-v5-90c06f-google.2026-02.json",
        "--at",
        "1772707803",
        "--policy",
        policy,
        "--json",
    )
    assert tdx.returncode == 0
    assert _json(tdx)["tee"] == "tdx"
    snp = run(
        folder / "snp/milan-v2-trustee.report.bin",
        "--collateral",
        folder / "snp/milan-v2-trustee.vcek.der",
        "--collateral",
        folder / "trust/amd-milan-ask-ark-asvk.pem",
        "--at",
        "1690135106",
        "--policy",
        policy,
        "--json",
    )
    assert snp.returncode == 0, snp.stdout
    assert _json(snp)["tee"] == "snp"


def test_verify_takes_a_tpm_quote_and_azure_evidence_by_their_content(tmp_path: Path) -> None:
    """No option says which it is. The nonce has any length; of another evidence 64 bytes are asked for."""
    machine = TPMScenario(nonce=b"challenge")
    quote, policy = tmp_path / "quote.json", tmp_path / "policy.json"
    quote.write_bytes(machine.built())
    policy.write_text(json.dumps(machine.policy()))
    done = run(quote, "--policy", policy, "--report-data", b"challenge".hex(), "--json")
    assert done.returncode == 0, done.stderr
    found = _json(done)
    assert (found["tee"], found["tee_with_root"]) == ("sim-tpm", f"sim-tpm:{machine.root_pin}")
    assert found["pcrs"]["15"] == machine.pcrs()[15].hex()
    assert run(quote, "--policy", policy, "--report-data", "00").returncode == 95
    assert run(quote, "--policy", policy).returncode == 95
    (tmp_path / "log").write_bytes(machine.event_log())
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps({name: value for name, value in machine.document().items() if name != "event_log"}))
    words = (bare, "--policy", policy, "--report-data", b"challenge".hex())
    assert run(*words).returncode == 95
    assert run(*words, "--event-log", tmp_path / "log").returncode == 0
    (tmp_path / "log").write_bytes(machine.event_log()[:-1])
    assert run(*words, "--event-log", tmp_path / "log").returncode == 95
    azure = AzureScenario()
    (tmp_path / "azure.json").write_bytes(azure.body())
    (tmp_path / "amd.json").write_text(azure.snp.built().collateral.to_json())
    refused = run(tmp_path / "azure.json", "--collateral", tmp_path / "amd.json", "--report-data", "00" * 64, "--json")
    assert (refused.returncode, _json(refused)["tee"]) == (92, "az-snp")
    assert _json(refused)["error"]["check"] == "ARK: pinned"
    (tmp_path / "report").write_bytes(azure.snp.report())
    other = run(tmp_path / "report", "--collateral", tmp_path / "amd.json", "--event-log", tmp_path / "log", "--json")
    assert (other.returncode, _json(other)["error"]["check"]) == (96, "event log in the evidence")
