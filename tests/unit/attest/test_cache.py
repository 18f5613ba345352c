"""The cache saves work and no check: time, revocation and roots are judged anew for every quote."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from adyton.attest import dcap, sgx
from adyton.attest.certificates import Certificate
from adyton.attest.checks import Checks
from adyton.attest.report import VerifiedReport
from adyton.attest.roots import TrustRoots
from adyton.errors import BadChain, Mismatch, Revoked, Stale, UsageError
from adyton.values import Digest
from tests.support.evidence_factory import NOW, Built, Scenario


def verify(built: Built, cache: dcap.Cache, **changes: Any) -> VerifiedReport:
    """Verify with a cache."""
    given: dict[str, Any] = {"collateral": built.collateral, "roots": built.roots, "now": built.now} | changes
    return dcap.verify(sgx.parse_quote(built.quote), given["collateral"], given["roots"], given["now"], cache=cache)


def test_cached_verification_makes_the_same_checks_and_the_same_report() -> None:
    """With everything cached the report is equal, down to the list of checks."""
    built, cache = Scenario().built(), dcap.Cache()
    first, second = verify(built, cache), verify(built, cache)
    assert first == second
    assert len(first.checks) > 60


def test_cached_collateral_still_expires() -> None:
    """What was valid a moment ago is judged by the time of this verification."""
    built, cache = Scenario().built(), dcap.Cache()
    verify(built, cache)
    for now in (NOW + timedelta(days=60), NOW - timedelta(days=60)):
        with pytest.raises(Stale):
            verify(built, cache, now=now)
    verify(built, cache)


def test_cached_chain_still_meets_a_new_crl() -> None:
    """A PCK certificate that new collateral revokes is refused, although its chain is cached."""
    scenario, cache = Scenario(), dcap.Cache()
    built = scenario.built()
    verify(built, cache)
    scenario.pck_crl.serials = [3]
    with pytest.raises(Revoked):
        verify(built, cache, collateral=scenario.collateral())


def test_cached_verdicts_are_kept_apart_by_roots() -> None:
    """What one set of roots trusts, another does not get from the cache."""
    built, cache = Scenario().built(), dcap.Cache()
    verify(built, cache)
    for roots in (TrustRoots(), TrustRoots(intel=frozenset({Digest(bytes(32))}))):
        with pytest.raises(BadChain):
            verify(built, cache, roots=roots)
    simulated = TrustRoots(intel=frozenset(), sim=built.roots.intel)
    assert verify(built, cache, roots=simulated).tee == "sim"
    assert verify(built, cache).tee == "sgx"


def test_failed_collateral_is_not_cached() -> None:
    """A failure leaves nothing behind that a later verification could use."""
    built, cache = Scenario().built(), dcap.Cache()
    bad = replace(built.collateral, tcb_info_signature=bytes(64))
    for _ in range(2):
        with pytest.raises(BadChain) as caught:
            verify(built, cache, collateral=bad)
        assert caught.value.check == "TCB info: signature"
    verify(built, cache)


def test_leaf_of_another_signer_is_refused_with_the_ca_cached() -> None:
    """Known CA certificates are shared, signatures of new leaves are not assumed."""
    cache = dcap.Cache()
    verify(Scenario().built(), cache)
    forged = Scenario()
    forged.leaf.signer = "somebody else"
    with pytest.raises(BadChain) as caught:
        verify(forged.built(), cache)
    assert caught.value.check == "PCK certificate: signature"


def test_level_of_another_platform_is_not_taken_from_the_cache() -> None:
    """Two platforms with the same collateral have their own levels."""
    cache = dcap.Cache()
    assert verify(Scenario().built(), cache).status == "UpToDate"
    older = Scenario()
    older.platform["components"] = [4] * 16
    assert verify(older.built(), cache).status == "OutOfDate"
    other_qe = Scenario()
    other_qe.qe["isv_svn"] = 6
    assert verify(other_qe.built(), cache).status == "OutOfDate"
    assert verify(Scenario().built(), cache).status == "UpToDate"


def test_cache_forgets_what_was_not_used_for_longest() -> None:
    """The cache is bounded."""
    cache = dcap.Cache(collateral=2, chains=2)
    for number in range(5):
        scenario = Scenario()
        scenario.tcb_info["tcbEvaluationDataNumber"] = number
        scenario.leaf.serial = 100 + number
        verify(scenario.built(), cache)
    assert len(vars(cache.collateral)["_kept"]) == 2
    assert len(vars(cache.chains)["_kept"]) == 2


def test_cache_is_shared_between_threads() -> None:
    """Several threads verify good and bad quotes with one cache, and none takes another's outcome."""
    cache, good, bad = dcap.Cache(collateral=1, chains=1), Scenario().built(), Scenario(tdx=False)
    bad.tcb_info["fmspc"] = "ffffffffffff"
    spoilt = bad.built()

    def judge(number: int) -> str:
        try:
            return str(verify(spoilt if number % 2 else good, cache).status)
        except Mismatch as error:
            return str(error.check)

    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(judge, range(80)))
    assert outcomes[::2] == ["UpToDate"] * 40
    assert outcomes[1::2] == ["TCB info: FMSPC"] * 40


def test_certificate_under_another_name_shares_what_was_read() -> None:
    """`named` keeps the parsed form and the checked signatures, and the name is the new one."""
    certificate = Certificate(Scenario().root.build(), "root CA")
    assert certificate.is_signed_by(certificate)
    other = certificate.named("PCK CRL root CA")
    assert other.parsed is certificate.parsed
    assert other.window.what == "PCK CRL root CA"
    assert certificate.window.what == "root CA"


def test_time_without_zone_is_a_mistake_of_the_caller() -> None:
    """A naive time is refused rather than taken for UTC."""
    built = Scenario().built()
    with pytest.raises(UsageError):
        dcap.verify(sgx.parse_quote(built.quote), built.collateral, built.roots, NOW.replace(tzinfo=None))


def test_failed_verification_leaves_the_record_of_its_checks() -> None:
    """Whoever passes a record gets every check up to the one that failed, from inside the cached parts too."""
    scenario = Scenario()
    scenario.identity_key = "x"
    built = scenario.built()
    checks = Checks()
    with pytest.raises(BadChain):
        dcap.verify(sgx.parse_quote(built.quote), built.collateral, built.roots, NOW, checks=checks)
    assert checks.done[-1].name == "QE identity: signature"
    assert not checks.done[-1].ok
    assert all(check.ok for check in checks.done[:-1])
