"""`adyton verify` for evidence of GPUs: exit codes, the document, and that no network is needed."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from adyton.cli.main import main
from adyton.collateral.bundle import build_bundle
from adyton.collateral.documents import Document
from adyton.sim.gpu import SimDevice, evidence_json
from tests.support.gpu_world import NONCE, NOW, GPUWorld, gpu, machine, vendor


def _no_network(*_: object, **__: object) -> None:
    raise AssertionError("something opened a connection")


class Place:
    """A folder with evidence, collateral and a policy."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys
        world = GPUWorld()
        (folder / "collateral").mkdir()
        for number, raw in enumerate(world.rims):
            (folder / "collateral" / f"rim-{number}.xml").write_bytes(raw)
        for number, raw in enumerate(world.answers):
            (folder / "collateral" / f"answer-{number}.der").write_bytes(raw)
        self.policy({"tees": [vendor().tee], "gpus": {"count": 1}})
        self.evidence([gpu()])

    def policy(self, document: dict[str, Any]) -> None:
        """Write the policy. It only looks: evidence that nobody's nonce is compared with is judged, too."""
        (self.folder / "policy.json").write_text(json.dumps({"allow_missing_report_data": True} | document))

    def evidence(self, devices: list[SimDevice], nonce: bytes = NONCE) -> None:
        """Write the evidence of these devices."""
        (self.folder / "evidence.json").write_bytes(evidence_json([item.evidence(nonce) for item in devices]))

    def verify(self, *more: str, name: str = "evidence.json", collateral: str = "collateral") -> tuple[int, Any]:
        """Exit code and document."""
        with pytest.raises(SystemExit) as ended:
            main(
                [
                    "verify",
                    str(self.folder / name),
                    *(("--collateral", str(self.folder / collateral)) if collateral else ()),
                    "--policy",
                    str(self.folder / "policy.json"),
                    "--at",
                    str(int(NOW.timestamp())),
                    "--home",
                    str(self.folder / "home"),
                    "--json",
                    *more,
                ]
            )
        code = ended.value.code
        return code if isinstance(code, int) else 0, json.loads(self.capsys.readouterr().out)


