"""The policy of a relying party: frozen, to and from the plain data of JSON or TOML.

Nothing is accepted that is not named. A policy without a TEE, or without a program, accepts nothing. Composed
policies (`any_of`) inherit what the outer one says and add their own.

::

    tees = ["sgx", "sim:<64 hex>"]
    statuses = ["UpToDate"]                       # this is the default
    measurements = ["<64 or 96 hex>"]             # MRENCLAVE, MRTD or launch measurement
    workloads = ["<64 hex>"]                      # Adyton's workload measurement, wherever the TEE carries it
    [[signers]]
    mrsigner = "<64 hex>"
    isv_prod_id = 1
    min_isv_svn = 3
    [[exemptions]]
    name = "INTEL-SA-00615"                       # an advisory, or a status
    owner = "alice@example.org"
    until = "2027-01-31"
    reason = "the program is compiled with LVI mitigations"

The rules for machines and platforms (`hosts`, `sgx`, `tdx`, `snp`, `profile`) are in `adyton.attest.policy`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache
from types import MappingProxyType
from typing import Final

from adyton.attest.names import DEVICE_NAMES, TEE_NAMES, is_device_name, is_tee_name
from adyton.attest.nvidia.gpu_policy import GPUPolicy
from adyton.attest.policy import read_pcrs, read_rules
from adyton.attest.policy.hosts import HostRules, read_host_rules
from adyton.attest.policy.judge_intel import SERVICING_ENDED
from adyton.attest.policy.profile import PROFILES, RELAXABLE
from adyton.attest.policy.read import Plain, Reader, flag, hexes, listed, only, text_of, whole, wrong
from adyton.attest.policy.rules import (
    NO_SGX_RULES,
    NO_SNP_RULES,
    NO_TDX_RULES,
    Exemption,
    SGXRules,
    SignerRule,
    SNPRules,
    TDXRules,
    Tracked,
)
from adyton.attest.policy.write import plain
from adyton.attest.snp import TCBVersion
from adyton.attest.status import NEVER_ACCEPTED, TCBStatus
from adyton.values import Digest, Measurement

_NO_MINIMUM: Final[Mapping[str, TCBVersion]] = MappingProxyType({})
_NO_PCRS: Final[Mapping[int, frozenset[bytes]]] = MappingProxyType({})
_MAX_DEPTH: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a relying party accepts. It is frozen, and refuses whatever it does not name."""

    tees: frozenset[str] = frozenset()
    """As in `adyton.attest.names`: "sgx", "tdx", "nitro", "sim:<fingerprint of the simulated root>" and so on."""
    statuses: frozenset[TCBStatus] = frozenset({TCBStatus.UP_TO_DATE})
    exemptions: tuple[Exemption, ...] = ()
    measurements: frozenset[Measurement] = frozenset()
    workloads: frozenset[Measurement] = frozenset()
    signers: tuple[SignerRule, ...] = ()
    any_program: bool = False
    """Accept a report whatever runs there. For looking at platforms, never for giving out keys."""
    allow_debug: bool = False
    allow_provisioning_keys: bool = False
    allow_missing_report_data: bool = False
    """Accept evidence although the caller has nothing to compare its report data with. It is bound to nothing then."""
    max_collateral_age_days: int | None = None
    min_evaluation_number: int | None = None
    rtmr0: frozenset[bytes] = frozenset()
    rtmr1: frozenset[bytes] = frozenset()
    rtmr2: frozenset[bytes] = frozenset()
    rtmr3: frozenset[bytes] = frozenset()
    mrconfigids: frozenset[bytes] = frozenset()
    mrowners: frozenset[bytes] = frozenset()
    mrownerconfigs: frozenset[bytes] = frozenset()
    mrseams: frozenset[bytes] = frozenset()
    service_tds: frozenset[bytes] = frozenset()
    pcrs: Mapping[int, frozenset[bytes]] = field(default_factory=lambda: _NO_PCRS)
    """PCR -> its allowed values, 32 or 48 bytes each. Evidence without PCRs does not meet it."""
    max_document_age_s: int | None = None
    """Nitro: how old a document may be. None: its certificate must not have ended, which is three hours."""
    boot_applications: tuple[bytes, ...] = ()
    """A TPM: Authenticode SHA-256 (32 bytes) of each program that the firmware starts, in order, and of no other."""
    tpm_roots: frozenset[Digest] = frozenset()
    """Roots (SHA-256 of the DER) under which a TPM's attestation key is certified, for `tpm`."""
    allow_sept_ve: bool = False
    allow_migration: bool = False
    min_tcb: Mapping[str, TCBVersion] = field(default_factory=lambda: _NO_MINIMUM)
    """SEV-SNP: product -> the least security versions, of reported and committed TCB."""
    allow_missing_crl: bool = False
    snp: SNPRules = NO_SNP_RULES
    sgx: SGXRules = NO_SGX_RULES
    tdx: TDXRules = NO_TDX_RULES
    gpus: GPUPolicy | None = None
    """Which GPUs the machine has to have. None: it has to have none."""
    hosts: HostRules | None = None
    """The machines that are accepted. None: any."""
    tracked: tuple[Tracked, ...] = ()
    profile: str | None = None
    relaxed: tuple[Exemption, ...] = ()
    """Rules of the profile that somebody answers for, until a day."""
    physical: str = ""
    """What is known of who can lay hands on the machines. It is shown beside the attacks that take hands."""
    any_of: tuple[Policy, ...] = ()
    """Alternatives. Each inherits what it does not name itself, and one of them must be met."""
    named: frozenset[str] = field(default=frozenset(), compare=False)
    """Names that were given, also where the value is the default. Whatever differs from the default counts too."""

    def __post_init__(self) -> None:
        differs = {name for name, default in _defaults() if getattr(self, name) != default}
        object.__setattr__(self, "named", self.named | differs)
        for tee in self.tees:
            if not is_tee_name(tee) and not is_device_name(tee):
                raise wrong("tees", f"{TEE_NAMES}; or {DEVICE_NAMES}", tee)
        for name in [*self.statuses, *(item.name for item in self.exemptions)]:
            if name in {status.value for status in NEVER_ACCEPTED}:
                raise wrong("statuses", "nothing that can never be accepted", name)
        if any(item.name == SERVICING_ENDED for item in self.exemptions):
            raise wrong("exemptions", "nothing that can never be accepted", SERVICING_ENDED)

    @property
    def names_program(self) -> bool:
        """Whether it says which programs it accepts."""
        return bool(self.measurements or self.workloads or self.signers)

    @property
    def sim_roots(self) -> frozenset[Digest]:
        """The simulated roots that it names, in its alternatives too."""
        own = {Digest.from_hex(tee.partition(":")[2]) for tee in self.tees if ":" in tee}
        own |= self.gpus.simulated_roots if self.gpus is not None else frozenset()
        return frozenset(own).union(*(inner.sim_roots for inner in self.any_of))

    @property
    def every_tpm_root(self) -> frozenset[Digest]:
        """The roots of TPMs that it names, in its alternatives too. Each alternative accepts its own only."""
        return self.tpm_roots.union(*(inner.every_tpm_root for inner in self.any_of))

    def alternatives(self) -> Iterator[Policy]:
        """The policies without alternatives that this one comes to."""
        if not self.any_of:
            yield self
        for inner in self.any_of:
            yield from _inherit(self, inner).alternatives()

    @classmethod
    def from_dict(cls, document: Plain) -> Policy:
        """Read plain data. Unknown names are refused. Raises UsageError."""
        return _read(document, 0)

    def to_dict(self) -> dict[str, object]:
        """As plain data, only what is named. `from_dict` gives it back."""
        named = [item.name for item in fields(self) if item.name in self.named]
        found = {name: plain(getattr(self, name)) for name in named if name != "any_of"}
        return found | ({"any_of": [inner.to_dict() for inner in self.any_of]} if self.any_of else {})


