"""The published attacks of 2023 to 2026, and what evidence can show against each.

Every number here is a third party's reading, with its source and its date. None was read in the maker's own text, so
none is marked `confirmed`, and no attack is called excluded for it. AMD publishes its numbers in bulletins, and has
taken some back (AMD-SB-3034, 2026-09-24).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

from adyton.attest.policy.bits import GUEST_POLICY, GUEST_POLICY_OTHER, NO_BITS, PLATFORM_INFO, BitRule
from adyton.attest.policy.judge_amd import SNPFacts
from adyton.attest.policy.judge_hosts import ids_of
from adyton.attest.snp import SNPReport

if TYPE_CHECKING:
    from adyton.attest.evidence_policy import Policy
    from adyton.attest.report import VerifiedReport

Standing = Literal["excluded", "reported fixed by", "not excluded", "not published for this product"]

_NONE: Final[Mapping[str, int]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """What a report of one product must show, at least, so that an attack is said not to work."""

    product: str
    source: str
    date: str
    """The date of the source, YYYY-MM-DD."""
    confirmed: bool = False
    """Whether it was read in the maker's own text."""
    withdrawn: str = ""
    """Since when the maker no longer stands by it; empty: it does, or never did."""
    min_tcb: Mapping[str, int] = field(default_factory=lambda: _NONE)
    platform_info: BitRule = NO_BITS
    guest_policy: BitRule = NO_BITS
    mitigations: int = 0

    def missing(self, facts: SNPFacts) -> list[str]:
        """What a report lacks of it, in words."""
        found = []
        for when, versions in (("reported", facts.reported), ("committed", facts.committed)):
            seen = versions.to_dict()
            found += [
                f"{part} ({when}) is {seen.get(part, 0)}, needed {needed}"
                for part, needed in self.min_tcb.items()
                if seen.get(part, 0) < needed
            ]
        found += [f"platform: {item}" for item in self.platform_info.broken(facts.platform_info, PLATFORM_INFO)]
        found += [
            f"guest policy: {item}"
            for item in self.guest_policy.broken(facts.guest_policy, GUEST_POLICY, GUEST_POLICY_OTHER)
        ]
        lacking = self.mitigations & ~facts.current_mitigations
        return found + ([f"mitigation bits {lacking:#x} are clear"] if lacking else [])

    def __str__(self) -> str:
        return f"{self.source}, {self.date}, {'confirmed' if self.confirmed else 'not confirmed'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One published attack."""

    name: str
    reference: str
    tees: frozenset[str]
    products: frozenset[str] = frozenset()
    """AMD's products that it was published for. Empty: all."""
    physical: bool = False
    """Whether it takes hands on the machine: no report shows it, and no update repairs it."""
    floors: tuple[Floor, ...] = ()
    otherwise: str = "no number that a report states is known for it"
    """Why it is not excluded where there is no floor."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What evidence says of one attack."""

    attack: Attack
    standing: Standing
    why: str

    def to_dict(self) -> dict[str, str | bool]:
        """As JSON data."""
        return {
            "attack": self.attack.name,
            "reference": self.attack.reference,
            "physical": self.attack.physical,
            "standing": self.standing,
            "why": self.why,
        }

    def __str__(self) -> str:
        return f"{self.attack.name}: {self.standing} {self.why}" if self.why else f"{self.attack.name}: {self.standing}"


_SNP: Final = frozenset({"snp"})
_TDX: Final = frozenset({"tdx"})
_INTEL: Final = frozenset({"sgx", "tdx"})
_VMS: Final = frozenset({"snp", "tdx"})
_EVERY: Final = frozenset({"sgx", "tdx", "snp"})

_TINFOIL: Final = "Offline Tinfoil CPU candidate appraisal"
_TABLE: Final = "attack table of a SEV-SNP verifier in TypeScript, Kotlin and Go"
_HOSTING: Final = "hosting study of a games team"

_GENOA_2025: Final = Floor(
    product="Genoa",
    source=f"{_TINFOIL}, from AMD-SB-3014, -3016, -3020, -3023 and -3027",
    date="2026-11-27",
    min_tcb=MappingProxyType({"snp": 27, "microcode": 86}),
    mitigations=0b111,
)
_MILAN_2025: Final = Floor(
    product="Milan",
    source="Stogas verifier README",
    date="2026-11-27",
    min_tcb=MappingProxyType({"bootloader": 4, "snp": 29, "microcode": 222}),
    mitigations=0b1011,
)


def _switches(product: str, *, platform: Iterable[str] = (), guest: Iterable[str] = (), no_smt: bool = False) -> Floor:
    smt = frozenset({"smt"} if no_smt else ())
    return Floor(
        product=product,
        source=_TABLE,
        date="2026-10-04",
        platform_info=BitRule(require=frozenset(platform), forbid=smt),
        guest_policy=BitRule(require=frozenset(guest), forbid=smt),
    )


