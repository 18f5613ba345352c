"""A second opinion on policies: it imports nothing of the code that reads and judges them.

It reads the bytes of a report at their offsets (AMD 56860, Intel's DCAP quote layouts) and the plain data of a policy,
and says whether the one meets the other. It follows docs/policy.md, and knows nothing of names of checks.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

PLATFORM = ["smt", "tsme", "ecc", "rapl_off", "ciphertext_hiding", "alias_check", "iommu_write_safe", "tio"]
GUEST = {"smt": 16, "migrate_ma": 18, "debug": 19, "single_socket": 20, "cxl": 21, "aes256_xts": 22}
GUEST |= {"rapl_off": 23, "ciphertext_hiding": 24, "page_swap_off": 25}
TD = {"debug": 0, "hgs_plus_prof": 4, "perf_prof": 5, "pmt_prof": 6, "icssd": 16, "lass": 27, "sept_ve_disable": 28}
TD |= {"migratable": 29, "pks": 30, "kl": 31, "tpa": 62, "perfmon": 63}
Facts = Mapping[str, Any]


def u(raw: bytes, at: int, size: int) -> int:
    """A little-endian number."""
    return int.from_bytes(raw[at : at + size], "little")


def day_over(text: str, now: datetime) -> bool:
    """Whether a date's last second is past."""
    return datetime.fromisoformat(text + "T23:59:59").replace(tzinfo=UTC) < now.replace(microsecond=0)


def bits_hold(rule: Mapping[str, list[str]], value: int, names: Mapping[str, int], known: int) -> bool:
    """The named bits are as asked; with any rule no bit beyond the known ones is set."""
    require, forbid = rule.get("require", []), rule.get("forbid", [])
    if not require and not forbid:
        return True
    good = all(value >> names[name] & 1 for name in require) and not any(value >> names[name] & 1 for name in forbid)
    return good and value & ~known == 0


def versions(raw: bytes, at: int, turin: bool) -> dict[str, int]:
    """A TCB_VERSION by part."""
    order = ("fmc", "bootloader", "tee", "snp") if turin else ("bootloader", "tee")
    found = {part: raw[at + index] for index, part in enumerate(order)} | {"microcode": raw[at + 7]}
    return found if turin else found | {"snp": raw[at + 6]}


def snp_holds(policy: Facts, facts: Facts, now: datetime) -> bool:
    """The rules for SEV-SNP."""
    raw, product = facts["raw"], facts["product"]
    rules = policy.get("snp", {})
    products = rules.get("products", {})
    own = products.get(product, {})
    ends = own.get("accept_until")
    if (products and product not in products) or (product == "Milan" and not ends) or (ends and day_over(ends, now)):
        return False
    minimum = policy.get("min_tcb", {}).get(product)
    if minimum is None:
        return False
    turin = product == "Turin"
    for at, needed in ((0x180, minimum), (0x1E0, minimum), (0x1F0, own.get("min_launch_tcb", {}))):
        seen = versions(raw, at, turin)
        if any(seen[part] < lowest for part, lowest in needed.items()):
            return False
    guest, platform = u(raw, 8, 8), u(raw, 0x40, 8)
    if (guest >> 19 & 1 and not policy.get("allow_debug")) or (guest >> 18 & 1 and not policy.get("allow_migration")):
        return False
    if (guest >> 16 & 1 and not rules.get("allow_smt", True)) or u(raw, 0x30, 4) > rules.get("max_vmpl", 0):
        return False
    names = {name: bit for bit, name in enumerate(PLATFORM)}
    known = 0xFFFF | 1 << 17 | sum(1 << bit for bit in GUEST.values())
    if not bits_hold(own.get("platform_info", {}), platform, names, 0xFF):
        return False
    if not bits_hold(own.get("guest_policy", {}), guest, GUEST, known):
        return False
    vectors = {"launch": u(raw, 0x1F8, 8), "current": u(raw, 0x200, 8)} if u(raw, 0, 4) >= 5 else {}
    for when in ("launch", "current"):
        wanted = rules.get(f"min_{when}_mitigation", 0) | own.get(f"min_{when}_mitigation", 0)
        if vectors.get(when, 0) & wanted != wanted:
            return False
    firmware = [int(part) for part in own.get("min_firmware", "0.0.0").split(".")]
    states = [[raw[at + 2], raw[at + 1], raw[at]] for at in (0x1E8, 0x1EC)]
    return all(state >= firmware for state in states)


def intel_holds(policy: Facts, facts: Facts, kind: str) -> bool:
    """The rules for SGX and TDX. `raw` is the body of the enclave's or TD's report."""
    raw, rules = facts["raw"], policy.get(kind, {})
    pck = rules.get("pck", {})
    dynamic, smt = facts["configuration"] or (None, None)
    if (pck.get("static_platform") and dynamic is not False) or (pck.get("smt_disabled") and smt is not False):
        return False
    if (pck.get("memory_integrity") and facts["sgx_type"] != 2) or "INTEL-DOC-10001" in facts["advisories"]:
        return False
    if rules.get("channel") == "early" and facts["channel"] != "early":
        return False
    if rules.get("fmspc") and facts["fmspc"].hex() not in rules["fmspc"]:
        return False
    if kind == "sgx":
        return bool(policy.get("allow_debug")) or not raw[48] >> 1 & 1
    attributes = u(raw, 120, 8)
    if (attributes & 0xFF and not policy.get("allow_debug")) or attributes & ~(
        0xFF | sum(1 << bit for bit in TD.values())
    ):
        return False
    if not attributes >> 28 & 1 or (attributes >> 29 & 1 and not policy.get("allow_migration")):
        return False
    if not bits_hold(rules.get("td_attributes", {}), attributes, TD, sum(1 << bit for bit in TD.values())):
        return False
    if rules.get("xfam") and f"{u(raw, 128, 8):016x}" not in rules["xfam"]:
        return False
    lowest = bytes.fromhex(rules.get("min_tee_tcb_svn", ""))
    if any(seen < needed for seen, needed in zip(raw[:16], lowest, strict=False)):
        return False
    return not policy.get("mrseams") or raw[16:64].hex() in policy["mrseams"]


def host_holds(policy: Facts, facts: Facts, now: datetime) -> bool:
    """The machine is listed, and the list has not run out."""
    hosts = policy.get("hosts")
    if hosts is None:
        return True
    lists = {kind: hosts[kind] for kind in ("chip_ids", "ppids", "piids") if kind in hosts}
    entries = [(kind, entry) for kind, found in lists.items() for entry in found]
    listed = any(facts[kind[:-1]].hex() == entry["id"] and not day_over(entry["until"], now) for kind, entry in entries)
    answers = hosts.get("registries", [])
    told = any(facts["ppid"].hex() in item["ppids"] and not day_over(item["until"], now) for item in answers)
    return (listed or not lists) and (told or not answers)


def accepts(policy: Facts, facts: Facts, now: datetime) -> bool:
    """Whether a policy without alternatives accepts a genuine report that is up to date and bound as expected."""
    kind = facts["tee"]
    if kind not in policy.get("tees", []) or facts["measurement"].hex() not in policy.get("measurements", []):
        return False
    own = snp_holds(policy, facts, now) if kind == "snp" else intel_holds(policy, facts, kind)
    return own and host_holds(policy, facts, now)
