"""TCB info (versions 2 and 3) and enclave identities (version 2): Intel's tables of what is up to date.

Sources: Intel PCS API v3 and v4, "Get TCB Info", "Get Quoting Enclave Identity".
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from adyton.attest import signed_json as js
from adyton.attest.status import IN_IDENTITY, IN_TCB_INFO, TCBStatus

if TYPE_CHECKING:
    from collections.abc import Collection

TCB_INFO: Final = "TCB info"
QE_IDENTITY: Final = "QE identity"
_COMPONENTS: Final = 16


@dataclass(frozen=True, slots=True)
class PlatformLevel:
    """A row of TCB info: what a platform needs to have for this status."""

    sgx: bytes
    """16 component SVNs."""
    pce_svn: int
    tdx: bytes | None
    """16 TDX component SVNs."""
    status: TCBStatus
    date: datetime
    advisories: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SVNLevel:
    """A row of an enclave identity or TDX module identity."""

    isv_svn: int
    status: TCBStatus
    date: datetime
    advisories: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModuleIdentity:
    """The identity of a TDX module. `levels` is empty for the module of version 0."""

    id: str
    mrsigner: bytes
    attributes: bytes
    attributes_mask: bytes
    levels: tuple[SVNLevel, ...]
    """Descending by SVN."""


@dataclass(frozen=True, slots=True)
class TCBInfo:
    """The levels of one kind of platform (FMSPC)."""

    id: str
    version: int
    issue_date: datetime
    next_update: datetime
    fmspc: bytes
    pce_id: bytes
    evaluation_number: int
    module: ModuleIdentity | None
    modules: tuple[ModuleIdentity, ...]
    levels: tuple[PlatformLevel, ...]
    """Descending by (components, PCESVN, TDX components)."""


@dataclass(frozen=True, slots=True)
class EnclaveIdentity:
    """The identity of one of Intel's enclaves, and its levels."""

    id: str
    version: int
    issue_date: datetime
    next_update: datetime
    evaluation_number: int
    misc_select: int
    misc_select_mask: int
    attributes: bytes
    attributes_mask: bytes
    mrsigner: bytes
    isv_prod_id: int
    levels: tuple[SVNLevel, ...]
    """Descending by SVN."""


def _status(level: js.Object, what: str, known: Collection[TCBStatus]) -> TCBStatus:
    name = js.string(level, "tcbStatus", what)
    if name not in known:
        raise js.malformed(what, f"the TCB status {name[:60]!r}")
    return TCBStatus(name)


def _components_v3(tcb: js.Object, name: str) -> bytes:
    items = js.objects(tcb, name, TCB_INFO, _COMPONENTS)
    if len(items) != _COMPONENTS:
        raise js.malformed(TCB_INFO, f"{name} has {len(items)} components, expected {_COMPONENTS}")
    return bytes(js.number(item, "svn", TCB_INFO, 255) for item in items)


def _components_v2(tcb: js.Object) -> bytes:
    return bytes(js.number(tcb, f"sgxtcbcomp{index:02}svn", TCB_INFO, 255) for index in range(1, _COMPONENTS + 1))


def _platform_level(level: js.Object, version: int, *, tdx: bool) -> PlatformLevel:
    tcb = js.member(level, "tcb", TCB_INFO)
    return PlatformLevel(
        sgx=_components_v2(tcb) if version == 2 else _components_v3(tcb, "sgxtcbcomponents"),
        pce_svn=js.number(tcb, "pcesvn", TCB_INFO, 65535),
        tdx=_components_v3(tcb, "tdxtcbcomponents") if tdx else None,
        status=_status(level, TCB_INFO, IN_TCB_INFO),
        date=js.time(level, "tcbDate", TCB_INFO),
        advisories=js.strings(level, "advisoryIDs", TCB_INFO),
    )


def _svn_levels(document: js.Object, what: str) -> tuple[SVNLevel, ...]:
    levels = [
        SVNLevel(
            isv_svn=js.number(js.member(level, "tcb", what), "isvsvn", what, 65535),
            status=_status(level, what, IN_IDENTITY),
            date=js.time(level, "tcbDate", what),
            advisories=js.strings(level, "advisoryIDs", what),
        )
        for level in js.objects(document, "tcbLevels", what)
    ]
    if not levels or len({level.isv_svn for level in levels}) != len(levels):
        raise js.malformed(what, "no TCB levels, or one SVN twice")
    return tuple(sorted(levels, key=lambda level: level.isv_svn, reverse=True))


