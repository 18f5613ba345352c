"""Inside an EC2 instance with a NitroTPM: documents of Amazon's hypervisor, and the workload in PCR 15 (SHA-384).

The request for a document is written into an index of the TPM's memory. A vendor command hands it to the hypervisor,
which puts its answer into the same index. Nothing in the answer is believed: the key server verifies it.

Source: AWS, EC2 user guide, "Get the NitroTPM attestation document"; AWS, NitroTPM-Tools (nitro-tpm-attest).
"""

from __future__ import annotations

import hmac
import time
from typing import TYPE_CHECKING, Final

from adyton.attest.devices import NO_DEVICES
from adyton.attest.nitro import nsm
from adyton.attest.nitro.document import parse_document
from adyton.errors import EvidenceError, NoDevice
from adyton.tee.tpm_device import MAX_NV_BYTES, DeviceFile, TPMDevice
from adyton.tee.tpm_guest import extend_workload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from adyton.values import Measurement

MESSAGE_INDEX: Final = 0x01800A02
"""NV index for request and answer. It lies in the owner's range, and exists only while a document is asked for."""
BANK: Final = "sha384"
"""The bank that Amazon's documents show."""
NOTICE: Final = (
    "Adyton's source for NitroTPM was never run on an EC2 instance: its messages follow Amazon's tool, and were tested"
    " against a software TPM with a made-up hypervisor; you trust Amazon's hypervisor"
)
TURN_S: Final = 30.0
"""How long another process of this machine may hold the index. After that it is taken for one that was cut off."""
_PAUSE_S: Final = 0.05


class NitroTPMSource:
    """Documents of this machine's hypervisor, after PCR 15 was extended with the workload."""

    def __init__(
        self,
        device: TPMDevice,
        workload: Measurement | None,
        *,
        devices: bytes = NO_DEVICES,
        clock_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._device = device
        self._clock_s = clock_s
        self._sleep = sleep
        if workload is not None:
            extend_workload(workload, device, devices, bank=BANK)

    @property
    def tee(self) -> str:
        """`nitrotpm`."""
        return "nitrotpm"

    @property
    def notice(self) -> str:
        """A note on whom one trusts, and that it has never run on such a machine."""
        return NOTICE

    def quote(self, report_data: bytes) -> bytes:
        """The document whose nonce are these bytes."""
        self._take_turn()
        try:
            self._device.nv_write(MESSAGE_INDEX, nsm.build_request(report_data), authority=MESSAGE_INDEX)
            try:
                self._device.nsm_request(MESSAGE_INDEX)
            except NoDevice as error:
                raise NoDevice(
                    f"this TPM gives no document of Amazon's hypervisor: {error.message}",
                    check="attestation of the instance",
                    expected="a NitroTPM that takes Amazon's vendor command, behind Linux 6.3 or later",
                    seen=str(error.seen),
                    remedy="use an instance whose image was registered with NitroTPM (--tpm-support v2.0); no such"
                    " machine was at hand when this was written, so that Adyton itself may be wrong: then please"
                    " report it with this text",
                ) from error
            answer = self._device.nv_read(MESSAGE_INDEX, authority=MESSAGE_INDEX) or b""
        finally:
            self._device.nv_undefine(MESSAGE_INDEX)
        return _checked(answer, report_data)

    def event_log(self) -> None:
        """None: a document is judged by the values of its PCRs."""
        return

    def close(self) -> None:
        """Let the TPM go."""
        self._device.close()

    def _take_turn(self) -> None:
        """Define the index. Its existence is what other processes of this machine wait for."""
        for ends in self._turns():
            if self._device.nv_define_own(MESSAGE_INDEX, MAX_NV_BYTES):
                return
            if ends and self._device.nv_public(MESSAGE_INDEX) is not None:
                self._device.nv_undefine(MESSAGE_INDEX)
        raise NoDevice(
            "the TPM has no room for a request to Amazon's hypervisor",
            check="memory of the TPM",
            expected=f"room for an NV index of {MAX_NV_BYTES} bytes",
            seen="none",
            remedy="remove NV indices that nobody needs (tpm2_nvundefine)",
        )

    def _turns(self) -> Iterator[bool]:
        """Waits between attempts. True when the others had their time, then a last attempt."""
        ends_s = self._clock_s() + TURN_S
        while self._clock_s() < ends_s:
            yield False
            self._sleep(_PAUSE_S)
        yield True
        yield False


def _checked(answer: bytes, report_data: bytes) -> bytes:
    """The document in an answer, if it is over these bytes. Raises NoDevice."""
    try:
        raw = nsm.parse_answer(answer, filled=True)
        document = parse_document(raw)
    except EvidenceError as error:
        raise _unusable(str(error.seen), error) from error
    if document.tee != "nitrotpm":
        raise _unusable("a document of an enclave", None)
    if not hmac.compare_digest(document.nonce or b"", report_data):
        raise _unusable("a document over another nonce", None)
    return raw


def _unusable(seen: str, error: EvidenceError | None) -> NoDevice:
    return NoDevice(
        f"the answer of Amazon's hypervisor cannot be used: {seen[:160]}",
        check="document of the hypervisor",
        expected="a document over the nonce that was asked for",
        seen=seen[:160] if error is None else f"{error.check}: {seen[:160]}",
        remedy="restart the instance; where that does not help, report it with this text",
    )


def open_nitrotpm(workload: Measurement | None, devices: bytes = NO_DEVICES) -> NitroTPMSource:
    """The source `nitrotpm`: the TPM of this EC2 instance."""
    return NitroTPMSource(TPMDevice(DeviceFile.open()), workload, devices=devices)
