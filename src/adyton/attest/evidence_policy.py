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
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from datetime import datetime
from functools import cache
from types import MappingProxyType
from typing import Final, TypeVar, cast

from adyton.attest.names import DEVICE_NAMES, TEE_NAMES, is_advisory_name, is_device_name, is_tee_name
from adyton.attest.nvidia.gpu_policy import GPUPolicy
from adyton.attest.snp import TCBVersion
from adyton.attest.status import NEVER_ACCEPTED, TCBStatus
from adyton.dates import parse_end
from adyton.errors import UsageError
from adyton.values import Digest, Measurement

_NO_MINIMUM: Final[Mapping[str, TCBVersion]] = MappingProxyType({})
_MAX_DEPTH: Final = 4
_MAX_ENTRIES: Final = 4096
_MAX_PCR: Final = 31
_PCR_BYTES: Final = (32, 48)
_NO_PCRS: Final[Mapping[int, frozenset[bytes]]] = MappingProxyType({})
_MAX_BOOT_APPLICATIONS: Final = 16

_Value = TypeVar("_Value")
Plain = Mapping[str, object]


def _wrong(name: str, expected: str, seen: object) -> UsageError:
    return UsageError(
        f"the policy's {name} is wrong: expected {expected}, seen {str(seen)[:160]}",
        check=f"policy: {name}",
        expected=expected,
        seen=str(seen)[:160],
        remedy="see docs/attestation.md, section Policy",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SignerRule:
    """Any enclave of a signer's product, from a security version on."""

    mrsigner: Digest
    isv_prod_id: int
    min_isv_svn: int

    def accepts(self, mrsigner: Digest | None, isv_prod_id: int | None, isv_svn: int | None) -> bool:
        """Whether an enclave falls under this rule."""
        return mrsigner == self.mrsigner and isv_prod_id == self.isv_prod_id and (isv_svn or 0) >= self.min_isv_svn

    def __str__(self) -> str:
        return f"{self.mrsigner}, product {self.isv_prod_id}, SVN at least {self.min_isv_svn}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exemption:
    """A status or an advisory that somebody answers for, until a day."""

    name: str
    owner: str
    until: datetime
    """The last instant at which it counts."""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SNPRules:
    """The rules for SEV-SNP alone."""

    host_data: frozenset[bytes] = frozenset()
    id_key_digests: frozenset[bytes] = frozenset()
    author_key_digests: frozenset[bytes] = frozenset()
    family_ids: frozenset[bytes] = frozenset()
    image_ids: frozenset[bytes] = frozenset()
    max_vmpl: int = 0
    min_guest_svn: int = 0
    allow_smt: bool = True
    require_single_socket: bool = False
    require_alias_check: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a relying party accepts. It is frozen, and refuses whatever it does not name."""

    tees: frozenset[str] = frozenset()
    """As in `adyton.attest.names`: "sgx", "tdx", "snp", "tpm", "sim:<fingerprint of the simulated root>" and so on."""
    statuses: frozenset[TCBStatus] = frozenset({TCBStatus.UP_TO_DATE})
    exemptions: tuple[Exemption, ...] = ()
    measurements: frozenset[Measurement] = frozenset()
    workloads: frozenset[Measurement] = frozenset()
    signers: tuple[SignerRule, ...] = ()
    any_program: bool = False
    """Accept a report whatever runs there. For looking at platforms, never for giving out keys."""
    allow_debug: bool = False
    allow_provisioning_keys: bool = False
    require_report_data: bool = False
    """Refuse where the caller has nothing to compare the report data with."""
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
    boot_applications: tuple[bytes, ...] = ()
    """A TPM: Authenticode SHA-256 (32 bytes) of each program that the firmware starts, in order, and of no other."""
    tpm_roots: frozenset[Digest] = frozenset()
    """Roots (SHA-256 of the DER) under which a TPM's attestation key is certified, for `tpm`."""
    allow_sept_ve: bool = False
    allow_migration: bool = False
    min_tcb: Mapping[str, TCBVersion] = field(default_factory=lambda: _NO_MINIMUM)
    """SEV-SNP: product -> the least security versions, of reported and committed TCB."""
    allow_missing_crl: bool = False
    snp: SNPRules = SNPRules()
    gpus: GPUPolicy | None = None
    """Which GPUs the machine has to have. None: it has to have none."""
    any_of: tuple[Policy, ...] = ()
    """Alternatives. Each inherits what it does not name itself, and one of them must be met."""
    named: frozenset[str] = field(default=frozenset(), compare=False)
    """Names that were given, also where the value is the default. Whatever differs from the default counts too."""

    def __post_init__(self) -> None:
        differs = {name for name, default in _defaults() if getattr(self, name) != default}
        object.__setattr__(self, "named", self.named | differs)
        for tee in self.tees:
            if not is_tee_name(tee) and not is_device_name(tee):
                raise _wrong("tees", f"{TEE_NAMES}; or {DEVICE_NAMES}", tee)
        for name in [*self.statuses, *(item.name for item in self.exemptions)]:
            if name in {status.value for status in NEVER_ACCEPTED}:
                raise _wrong("statuses", "nothing that can never be accepted", name)

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
        return {name: _WRITERS.get(name, _plain)(getattr(self, name)) for name in named}


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


def _list(name: str, value: object) -> list[object]:
    if not isinstance(value, list) or len(value) > _MAX_ENTRIES:
        raise _wrong(name, "a list", value)
    return value


def _string(name: str, value: object) -> str:
    if not isinstance(value, str) or not value or len(value) > 1024:
        raise _wrong(name, "a text", value)
    return value


def _whole(name: str, value: object, limit: int = 1 << 32) -> int:
    if type(value) is not int or not 0 <= value <= limit:
        raise _wrong(name, f"a whole number from 0 to {limit}", value)
    return value


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, "true or false", value)
    return value


