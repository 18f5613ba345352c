"""Which GPUs a relying party accepts: the table `gpus` of a policy.

::

    [gpus]
    count = 1                          # exactly so many GPUs. NVSwitches are not counted
    archs = ["HOPPER"]
    min_driver = "550.144.03"
    drivers = ["550.144.03"]           # if given, exactly one of these
    vbios = ["96.00.5E.00.01"]
    serials = ["1206703403171999014051"]
    allow_devtools = false             # true: measurements may differ, as developer mode makes them do
    allow_missing_ocsp = false
    simulated_roots = []               # SHA-256 of simulated roots, for GPUs that protect nothing
    [[gpus.rim_exemptions]]            # a RIM whose signer has expired
    sha256 = "<64 hex>"
    owner = "alice@example.org"
    until = "2027-01-31"
    reason = "NVIDIA has not signed it again"

A policy without this table accepts no GPU. Exceptions (`allow_…`, `rim_exemptions`) count where GPU evidence is judged
by itself. A key server makes none: it verifies the GPUs before it knows which approval they are for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final, Protocol

from adyton.attest.nvidia.layout import ARCHS, MAX_DEVICES
from adyton.check import Check
from adyton.dates import is_over, parse_end, timestamp
from adyton.errors import UsageError
from adyton.values import Digest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

_MAX_ENTRIES: Final = 4096
_VERSION: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z.]{0,63}", re.ASCII)
_DRIVER: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){0,7}", re.ASCII)
_ROOT: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_SERIAL: Final = re.compile(r"[0-9]{1,64}", re.ASCII)


def _wrong(name: str, expected: str, seen: object) -> UsageError:
    return UsageError(
        f"the policy's gpus.{name} is wrong: expected {expected}, seen {str(seen)[:160]}",
        check=f"policy: gpus.{name}",
        expected=expected,
        seen=str(seen)[:160],
        remedy="see docs/gpu.md, section Policy",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RIMExemption:
    """A RIM with an expired signer that somebody answers for, until a day."""

    sha256: Digest
    owner: str
    until: datetime
    """The last instant at which it counts."""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GPUPolicy:
    """What a relying party accepts of the GPUs of one machine."""

    count: int | None = None
    archs: frozenset[str] = frozenset()
    min_driver: str = ""
    drivers: frozenset[str] = frozenset()
    vbios: frozenset[str] = frozenset()
    """In upper case."""
    serials: frozenset[str] = frozenset()
    """Numbers of devices, in decimal: UEID, or serial number of the boot ROM's certificate."""
    allow_devtools: bool = False
    """Accept measurements that differ from the RIMs. For development: it proves nothing about the firmware."""
    allow_missing_ocsp: bool = False
    simulated_roots: frozenset[Digest] = frozenset()
    """Roots of simulated GPUs that count beside a verified CPU."""
    rim_exemptions: tuple[RIMExemption, ...] = ()

    @classmethod
    def from_dict(cls, value: object) -> GPUPolicy:
        """Read the plain data of the table. Unknown names are refused. Raises UsageError."""
        names = {item.name for item in fields(cls)}
        if not isinstance(value, Mapping) or set(value) - names:
            raise _wrong("names", ", ".join(sorted(names)), sorted(value) if isinstance(value, Mapping) else value)
        return cls(
            count=_count(value.get("count")),
            archs=_texts("archs", value.get("archs", []), re.compile("|".join(ARCHS)), ", ".join(ARCHS)),
            min_driver=_driver(value.get("min_driver", "")),
            drivers=_texts("drivers", value.get("drivers", []), _VERSION, "versions, such as 550.144.03"),
            vbios=frozenset(
                item.upper()
                for item in _texts("vbios", value.get("vbios", []), _VERSION, "versions, such as 96.00.5E.00.01")
            ),
            serials=_texts("serials", value.get("serials", []), _SERIAL, "numbers in decimal, as texts"),
            allow_devtools=_flag("allow_devtools", value.get("allow_devtools", False)),
            allow_missing_ocsp=_flag("allow_missing_ocsp", value.get("allow_missing_ocsp", False)),
            simulated_roots=frozenset(
                map(
                    Digest.from_hex, _texts("simulated_roots", value.get("simulated_roots", []), _ROOT, "64 hex digits")
                )
            ),
            rim_exemptions=_exemptions(value.get("rim_exemptions", [])),
        )

    def to_dict(self) -> dict[str, object]:
        """As plain data, only what differs from the default. `from_dict` gives it back."""
        default, found = GPUPolicy(), {}
        for item in fields(self):
            value = getattr(self, item.name)
            if value != getattr(default, item.name):
                found[item.name] = sorted(map(str, value)) if isinstance(value, frozenset) else value
        if self.rim_exemptions:
            found["rim_exemptions"] = [
                {
                    "sha256": item.sha256.hex(),
                    "owner": item.owner,
                    "until": timestamp(item.until),
                    "reason": item.reason,
                }
                for item in self.rim_exemptions
            ]
        return found

    def exemption_for(self, sha256: Digest, now: datetime) -> RIMExemption | None:
        """The exemption of a RIM that still counts at `now`."""
        found = (item for item in self.rim_exemptions if item.sha256 == sha256 and not is_over(item.until, now))
        return next(found, None)