@pytest.fixture
def place(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Place:
    """Good evidence with everything that it needs, and no network."""
    monkeypatch.setattr(socket.socket, "connect", _no_network)
    return Place(tmp_path, capsys)


def test_good_evidence_is_accepted(place: Place) -> None:
    """Every member of the document that is promised."""
    code, document = place.verify("--nonce", NONCE.hex())
    assert code == 0, document
    assert (document["tee"], document["verdict"], document["bound"]) == ("sim-nvidia-gpu", "accepted", True)
    assert document["tee_with_root"] == vendor().tee
    (found,) = document["gpus"]
    assert {"arch", "driver", "vbios", "ueid", "genuine", "measurements", "checks"} <= set(found)
    assert len(found["measurements"]["matched"]) == 33
    assert found["measurements"]["mismatched"] == []
    assert any("co-location is not proved" in warning for warning in document["warnings"])


def test_evidence_without_a_nonce_to_compare_is_refused(place: Place) -> None:
    """A copy of somebody else's evidence is genuine, too."""
    place.policy({"tees": [vendor().tee], "gpus": {"count": 1}, "allow_missing_report_data": False})
    code, document = place.verify()
    assert (code, document["verdict"]) == (95, "refused")
    assert place.verify("--nonce", NONCE.hex())[0] == 0


def test_rules_about_the_machine_are_never_met_by_gpus_alone(place: Place) -> None:
    """A rule that nothing here can meet is no rule that is passed over."""
    for rule in ({"pcrs": {"4": ["00" * 32]}}, {"profile": "strict-2026"}, {"workloads": ["00" * 32]}):
        place.policy({"tees": [vendor().tee], "gpus": {"count": 1}} | rule)
        code, document = place.verify("--nonce", NONCE.hex())
        assert (code, document["verdict"]) == (95, "refused"), rule
        assert document["error"]["check"] == "rules for the machine"


def test_binary_report_with_its_chain_is_accepted(place: Place) -> None:
    """As NVML gives them."""
    (place.folder / "report.bin").write_bytes(gpu().report(NONCE))
    (place.folder / "chain.pem").write_bytes(gpu().pem)
    code, document = place.verify("--certificate-chain", str(place.folder / "chain.pem"), name="report.bin")
    assert (code, document["verdict"], document["bound"]) == (0, "accepted", None)


def test_bundle_is_collateral(place: Place) -> None:
    """As `adyton collateral export` writes it; the ids in it have to be those of the evidence."""
    world = GPUWorld()
    ids = ("NV_GPU_DRIVER_GH100_550.144.03", "NV_GPU_VBIOS_1010_0200_882_96005E0001")
    documents = [
        Document("nvidia-rim", raw, "", "", NOW, request=rim_id) for raw, rim_id in zip(world.rims, ids, strict=True)
    ] + [Document("nvidia-ocsp", raw, "", "", NOW) for raw in world.answers]
    (place.folder / "bundle.json").write_bytes(build_bundle(documents))
    assert place.verify(collateral="bundle.json")[0] == 0


def test_refusals_have_the_exit_codes_of_their_errors(place: Place) -> None:
    """Nonce, measurement, device twice, policy, form; and what could not be checked."""
    assert place.verify("--nonce", "00" * 32)[0] == 96
    place.evidence([gpu().with_(changed={3: bytes(48)})])
    code, document = place.verify()
    assert code == 95
    assert [item["index"] for item in document["gpus"][0]["measurements"]["mismatched"]] == [3]
    assert document["gpus"][0]["genuine"]
    place.evidence([gpu(), gpu()])
    assert place.verify()[0] == 96
    place.evidence([gpu()])
    place.policy({})
    code, document = place.verify()
    assert (code, document["verdict"], document["genuine"]) == (92, "refused", False)  # its root is not named
    place.policy({"tees": [vendor().tee], "gpus": {"count": 2}})
    assert place.verify()[0] == 95
    place.policy({"tees": [vendor().tee], "gpus": {"count": 1}})
    code, document = place.verify(collateral="")
    assert (code, document["verdict"], document["genuine"]) == (111, "unchecked", True)
    (place.folder / "evidence.json").write_text("[1]")
    code, document = place.verify()
    assert (code, document["tee"], document["gpus"]) == (91, "nvidia-gpu", [])


def test_altered_rim_is_refused_and_the_gpu_still_judged(place: Place) -> None:
    """A named file with a bad signature."""
    raw = (place.folder / "collateral" / "rim-0.xml").read_bytes()
    (place.folder / "bad.xml").write_bytes(raw.replace(b"550.144.03", b"550.144.04"))
    code, document = place.verify(collateral="bad.xml")
    assert (code, document["verdict"], document["gpus"][0]["genuine"]) == (92, "refused", True)


def test_machine_of_twelve_is_accepted(place: Place) -> None:
    """Eight GPUs and four NVSwitches."""
    world = GPUWorld(machine())
    for number, raw in enumerate([*world.rims, *world.answers]):
        (place.folder / "collateral" / f"more-{number}").write_bytes(raw)
    place.evidence(list(machine()))
    place.policy({"tees": [vendor().tee], "gpus": {"count": 8}})
    code, document = place.verify("--nonce", NONCE.hex())
    assert code == 0, document["error"]
    assert len(document["gpus"]) == 12


@pytest.mark.parametrize("option", ["--report-data", "--program-data", "--workload", "--token"])
def test_options_for_cpus_are_refused(place: Place, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """They would say nothing."""
    more = ["--token-key", "k"] if option == "--token" else []
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(place.folder / "evidence.json"), option, "00" * 32, *more])
    assert ended.value.code == 2
    assert "not for evidence of GPUs" in capsys.readouterr().err


def test_text_is_a_dozen_lines(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """For one GPU, and it says what is not proved."""
    with pytest.raises(SystemExit):
        main(
            [
                *("verify", str(place.folder / "evidence.json"), "--collateral", str(place.folder / "collateral")),
                *("--policy", str(place.folder / "policy.json"), "--at", str(int(NOW.timestamp()))),
            ]
        )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 14
    assert any("co-location is not proved" in line for line in lines)