def _table(name: str, value: object, allowed: Iterable[str]) -> Plain:
    if not isinstance(value, Mapping):
        raise _wrong(name, "a table", value)
    unknown = sorted(set(value) - set(allowed))
    if unknown:
        raise _wrong(name, "only " + ", ".join(sorted(allowed)), ", ".join(map(str, unknown)))
    return value


def _hexes(size: int) -> Callable[[str, object], frozenset[bytes]]:
    def read(name: str, value: object) -> frozenset[bytes]:
        found = set()
        for item in _list(name, value):
            if not isinstance(item, str) or re.fullmatch(rf"[0-9a-fA-F]{{{2 * size}}}", item) is None:
                raise _wrong(name, f"{size} bytes in hex each", item)
            found.add(bytes.fromhex(item))
        return frozenset(found)

    return read


def _measurements(name: str, value: object) -> frozenset[Measurement]:
    return frozenset(Measurement.from_hex(_string(name, item)) for item in _list(name, value))


def _statuses(name: str, value: object) -> frozenset[TCBStatus]:
    found = set()
    for item in _list(name, value):
        if item not in {status.value for status in TCBStatus}:
            raise _wrong(name, ", ".join(status.value for status in TCBStatus), item)
        found.add(TCBStatus(str(item)))
    return frozenset(found)


def _signers(name: str, value: object) -> tuple[SignerRule, ...]:
    rules = []
    for item in _list(name, value):
        table = _table(name, item, ("mrsigner", "isv_prod_id", "min_isv_svn"))
        rules.append(
            SignerRule(
                mrsigner=Digest.from_hex(_string(f"{name}.mrsigner", table.get("mrsigner"))),
                isv_prod_id=_whole(f"{name}.isv_prod_id", table.get("isv_prod_id"), 65535),
                min_isv_svn=_whole(f"{name}.min_isv_svn", table.get("min_isv_svn"), 65535),
            )
        )
    return tuple(rules)


def _exemptions(name: str, value: object) -> tuple[Exemption, ...]:
    found = []
    known = {status.value for status in TCBStatus}
    for item in _list(name, value):
        table = _table(name, item, ("name", "owner", "until", "reason"))
        what = _string(f"{name}.name", table.get("name"))
        if what not in known and not is_advisory_name(what):
            raise _wrong(f"{name}.name", "a status or an advisory such as INTEL-SA-00615", what)
        reason = table.get("reason", "")
        if not isinstance(reason, str):
            raise _wrong(f"{name}.reason", "a text", reason)
        found.append(
            Exemption(
                name=what,
                owner=_string(f"{name}.owner", table.get("owner")),
                until=parse_end(table.get("until"), f"{name}.until"),
                reason=reason,
            )
        )
    return tuple(found)


def _min_tcb(name: str, value: object) -> Mapping[str, TCBVersion]:
    found: dict[str, TCBVersion] = {}
    for product, versions in _table(name, value, ("Milan", "Genoa", "Turin")).items():
        parts = ("bootloader", "tee", "snp", "microcode", *(("fmc",) if product == "Turin" else ()))
        table = _table(f"{name}.{product}", versions, parts)
        found[product] = TCBVersion(
            **{part: _whole(f"{name}.{product}.{part}", table.get(part), 255) for part in parts}
        )
    return MappingProxyType(found)


