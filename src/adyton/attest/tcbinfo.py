"""TCB info (versions 2 and 3) and enclave identities (version 2): Intel's tables of what is up to date.

Sources: Intel PCS API v3 and v4, "Get TCB Info", "Get Quoting Enclave Identity".
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from adyton.attest import signed_json as js
from adyton.attest.status import IN_IDENTITY, IN_TCB_INFO, TCBStatus
from adyton.typed_document import TypedDocument

if TYPE_CHECKING:
    from collections.abc import Collection

TCB_INFO: Final = "TCB info"
QE_IDENTITY: Final = "QE identity"
_COMPONENTS: Final = 16
_MAX_ITEMS: Final = 1024
_MAX_WORD: Final = 64


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
    sgx_components: tuple[str, ...] = ()
    """What the 16 components are, as "BIOS: Early Microcode Update"; "" or absent where the document does not say."""
    tdx_components: tuple[str, ...] = ()


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


def _status(level: TypedDocument, what: str, known: Collection[TCBStatus]) -> TCBStatus:
    name = level.text("tcbStatus")
    if name not in known:
        raise js.malformed(what, f"the TCB status {name[:60]!r}")
    return TCBStatus(name)


def _advisories(level: TypedDocument) -> tuple[str, ...]:
    """The advisories of a level, which need not be there; sorted, each once."""
    return tuple(sorted(set(level.texts("advisoryIDs", _MAX_ITEMS)))) if "advisoryIDs" in level else ()


def _components_v3(tcb: TypedDocument, name: str) -> bytes:
    items = tcb.inner_list(name, _COMPONENTS)
    if len(items) != _COMPONENTS:
        raise js.malformed(TCB_INFO, f"{name} has {len(items)} components, expected {_COMPONENTS}")
    return bytes(item.number("svn", 255) for item in items)


def _component_names(level: TypedDocument, name: str) -> tuple[str, ...]:
    """What the components are. The words only inform, so what is no short text is left out."""
    tcb = level.inner("tcb")
    if name not in tcb:
        return ()
    found = []
    for item in tcb.inner_list(name, _COMPONENTS):
        words = [item[part] for part in ("category", "type") if part in item]
        fits = all(isinstance(word, str) and word.isprintable() and len(word) <= _MAX_WORD for word in words)
        found.append(": ".join(words) if fits else "")
    return tuple(found)


def _components_v2(tcb: TypedDocument) -> bytes:
    return bytes(tcb.number(f"sgxtcbcomp{index:02}svn", 255) for index in range(1, _COMPONENTS + 1))


def _platform_level(level: TypedDocument, version: int, *, tdx: bool) -> PlatformLevel:
    tcb = level.inner("tcb")
    return PlatformLevel(
        sgx=_components_v2(tcb) if version == 2 else _components_v3(tcb, "sgxtcbcomponents"),
        pce_svn=tcb.number("pcesvn", 65535),
        tdx=_components_v3(tcb, "tdxtcbcomponents") if tdx else None,
        status=_status(level, TCB_INFO, IN_TCB_INFO),
        date=level.moment("tcbDate"),
        advisories=_advisories(level),
    )


def _svn_levels(document: TypedDocument, what: str) -> tuple[SVNLevel, ...]:
    levels = [
        SVNLevel(
            isv_svn=level.inner("tcb").number("isvsvn", 65535),
            status=_status(level, what, IN_IDENTITY),
            date=level.moment("tcbDate"),
            advisories=_advisories(level),
        )
        for level in document.inner_list("tcbLevels", _MAX_ITEMS)
    ]
    if not levels or len({level.isv_svn for level in levels}) != len(levels):
        raise js.malformed(what, "no TCB levels, or one SVN twice")
    return tuple(sorted(levels, key=lambda level: level.isv_svn, reverse=True))


def _module(document: TypedDocument, name: str, *, with_levels: bool) -> ModuleIdentity:
    return ModuleIdentity(
        id=name,
        mrsigner=document.hexadecimal("mrsigner", 48),
        attributes=document.hexadecimal("attributes", 8),
        attributes_mask=document.hexadecimal("attributesMask", 8),
        levels=_svn_levels(document, TCB_INFO) if with_levels else (),
    )


def parse_tcb_info(text: str) -> TCBInfo:
    """Parse TCB info as signed (the inner object), versions 2 (SGX) and 3. Raises MalformedQuote."""
    document = js.load(text, TCB_INFO)
    version = document.number("version", 1000)
    if version not in (2, 3):
        raise js.malformed(TCB_INFO, f"version {version}; 2 and 3 are known")
    if version == 2 and "id" in document:
        raise js.malformed(TCB_INFO, "an id, which version 2 does not have")
    kind = "SGX" if version == 2 else document.text("id")
    if kind not in ("SGX", "TDX"):
        raise js.malformed(TCB_INFO, f"the id {kind[:20]!r}")
    tdx = kind == "TDX"
    if document.number("tcbType", 255) != 0:
        raise js.malformed(TCB_INFO, "a tcbType other than 0")
    if not tdx and ("tdxModule" in document or "tdxModuleIdentities" in document):
        raise js.malformed(TCB_INFO, "a TDX module although it is for SGX")
    rows = document.inner_list("tcbLevels", _MAX_ITEMS)
    levels = [_platform_level(level, version, tdx=tdx) for level in rows]
    keys = {(level.sgx, level.pce_svn, level.tdx) for level in levels}
    if not levels or len(keys) != len(levels):
        raise js.malformed(TCB_INFO, "no TCB levels, or one level twice")
    levels.sort(key=lambda level: (level.sgx, level.pce_svn, level.tdx or b""), reverse=True)
    modules: list[ModuleIdentity] = []
    if "tdxModuleIdentities" in document:
        modules = [
            _module(item, item.text("id").upper(), with_levels=True)
            for item in document.inner_list("tdxModuleIdentities", _MAX_ITEMS)
        ]
    if len({module.id for module in modules}) != len(modules):
        raise js.malformed(TCB_INFO, "one TDX module identity twice")
    return TCBInfo(
        id=kind,
        version=version,
        issue_date=document.moment("issueDate"),
        next_update=document.moment("nextUpdate"),
        fmspc=document.hexadecimal("fmspc", 6),
        pce_id=document.hexadecimal("pceId", 2),
        evaluation_number=document.number("tcbEvaluationDataNumber", 1 << 31),
        module=_module(document.inner("tdxModule"), "TDX", with_levels=False) if tdx else None,
        modules=tuple(modules),
        levels=tuple(levels),
        sgx_components=_component_names(rows[0], "sgxtcbcomponents"),
        tdx_components=_component_names(rows[0], "tdxtcbcomponents"),
    )


def parse_enclave_identity(text: str) -> EnclaveIdentity:
    """Parse an enclave identity as signed (the inner object), version 2. Raises MalformedQuote."""
    document = js.load(text, QE_IDENTITY)
    version = document.number("version", 1000)
    if version != 2:
        raise js.malformed(QE_IDENTITY, f"version {version}; 2 is known")
    return EnclaveIdentity(
        id=document.text("id"),
        version=version,
        issue_date=document.moment("issueDate"),
        next_update=document.moment("nextUpdate"),
        evaluation_number=document.number("tcbEvaluationDataNumber", 1 << 31),
        misc_select=int.from_bytes(document.hexadecimal("miscselect", 4), "little"),
        misc_select_mask=int.from_bytes(document.hexadecimal("miscselectMask", 4), "little"),
        attributes=document.hexadecimal("attributes", 16),
        attributes_mask=document.hexadecimal("attributesMask", 16),
        mrsigner=document.hexadecimal("mrsigner", 32),
        isv_prod_id=document.number("isvprodid", 65535),
        levels=_svn_levels(document, QE_IDENTITY),
    )
