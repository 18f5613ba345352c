"""Reading the rules of a policy from plain data (see `rules`). Everything unknown, missing or ill-typed is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from adyton.attest.names import is_advisory_name
from adyton.attest.policy.bits import GUEST_POLICY, PLATFORM_INFO, TD_ATTRIBUTES
from adyton.attest.policy.read import (
    Reader,
    bit_rule,
    by_name,
    flag,
    hexes,
    listed,
    mask,
    only,
    text_of,
    whole,
    wrong,
)
from adyton.attest.policy.rules import (
    CHANNELS,
    TRACKABLE,
    Exemption,
    FirmwareVersion,
    PCKRules,
    ProductRules,
    SGXRules,
    SignerRule,
    SNPRules,
    TDXRules,
    Tracked,
)
from adyton.attest.snp import TCBVersion
from adyton.attest.status import TCBStatus
from adyton.dates import parse_end
from adyton.values import Digest, Measurement

PRODUCTS: Final = ("Milan", "Genoa", "Turin")


def measurements(name: str, value: object) -> frozenset[Measurement]:
    """A list of measurements in hex."""
    return frozenset(Measurement.from_hex(text_of(name, item)) for item in listed(name, value))


def statuses(name: str, value: object) -> frozenset[TCBStatus]:
    """A list of TCB statuses by Intel's names."""
    found = set()
    for item in listed(name, value):
        if item not in {status.value for status in TCBStatus}:
            raise wrong(name, ", ".join(status.value for status in TCBStatus), item)
        found.add(TCBStatus(str(item)))
    return frozenset(found)


def signers(name: str, value: object) -> tuple[SignerRule, ...]:
    """A list of signers, whole."""
    rules = []
    for item in listed(name, value):
        table = only(name, item, ("mrsigner", "isv_prod_id", "min_isv_svn"))
        rules.append(
            SignerRule(
                mrsigner=Digest.from_hex(text_of(f"{name}.mrsigner", table.get("mrsigner"))),
                isv_prod_id=whole(f"{name}.isv_prod_id", table.get("isv_prod_id"), 65535),
                min_isv_svn=whole(f"{name}.min_isv_svn", table.get("min_isv_svn"), 65535),
            )
        )
    return tuple(rules)


def _reason(name: str, table: Mapping[str, object]) -> str:
    reason = table.get("reason", "")
    if not isinstance(reason, str):
        raise wrong(f"{name}.reason", "a text", reason)
    return reason


def _exempted(name: str, value: object) -> list[Exemption]:
    found = []
    for item in listed(name, value):
        table = only(name, item, ("name", "owner", "until", "reason"))
        found.append(
            Exemption(
                name=text_of(f"{name}.name", table.get("name")),
                owner=text_of(f"{name}.owner", table.get("owner")),
                until=parse_end(table.get("until"), f"{name}.until"),
                reason=_reason(name, table),
            )
        )
    return found


def exemptions(name: str, value: object) -> tuple[Exemption, ...]:
    """A list of exempted statuses and advisories."""
    found = _exempted(name, value)
    known = {status.value for status in TCBStatus}
    for item in found:
        if item.name not in known and not is_advisory_name(item.name):
            raise wrong(f"{name}.name", "a status or an advisory such as INTEL-SA-00615", item.name)
    return tuple(found)


def relaxations(known: frozenset[str]) -> Reader:
    """A reader of a list of a profile's rules that are relaxed until a day."""

    def read(name: str, value: object) -> tuple[Exemption, ...]:
        found = _exempted(name, value)
        for item in found:
            if item.name not in known:
                raise wrong(f"{name}.name", ", ".join(sorted(known)), item.name)
        return tuple(found)

    return read


def tracked(name: str, value: object) -> tuple[Tracked, ...]:
    """A list of rules that only warn."""
    found = []
    for item in listed(name, value):
        table = only(name, item, ("name", "owner", "until", "reason"))
        rule = text_of(f"{name}.name", table.get("name"))
        if rule not in TRACKABLE:
            raise wrong(f"{name}.name", ", ".join(sorted(TRACKABLE)), rule)
        found.append(
            Tracked(
                name=rule,
                owner=text_of(f"{name}.owner", table.get("owner")),
                until=parse_end(table["until"], f"{name}.until") if "until" in table else None,
                reason=_reason(name, table),
            )
        )
    return tuple(found)


