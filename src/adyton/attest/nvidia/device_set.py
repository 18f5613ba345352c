"""Rules for all devices of one machine together: each device once, and eight GPUs with their NVSwitches as one set.

In protected PCIe mode the NVSwitches carry the GPUs' traffic unencrypted, so all of them have to be verified. Each GPU
names the switches at its links, and each switch names the GPUs that it connects, in signed reports.

An NVSwitch's identity is the low half of its boot ROM certificate's serial number, as a recorded one shows. Whether the
switches name GPUs by the same half is not known. So the GPUs' certificates are compared with the lists as a set: all of
them are there, or none. A machine with some GPUs of another one is refused in any case where the numbers are the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from adyton.errors import Mismatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adyton.attest.checks import Checks
    from adyton.attest.nvidia.device import Device

GPUS: Final = 8
SWITCHES: Final = 4
_SEPARATE: Final = "give the evidence of all eight GPUs and all four NVSwitches of one machine"


def check_each_once(checks: Checks, devices: Sequence[Device]) -> None:
    """Refuse one device that stands twice. Without certificates there is no identity to compare."""
    for what, numbers in (
        ("UEID", [device.ueid for device in devices if device.ueid]),
        ("boot ROM serial number", [device.serial for device in devices if device.serial]),
    ):
        twice = sorted({number for number in numbers if numbers.count(number) > 1})
        checks.require(
            f"each {what} once",
            not twice,
            expected="each device once",
            seen=f"twice: {', '.join(twice)}" if twice else f"{len(numbers)} different",
            error=Mismatch,
            message="the evidence has one device twice" if twice else None,
            remedy="give one report for each device",
        )


def is_protected_pcie(devices: Sequence[Device]) -> bool:
    """Whether the devices are, or say that they are, parts of a protected PCIe machine."""
    stated = [device.report.opaque for device in devices if device.report is not None]
    return any(device.is_switch for device in devices) or any(
        opaque.protected_pcie or opaque.feature == "ppcie" for opaque in stated
    )


def check_protected_pcie(checks: Checks, devices: Sequence[Device]) -> None:
    """Check that GPUs and NVSwitches name each other, and that none is missing."""
    gpus = [device.report for device in devices if device.report is not None and not device.is_switch]
    switches = [device for device in devices if device.report is not None and device.is_switch]
    checks.require(
        "protected PCIe: devices",
        (len(gpus), len(switches)) == (GPUS, SWITCHES),
        expected=f"{GPUS} GPUs and {SWITCHES} NVSwitches",
        seen=f"{len(gpus)} GPUs and {len(switches)} NVSwitches",
        error=Mismatch,
        remedy=_SEPARATE,
    )
    checks.require(
        "protected PCIe: mode",
        all(report.opaque.protected_pcie for report in gpus),
        expected="on in every GPU",
        seen=f"on in {sum(report.opaque.protected_pcie for report in gpus)}",
        error=Mismatch,
        remedy="set the same mode in every GPU",
    )
    own = set()
    for switch in switches:
        stated = switch.report.opaque.switch_pdis if switch.report else ()
        certified = switch.chain.pdi if switch.chain else b""
        checks.require(
            "protected PCIe: identity of an NVSwitch",
            stated == (certified,),
            expected=certified,
            seen=stated,
            error=Mismatch,
            remedy="refuse the evidence: report and certificate are of different NVSwitches",
        )
        own.add(certified)
    for report in gpus:
        named = report.opaque.linked_switches
        checks.require(
            "protected PCIe: NVSwitches at a GPU",
            named == own and len(own) == SWITCHES,
            expected=sorted(own),
            seen=sorted(named),
            error=Mismatch,
            remedy=_SEPARATE,
        )
    lists = [{pdi for pdi in switch.report.opaque.gpu_pdis if any(pdi)} for switch in switches if switch.report]
    union = set().union(*lists)
    checks.require(
        "protected PCIe: GPUs at the NVSwitches",
        len(union) == GPUS and all(found == union for found in lists),
        expected=f"the same {GPUS} GPUs at every NVSwitch",
        seen=f"{len(union)} GPUs",
        error=Mismatch,
        remedy=_SEPARATE,
    )
    own_numbers = {device.chain.pdi for device in devices if device.chain is not None and not device.is_switch}
    shared = len(own_numbers & union)
    checks.require(
        "protected PCIe: GPUs' certificates at the NVSwitches",
        shared in (0, GPUS),
        expected=f"all {GPUS} GPUs among those that the NVSwitches name; or none, where they name them otherwise",
        seen=f"{shared} of {GPUS}",
        error=Mismatch,
        remedy=_SEPARATE,
    )