ATTACKS: Final[tuple[Attack, ...]] = (
    Attack(
        name="MilanLaunchy and BadFuse",
        reference="arXiv 2605.12990",
        tees=_SNP,
        products=frozenset({"Milan"}),
        otherwise="reports of any version can be forged: no number helps",
    ),
    Attack(name="STALEUS", reference="AMD-SB-3039, CVE-2025-54509", tees=_SNP, products=frozenset({"Genoa", "Turin"})),
    Attack(
        name="Fabricked",
        reference="AMD-SB-3034, CVE-2025-54510",
        tees=_SNP,
        floors=(
            Floor(
                product="Genoa",
                source=_HOSTING,
                date="2026-08-08",
                withdrawn="2026-09-24",
                min_tcb=MappingProxyType({"snp": 28}),
            ),
        ),
    ),
    Attack(name="BreakFAST", reference="AMD-SB-3030, CVE-2025-61971, CVE-2025-61972", tees=_SNP),
    Attack(
        name="RMPocalypse",
        reference="AMD-SB-3020, CVE-2025-0033",
        tees=_SNP,
        floors=(_GENOA_2025, _MILAN_2025),
    ),
    Attack(
        name="StackWarp",
        reference="AMD-SB-3027, CVE-2025-29943",
        tees=_SNP,
        floors=(_GENOA_2025, *(_switches(product, no_smt=True) for product in ("Milan", "Genoa", "Turin"))),
    ),
    Attack(
        name="Heracles",
        reference="AMD-SB-3021",
        tees=_SNP,
        products=frozenset({"Genoa", "Turin"}),
        floors=tuple(
            _switches(product, platform=("ciphertext_hiding",), guest=("ciphertext_hiding", "page_swap_off"))
            for product in ("Genoa", "Turin")
        ),
    ),
    Attack(
        name="CipherLeaks and later ciphertext channels",
        reference="AMD-SB-3021",
        tees=_SNP,
        floors=tuple(
            _switches(product, platform=("ciphertext_hiding",), guest=("ciphertext_hiding",))
            for product in ("Genoa", "Turin")
        ),
        otherwise="the product has no ciphertext hiding",
    ),
    Attack(name="EntrySign", reference="AMD-SB-3019, CVE-2024-56161", tees=_SNP),
    Attack(
        name="CacheWarp",
        reference="AMD-SB-3005, CVE-2023-20592",
        tees=_SNP,
        products=frozenset({"Milan", "Genoa"}),
    ),
    Attack(
        name="BadRAM",
        reference="AMD-SB-3015, CVE-2024-21944",
        tees=_SNP,
        physical=True,
        floors=tuple(_switches(product, platform=("alias_check",)) for product in ("Milan", "Genoa", "Turin")),
    ),
    Attack(
        name="IOMMU write buffer",
        reference="AMD-SB-3016, CVE-2023-20585",
        tees=_SNP,
        floors=(_switches("Turin", platform=("iommu_write_safe",)),),
        otherwise="the product does not state it",
    ),
    Attack(
        name="PwrLeak",
        reference="",
        tees=_SNP,
        products=frozenset({"Genoa", "Turin"}),
        floors=tuple(_switches(product, platform=("rapl_off",), guest=("rapl_off",)) for product in ("Genoa", "Turin")),
    ),
    Attack(
        name="Heckler and WeSee",
        reference="CVE-2024-25743, CVE-2024-25744",
        tees=_SNP,
        otherwise="the kernel of the measured guest decides",
    ),
    Attack(
        name="BadAML",
        reference="CVE-2026-100839 (Contrast)",
        tees=_VMS,
        otherwise="the measured guest decides what it takes from the host's ACPI tables",
    ),
    Attack(name="TDXdown and TDXploit", reference="CVE-2024-27457", tees=_TDX),
    Attack(
        name="relay within the handshake",
        reference="CVE-2026-33697",
        tees=_EVERY,
        otherwise="the protocol that carries the evidence decides",
    ),
    Attack(name="TEE.fail", reference="AMD-SB-3040, Intel announcement 2025-10-28-001", tees=_EVERY, physical=True),
    Attack(name="Battering RAM", reference="AMD-SB-3040", tees=_EVERY, physical=True),
    Attack(name="WireTap", reference="Intel announcement 2025-10-28-001", tees=_INTEL, physical=True),
    Attack(name="DDRop", reference="CCS 2026", tees=_EVERY, physical=True),
)


def standing_of(attack: Attack, facts: SNPFacts | None, where: str) -> Outcome:
    """What a report shows of one attack. `facts` are None for Intel, `where` says what is known of the machine."""
    if facts is not None and attack.products and facts.product not in attack.products:
        return Outcome(attack, "not published for this product", f"({', '.join(sorted(attack.products))})")
    floors = [floor for floor in attack.floors if facts is not None and floor.product == facts.product]
    if facts is None or not floors:
        return Outcome(attack, "not excluded", where if attack.physical else f"({attack.otherwise})")
    for floor in floors:
        if floor.withdrawn:
            return Outcome(
                attack, "not excluded", f"(the maker withdrew its number on {floor.withdrawn}; it was from {floor})"
            )
        missing = floor.missing(facts)
        if missing:
            return Outcome(attack, "not excluded", f"({'; '.join(missing)}; by {floor})")
    if all(floor.confirmed for floor in floors):
        return Outcome(attack, "excluded", f"({'; '.join(map(str, floors))})")
    return Outcome(attack, "reported fixed by", "; ".join(map(str, floors)))


def outcomes(report: VerifiedReport, policy: Policy, attacks: Iterable[Attack] = ATTACKS) -> tuple[Outcome, ...]:
    """What a report shows of every attack on its kind of TEE, in the order of the table."""
    kind = {"sim": "sgx", "sim-tdx": "tdx"}.get(report.tee, report.tee)
    facts = None
    if isinstance(report.evidence, SNPReport):
        facts = SNPFacts.of(report.evidence, str(report.platform["product"]))
    where = f"(it takes hands on the machine; {_whereabouts(report, policy)})"
    return tuple(standing_of(attack, facts, where) for attack in attacks if kind in attack.tees)


def _whereabouts(report: VerifiedReport, policy: Policy) -> str:
    """What the policy knows of where the machine stands."""
    ids = ids_of(report)
    listed = policy.hosts.listed() if policy.hosts is not None else ()
    notes = sorted({host.note for kind, host, _ in listed if ids.get(kind) == host.id and host.note})
    if notes:
        return f"the policy says of it: {', '.join(notes)}"
    return f"the policy says: {policy.physical}" if policy.physical else "nothing says where the machine stands"
