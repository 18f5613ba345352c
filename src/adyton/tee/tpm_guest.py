"""Inside a measured guest: quotes of its TPM, and the workload in PCR 15.

The attestation key is made anew from the TPM's own seed: the same TPM gives the same key. Its certificates stand in NV
memory, in one index of the owner: DER certificates one behind the other, the key's own first, the root last.

A TPM encrypts no memory. Whoever runs the machine can read it. See docs/tpm.md.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Final

from adyton.attest import der
from adyton.attest.devices import NO_DEVICES
from adyton.attest.tpm.document import MAX_CERTIFICATE_BYTES, MAX_CERTIFICATES, make_quote
from adyton.attest.tpm.event_log import MAX_LOG_BYTES
from adyton.attest.tpm.structures import Signature, parse_attest
from adyton.attest.workload_register import events, states
from adyton.errors import MalformedQuote, NoDevice, StorageFailed
from adyton.sim.platform import SimPlatform
from adyton.sim.software_tpm import SoftwareTPM
from adyton.tee.system import KERNEL, TPM_EVENT_LOG, System, read_all
from adyton.tee.tpm_device import DeviceFile, TPMDevice

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from adyton.values import Measurement

WORKLOAD_PCR: Final = 15
BANK: Final = "sha256"
AK_CHAIN_INDEX: Final = 0x01800A01
"""NV index of the attestation key's certificates. It lies in the owner's range."""
NOTICE: Final = "Adyton's TPM source has been tested against a software TPM only (swtpm)"
_ATTEMPTS: Final = 3


def extend_workload(workload: Measurement, device: TPMDevice, devices: bytes = NO_DEVICES, *, bank: str = BANK) -> None:
    """Extend PCR 15 with the workload, then with the devices, once per boot. Nothing happens where that was done.

    A start that was cut off between the two is completed. Raises StorageFailed where the PCR holds anything else: then
    this machine ran something before, and only a boot makes the PCR empty again.
    """
    wanted = states(workload, devices, bank=bank)
    seen = device.read_pcrs(bank=bank)[WORKLOAD_PCR]
    if seen in wanted:
        for digest in events(workload, devices, bank=bank)[wanted.index(seen) :]:
            device.extend(WORKLOAD_PCR, digest, bank=bank)
        seen = device.read_pcrs(bank=bank)[WORKLOAD_PCR]
    if seen != wanted[-1]:
        raise StorageFailed(
            "PCR 15 of this machine holds something else already",
            check=f"PCR {WORKLOAD_PCR}",
            expected=f"zeros, or {wanted[-1].hex()}",
            seen=seen.hex(),
            remedy="boot the machine anew: the PCR is never reset while it runs",
        )


def consistent_quote(
    device: TPMDevice, sign: Callable[[], tuple[bytes, Signature]], nonce: bytes
) -> tuple[bytes, Signature, list[bytes]]:
    """A quote and the PCR values that it covers. A PCR that changes in between costs another attempt."""
    for _ in range(_ATTEMPTS):
        pcrs = device.read_pcrs()
        message, signature = sign()
        attest = parse_attest(message)
        if not hmac.compare_digest(attest.extra_data, nonce):
            raise NoDevice(
                "the TPM signed another nonce than it was asked to",
                check="nonce of the quote",
                expected=nonce.hex(),
                seen=attest.extra_data.hex(),
                remedy="this TPM is broken: use another machine",
            )
        if hmac.compare_digest(hashlib.sha256(b"".join(pcrs)).digest(), attest.pcr_digest):
            return message, signature, pcrs
    raise NoDevice(
        "the PCRs change while they are quoted",
        check="PCR digest of the quote",
        expected="values that stand still",
        seen=f"other values at each of {_ATTEMPTS} attempts",
        remedy="end the program that extends PCRs all the time",
    )


def read_event_log(system: System, path: str = TPM_EVENT_LOG) -> bytes:
    """The firmware's event log of this boot. Raises NoDevice where there is none, StorageFailed where it is long."""
    try:
        found = read_all(system, path, MAX_LOG_BYTES)
    except OSError as error:
        raise _no_log(path, error.strerror) from error
    if not found:
        raise _no_log(path, "an empty file")
    return found


def _no_log(path: str, seen: str | None) -> NoDevice:
    return NoDevice(
        f"the event log of this boot cannot be read: {path}: {seen}",
        check="event log of the boot",
        expected="the firmware's log, which explains the PCRs",
        seen=seen,
        remedy="boot by UEFI firmware that measures (OVMF with a TPM), mount securityfs at /sys/kernel/security, and"
        " run as root",
    )


def join_chain(certificates: tuple[bytes, ...]) -> bytes:
    """What stands in the NV index: the certificates (DER), one behind the other."""
    return b"".join(certificates)


