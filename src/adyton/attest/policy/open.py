"""What a policy leaves open, in order of danger: read from the policy alone, before any evidence comes.

Nothing here refuses. Each line says what could be accepted that its owner may not want, and which line closes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Literal

from adyton.attest.nitro.verify import PROGRAM_PCR
from adyton.attest.policy.attacks import ATTACKS, Floor
from adyton.attest.policy.judge_amd import FORGEABLE
from adyton.attest.policy.profile import STRICT_2026, floors_of
from adyton.attest.policy.rules import ProductRules
from adyton.attest.status import TCBStatus
from adyton.dates import is_over

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from adyton.attest.evidence_policy import Policy
    from adyton.attest.nvidia.gpu_policy import GPUPolicy

Danger = Literal["critical", "high", "medium", "low"]

DANGERS: Final[tuple[Danger, ...]] = ("critical", "high", "medium", "low")
"""From the worst on. Critical: the host can read or replace the program. Low: a fact that should be known."""

_LONG: Final = timedelta(days=366)
_MISSING_FIXES: Final = frozenset({TCBStatus.OUT_OF_DATE, TCBStatus.OUT_OF_DATE_CONFIGURATION_NEEDED})


@dataclass(frozen=True, slots=True)
class Open:
    """One thing that a policy leaves open."""

    danger: Danger
    name: str
    """The line of the policy that opens it, or that is missing."""
    means: str
    remedy: str

    def to_dict(self) -> dict[str, str]:
        """As JSON data."""
        return {"danger": self.danger, "name": self.name, "means": self.means, "remedy": self.remedy}


def left_open(policy: Policy, now: datetime) -> tuple[Open, ...]:
    """Everything that one of the policy's alternatives leaves open, the most dangerous first, each once."""
    found: dict[Open, None] = {}
    for alternative in policy.alternatives():
        found |= dict.fromkeys(_of(alternative, now))
    return tuple(sorted(found, key=lambda item: DANGERS.index(item.danger)))


def accepts_nothing(policy: Policy) -> bool:
    """Whether no evidence at all can meet it: no TEE or no program is named in any alternative."""
    return not any(
        item.tees
        and (item.names_program or item.any_program or any(PROGRAM_PCR.get(tee) in item.pcrs for tee in item.tees))
        for item in policy.alternatives()
    )


def never_excluded(policy: Policy) -> tuple[str, ...]:
    """The attacks on the policy's TEEs that no evidence can exclude: physical ones, and those without a number."""
    kinds = {tee.partition(":")[0].removeprefix("sim-") for item in policy.alternatives() for tee in item.tees}
    kinds = {"sgx" if kind == "sim" else kind.removeprefix("az-") for kind in kinds}
    return tuple(
        f"{attack.name} (physical)" if attack.physical else attack.name
        for attack in ATTACKS
        if attack.tees & kinds and not any(not floor.withdrawn for floor in attack.floors)
    )


def _of(policy: Policy, now: datetime) -> Iterator[Open]:
    kinds = {tee.partition(":")[0] for tee in policy.tees}
    yield from _of_program(policy, kinds)
    yield from _of_dates(policy, now)
    yield from _of_machines(policy)
    hardware = {kind.removeprefix("az-") for kind in kinds}
    if hardware & {"sgx", "tdx", "sim", "sim-tdx"}:
        yield from _of_intel(policy, hardware)
    if "snp" in hardware:
        yield from _of_amd(policy)
    if policy.gpus is not None:
        yield from _of_gpus(policy.gpus, now)


