"""The TCB level of a platform, and the status of all its parts together: steps G to K of the DCAP appraisal.

Pure tables and comparisons. The evidence and the tables have been verified before. Source: Intel's quote verification
library (`QuoteVerification`, TCB level matching, module identities, relaunch and convergence), from its documentation.
Stricter than that in one thing: for TDX 1.5 also the TCB that is loaded now must be known and not revoked.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import ge
from typing import TYPE_CHECKING, Final

from adyton.attest.status import TCBStatus as S

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from adyton.attest.status import TCBStatus
    from adyton.attest.tcbinfo import EnclaveIdentity, ModuleIdentity, PlatformLevel, SVNLevel, TCBInfo

_OUT_OF_DATE_OF: Final = {
    S.UP_TO_DATE: S.OUT_OF_DATE,
    S.SW_HARDENING_NEEDED: S.OUT_OF_DATE,
    S.CONFIGURATION_NEEDED: S.OUT_OF_DATE_CONFIGURATION_NEEDED,
    S.CONFIGURATION_AND_SW_HARDENING_NEEDED: S.OUT_OF_DATE_CONFIGURATION_NEEDED,
}
OF_NO_FIX_MISSING: Final = frozenset(_OUT_OF_DATE_OF)
"""Statuses of a part that has every fix that the maker published."""
_CONFIGURATION: Final = frozenset(
    {S.CONFIGURATION_NEEDED, S.CONFIGURATION_AND_SW_HARDENING_NEEDED, S.OUT_OF_DATE_CONFIGURATION_NEEDED}
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The status of all parts together."""

    status: TCBStatus
    sgx: TCBStatus | None
    tdx: TCBStatus | None
    module: TCBStatus | None
    qe: TCBStatus
    advisories: tuple[str, ...]
    tcb_date: datetime | None


def svn_level(levels: Iterable[SVNLevel], isv_svn: int) -> SVNLevel | None:
    """Step G, I: the first level (descending) that the SVN reaches."""
    return next((level for level in levels if isv_svn >= level.isv_svn), None)


def platform_levels(
    info: TCBInfo, components: bytes, pce_svn: int, tee_tcb_svn: bytes | None
) -> tuple[PlatformLevel | None, PlatformLevel | None]:
    """Step H: the platform's SGX level, and for TDX (`tee_tcb_svn` given) its TDX level."""
    sgx: PlatformLevel | None = None
    for level in info.levels:
        if pce_svn < level.pce_svn or not all(map(ge, components, level.sgx)):
            continue
        sgx = sgx or level
        if tee_tcb_svn is None:
            return sgx, None
        start = 2 if tee_tcb_svn[1] > 0 else 0
        if level.tdx is not None and all(map(ge, tee_tcb_svn[start:], level.tdx[start:])):
            return sgx, level
    return sgx, None


def module_identity(info: TCBInfo, tee_tcb_svn: bytes) -> ModuleIdentity | None:
    """Step E: the identity of the TDX module of that version, or None where there is none."""
    if tee_tcb_svn[1] == 0:
        return info.module
    wanted = f"TDX_{tee_tcb_svn[1]:02X}"
    return next((module for module in info.modules if module.id == wanted), None)


def _loaded_now(info: TCBInfo, components: bytes, pce_svn: int, svn2: bytes | None) -> TCBStatus | None:
    """Whether what is loaded now (TDX 1.5), which runs this TD too, is Revoked or NotSupported; else None."""
    if svn2 is None:
        return None
    _, level = platform_levels(info, components, pce_svn, svn2)
    found = {level.status if level else S.NOT_SUPPORTED}
    module = module_identity(info, svn2) if svn2[1] > 0 else None
    if svn2[1] > 0:
        reached = svn_level(module.levels, svn2[0]) if module else None
        found.add(reached.status if reached else S.NOT_SUPPORTED)
    return next((status for status in (S.NOT_SUPPORTED, S.REVOKED) if status in found), None)


def _relaunch_is_enough(info: TCBInfo, svn2: bytes) -> bool:
    """Whether a relaunch now would reach the top level, on a module that is up to date."""
    top = info.levels[0].tdx
    if top is None or svn2[2] < top[2]:
        return False
    if svn2[1] == 0:
        return svn2[0] >= top[0]
    module = module_identity(info, svn2)
    if module is None or svn2[0] < module.levels[0].isv_svn:
        return False
    return module.levels[0].status is S.UP_TO_DATE


def _with_module(start: TCBStatus, module: TCBStatus | None) -> TCBStatus:
    """Step J1."""
    if module is S.OUT_OF_DATE:
        return _OUT_OF_DATE_OF.get(start, start)
    return S.REVOKED if module is S.REVOKED else start


def _with_qe(status: TCBStatus, qe: TCBStatus) -> TCBStatus:
    """Step J3."""
    if qe is S.OUT_OF_DATE:
        return _OUT_OF_DATE_OF.get(status, status)
    return qe if qe in (S.REVOKED, S.NOT_SUPPORTED) else status


def judge(
    info: TCBInfo,
    identity: EnclaveIdentity,
    *,
    components: bytes,
    pce_svn: int,
    qe_svn: int,
    tee_tcb_svn: bytes | None,
    tee_tcb_svn2: bytes | None,
) -> Verdict:
    """Steps G to K: match every part's level and let the statuses converge. A later step never raises a status."""
    qe_level = svn_level(identity.levels, qe_svn)
    qe = qe_level.status if qe_level else S.NOT_SUPPORTED
    sgx, tdx = platform_levels(info, components, pce_svn, tee_tcb_svn)
    module_level: SVNLevel | None = None
    module: TCBStatus | None = None
    if tee_tcb_svn is not None and tee_tcb_svn[1] > 0:
        found = module_identity(info, tee_tcb_svn)
        module_level = svn_level(found.levels, tee_tcb_svn[0]) if found else None
        module = module_level.status if module_level else S.NOT_SUPPORTED
    platform = sgx if tee_tcb_svn is None else tdx

    def verdict(status: TCBStatus) -> Verdict:
        matched = [level for level in (platform, module_level, qe_level) if level is not None]
        supported = platform is not None and status is not S.NOT_SUPPORTED
        return Verdict(
            status=status,
            sgx=sgx.status if sgx else None,
            tdx=tdx.status if tdx else None,
            module=module,
            qe=qe,
            advisories=tuple(sorted({name for level in matched for name in level.advisories})) if supported else (),
            tcb_date=platform.date if platform else None,
        )

    loaded = _loaded_now(info, components, pce_svn, tee_tcb_svn2)
    if sgx is None or platform is None or S.NOT_SUPPORTED in (module, loaded):
        return verdict(S.NOT_SUPPORTED)
    status = S.REVOKED if loaded is S.REVOKED else _with_module(platform.status, module)
    if status is S.REVOKED:
        return verdict(status)
    if (
        tee_tcb_svn2 is not None
        and qe not in (S.OUT_OF_DATE, S.REVOKED, S.NOT_SUPPORTED)
        and sgx.status in OF_NO_FIX_MISSING
        and status in (S.OUT_OF_DATE, S.OUT_OF_DATE_CONFIGURATION_NEEDED)
        and module is S.OUT_OF_DATE
        and _relaunch_is_enough(info, tee_tcb_svn2)
    ):
        configuration = sgx.status in _CONFIGURATION or status in _CONFIGURATION
        status = S.TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED if configuration else S.TD_RELAUNCH_ADVISED
    return verdict(_with_qe(status, qe))
