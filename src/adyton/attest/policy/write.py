"""The plain data of a policy's values. `read_rules` reads it back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from datetime import datetime
from typing import cast

from adyton.attest.nvidia.gpu_policy import GPUPolicy
from adyton.attest.policy.hosts import SignedHosts
from adyton.attest.policy.rules import FirmwareVersion
from adyton.attest.snp import TCBVersion
from adyton.attest.status import TCBStatus
from adyton.values import Digest, Measurement


def plain(value: object) -> object:
    """Plain data of a value. Sets come sorted, and a rule holds only what differs from its default."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, TCBStatus):
        return value.value
    if isinstance(value, (Digest, Measurement)):
        return value.hex()
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, FirmwareVersion):
        return str(value)
    if isinstance(value, frozenset):
        return sorted(cast("list[str]", [plain(item) for item in value]))
    if isinstance(value, TCBVersion):
        return value.to_dict()
    if isinstance(value, GPUPolicy):
        return value.to_dict()
    if isinstance(value, SignedHosts):
        return {"key": value.key.hex(), "envelope": value.envelope}
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        found = {}
        for item in fields(value):
            default = item.default_factory() if item.default_factory is not MISSING else item.default
            if getattr(value, item.name) != default:
                found[item.name] = plain(getattr(value, item.name))
        return found
    return value
