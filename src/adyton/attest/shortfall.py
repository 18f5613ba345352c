"""What a platform lacks: which security version of which part is too low, since when, and what repairs it.

A status such as OutOfDate says none of this. The tables that gave the status do. Source: Intel PCS API v4, "Get TCB
Info" (`category` and `type` of a component say who updates it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from adyton.attest.status import TCBStatus
from adyton.attest.tcb import OF_NO_FIX_MISSING, module_identity, platform_levels, svn_level

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from adyton.attest.tcbinfo import EnclaveIdentity, PlatformLevel, SVNLevel, TCBInfo

Part = Literal["platform", "module", "QE"]

_QE_REMEDY: Final = "update the host's quoting enclave (Intel's DCAP packages)"
_PCE_REMEDY: Final = "update the host's provisioning certification enclave (Intel's DCAP packages) and register anew"
_MODULE_REMEDY: Final = "load a newer TDX module on the host, then restart the TD"
_RELAUNCH_REMEDY: Final = "restart the TD: the host has loaded a newer TDX module already"
_BIOS_REMEDY: Final = "update the host's BIOS, which brings the early microcode"
_MICROCODE_REMEDY: Final = "update the microcode that the host's operating system loads"
_ANY_REMEDY: Final = "update the host's BIOS and microcode"


@dataclass(frozen=True, slots=True)
class Shortfall:
    """One security version that is too low."""

    part: Part
    component: str
    seen: int
    needed: int
    date: datetime | None
    """Since when the maker asks for `needed`. None where only a policy asks for it."""
    advisories: tuple[str, ...]
    """What the version seen is exposed to, as far as the maker says."""
    remedy: str

    def __str__(self) -> str:
        since = f" since {self.date:%Y-%m-%d}" if self.date is not None else ""
        why = f" ({', '.join(self.advisories)})" if self.advisories else ""
        return f"{self.part}: {self.component} is {self.seen}, needed {self.needed}{since}{why}"

    def to_dict(self) -> dict[str, object]:
        """As JSON data."""
        return {
            "part": self.part,
            "component": self.component,
            "seen": self.seen,
            "needed": self.needed,
            "date": None if self.date is None else f"{self.date:%Y-%m-%dT%H:%M:%SZ}",
            "advisories": list(self.advisories),
            "remedy": self.remedy,
        }


def _platform_target(levels: tuple[PlatformLevel, ...]) -> PlatformLevel:
    """The level to reach: the lowest that is up to date, else the lowest that lacks no fix, else the highest."""
    for statuses in ({TCBStatus.UP_TO_DATE}, OF_NO_FIX_MISSING):
        found = [level for level in levels if level.status in statuses]
        if found:
            return found[-1]
    return levels[0]


def _svn_target(levels: tuple[SVNLevel, ...]) -> SVNLevel:
    found = [level for level in levels if level.status is TCBStatus.UP_TO_DATE]
    return found[-1] if found else levels[0]


def _component_remedy(name: str) -> str:
    if "TDX Module" in name:
        return _MODULE_REMEDY
    if "BIOS" in name:
        return _BIOS_REMEDY
    return _MICROCODE_REMEDY if "Microcode" in name else _ANY_REMEDY


def _of_platform(info: TCBInfo, components: bytes, pce_svn: int, tee_tcb_svn: bytes | None) -> Iterator[Shortfall]:
    sgx, tdx = platform_levels(info, components, pce_svn, tee_tcb_svn)
    reached = sgx if tee_tcb_svn is None else tdx
    target = _platform_target(info.levels)
    if reached is not None and (reached.status is TCBStatus.UP_TO_DATE or target.status is reached.status):
        return
    advisories = reached.advisories if reached is not None else ()

    def short(kind: str, names: tuple[str, ...], index: int, seen: int, needed: int) -> Shortfall:
        name = names[index] if index < len(names) else ""
        component = f"{kind} component {index + 1}" + (f" ({name})" if name else "")
        return Shortfall("platform", component, seen, needed, target.date, advisories, _component_remedy(name))

    for index, (seen, needed) in enumerate(zip(components, target.sgx, strict=True)):
        if seen < needed:
            yield short("SGX", info.sgx_components, index, seen, needed)
    if pce_svn < target.pce_svn:
        yield Shortfall("platform", "PCESVN", pce_svn, target.pce_svn, target.date, advisories, _PCE_REMEDY)
    if tee_tcb_svn is not None and target.tdx is not None:
        first = 2 if tee_tcb_svn[1] > 0 else 0
        for index in range(first, 16):
            if tee_tcb_svn[index] < target.tdx[index]:
                yield short("TDX", info.tdx_components, index, tee_tcb_svn[index], target.tdx[index])


def _of_levels(part: Part, component: str, levels: tuple[SVNLevel, ...], svn: int, remedy: str) -> Iterator[Shortfall]:
    reached, target = svn_level(levels, svn), _svn_target(levels)
    if svn < target.isv_svn and (reached is None or reached.status is not TCBStatus.UP_TO_DATE):
        advisories = reached.advisories if reached is not None else ()
        yield Shortfall(part, component, svn, target.isv_svn, target.date, advisories, remedy)


def intel_shortfalls(
    info: TCBInfo,
    identity: EnclaveIdentity,
    *,
    components: bytes,
    pce_svn: int,
    qe_svn: int,
    tee_tcb_svn: bytes | None,
    tee_tcb_svn2: bytes | None,
) -> tuple[Shortfall, ...]:
    """Every security version of an Intel platform that is below the level that the tables call up to date.

    The parameters are those of `tcb.judge`. A status that no version can repair (a BIOS setting, a revocation of the
    newest level) has no shortfall.
    """
    found = list(_of_platform(info, components, pce_svn, tee_tcb_svn))
    for svns, when in ((tee_tcb_svn, ""), (tee_tcb_svn2, ", loaded now")):
        module = module_identity(info, svns) if svns is not None and svns[1] > 0 else None
        if svns is None or module is None or (when and svns == tee_tcb_svn):
            continue
        newer = not when and tee_tcb_svn2 is not None and tee_tcb_svn2[1::-1] > svns[1::-1]
        remedy = _RELAUNCH_REMEDY if newer else _MODULE_REMEDY
        found += _of_levels("module", f"ISVSVN of {module.id}{when}", module.levels, svns[0], remedy)
    found += _of_levels("QE", "ISVSVN", identity.levels, qe_svn, _QE_REMEDY)
    return tuple(found)