def _tcb(name: str, value: object, product: str) -> TCBVersion:
    parts = ("bootloader", "tee", "snp", "microcode", *(("fmc",) if product == "Turin" else ()))
    table = only(name, value, parts)
    return TCBVersion(**{part: whole(f"{name}.{part}", table.get(part), 255) for part in parts})


def min_tcb(name: str, value: object) -> Mapping[str, TCBVersion]:
    """The least security versions by product."""
    table = only(name, value, PRODUCTS)
    return MappingProxyType({product: _tcb(f"{name}.{product}", item, product) for product, item in table.items()})


def _firmware(name: str, value: object) -> FirmwareVersion:
    text = text_of(name, value)
    found = re.fullmatch(r"(\d{1,3})\.(\d{1,3})(?:\.(\d{1,3}))?", text, re.ASCII)
    numbers = [int(part or 0) for part in found.groups()] if found else [256]
    if max(numbers) > 255:
        raise wrong(name, "a version such as 1.58 or 1.55.40", text)
    return FirmwareVersion(*numbers)


def _product(name: str, value: object, product: str) -> ProductRules:
    readers: dict[str, Reader] = {
        "platform_info": bit_rule(PLATFORM_INFO),
        "guest_policy": bit_rule(GUEST_POLICY),
        "min_firmware": _firmware,
        "min_launch_tcb": lambda key, item: _tcb(key, item, product),
        "min_launch_mitigation": mask,
        "min_current_mitigation": mask,
        "accept_until": lambda key, item: parse_end(item, key),
        "reason": text_of,
    }
    found = by_name(name, value, readers)
    if ("accept_until" in found) != ("reason" in found):
        raise wrong(name, "accept_until and reason together", "one of them")
    return ProductRules(**found)  # type: ignore[arg-type]


def _products(name: str, value: object) -> Mapping[str, ProductRules]:
    table = only(name, value, PRODUCTS)
    return MappingProxyType({product: _product(f"{name}.{product}", item, product) for product, item in table.items()})


def snp(name: str, value: object) -> SNPRules:
    """The table `snp`."""
    readers: dict[str, Reader] = {
        "host_data": hexes(32),
        "id_key_digests": hexes(48),
        "author_key_digests": hexes(48),
        "family_ids": hexes(16),
        "image_ids": hexes(16),
        "max_vmpl": lambda key, item: whole(key, item, 3),
        "min_guest_svn": whole,
        "allow_smt": flag,
        "require_single_socket": flag,
        "require_alias_check": flag,
        "min_launch_mitigation": mask,
        "min_current_mitigation": mask,
        "products": _products,
    }
    return SNPRules(**by_name(name, value, readers))  # type: ignore[arg-type]


def channel(name: str, value: object) -> str:
    """One of Intel's channels of TCB data."""
    if not isinstance(value, str) or value not in CHANNELS:
        raise wrong(name, " or ".join(CHANNELS), value)
    return value


def _pck(name: str, value: object) -> PCKRules:
    names = ("static_platform", "smt_disabled", "memory_integrity")
    return PCKRules(**by_name(name, value, dict.fromkeys(names, flag)))  # type: ignore[arg-type]


_INTEL: Final[Mapping[str, Reader]] = {"channel": channel, "fmspc": hexes(6), "pck": _pck}


def sgx(name: str, value: object) -> SGXRules:
    """The table `sgx`."""
    return SGXRules(**by_name(name, value, _INTEL))  # type: ignore[arg-type]


def _svns(name: str, value: object) -> bytes:
    (found,) = hexes(16)(name, [value])
    return found


def tdx(name: str, value: object) -> TDXRules:
    """The table `tdx`."""
    readers: dict[str, Reader] = {
        **_INTEL,
        "td_attributes": bit_rule(TD_ATTRIBUTES),
        "xfam": hexes(8),
        "mrsignerseam": hexes(48),
        "seam_attributes": hexes(8),
        "min_tee_tcb_svn": _svns,
    }
    return TDXRules(**by_name(name, value, readers))  # type: ignore[arg-type]
