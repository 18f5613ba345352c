"""Random pairs of report and policy: the code and an independent oracle say the same of each."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from types import MappingProxyType
from typing import Any, cast

import pytest

from adyton.attest.appraise import appraise
from adyton.attest.assess import verify_evidence
from adyton.attest.evidence import parse_evidence
from adyton.attest.evidence_policy import Policy
from adyton.attest.pck import SGX_TYPES
from adyton.attest.policy.judgement import Judgement
from adyton.attest.report import VerifiedReport
from adyton.attest.sgx import SGXQuote
from adyton.attest.snp import SNPReport
from adyton.attest.tdx import TDXQuote
from adyton.errors import AppraisalFailed
from tests.support.amd_factory import SNPScenario
from tests.support.evidence_factory import FMSPC, NOW, REPORT_DATA, Scenario
from tests.unit.attest.policy_oracle import GUEST, PLATFORM, TD, accepts

PRODUCTS = ("Milan", "Genoa", "Turin")
IDS = (bytes(range(16)), bytes(range(1, 17)))
CHIPS = (bytes(range(64)), bytes(range(1, 65)))
DAYS = ("2026-01-14", "2026-01-15", "2026-02-01")
"""Before the day of the judgement, that day, and after it."""


def _base(kind: str) -> VerifiedReport:
    scenario: Any = SNPScenario(product=kind) if kind in PRODUCTS else None
    if scenario is None:
        scenario = Scenario(tdx=True, version=5, td_size=648) if kind == "tdx" else Scenario()
    built = scenario.built()
    raw = built.report if kind in PRODUCTS else built.quote
    return verify_evidence(parse_evidence(raw), built.collateral, built.roots, built.now)


class Pairs:
    """A stream of pairs. Most values are such that a rule is met, so that about half of all pairs are accepted."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.bases = {kind: _base(kind) for kind in (*PRODUCTS, "sgx", "tdx")}

    def seldom(self, chance: float = 0.12) -> bool:
        return self.dice.random() < chance

    def some(self, names: Any, odds: float = 0.2) -> list[str]:
        return [name for name in names if self.seldom(odds)]

    def rule(self, names: Any, likely: set[str], unlikely: set[str]) -> dict[str, list[str]]:
        """Bits to require and to forbid, mostly such as a report has and lacks."""
        require = [name for name in names if (name in likely and self.seldom(0.5)) or self.seldom(0.02)]
        forbid = [
            name
            for name in names
            if name not in require and ((name in unlikely and self.seldom(0.5)) or self.seldom(0.02))
        ]
        return {"require": require, "forbid": forbid}

    def pair(self) -> tuple[VerifiedReport, dict[str, Any], dict[str, Any]]:
        kind = self.dice.choice((*PRODUCTS, *("sgx", "tdx") * 2))
        base = self.bases[kind]
        report, facts = (self.snp if kind in PRODUCTS else self.intel)(base, kind)
        policy = self.policy(kind, report, facts)
        return report, policy, facts

    def snp(self, base: VerifiedReport, product: str) -> tuple[VerifiedReport, dict[str, Any]]:
        evidence = cast("SNPReport", base.evidence)
        platform = 0x2C | (self.dice.getrandbits(9) if self.seldom() else 0)
        guest = 0x20000 | 1 << 16 | 1 << 24 | (self.dice.getrandbits(27) if self.seldom() else 0)
        fields: dict[str, bytes | int] = {
            "version": self.dice.choice((3, 5, 5, 5)),
            "platform_info": platform,
            "policy": guest | 1 << 17,
            "launch_mitigations": 0b111 if not self.seldom() else self.dice.getrandbits(4),
            "current_mitigations": 0b111 if not self.seldom() else self.dice.getrandbits(4),
            "vmpl": self.dice.choice((0, 0, 0, 0, 1)),
        }
        for when in ("current", "committed"):
            fields |= {f"{when}_major": 1, f"{when}_minor": self.dice.choice((55, 58)), f"{when}_build": 40}
        for name in ("reported_tcb", "committed_tcb", "launch_tcb"):
            raw = bytearray(evidence.field(name))
            if self.seldom(0.05):
                at = self.dice.choice((0, 1, 3, 6, 7))
                raw[at] = max(0, raw[at] - 1)
            fields[name] = bytes(raw)
        changed = evidence.replace(**fields)
        chip = self.dice.choice(CHIPS)
        facts: dict[str, Any] = {
            "product": product,
            "tee": "snp",
            "raw": changed.to_bytes(),
            "chip_id": chip,
            "ppid": b"",
            "piid": b"",
        }
        plain = MappingProxyType({**base.platform, "chip_id": chip})
        facts["measurement"] = base.measurement
        return replace(base, evidence=changed, platform=plain, debug=changed.debug), facts

    def intel(self, base: VerifiedReport, kind: str) -> tuple[VerifiedReport, dict[str, Any]]:
        quote = cast("SGXQuote | TDXQuote", base.evidence)
        changed: SGXQuote | TDXQuote
        if isinstance(quote, SGXQuote):
            flags = 5 | (2 if self.seldom(0.05) else 0)
            changed = replace(quote, report=quote.report.replace(flags=flags))
        else:
            attributes = 1 << 28 | 1 << 30
            if self.seldom():
                attributes ^= 1 << self.dice.choice([*TD.values(), 40])
            svn = bytes([self.dice.choice((3, 3, 3, 2)), 1] + [2] * 14)
            seam = bytes([self.dice.choice((0, 0, 0, 1))]) * 48
            xfam = self.dice.choice((0x602E7, 0x602E7, 0x602E6))
            td = quote.report.replace(td_attributes=attributes, tee_tcb_svn=svn, mrseam=seam, xfam=xfam)
            changed = replace(quote, report=td)
        configuration = self.dice.choice(((False, False), (False, False), (True, False), (False, True), None))
        sgx_type = self.dice.choice((0, 2, 2))
        ppid, piid = self.dice.choice(IDS), self.dice.choice(IDS)
        advisories = ("INTEL-DOC-10001",) if self.seldom(0.03) else ("INTEL-DOC-10000",) if self.seldom() else ()
        channel = self.dice.choice(("early", "early", "standard", None))
        dynamic, smt = configuration or (None, None)
        stated = {"dynamic": dynamic, "smt": smt, "sgx_type": SGX_TYPES[sgx_type], "ppid": ppid, "piid": piid}
        plain = MappingProxyType({**base.platform, **stated, "tcb_channel": channel})
        report = replace(base, evidence=changed, platform=plain, advisories=advisories, debug=changed.report.debug)
        return report, {
            "tee": kind,
            "raw": changed.report.to_bytes(),
            "configuration": configuration,
            "sgx_type": sgx_type,
            "advisories": advisories,
            "channel": channel,
            "fmspc": FMSPC,
            "ppid": ppid,
            "piid": piid,
            "chip_id": b"",
            "measurement": base.measurement,
        }

    def policy(self, kind: str, report: VerifiedReport, facts: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {
            "tees": self.dice.choice((["sgx", "tdx", "snp"], ["sgx", "tdx", "snp"], [report.tee], ["sgx"])),
            "measurements": [str(report.measurement) if not self.seldom(0.04) else "11" * 32],
            "allow_debug": self.seldom(),
            "allow_migration": self.seldom(0.5),
        }
        if self.seldom(0.35):
            found["hosts"] = self.hosts(facts)
        if kind in PRODUCTS:
            self.snp_rules(found, kind, facts)
        else:
            self.intel_rules(found, kind)
        return found

    def hosts(self, facts: dict[str, Any]) -> dict[str, Any]:
        kind = self.dice.choice(("chip_ids",) if facts["tee"] == "snp" else ("ppids", "piids"))
        identifier = (
            facts[kind[:-1]] if not self.seldom(0.3) else self.dice.choice(CHIPS if kind == "chip_ids" else IDS)
        )
        found: dict[str, Any] = {kind: [{"id": identifier.hex(), "until": self.dice.choice(DAYS)}]}
        if self.seldom(0.2):
            found["chip_ids" if kind != "chip_ids" else "ppids"] = [
                {"id": (CHIPS if kind != "chip_ids" else IDS)[0].hex(), "until": DAYS[2]}
            ]
        if self.seldom(0.2):
            answers = {"provider": "gcp", "ppids": [self.dice.choice(IDS).hex()], "until": self.dice.choice(DAYS)}
            found["registries"] = [answers]
        return found

    def snp_rules(self, found: dict[str, Any], product: str, facts: dict[str, Any]) -> None:
        parts = {
            "Milan": {"bootloader": 4, "tee": 0, "snp": 24, "microcode": 219},
            "Genoa": {"bootloader": 10, "tee": 0, "snp": 28, "microcode": 90},
            "Turin": {"fmc": 1, "bootloader": 1, "tee": 1, "snp": 4, "microcode": 81},
        }
        found["min_tcb"] = {name: dict(tcb) for name, tcb in parts.items() if name == product or self.seldom(0.5)}
        if self.seldom(0.05):
            found["min_tcb"] = {}
        own: dict[str, Any] = {}
        if product == "Milan" or self.seldom(0.1):
            own |= {"accept_until": self.dice.choice((*DAYS, DAYS[2])), "reason": "a test"}
        if self.seldom(0.5):
            own["platform_info"] = self.rule(PLATFORM, {"ecc", "rapl_off", "alias_check"}, {"tsme", "tio"})
        if self.seldom(0.5):
            own["guest_policy"] = self.rule(GUEST, {"smt", "ciphertext_hiding"}, {"cxl", "debug"})
        if self.seldom(0.3):
            own["min_firmware"] = self.dice.choice(("1.55.40", "1.55.41", "1.58.0"))
        if self.seldom(0.3):
            own["min_launch_tcb"] = parts[product]
        for when in ("launch", "current"):
            if self.seldom(0.2):
                own[f"min_{when}_mitigation"] = self.dice.choice((1, 0b110, 0b1000))
        rules: dict[str, Any] = {"allow_smt": not self.seldom(), "max_vmpl": self.dice.choice((0, 1))}
        if self.seldom(0.2):
            rules["min_current_mitigation"] = 0b11
        if own or self.seldom(0.3):
            rules["products"] = {product if not self.seldom(0.05) else self.dice.choice(PRODUCTS): own}
            if next(iter(rules["products"])) != "Turin" and "fmc" in own.get("min_launch_tcb", {}):
                del own["min_launch_tcb"]
            if next(iter(rules["products"])) == "Turin" and "fmc" not in own.get("min_launch_tcb", {"fmc": 0}):
                del own["min_launch_tcb"]
        found["snp"] = rules

    def intel_rules(self, found: dict[str, Any], kind: str) -> None:
        rules: dict[str, Any] = {}
        if self.seldom(0.3):
            names = ("static_platform", "smt_disabled", "memory_integrity")
            rules["pck"] = {name: self.seldom(0.4) for name in names}
        if self.seldom(0.3):
            rules["channel"] = self.dice.choice(("early", "standard"))
        if self.seldom(0.3):
            rules["fmspc"] = [self.dice.choice((FMSPC.hex(), FMSPC.hex(), "ff" * 6))]
        if kind == "tdx":
            if self.seldom(0.4):
                rules["td_attributes"] = self.rule(TD, {"sept_ve_disable", "pks"}, {"perfmon", "kl"})
            if self.seldom(0.4):
                rules["xfam"] = ["00000000000602e7"]
            if self.seldom(0.4):
                rules["min_tee_tcb_svn"] = "030102" + "00" * 13
            if self.seldom(0.3):
                found["mrseams"] = ["00" * 48]
        found[kind] = rules


def _agrees(pairs: Pairs, count: int) -> Counter[tuple[str, bool]]:
    told: Counter[tuple[str, bool]] = Counter()
    for number in range(count):
        report, document, facts = pairs.pair()
        expected = accepts(document, facts, NOW)
        policy = Policy.from_dict(document)
        try:
            appraise(report, policy, NOW, report_data=REPORT_DATA)
            found, why = True, ""
        except AppraisalFailed as refused:
            found, why = False, refused.message
        assert found is expected, (number, document, why)
        assert Policy.from_dict(policy.to_dict()) == policy
        told[facts.get("product", facts["tee"]), found] += 1
    return told


def test_oracle_and_policy_agree_over_random_pairs() -> None:
    """Two thousand pairs, of every product; of each many are accepted and many refused."""
    told = _agrees(Pairs(20261128), 2000)
    for kind in (*PRODUCTS, "sgx", "tdx"):
        for accepted in (True, False):
            assert told[kind, accepted] >= 30, told


@pytest.mark.slow
def test_oracle_and_policy_agree_over_ten_thousand_random_pairs() -> None:
    """The long form."""
    assert sum(_agrees(Pairs(1), 10_000).values()) == 10_000


def test_oracle_would_notice_a_rule_that_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """With any one rule of the code switched off, some pair is judged otherwise: the pairs reach every rule."""
    whole = Judgement.require
    rules = {
        *(
            "product accepted",
            "minimum TCB",
            "minimum TCB at launch",
            "platform info",
            "guest policy",
            "firmware version",
        ),
        *("mitigation vector at launch", "mitigation vector at current", "privilege level (VMPL)", "guest policy: SMT"),
        *("host", "host registry", "debug", "measurement", "TEE", "servicing", "TCB channel", "FMSPC", "XFAM"),
        *("TEE TCB SVN", "TD attributes", "MRSEAM", "PCK configuration: SMT", "PCK configuration: static platform"),
        *("PCK configuration: memory integrity", "guest policy: migration agent", "TD attributes: MIGRATABLE"),
        *("TD attributes: SEPT_VE_DISABLE", "TD attributes: known bits"),
    }
    pairs = Pairs(3)
    drawn = [pairs.pair() for _ in range(4000)]
    unnoticed = set(rules)
    for report, document, facts in drawn:
        if accepts(document, facts, NOW):
            continue
        failed: list[str] = []

        def record(self: Any, name: str, ok: bool, **rest: Any) -> None:
            if not ok:
                failed.append(name)  # noqa: B023 - it is read before the next turn
            whole(self, name, ok, **rest)

        monkeypatch.setattr(Judgement, "require", record)
        with pytest.raises(AppraisalFailed):
            appraise(report, Policy.from_dict(document), NOW, report_data=REPORT_DATA)
        if len(failed) == 1:
            unnoticed -= set(failed)
    assert unnoticed == set()
