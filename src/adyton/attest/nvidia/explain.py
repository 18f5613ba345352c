"""A verdict about GPUs as JSON for programs, and as text for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from adyton.attest.nvidia.assess import NOT_PROVED
from adyton.check import text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from adyton.attest.nvidia.assess import GPUAssessment
    from adyton.attest.nvidia.device import Device

_WIDTH: Final = 18
_MAX_SHOWN: Final = 8
_SIMULATED: Final = "it proves the protocol and protects nothing from whoever runs the machine"


def to_dict(assessment: GPUAssessment) -> dict[str, Any]:
    """The assessment as JSON data: the document of `adyton verify --json`."""
    found: dict[str, Any] = {
        "tee": assessment.tee,
        "verdict": assessment.verdict,
        "genuine": all(device.genuine for device in assessment.devices),
        "gpus": [_device(device) for device in assessment.devices],
        "bound": None if assessment.nonce is None else _bound(assessment.devices),
        "co_location": "not proved",
        "verified_at": text(assessment.now),
        "notes": [f"device {n}: {note}" for n, device in enumerate(assessment.devices) for note in device.notes],
        "warnings": [NOT_PROVED],
    }
    if assessment.tee.startswith("sim"):
        found["tee_with_root"] = sorted({device.tee_with_root for device in assessment.devices})[0]
        found["warnings"].append(f"the GPU is simulated: {_SIMULATED}")
    if assessment.expires_at is not None:
        found["expires_at"] = text(assessment.expires_at)
    if assessment.error is not None:
        found["error"] = assessment.error.details()
    found["checks"] = [check.to_dict() for check in assessment.checks]
    return found


def _bound(devices: Iterable[Device]) -> bool:
    return all(any(check.name == "nonce" and check.ok for check in device.checks) for device in devices)


def _device(device: Device) -> dict[str, Any]:
    return {
        "arch": device.arch,
        "model": device.chain.model if device.chain else None,
        "driver": device.driver or None,
        "vbios": device.vbios or None,
        "ueid": device.ueid or None,
        "serial": device.serial or None,
        "mode": device.report.opaque.feature if device.report else None,
        "genuine": device.genuine,
        "root": str(device.chain.root) if device.chain and device.genuine else None,
        "revocation_checked": device.revocation_checked,
        "measurements": {
            "compared": device.compared,
            "matched": list(device.matched),
            "mismatched": [
                {
                    "index": item.index,
                    "source": item.source,
                    "golden": [value.hex() for value in item.golden],
                    "seen": item.seen.hex(),
                }
                for item in device.mismatched
            ],
        },
        "checks": [check.to_dict() for check in device.checks],
    }


def to_text(assessment: GPUAssessment) -> str:
    """The assessment for people, in about a dozen lines for one GPU."""
    lines: list[tuple[str, str]] = [("verdict", assessment.verdict)]
    for device in assessment.devices:
        lines += _lines(device)
    if assessment.nonce is None:
        lines.append(("bound", "not compared: give the nonce that you asked with (--nonce)"))
    else:
        lines.append(("bound", "yes    to the given nonce" if _bound(assessment.devices) else "NO"))
    lines.append(("in this machine?", NOT_PROVED))
    for check in assessment.checks:
        if not check.ok:
            lines.append(("failed", check.name))
            lines.append(("  expected", text(check.expected)[:200]))
            lines.append(("  seen", text(check.seen)[:200]))
            if check.remedy:
                lines.append(("  remedy", check.remedy))
    if assessment.verdict == "unchecked" and assessment.error is not None:
        lines.append(("not checked", assessment.error.message))
        if assessment.error.remedy:
            lines.append(("  remedy", assessment.error.remedy))
    return "\n".join(f"{name:<{_WIDTH}}{value}" for name, value in lines)


def _lines(device: Device) -> list[tuple[str, str]]:
    kind = "NVSwitch" if device.is_switch else "GPU"
    model = device.chain.model if device.chain else "unknown"
    root = str(device.chain.root)[:16] if device.chain else ""
    if not device.genuine:
        answer = f"NO     {device.errors[0].message if device.errors else 'not verified'}"
    elif device.chain is not None and device.chain.simulated:
        answer = f"yes    but simulated, under the root {root}…: {_SIMULATED}"
    else:
        answer = f"yes    signatures and certificates lead to NVIDIA's root {root}…"
    lines = [(kind, f"{model}, {device.arch or 'unknown architecture'}"), ("  genuine", answer)]
    if device.report is None:
        return lines
    lines.append(("  number", device.ueid or "unknown"))
    lines.append(("  firmware", f"driver {device.driver or 'none stated'}, VBIOS {device.vbios or 'none stated'}"))
    lines.append(("  measurements", _measurements(device)))
    lines.append(("  revocation", "checked" if device.revocation_checked else "NOT CHECKED"))
    return lines + [("  note", note) for note in device.notes]


def _measurements(device: Device) -> str:
    if not device.matched and not device.mismatched:
        return "not compared: no reference values"
    total = len(device.matched) + len(device.mismatched)
    found = f"{len(device.matched)} of {total} match"
    if device.mismatched:
        shown = ", ".join(f"{item.index} ({item.source})" for item in device.mismatched[:_MAX_SHOWN])
        more = len(device.mismatched) - _MAX_SHOWN
        found += f"; these differ: {shown}" + (f" and {more} more" if more > 0 else "")
    return found if device.compared else f"{found}; a RIM is missing, so others were not compared"
