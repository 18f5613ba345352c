"""Agreement with dcap-qvl, an independent verifier: on real evidence, on spoilt evidence, on every TCB status.

Where the two differ, the difference is one of those named here: dcap-qvl refuses in verification what is policy here
(debug, service TDs, unmatched levels, TCB info version 2), and does not look at the root that a quote carries, at the
outer type of its certification data, nor at bytes behind the quote, which are refused here. It advises a relaunch on
any module that is up to date; Intel's library and this one only on the newest.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dcap_qvl
import pytest

from adyton.attest import dcap
from adyton.attest.collateral import Collateral
from adyton.attest.evidence import parse_evidence
from adyton.attest.roots import TrustRoots
from adyton.attest.sgx import SGXQuote
from adyton.attest.tdx import TDXQuote
from adyton.errors import Error
from tests.support.evidence_factory import Built, Scenario, level, svn_level

POLICY_THERE = (
    "Debug mode",
    "Invalid MR service TD",
    "No matching TCB level",
    "is below minimum required",
    "Failed to decode TcbInfo",
    "SEPT_VE",
    "MIGRATABLE",
)
STRICTER_HERE = (
    "root CA",
    "parse of the root CA",
    "parse of the PCK certificate chain",
    "trailing bytes",
    "signature data filled",
    "outer certification data type",
    "QE report certification data filled",
    "length of the QE report certification data",
)
STRICTER_ABOUT_COLLATERAL = (
    "parse of the",
    "length of the",
    "root CA",
    "PCK CRL root CA",
    "PCK CRL issuer",
    "TCB info: root",
    "QE identity: root",
)


def ours(raw: bytes, collateral: Collateral, roots: TrustRoots, now: datetime, cache: dcap.Cache | None) -> Outcome:
    """Our status and advisories, or the check that refused."""
    try:
        evidence = parse_evidence(raw)
        if not isinstance(evidence, SGXQuote | TDXQuote):
            return None, (), "no quote"
        report = dcap.verify(evidence, collateral, roots, now, cache=cache)
    except Error as error:
        return None, (), error.check or type(error).__name__
    return str(report.status), report.advisories, ""


Outcome = tuple[str | None, tuple[str, ...], str]


def theirs(raw: bytes, collateral: Any, now: datetime, root: bytes | None) -> Outcome:
    """The peer's status and advisories, or its words of refusal."""
    seconds = int(now.timestamp())
    try:
        if root is None:
            report = dcap_qvl.verify(raw, collateral, seconds)
        else:
            report = dcap_qvl.verify_with_root_ca(raw, collateral, root, seconds)
    except ValueError as error:
        return None, (), str(error)
    return report.status, tuple(sorted(set(report.advisory_ids))), ""


def compare(mine: Outcome, peer: Outcome, stricter: tuple[str, ...]) -> str:
    """The kind of agreement; an assertion where it is none of those that are known."""
    if mine[0] is None and peer[0] is None:
        return "both refuse"
    if mine[0] is None:
        assert mine[2].startswith(stricter), (mine, peer)
        return "stricter here"
    if peer[0] is None:
        if mine[0] == "Revoked" and "TCB status is invalid: Revoked" in peer[2]:
            return "both Revoked"
        assert any(words in peer[2] for words in POLICY_THERE), (mine, peer)
        return "policy there"
    if (peer[0] or "").startswith("TDRelaunchAdvised") and (mine[0] or "").startswith("OutOfDate"):
        return "stricter here"
    assert mine[:2] == peer[:2]
    return f"both {mine[0]}"