def _of_program(policy: Policy, kinds: set[str]) -> Iterator[Open]:
    if policy.allow_debug:
        yield Open("critical", "allow_debug", "whoever runs the machine may read the TEE's memory", "leave it out")
    if policy.any_program:
        means = "whatever runs there is accepted, if nothing else names it"
        yield Open("critical", "any_program", means, "name `measurements`, `workloads` or `signers`, and leave it out")
    if policy.allow_missing_report_data:
        means = "evidence that somebody copied is accepted where nobody says what it must be bound to"
        yield Open("critical", "allow_missing_report_data", means, "leave it out, and give the report data")
    if "tpm" in kinds:
        means = "a TPM encrypts no memory: whoever runs the machine can read the program's"
        yield Open("critical", "tees: tpm", means, "name a TEE that encrypts memory: tdx, snp, sgx")
    if any(kind.startswith("sim") for kind in kinds):
        means = "a simulated platform protects nothing: whoever reads its folder has its keys"
        yield Open("critical", "tees", means, "name only hardware: sgx, tdx, snp")
    registers = [name for name in ("rtmr0", "rtmr1", "rtmr2") if not getattr(policy, name)]
    if kinds & {"tdx", "sim-tdx"} and registers:
        means = f"{', '.join(registers)} may be anything: the host boots another kernel under the same firmware"
        yield Open("critical", "rtmr0, rtmr1, rtmr2", means, "name all three, from a guest image that you checked")
    if "snp" in kinds and policy.measurements:
        means = "a launch digest of the firmware alone lets the host boot another kernel"
        yield Open("high", "measurements", means, "make sure that it covers kernel, initrd and command line")
    if policy.signers:
        means = "every program of the signer from that SVN on is accepted, also one that you never saw"
        yield Open("medium", "signers", means, "name `measurements` where you know them")
    if policy.allow_provisioning_keys:
        means = "enclaves with Intel's provisioning keys are accepted: they can tell machines apart for ever"
        yield Open("medium", "allow_provisioning_keys", means, "leave it out")
    if policy.allow_migration:
        means = "the guest may be moved to a machine whose evidence nobody sees"
        yield Open("high", "allow_migration", means, "leave it out")


def _of_dates(policy: Policy, now: datetime) -> Iterator[Open]:
    for status in sorted(policy.statuses - {TCBStatus.UP_TO_DATE}):
        worst = status in _MISSING_FIXES
        means = "platforms without known fixes are accepted" if worst else "platforms that leave something exposed"
        remedy = "name it in `exemptions` instead, with an owner and an end"
        yield Open("critical" if worst else "medium", f"statuses: {status.value}", means, remedy)
    for what, items in (("exemptions", policy.exemptions), ("relaxed", policy.relaxed)):
        for item in items:
            if not is_over(item.until, now):
                long = item.until - now > _LONG
                means = f"{item.owner} answers for it until {item.until:%Y-%m-%d}" + (
                    ": more than a year" if long else ""
                )
                yield Open(
                    "high" if long else "medium", f"{what}: {item.name}", means, "end it as soon as it is repaired"
                )
    for tracked in policy.tracked:
        if tracked.until is None or not is_over(tracked.until, now):
            until = "for ever" if tracked.until is None else f"until {tracked.until:%Y-%m-%d}"
            means = f"a breach of it is a warning {until}"
            yield Open("medium", f"tracked: {tracked.name}", means, "look at the warnings; leave it out to refuse")


def _of_machines(policy: Policy) -> Iterator[Open]:
    if policy.hosts is None:
        means = "any machine of the maker's is accepted: one that somebody opened speaks for all (TEE.fail, relays)"
        yield Open("high", "hosts", means, "list the machines that you know, with end dates")
    elif not policy.hosts.has_list:
        means = "any machine that the provider calls its own is accepted"
        yield Open("low", "hosts", means, "list the machines that you rent")
    if policy.profile is None:
        means = "no published attack is weighed in the verdict, and no floor of 2026 is asked for"
        yield Open("medium", "profile", means, f'profile = "{STRICT_2026}"')


def _of_gpus(gpus: GPUPolicy, now: datetime) -> Iterator[Open]:
    if gpus.simulated_roots:
        means = "a simulated GPU protects nothing: whoever reads its folder has its keys"
        yield Open("critical", "gpus.simulated_roots", means, "leave it out")
    if gpus.allow_devtools:
        means = "GPUs are accepted whose firmware nobody vouches for, and whose memory debuggers can read"
        yield Open("critical", "gpus.allow_devtools", means, "leave it out")
    if gpus.allow_missing_ocsp:
        means = "GPUs and reference values whose certificates NVIDIA revoked are still accepted"
        yield Open(
            "high", "gpus.allow_missing_ocsp", means, "leave it out, and fetch the answers: collateral fetch --gpu"
        )
    for item in gpus.rim_exemptions:
        if not is_over(item.until, now):
            means = f"{item.owner} answers until {item.until:%Y-%m-%d} for reference values whose signer has expired"
            yield Open("medium", "gpus.rim_exemptions", means, "end it as soon as NVIDIA has signed them again")


