"""Verification of quotes against dcap-qvl and against the bare signatures, all in one run, alternating.

Every figure is processor time, the best of several rounds on one core, and every ratio is between figures of the same
run, as other work on the machine disturbs all alike. The limit is what no verifier can go below: the two ECDSA P-256
checks that each new quote needs (QE report and quote), through the same library, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import dcap_qvl
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384

from adyton.attest import dcap, sgx, tdx
from adyton.attest.appraise import appraise
from adyton.attest.certificates import ecdsa_is_valid, load_p256, parse_certificate
from adyton.attest.checks import Checks
from adyton.attest.collateral import Collateral
from adyton.attest.evidence_policy import Policy
from adyton.attest.forms import read_form
from adyton.attest.nitro.document import parse_document
from adyton.attest.nitro.verify import Cache
from adyton.attest.nitro.verify import verify as verify_document
from adyton.attest.roots import TrustRoots
from adyton.attest.sgx import SGXQuote
from adyton.attest.tdx import TDXQuote
from tests.support.evidence_factory import MRENCLAVE, Scenario
from tests.support.nitro_factory import NitroScenario

VECTORS = Path(__file__).parent.parent.parent / "shared" / "vectors" / "evidence"


class Case(NamedTuple):
    """One quote with what judges it."""

    name: str
    quote: bytes
    collateral: Collateral
    roots: TrustRoots
    root_der: bytes | None
    now: datetime

    def parse(self) -> SGXQuote | TDXQuote:
        """Parse the quote."""
        return tdx.parse_quote(self.quote) if self.quote[4] else sgx.parse_quote(self.quote)


def cases() -> list[Case]:
    """Evidence made here, and real evidence where the shared vectors lie beside the repository."""
    found = []
    for name, scenario in (
        ("SGX v3, made here", Scenario()),
        ("TDX v5, made here", Scenario(tdx=True, version=5, td_size=648)),
    ):
        built = scenario.built()
        found.append(Case(name, built.quote, built.collateral, built.roots, scenario.root.build(), built.now))
    if VECTORS.is_dir():
        for name, quote, collateral, at in (
            ("SGX v3, real", "sgx/sgx-00606a-automata-evm", "sgx-00606a-automata-evm.2025-08", 1756530546),
            ("TDX v4, real", "tdx/tdx-v4-b0c06f-phala", "tdx-v4-b0c06f-phala.2025-06", 1751624191),
        ):
            raw = (VECTORS / f"{quote}.quote.bin").read_bytes()
            text = (VECTORS / "collateral" / f"{collateral}.json").read_text()
            now = datetime.fromtimestamp(at, UTC)
            found.append(Case(name, raw, Collateral.from_json(text), TrustRoots(), None, now))
    return found


def once(work: Callable[[], object], seconds: float) -> float:
    """Microseconds of processor time per call, over about that long."""
    count, started = 0, time.process_time()
    while (spent := time.process_time() - started) < seconds or count < 3:
        work()
        count += 1
    return spent / count * 1e6


def best(works: dict[str, Callable[[], object]], rounds: int, seconds: float) -> dict[str, float]:
    """Microseconds per call of each, the best of several rounds, alternating."""
    found = dict.fromkeys(works, float("inf"))
    for _ in range(rounds):
        for name, work in works.items():
            found[name] = min(found[name], once(work, seconds))
    return found


def works_of(case: Case) -> dict[str, Callable[[], object]]:
    """What is measured for one case."""
    quote = case.parse()
    part = quote.signature
    pck = dcap.Cache()
    dcap.verify(quote, case.collateral, case.roots, case.now, cache=pck)
    collateral_only = dcap.Cache(chains=0)
    peer_collateral = dcap_qvl.QuoteCollateralV3.from_json(case.collateral.to_json())
    seconds = int(case.now.timestamp())

    def peer() -> object:
        if case.root_der is None:
            return dcap_qvl.verify(case.quote, peer_collateral, seconds)
        return dcap_qvl.verify_with_root_ca(case.quote, peer_collateral, case.root_der, seconds)

    leaf = dcap.check_pck_chain(Checks(), part.certification_data, case.roots).leaf.p256
    signed = quote.signed_part

    def limit() -> object:
        attestation_key = load_p256(part.attestation_key)
        if leaf is None or attestation_key is None:
            raise SystemExit("bench attest: no keys")
        good = ecdsa_is_valid(leaf, part.qe_report_signature, part.qe_report.raw)
        return good and ecdsa_is_valid(attestation_key, part.signature, signed)

    text = case.collateral.to_json()

    def cold() -> object:
        return dcap.verify(case.parse(), Collateral.from_json(text), case.roots, case.now)

    return {
        "parse": case.parse,
        "verify, cold": cold,
        "verify, collateral cached": lambda: dcap.verify(
            case.parse(), case.collateral, case.roots, case.now, cache=collateral_only
        ),
        "verify, PCK chain cached too": lambda: dcap.verify(
            case.parse(), case.collateral, case.roots, case.now, cache=pck
        ),
        "dcap-qvl, same inputs": peer,
        "two bare ECDSA checks": limit,
    }


def appraisal(rounds: int, seconds: float) -> dict[str, float]:
    """Judging a verified report by a policy."""
    built = Scenario().built()
    report = dcap.verify(sgx.parse_quote(built.quote), built.collateral, built.roots, built.now)
    policy = Policy.from_dict({"tees": ["sgx"], "measurements": [MRENCLAVE.hex()]})
    data = report.report_data
    return best({"appraise": lambda: appraise(report, policy, built.now, report_data=data)}, rounds, seconds)


def nitro(rounds: int, seconds: float) -> dict[str, float]:
    """A Nitro document of an enclave, the chain above its leaf cached and not, and text that holds a quote."""
    built = NitroScenario().built()
    document, cache = parse_document(built.raw), Cache()
    leaf = parse_certificate(document.certificate, "leaf").p384
    text = Scenario(tdx=True, version=5, td_size=648).built().quote.hex().encode()

    def bare() -> object:
        if leaf is None:
            raise SystemExit("bench attest: no key")
        return [ecdsa_is_valid(leaf, document.signature, document.signed_part, ec.ECDSA(SHA384())) for _ in range(2)]

    def verified(kept: Cache | None) -> object:
        return verify_document(parse_document(built.raw), built.roots, built.now, cache=kept)

    works: dict[str, Callable[[], object]] = {
        "parse": lambda: parse_document(built.raw),
        "verify, issuing chain cached": lambda: verified(cache),
        "verify, nothing cached": lambda: verified(None),
        "two bare ECDSA P-384 checks": bare,
        "read a TDX quote in hex": lambda: read_form(text),
    }
    return best(works, rounds, seconds)


def main(args: list[str]) -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(prog="python -m bench attest")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.05, help="per figure and round")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(args)
    tables: dict[str, dict[str, float]] = {}
    for case in cases():
        tables[case.name] = best(works_of(case), options.rounds, options.seconds)
    tables["Nitro document, made here"] = nitro(options.rounds, options.seconds)
    tables["policy"] = appraisal(options.rounds, options.seconds)
    if options.json:
        print(json.dumps(tables, indent=1))
        return
    for name, figures in tables.items():
        print(f"\n{name}")
        print(f"  {'':<30} {'µs':>9} {'per second':>11} {'of dcap-qvl':>12} {'of the limit':>13}")
        peer, limit = figures.get("dcap-qvl, same inputs"), figures.get("two bare ECDSA checks")
        for what, taken in figures.items():
            ratios = [f"{other / taken:.2f}x" if other and what != "parse" else "" for other in (peer, limit)]
            print(f"  {what:<30} {taken:9.1f} {1e6 / taken:11,.0f} {ratios[0]:>12} {ratios[1]:>13}")