def split_chain(raw: bytes) -> tuple[bytes, ...]:
    """The certificates in the NV index. Zeros may follow them. Raises NoDevice."""
    found: list[bytes] = []
    at = 0
    try:
        while at < len(raw) and any(raw[at:]):
            tag, _, end = der.element(raw, at, len(raw))
            if tag != der.SEQUENCE or end - at > MAX_CERTIFICATE_BYTES or len(found) == MAX_CERTIFICATES:
                raise _no_chain("something else")
            found.append(raw[at:end])
            at = end
    except MalformedQuote as error:
        raise _no_chain(str(error.seen)) from None
    if len(found) < 2:
        raise _no_chain(f"{len(found)} certificates")
    return tuple(found)


def _no_chain(seen: str) -> NoDevice:
    return NoDevice(
        f"the attestation key of this TPM has no certificates in NV index {AK_CHAIN_INDEX:#x}",
        check="certificates of the attestation key",
        expected=f"2 to {MAX_CERTIFICATES} certificates, the root last",
        seen=seen,
        remedy="have the key certified, and store the certificates there: docs/tpm.md says how",
    )


def store_chain(device: TPMDevice, certificates: tuple[bytes, ...]) -> None:
    """Store the certificates of the attestation key in the TPM, in place of what is there."""
    raw = join_chain(certificates)
    if device.nv_public(AK_CHAIN_INDEX) is not None:
        device.nv_undefine(AK_CHAIN_INDEX)
    device.nv_define(AK_CHAIN_INDEX, len(raw))
    device.nv_write(AK_CHAIN_INDEX, raw)


def certify(device: TPMDevice, platform: SimPlatform) -> None:
    """Have the TPM's attestation key certified by a simulated vendor, and store the certificates in the TPM."""
    key = device.create_primary()
    try:
        store_chain(device, platform.certify_ak(key.public))
    finally:
        device.flush(key.handle)


class TPMSource:
    """Quotes of this machine's TPM, after PCR 15 was extended with the workload."""

    def __init__(
        self,
        device: TPMDevice,
        workload: Measurement | None,
        *,
        simulated: bool = False,
        devices: bytes = NO_DEVICES,
        system: System = KERNEL,
        log_path: str = TPM_EVENT_LOG,
    ) -> None:
        self._device = device
        self._simulated = simulated
        self._system = system
        self._log_path = log_path
        chain = device.nv_read(AK_CHAIN_INDEX)
        if chain is None:
            raise _no_chain("no such index")
        self._chain = split_chain(chain)
        if workload is not None:
            extend_workload(workload, device, devices)

    @property
    def tee(self) -> str:
        """`tpm` or `sim-tpm`: the root of the certificates decides what a verifier calls it."""
        return "sim-tpm" if self._simulated else "tpm"

    @property
    def notice(self) -> str:
        """A note on what it protects from, and that it was tested with a software TPM only."""
        if self._simulated:
            return "the TPM is simulated: it proves the protocol, and protects nothing"
        return f"{NOTICE}; a TPM measures the boot, and encrypts no memory"

    def quote(self, report_data: bytes) -> bytes:
        """The document of a quote over these 64 bytes, without the event log."""
        key = self._device.create_primary()
        try:
            message, signature, pcrs = consistent_quote(
                self._device, lambda: self._device.quote(key.handle, report_data), report_data
            )
        finally:
            self._device.flush(key.handle)
        made = make_quote(
            ak_certificates=self._chain, message=message, signature=signature.to_bytes(), pcrs=tuple(pcrs)
        )
        return made.to_bytes()

    def event_log(self) -> bytes:
        """The firmware's event log of this boot."""
        return read_event_log(self._system, self._log_path)

    def close(self) -> None:
        """Let the TPM go."""
        self._device.close()


def open_tpm(workload: Measurement | None, devices: bytes = NO_DEVICES, system: System = KERNEL) -> TPMSource:
    """The source `tpm`: this machine's TPM."""
    return TPMSource(TPMDevice(DeviceFile.open()), workload, devices=devices, system=system)


def open_simulated(directory: Path, workload: Measurement | None, devices: bytes = NO_DEVICES) -> TPMSource:
    """The source `sim-tpm`: the software TPM of a simulated platform, else the TPM that this machine has.

    The software TPM listens at `machine/tpm.sock` in the platform's folder, and the log of what was measured into it
    lies beside it, as `event-log`. A key without certificates is certified by the platform's vendor, if that is here.
    """
    path, log_path = directory / "machine" / "tpm.sock", TPM_EVENT_LOG
    if path.exists():
        device, log_path = TPMDevice(SoftwareTPM(path)), str(path.with_name("event-log"))
    else:
        device = TPMDevice(DeviceFile.open())
    if device.nv_public(AK_CHAIN_INDEX) is None:
        certify(device, SimPlatform.load(directory))
    return TPMSource(device, workload, simulated=True, devices=devices, log_path=log_path)