class Judged(Protocol):
    """What a policy asks of a verified GPU. An empty text stands for what is not known."""

    @property
    def arch(self) -> str | None:
        """HOPPER or BLACKWELL."""
        ...

    @property
    def driver(self) -> str:
        """Version of the driver."""
        ...

    @property
    def vbios(self) -> str:
        """Version of the VBIOS."""
        ...

    @property
    def ueid(self) -> str:
        """UEID, in decimal."""
        ...

    @property
    def serial(self) -> str:
        """Serial number of the boot ROM's certificate, in decimal."""
        ...

    @property
    def tee(self) -> str:
        """`nvidia-gpu`, or `sim-nvidia-gpu`, perhaps with a root behind it."""
        ...


def judge_gpus(gpus: Sequence[Judged], policy: GPUPolicy | None) -> list[Check]:
    """Judge the GPUs that were verified with a CPU's evidence, as checks. None without GPUs and without a policy.

    A machine with GPUs needs a policy that names GPUs, and such a policy needs a machine with at least one.
    """
    if policy is None and not gpus:
        return []
    named = Check(
        "GPUs: named by the policy",
        "no GPU" if policy is None else "at least one GPU",
        f"{len(gpus)} GPUs",
        policy is not None and bool(gpus),
        "say in the policy's table `gpus` which GPUs you accept"
        if policy is None
        else "run the program on a machine with GPUs, and name them in its manifest: adyton.gpus",
    )
    if policy is None:
        return [named]
    simulated = {f"sim-nvidia-gpu:{root}" for root in policy.simulated_roots}
    tees = sorted({gpu.tee for gpu in gpus})
    checks = [
        named,
        Check(
            "GPUs: root",
            {"nvidia-gpu", *simulated},
            tees,
            set(tees) <= {"nvidia-gpu", *simulated},
            "a simulated GPU is accepted only by the fingerprint of its root: gpus.simulated_roots",
        ),
    ]
    return checks + judge_facts(gpus, policy)


def judge_facts(gpus: Sequence[Judged], policy: GPUPolicy) -> list[Check]:
    """Judge number, architecture, versions and serial numbers. What is not known does not meet a requirement."""
    checks: list[Check] = []
    if policy.count is not None:
        remedy = "start the machine with this number of GPUs, or change gpus.count"
        checks.append(Check("GPUs: number", policy.count, len(gpus), len(gpus) == policy.count, remedy))
    archs = sorted({gpu.arch or "unknown" for gpu in gpus})
    if policy.archs:
        checks.append(Check("GPUs: architecture", policy.archs, archs, set(archs) <= policy.archs, "use one of them"))
    drivers = sorted({gpu.driver or "unknown" for gpu in gpus})
    if policy.min_driver:
        ok = all(driver_at_least(driver, policy.min_driver) for driver in drivers)
        checks.append(Check("GPUs: least driver", policy.min_driver, drivers, ok, "update the driver in the guest"))
    if policy.drivers:
        ok = set(drivers) <= policy.drivers
        checks.append(Check("GPUs: driver", policy.drivers, drivers, ok, "use one of these drivers"))
    vbios = sorted({gpu.vbios.upper() or "unknown" for gpu in gpus})
    if policy.vbios:
        checks.append(Check("GPUs: VBIOS", policy.vbios, vbios, set(vbios) <= policy.vbios, "use one of these VBIOS"))
    if policy.serials:
        ok = all({gpu.ueid, gpu.serial} & policy.serials for gpu in gpus)
        seen = [gpu.ueid or "unknown" for gpu in gpus]
        remedy = "use one of these devices, or name its number in gpus.serials"
        checks.append(Check("GPUs: serial number", policy.serials, seen, ok, remedy))
    return checks


def driver_at_least(seen: str, least: str) -> bool:
    """Whether a driver's version is `least` or later, number by number. A version that is no numbers is not."""
    if _DRIVER.fullmatch(seen) is None:
        return False
    return tuple(map(int, seen.split("."))) >= tuple(map(int, least.split(".")))


def _count(value: object) -> int | None:
    if value is None:
        return None
    if type(value) is not int or not 1 <= value <= MAX_DEVICES:
        raise _wrong("count", f"a whole number from 1 to {MAX_DEVICES}", value)
    return value


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, "true or false", value)
    return value


def _driver(value: object) -> str:
    if not isinstance(value, str) or (value and _DRIVER.fullmatch(value) is None):
        raise _wrong("min_driver", "numbers with dots between them, such as 550.144.03", value)
    return value


def _texts(name: str, value: object, pattern: re.Pattern[str], expected: str) -> frozenset[str]:
    if not isinstance(value, list) or len(value) > _MAX_ENTRIES:
        raise _wrong(name, f"a list of {expected}", value)
    for item in value:
        if not isinstance(item, str) or pattern.fullmatch(item) is None:
            raise _wrong(name, expected, item)
    return frozenset(value)


def _exemptions(value: object) -> tuple[RIMExemption, ...]:
    if not isinstance(value, list) or len(value) > _MAX_ENTRIES:
        raise _wrong("rim_exemptions", "a list of tables", value)
    found = []
    for item in value:
        if not isinstance(item, Mapping) or not {"sha256", "owner", "until"} <= set(item) <= {
            *("sha256", "owner", "until", "reason")
        }:
            raise _wrong("rim_exemptions", "sha256, owner, until and perhaps reason", item)
        texts = [item["sha256"], item["owner"], item.get("reason", "")]
        if not all(isinstance(text, str) and len(text) <= 1024 for text in texts) or not item["owner"]:
            raise _wrong("rim_exemptions", "texts", item)
        found.append(
            RIMExemption(
                sha256=Digest.from_hex(texts[0]),
                owner=texts[1],
                until=parse_end(item["until"], "gpus.rim_exemptions.until"),
                reason=texts[2],
            )
        )
    return tuple(found)
