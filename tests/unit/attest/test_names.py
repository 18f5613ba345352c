"""Names of platforms and advisories: one grammar, for policies of evidence and for approvals."""

from __future__ import annotations

import pytest

from adyton.attest.evidence_policy import Policy
from adyton.attest.names import is_advisory_name, is_tee_name
from adyton.errors import UsageError
from adyton.keystore.approval import Approval
from adyton.values import Measurement

ROOT = "a" * 64
TEES = {
    **dict.fromkeys(("sgx", "tdx", "snp", "nitro", "nitrotpm", f"sim:{ROOT}", f"sim-tdx:{ROOT}"), True),
    **dict.fromkeys(
        (
            "",
            "SGX",
            "sim",
            "sim-tdx",
            f"sim:{ROOT[1:]}",
            f"sim:{ROOT}a",
            f"snp:{ROOT}",
            "sgx\n",
            "nitro:a",
            f"nitrotpm:{ROOT}",
        ),
        False,
    ),
}
ADVISORIES = {
    **dict.fromkeys(("INTEL-SA-00615", "AMD-SB-3019", "SIM-SA-00000"), True),
    **dict.fromkeys(
        ("", "INTEL", "intel-sa-00615", "INTEL-", "-SA", "INTEL--SA", "INTEL-SA-1\n", "A-" + "1" * 63), False
    ),
}


def approval(tee: str = "sgx", advisory: str = "INTEL-SA-00615") -> Approval:
    """An approval by these names."""
    return Approval(
        key="k", app="a", version="1", tees=(tee,), measurement=Measurement(bytes(32)), advisories={advisory: None}
    )


@pytest.mark.parametrize("name", TEES)
def test_platform_is_named_alike_everywhere(name: str) -> None:
    """What is no name is refused by both kinds of policy."""
    assert is_tee_name(name) == TEES[name]
    if not TEES[name]:
        with pytest.raises(UsageError):
            approval(tee=name)
        with pytest.raises(UsageError):
            Policy(tees=frozenset({name}))


@pytest.mark.parametrize("name", ADVISORIES)
def test_advisory_is_named_alike_everywhere(name: str) -> None:
    """What an approval may accept, an exemption may name, and nothing else."""
    assert is_advisory_name(name) == ADVISORIES[name]
    exemption = {"exemptions": [{"name": name, "owner": "alice", "until": "2027-01-31"}]}
    if ADVISORIES[name]:
        approval(advisory=name)
        Policy.from_dict(exemption)
    else:
        with pytest.raises(UsageError):
            approval(advisory=name)
        with pytest.raises(UsageError):
            Policy.from_dict(exemption)