def _of_intel(policy: Policy, kinds: set[str]) -> Iterator[Open]:
    for kind, rules in (("sgx", policy.sgx), ("tdx", policy.tdx)):
        if not kinds & {kind, "sim" if kind == "sgx" else "sim-tdx"}:
            continue
        if rules.channel != "early" and policy.profile is None:
            means = "new findings of Intel's count only after its grace period of months"
            yield Open("medium", f"{kind}.channel", means, f'{kind}.channel = "early", and collateral fetch --early')
        if not rules.pck.smt_disabled:
            means = "another program of the host may share a core with the TEE"
            yield Open("low", f"{kind}.pck.smt_disabled", means, "ask for it where your machines have it")
        if not rules.pck.memory_integrity:
            means = "memory without cryptographic integrity is accepted"
            yield Open("low", f"{kind}.pck.memory_integrity", means, "ask for it where your machines have it")
    if policy.max_collateral_age_days is None and policy.min_evaluation_number is None:
        means = "collateral counts as long as it is valid: 30 days after a new finding"
        yield Open("medium", "max_collateral_age_days", means, "set it to 7, or set min_evaluation_number")
    if policy.allow_sept_ve and kinds & {"tdx", "sim-tdx"}:
        means = "the host may inject exceptions into the guest"
        yield Open("high", "allow_sept_ve", means, "leave it out")


def _of_amd(policy: Policy) -> Iterator[Open]:
    if policy.allow_missing_crl:
        means = "a signing key that AMD revoked is still accepted"
        yield Open("high", "allow_missing_crl", means, "leave it out, and fetch AMD's CRL")
    if policy.snp.max_vmpl:
        means = "software within the guest, below its kernel, may speak for it"
        yield Open("high", "snp.max_vmpl", means, "leave it at 0")
    for product, minimum in policy.min_tcb.items():
        rules = policy.snp.products.get(product, ProductRules())
        if product in FORGEABLE and rules.accept_until is not None:
            means = (
                f"until {rules.accept_until:%Y-%m-%d} reports are accepted that anybody can forge: {FORGEABLE[product]}"
            )
            yield Open("critical", f"snp.products.{product}", means, "use a newer product")
        if policy.profile is not None:
            continue
        seen = minimum.to_dict()
        for floor in floors_of(product):
            low = [
                f"{part} {seen.get(part, 0)} < {needed}"
                for part, needed in floor.min_tcb.items()
                if seen[part] < needed
            ]
            if low:
                yield _below(product, floor, low)
        for name, danger in (("alias_check", "high"), ("ciphertext_hiding", "medium"), ("rapl_off", "medium")):
            asked = name in rules.platform_info.require or (name == "alias_check" and policy.snp.require_alias_check)
            if not asked:
                means = f"machines without it are accepted ({_ATTACK_OF[name]})"
                remedy = f'snp.products.{product}.platform_info = {{require = ["{name}"]}}, where the product has it'
                yield Open("high" if danger == "high" else "medium", f"{product}: platform {name}", means, remedy)
        if "page_swap_off" not in rules.guest_policy.require:
            means = "the host may move pages of the guest and learn from it (Heracles)"
            remedy = f'snp.products.{product}.guest_policy = {{require = ["page_swap_off"]}}, where the product has it'
            yield Open("medium", f"{product}: guest page_swap_off", means, remedy)
        if policy.snp.allow_smt and "smt" not in rules.platform_info.forbid:
            means = "another program of the host may share a core with the guest (StackWarp)"
            yield Open(
                "medium", f"{product}: SMT", means, f'snp.products.{product}.platform_info = {{forbid = ["smt"]}}'
            )


_ATTACK_OF: Final = {"alias_check": "BadRAM", "ciphertext_hiding": "CipherLeaks, Heracles", "rapl_off": "PwrLeak"}


def _below(product: str, floor: Floor, low: list[str]) -> Open:
    means = f"firmware is accepted that is older than AMD's bulletins of 2026: {', '.join(low)} (by {floor})"
    return Open("high", f"min_tcb.{product}", means, "raise it to what the sources ask for, after checking with AMD")