def _module(document: js.Object, name: str, *, with_levels: bool) -> ModuleIdentity:
    return ModuleIdentity(
        id=name,
        mrsigner=js.hexadecimal(document, "mrsigner", TCB_INFO, 48),
        attributes=js.hexadecimal(document, "attributes", TCB_INFO, 8),
        attributes_mask=js.hexadecimal(document, "attributesMask", TCB_INFO, 8),
        levels=_svn_levels(document, TCB_INFO) if with_levels else (),
    )


def parse_tcb_info(text: str) -> TCBInfo:
    """Parse TCB info as signed (the inner object), versions 2 (SGX) and 3. Raises MalformedQuote."""
    document = js.load(text, TCB_INFO)
    version = js.number(document, "version", TCB_INFO, 1000)
    if version not in (2, 3):
        raise js.malformed(TCB_INFO, f"version {version}; 2 and 3 are known")
    if version == 2 and "id" in document:
        raise js.malformed(TCB_INFO, "an id, which version 2 does not have")
    kind = "SGX" if version == 2 else js.string(document, "id", TCB_INFO)
    if kind not in ("SGX", "TDX"):
        raise js.malformed(TCB_INFO, f"the id {kind[:20]!r}")
    tdx = kind == "TDX"
    if js.number(document, "tcbType", TCB_INFO, 255) != 0:
        raise js.malformed(TCB_INFO, "a tcbType other than 0")
    if not tdx and ("tdxModule" in document or "tdxModuleIdentities" in document):
        raise js.malformed(TCB_INFO, "a TDX module although it is for SGX")
    levels = [_platform_level(level, version, tdx=tdx) for level in js.objects(document, "tcbLevels", TCB_INFO)]
    keys = {(level.sgx, level.pce_svn, level.tdx) for level in levels}
    if not levels or len(keys) != len(levels):
        raise js.malformed(TCB_INFO, "no TCB levels, or one level twice")
    levels.sort(key=lambda level: (level.sgx, level.pce_svn, level.tdx or b""), reverse=True)
    modules: list[ModuleIdentity] = []
    if "tdxModuleIdentities" in document:
        modules = [
            _module(item, js.string(item, "id", TCB_INFO).upper(), with_levels=True)
            for item in js.objects(document, "tdxModuleIdentities", TCB_INFO)
        ]
    if len({module.id for module in modules}) != len(modules):
        raise js.malformed(TCB_INFO, "one TDX module identity twice")
    return TCBInfo(
        id=kind,
        version=version,
        issue_date=js.time(document, "issueDate", TCB_INFO),
        next_update=js.time(document, "nextUpdate", TCB_INFO),
        fmspc=js.hexadecimal(document, "fmspc", TCB_INFO, 6),
        pce_id=js.hexadecimal(document, "pceId", TCB_INFO, 2),
        evaluation_number=js.number(document, "tcbEvaluationDataNumber", TCB_INFO, 1 << 31),
        module=_module(js.member(document, "tdxModule", TCB_INFO), "TDX", with_levels=False) if tdx else None,
        modules=tuple(modules),
        levels=tuple(levels),
    )


def parse_enclave_identity(text: str) -> EnclaveIdentity:
    """Parse an enclave identity as signed (the inner object), version 2. Raises MalformedQuote."""
    document = js.load(text, QE_IDENTITY)
    version = js.number(document, "version", QE_IDENTITY, 1000)
    if version != 2:
        raise js.malformed(QE_IDENTITY, f"version {version}; 2 is known")
    return EnclaveIdentity(
        id=js.string(document, "id", QE_IDENTITY),
        version=version,
        issue_date=js.time(document, "issueDate", QE_IDENTITY),
        next_update=js.time(document, "nextUpdate", QE_IDENTITY),
        evaluation_number=js.number(document, "tcbEvaluationDataNumber", QE_IDENTITY, 1 << 31),
        misc_select=int.from_bytes(js.hexadecimal(document, "miscselect", QE_IDENTITY, 4), "little"),
        misc_select_mask=int.from_bytes(js.hexadecimal(document, "miscselectMask", QE_IDENTITY, 4), "little"),
        attributes=js.hexadecimal(document, "attributes", QE_IDENTITY, 16),
        attributes_mask=js.hexadecimal(document, "attributesMask", QE_IDENTITY, 16),
        mrsigner=js.hexadecimal(document, "mrsigner", QE_IDENTITY, 32),
        isv_prod_id=js.number(document, "isvprodid", QE_IDENTITY, 65535),
        levels=_svn_levels(document, QE_IDENTITY),
    )