def _pcrs(name: str, value: object) -> Mapping[int, frozenset[bytes]]:
    found: dict[int, frozenset[bytes]] = {}
    for number, values in _table(name, value, map(str, range(_MAX_PCR + 1))).items():
        allowed = set()
        for item in _list(f"{name}.{number}", values):
            text = _string(f"{name}.{number}", item)
            if re.fullmatch(r"[0-9a-fA-F]+", text) is None or len(text) not in {2 * size for size in _PCR_BYTES}:
                raise _wrong(f"{name}.{number}", "32 or 48 bytes in hex each", item)
            allowed.add(bytes.fromhex(text))
        if not allowed:
            raise _wrong(f"{name}.{number}", "at least one value", values)
        found[int(number)] = frozenset(allowed)
    return MappingProxyType(found)


def _boot_applications(name: str, value: object) -> tuple[bytes, ...]:
    items = _list(name, value)
    if not 1 <= len(items) <= _MAX_BOOT_APPLICATIONS:
        raise _wrong(name, f"1 to {_MAX_BOOT_APPLICATIONS} hashes", len(items))
    return tuple(next(iter(_hexes(32)(name, [item]))) for item in items)


def _digests(name: str, value: object) -> frozenset[Digest]:
    return frozenset(Digest(raw) for raw in _hexes(32)(name, value))


def _snp(name: str, value: object) -> SNPRules:
    readers: dict[str, Callable[[str, object], object]] = {
        "host_data": _hexes(32),
        "id_key_digests": _hexes(48),
        "author_key_digests": _hexes(48),
        "family_ids": _hexes(16),
        "image_ids": _hexes(16),
        "max_vmpl": lambda key, item: _whole(key, item, 3),
        "min_guest_svn": _whole,
        "allow_smt": _flag,
        "require_single_socket": _flag,
        "require_alias_check": _flag,
    }
    table = _table(name, value, readers)
    found = {key: readers[key](f"{name}.{key}", item) for key, item in table.items()}
    return SNPRules(**found)  # type: ignore[arg-type]


_READERS: Final[dict[str, Callable[[str, object], object]]] = {
    "tees": lambda name, value: frozenset(_string(name, item) for item in _list(name, value)),
    "statuses": _statuses,
    "exemptions": _exemptions,
    "measurements": _measurements,
    "workloads": _measurements,
    "signers": _signers,
    "any_program": _flag,
    "allow_debug": _flag,
    "allow_provisioning_keys": _flag,
    "require_report_data": _flag,
    "max_collateral_age_days": _whole,
    "min_evaluation_number": _whole,
    "pcrs": _pcrs,
    "boot_applications": _boot_applications,
    "tpm_roots": _digests,
    "allow_sept_ve": _flag,
    "allow_migration": _flag,
    "min_tcb": _min_tcb,
    "allow_missing_crl": _flag,
    "snp": _snp,
    "gpus": lambda _name, value: GPUPolicy.from_dict(value),
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
        _hexes(48),
    ),
}


def _read(document: object, depth: int) -> Policy:
    if depth > _MAX_DEPTH:
        raise _wrong("any_of", f"at most {_MAX_DEPTH} levels", depth)
    table = _table("names", document, [*_READERS, "any_of"])
    values = {name: _READERS[name](name, value) for name, value in table.items() if name != "any_of"}
    if "any_of" in table:
        inner = _list("any_of", table["any_of"])
        if not inner:
            raise _wrong("any_of", "at least one alternative", inner)
        values["any_of"] = tuple(_read(item, depth + 1) for item in inner)
    return Policy(**values, named=frozenset(values))  # type: ignore[arg-type]


def _plain(value: object) -> object:
    """Plain data of a value. Sets come sorted."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, TCBStatus):
        return value.value
    if isinstance(value, (Digest, Measurement)):
        return value.hex()
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, frozenset):
        return sorted(cast("list[str]", [_plain(item) for item in value]))
    if isinstance(value, TCBVersion):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (Policy, GPUPolicy)):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, (SignerRule, Exemption, SNPRules)):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    return value


def _sparse_snp(value: object) -> object:
    default = SNPRules()
    return {
        item.name: _plain(getattr(value, item.name))
        for item in fields(SNPRules)
        if getattr(value, item.name) != getattr(default, item.name)
    }


_WRITERS: Final[dict[str, Callable[[object], object]]] = {"snp": _sparse_snp}