def spoil(raw: bytes, rng: random.Random) -> bytes:
    """Change, insert or remove a few bytes."""
    spoilt = bytearray(raw)
    at = rng.randrange(len(spoilt))
    kind = rng.randrange(3)
    if kind == 0:
        spoilt[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        spoilt[at] = rng.choice(b' \n\0A=-{}",:0')
    else:
        spoilt[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
    return bytes(spoilt)


@pytest.fixture(scope="module")
def cases(shared_vectors: Path) -> list[tuple[str, bytes, Collateral, datetime]]:
    """Every real case: name, quote, collateral, time."""
    folder = shared_vectors / "evidence"
    entries = json.loads((folder / "INDEX.json").read_text())["entries"]
    return [
        (
            f"{entry['file']} {case['collateral']}",
            (folder / entry["file"]).read_bytes(),
            Collateral.from_json((folder / case["collateral"]).read_text()),
            datetime.fromtimestamp(case["verify_at"], UTC),
        )
        for entry in entries
        for case in entry.get("cases", [])
    ]


def _peer_collateral(collateral: Collateral) -> Any:
    return dcap_qvl.QuoteCollateralV3.from_json(collateral.to_json())


@pytest.mark.shared_vectors
def test_verifiers_agree_on_real_evidence(cases: list[tuple[str, bytes, Collateral, datetime]]) -> None:
    """Status and advisories are equal on every real case that the peer judges."""
    kinds: Counter[str] = Counter()
    for _, raw, collateral, now in cases:
        mine = ours(raw, collateral, TrustRoots(), now, None)
        kinds[compare(mine, theirs(raw, _peer_collateral(collateral), now, None), ())] += 1
    assert kinds["policy there"] == 6
    assert sum(kinds.values()) == len(cases) == 27


def _quotes_rounds(cases: list[tuple[str, bytes, Collateral, datetime]], rounds: int) -> Counter[str]:
    kinds: Counter[str] = Counter()
    for name, raw, collateral, now in cases:
        rng = random.Random(name)
        peer, cache = _peer_collateral(collateral), dcap.Cache()
        for _ in range(rounds):
            spoilt = spoil(raw, rng)
            mine = ours(spoilt, collateral, TrustRoots(), now, cache)
            kinds[compare(mine, theirs(spoilt, peer, now, None), STRICTER_HERE)] += 1
    return kinds


@pytest.mark.shared_vectors
def test_verifiers_agree_on_spoilt_quotes(cases: list[tuple[str, bytes, Collateral, datetime]]) -> None:
    """What the peer refuses in a spoilt quote is refused here too."""
    kinds = _quotes_rounds(cases, 60)
    assert kinds["both refuse"] > 1000


@pytest.mark.slow
@pytest.mark.shared_vectors
@pytest.mark.timeout(1800)
def test_verifiers_agree_on_very_many_spoilt_quotes(cases: list[tuple[str, bytes, Collateral, datetime]]) -> None:
    """The same, with many more quotes."""
    assert _quotes_rounds(cases, 2000)["both refuse"] > 40000


def _with(collateral: Collateral, field: str, changed: bytes) -> Collateral:
    value: Any = changed.decode() if isinstance(getattr(collateral, field), str) else changed
    return replace(collateral, **{field: value})


@pytest.mark.shared_vectors
def test_verifiers_agree_on_spoilt_collateral(cases: list[tuple[str, bytes, Collateral, datetime]]) -> None:
    """What the peer refuses in spoilt collateral is refused here too, whichever document is spoilt."""
    names = [item.name for item in fields(Collateral) if item.name not in ("pck_certificate_chain", "channel")]
    kinds: Counter[str] = Counter()
    for name, raw, collateral, now in cases:
        rng = random.Random(name)
        for field in names:
            for _ in range(4):
                value = getattr(collateral, field)
                encoded = value.encode() if isinstance(value, str) else value
                changed = spoil(encoded, rng)
                try:
                    spoilt = _with(collateral, field, changed)
                except UnicodeDecodeError:
                    continue
                peer_outcome: Outcome
                try:
                    peer_outcome = theirs(raw, _peer_collateral(spoilt), now, None)
                except ValueError as error:
                    peer_outcome = (None, (), str(error))
                mine = ours(raw, spoilt, TrustRoots(), now, None)
                kinds[compare(mine, peer_outcome, STRICTER_ABOUT_COLLATERAL)] += 1
    assert kinds["both refuse"] > 300


STATUSES = [
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "Revoked",
]


def _random_scenario(rng: random.Random) -> Scenario:
    """A platform with random TCB levels, QE levels and module levels.

    TD 1.5 with modules of major version 0 is left out: there dcap-qvl advises a relaunch where Intel's library and
    this one say OutOfDate.
    """
    tdx = rng.random() < 0.7
    size = rng.choice([584, 648]) if tdx else 584
    scenario = Scenario(tdx=tdx, version=5 if size == 648 else rng.choice([4, 5]) if tdx else 3, td_size=size)

    def components(top: int) -> list[int]:
        return [rng.randrange(top) for _ in range(16)]

    rows = {}
    for _ in range(rng.randrange(1, 5)):
        row = level(
            rng.choice([[5] * 16, [4] * 16, components(6)]),
            rng.choice([11, 13]),
            rng.choice(STATUSES),
            tdx=rng.choice([[2, 0] + [2] * 14, [3, 0] + [1] * 14, [0] * 16, [9, 0] + [2] * 14]) if tdx else None,
            advisories=rng.choice([(), ("TEST-SA-10",), ("TEST-SA-11", "TEST-SA-10")]),
        )
        rows[json.dumps(row["tcb"])] = row
    order = sorted(rows.values(), key=lambda row: _order(row["tcb"]), reverse=True)
    scenario.tcb_info["tcbLevels"] = order
    scenario.identity["tcbLevels"] = [
        svn_level(svn, rng.choice(["UpToDate", "UpToDate", "OutOfDate", "Revoked"]), advisories=("TEST-SA-12",))
        for svn in (9, 8, 5)
    ]
    if tdx:
        svn = rng.choice([1, 2, 3])
        major = rng.choice([0, 1, 1, 1])
        scenario.body["tee_tcb_svn"] = bytes([svn, major] + [2] * 14)
        if size == 648:
            loaded = [rng.choice([0, 1, 2, 3, 4]), rng.choice([1, 1, 1, 2]), rng.choice([1, 2, 9])]
            scenario.body["tee_tcb_svn2"] = bytes(loaded + [2] * 13) if major else scenario.body["tee_tcb_svn"]
        scenario.tcb_info["tdxModuleIdentities"][0]["tcbLevels"] = [
            svn_level(3, rng.choice(["UpToDate", "OutOfDate", "Revoked"]), advisories=("TEST-SA-13",)),
            svn_level(2, rng.choice(["OutOfDate", "OutOfDate", "UpToDate", "Revoked"])),
            svn_level(1, "OutOfDate"),
        ]
    return scenario


def _order(tcb: dict[str, Any]) -> tuple[list[int], int, list[int]]:
    return (
        [item["svn"] for item in tcb["sgxtcbcomponents"]],
        tcb["pcesvn"],
        [item["svn"] for item in tcb.get("tdxtcbcomponents", [])],
    )


def _synthetic_rounds(seed: str, rounds: int) -> Counter[str]:
    rng = random.Random(seed)
    kinds: Counter[str] = Counter()
    root = Scenario().root.build()
    for _ in range(rounds):
        built: Built = _random_scenario(rng).built()
        mine = ours(built.quote, built.collateral, built.roots, built.now, None)
        peer = theirs(built.quote, _peer_collateral(built.collateral), built.now, root)
        kinds[compare(mine, peer, ())] += 1
    return kinds


def test_verifiers_agree_on_random_tcb_levels() -> None:
    """Every status, also those that no real evidence at hand has, converges to the same result in both."""
    kinds = _synthetic_rounds("tcb", 400)
    seen = {kind.removeprefix("both ") for kind in kinds}
    assert seen >= {*STATUSES, "TDRelaunchAdvised", "TDRelaunchAdvisedConfigurationNeeded"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_verifiers_agree_on_very_many_random_tcb_levels() -> None:
    """The same, with many more platforms."""
    assert sum(_synthetic_rounds("many", 20000).values()) == 20000