@cache
def _defaults() -> tuple[tuple[str, object], ...]:
    """Every name of a policy (but `named` itself), and its default."""
    return tuple(
        (item.name, item.default if item.default is not MISSING else {})
        for item in fields(Policy)
        if item.name != "named"
    )


def _inherit(outer: Policy, inner: Policy) -> Policy:
    """The inner policy, with what it does not name taken from the outer one."""
    taken = {name: getattr(outer, name) for name in outer.named - inner.named if name != "any_of"}
    return replace(inner, **taken, named=inner.named | outer.named - {"any_of"})


def _profile(name: str, value: object) -> str:
    text = text_of(name, value)
    if text not in PROFILES:
        raise wrong(name, ", ".join(sorted(PROFILES)), text)
    return text


_READERS: Final[dict[str, Reader]] = {
    "tees": lambda name, value: frozenset(text_of(name, item) for item in listed(name, value)),
    "statuses": read_rules.statuses,
    "exemptions": read_rules.exemptions,
    "measurements": read_rules.measurements,
    "workloads": read_rules.measurements,
    "signers": read_rules.signers,
    "any_program": flag,
    "allow_debug": flag,
    "allow_provisioning_keys": flag,
    "allow_missing_report_data": flag,
    "max_collateral_age_days": whole,
    "min_evaluation_number": whole,
    "pcrs": read_pcrs.pcrs,
    "max_document_age_s": whole,
    "boot_applications": read_pcrs.boot_applications,
    "tpm_roots": read_pcrs.digests,
    "allow_sept_ve": flag,
    "allow_migration": flag,
    "min_tcb": read_rules.min_tcb,
    "allow_missing_crl": flag,
    "snp": read_rules.snp,
    "sgx": read_rules.sgx,
    "tdx": read_rules.tdx,
    "gpus": lambda _name, value: GPUPolicy.from_dict(value),
    "hosts": read_host_rules,
    "tracked": read_rules.tracked,
    "profile": _profile,
    "relaxed": read_rules.relaxations(RELAXABLE),
    "physical": text_of,
    **dict.fromkeys(
        (
            "rtmr0",
            "rtmr1",
            "rtmr2",
            "rtmr3",
            "mrconfigids",
            "mrowners",
            "mrownerconfigs",
            "mrseams",
            "service_tds",
        ),
        hexes(48),
    ),
}


def _read(document: object, depth: int) -> Policy:
    if depth > _MAX_DEPTH:
        raise wrong("any_of", f"at most {_MAX_DEPTH} levels", depth)
    table = only("names", document, [*_READERS, "any_of"])
    values = {name: _READERS[name](name, value) for name, value in table.items() if name != "any_of"}
    if "any_of" in table:
        inner = listed("any_of", table["any_of"])
        if not inner:
            raise wrong("any_of", "at least one alternative", inner)
        values["any_of"] = tuple(_read(item, depth + 1) for item in inner)
    return Policy(**values, named=frozenset(values))  # type: ignore[arg-type]
