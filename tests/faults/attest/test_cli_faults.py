"""The same faults through `adyton verify`: the same check refuses, and the exit code is that of its error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adyton.cli.main import main
from tests.faults.attest.test_dcap_faults import FAULTS, Fault
from tests.support.evidence_factory import MRENCLAVE, NOW, REPORT_DATA, Scenario


def _judge(folder: Path, fault: Fault | None, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, object]]:
    tdx = fault.tdx if fault else False
    version = (5 if fault and fault.td_size > 584 else 4) if tdx else 3
    scenario = Scenario(tdx=tdx, version=version, td_size=fault.td_size if fault else 584, simulated=True)
    named = {f"{tee}:{root}" for tee in ("sim", "sim-tdx") for root in scenario.roots().sim}
    if fault:
        fault.spoil(scenario)
    built = fault.tampers(scenario.built()) if fault and fault.tampers else scenario.built()
    named |= {f"{tee}:{root}" for tee in ("sim", "sim-tdx") for root in built.roots.sim}
    (folder / "quote.bin").write_bytes(built.quote)
    (folder / "collateral.json").write_text(built.collateral.to_json())
    policy = {"tees": sorted(named), "measurements": [MRENCLAVE.hex()]}
    (folder / "policy.json").write_text(json.dumps(policy))
    arguments = [
        "verify",
        str(folder / "quote.bin"),
        "--collateral",
        str(folder / "collateral.json"),
        "--policy",
        str(folder / "policy.json"),
        "--report-data",
        REPORT_DATA.hex(),
        "--at",
        str(int(NOW.timestamp())),
        "--json",
    ]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    code = ended.value.code
    return code if isinstance(code, int) else 0, json.loads(capsys.readouterr().out)


def test_unspoilt_evidence_is_accepted_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The scenario that the faults spoil is good."""
    code, document = _judge(tmp_path, None, capsys)
    assert code == 0
    assert document["verdict"] == "accepted"


@pytest.mark.parametrize(
    "fault", [fault for fault in FAULTS if fault.name != "wrong-root"], ids=lambda fault: fault.name
)
def test_fault_is_refused_by_the_command_line(fault: Fault, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Verdict, check and exit code."""
    code, document = _judge(tmp_path, fault, capsys)
    assert code == fault.error.exit_code
    assert document["verdict"] == "refused"
    checks = document["checks"]
    assert isinstance(checks, list)
    assert [check["name"] for check in checks if not check["ok"]] == [fault.check]
