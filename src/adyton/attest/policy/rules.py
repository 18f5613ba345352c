"""The rules that a policy is made of: frozen values. Reading them is `read`, judging by them the `judge_…` modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Final, NamedTuple

from adyton.attest.policy.bits import NO_BITS, BitRule
from adyton.attest.snp import TCBVersion
from adyton.values import Digest

CHANNELS: Final = ("early", "standard")
"""Intel's channels of TCB data: new levels at once, or after a grace period."""

TRACKABLE: Final = frozenset({"fmspc", "hosts", "mrseams", "platform_info"})
"""Rules whose breach a policy may turn into a warning. What the maker itself rules on is none of them."""


class FirmwareVersion(NamedTuple):
    """The version of AMD's SEV firmware, as a report states it."""

    major: int
    minor: int
    build: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.build}"


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
    """A status, an advisory or a rule of a profile that somebody answers for, until a day."""

    name: str
    owner: str
    until: datetime
    """The last instant at which it counts."""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracked:
    """A rule whose breach is a warning in the verdict instead of a refusal."""

    name: str
    owner: str
    until: datetime | None = None
    """The last instant at which it only warns. None: it never refuses."""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PCKRules:
    """What the PCK certificate must say of the platform's configuration. Only certificates of the Platform CA do."""

    static_platform: bool = False
    smt_disabled: bool = False
    memory_integrity: bool = False


_NO_PCK_RULES: Final = PCKRules()


@dataclass(frozen=True, slots=True, kw_only=True)
class SGXRules:
    """The rules for platforms that run SGX enclaves."""

    channel: str | None = None
    """One of CHANNELS. "standard" accepts "early" too, which is the stricter one."""
    fmspc: frozenset[bytes] = frozenset()
    pck: PCKRules = _NO_PCK_RULES


@dataclass(frozen=True, slots=True, kw_only=True)
class TDXRules:
    """The rules for TDX beside the registers."""

    channel: str | None = None
    fmspc: frozenset[bytes] = frozenset()
    pck: PCKRules = _NO_PCK_RULES
    td_attributes: BitRule = NO_BITS
    xfam: frozenset[bytes] = frozenset()
    """8 bytes each, big-endian, as `adyton verify --json` prints it."""
    mrsignerseam: frozenset[bytes] = frozenset()
    seam_attributes: frozenset[bytes] = frozenset()
    min_tee_tcb_svn: bytes = b""
    """16 bytes, each of them a minimum. Empty: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductRules:
    """The rules for one product of AMD's."""

    platform_info: BitRule = NO_BITS
    guest_policy: BitRule = NO_BITS
    min_firmware: FirmwareVersion | None = None
    min_launch_tcb: TCBVersion | None = None
    min_launch_mitigation: int = 0
    min_current_mitigation: int = 0
    accept_until: datetime | None = None
    """The last instant at which the product is accepted."""
    reason: str = ""


_NO_PRODUCTS: Final[Mapping[str, ProductRules]] = MappingProxyType({})


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
    min_launch_mitigation: int = 0
    """Bits that the mitigation vector must have had at launch, for every product."""
    min_current_mitigation: int = 0
    products: Mapping[str, ProductRules] = field(default_factory=lambda: _NO_PRODUCTS)
    """Rules by product. Where there are any, a product without an entry is refused."""


NO_SGX_RULES: Final = SGXRules()
NO_TDX_RULES: Final = TDXRules()
NO_SNP_RULES: Final = SNPRules()
"""The rules of a policy that does not say more."""
