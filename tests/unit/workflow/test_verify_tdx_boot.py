"""The event log beside a TDX quote: it names the ACPI tables of the host, where it is of the same boot."""

from __future__ import annotations

import pytest

from adyton.attest.tdx_boot import read_boot
from adyton.errors import MalformedQuote, Mismatch
from adyton.workflow.verify import Verdict, verify
from tests.support import ccel
from tests.support.evidence_factory import NOW, REPORT_DATA, Scenario


def judged(log: bytes | None, *, register: str = "") -> Verdict:
    """A genuine quote of a boot, with a log beside it. `register` names one that holds something else."""
    scenario = Scenario(tdx=True, version=4, simulated=True)
    for number, value in enumerate(read_boot(ccel.ccel(ccel.settings(), [ccel.STORE], [ccel.HAND_OFF])).rtmrs):
        scenario.body[f"rtmr{number}"] = value
    if register:
        scenario.body[register] = ccel.STORE
    built = scenario.built()
    (root,) = built.roots.sim
    policy = {"tees": [f"sim-tdx:{root}"], "any_program": True}
    return verify(
        built.quote, collateral=built.collateral, at=NOW, policy=policy, report_data=REPORT_DATA, event_log=log
    )


LOG = ccel.ccel(ccel.settings(), [ccel.STORE], [ccel.HAND_OFF])


def test_tables_are_named_by_the_log_of_the_same_boot() -> None:
    """As text and as JSON; without a log nothing is said of them."""
    verdict = judged(LOG)
    assert verdict.accepted
    assert verdict.to_dict()["acpi_tables"] == {
        name: value.hex() for name, value in zip(("loader", "rsdp", "tables"), ccel.ACPI, strict=True)
    }
    assert ccel.ACPI[2].hex() in verdict.to_text()
    assert verdict.to_text().splitlines()[-1] == judged(None).to_text().splitlines()[-1]
    assert "acpi_tables" not in judged(None).to_dict()


@pytest.mark.parametrize("register", ["rtmr0", "rtmr1", "rtmr2"])
def test_log_of_another_boot_is_refused(register: str) -> None:
    """It would name tables that this guest has not."""
    with pytest.raises(Mismatch) as caught:
        judged(LOG, register=register)
    assert caught.value.check == f"event log: {register.upper()}"


def test_log_in_another_form_is_refused() -> None:
    """Cut, or of a firmware that measures in another order."""
    with pytest.raises(MalformedQuote):
        judged(LOG[:300])
    with pytest.raises(Mismatch, match="separator"):
        judged(ccel.ccel(ccel.settings(separator=ccel.STORE)))
