"""What a program may have of this machine's evidence."""

from __future__ import annotations

import pytest

from adyton.attest.evidence import parse_evidence
from adyton.attest.report_data import program_report_data
from adyton.attest.sgx import SGXQuote
from adyton.attest.tdx import TDXQuote
from adyton.errors import MalformedManifest
from adyton.manifest.model import parse_manifest
from adyton.runtime.evidence import program_evidence
from adyton.sim.platform import SimPlatform
from adyton.values import Measurement

WORKLOAD = Measurement(bytes(range(32)))
LEAST = 'libos.entrypoint = "/app"\nfs.mounts = []\n'
RAW = LEAST + "adyton.insecure__raw_report_data = true\n"


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> SimPlatform:
    """A simulated platform."""
    return SimPlatform.create(tmp_path_factory.mktemp("evidence") / "platform")


def test_program_gets_its_own_domain_unless_the_manifest_says_raw(platform: SimPlatform) -> None:
    """Hashed with the workload; in `sim` as it is, where the manifest asks for that."""
    source = platform.enclave(measurement=WORKLOAD)
    for text, wanted in ((LEAST, program_report_data(WORKLOAD, b"x")), (RAW, b"x" + bytes(63))):
        quote = parse_evidence(program_evidence(source, parse_manifest(text), WORKLOAD).over(b"x"))
        assert isinstance(quote, SGXQuote | TDXQuote)
        assert quote.report_data == wanted


def test_program_gets_no_raw_report_data_from_a_trust_domain(platform: SimPlatform) -> None:
    """The source's own TEE decides, not what was said on the command line."""
    source = platform.enclave(measurement=WORKLOAD, shape="tdx")
    with pytest.raises(MalformedManifest, match="sim-tdx"):
        program_evidence(source, parse_manifest(RAW), WORKLOAD)
    assert program_evidence(source, parse_manifest(LEAST), WORKLOAD).over(b"x")
