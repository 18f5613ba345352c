"""Inside an Azure confidential machine: the paravisor's report, its TPM's quote, and what the host's services add.

The guest cannot choose the report data of the hardware's report. So the nonce stands in the TPM's quote, and the
hardware's report binds the TPM's key. Source: Microsoft, "Azure confidential VMs: guest attestation design".
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeAlias

from adyton.attest.azure.evidence import encode_body
from adyton.attest.azure.hcl import TDREPORT, HCLReport, parse_hcl_report
from adyton.attest.certificates import split_pem
from adyton.attest.devices import NO_DEVICES
from adyton.attest.tpm.structures import ALG_RSASSA
from adyton.errors import EvidenceError, MalformedQuote, NoDevice
from adyton.tee import imds
from adyton.tee.system import KERNEL, System
from adyton.tee.tpm_device import DeviceFile, TPMDevice
from adyton.tee.tpm_guest import consistent_quote, extend_workload, read_event_log
from adyton.untrusted import parse_json_object

if TYPE_CHECKING:
    from adyton.values import Measurement

HCL_REPORT_INDEX: Final = 0x01400001
AK_HANDLE: Final = 0x81000003
CERTIFICATION: Final = "/metadata/THIM/amd/certification"
TD_QUOTE: Final = "/acc/tdquote"
NOTICE: Final = (
    "Adyton's source for Azure has been tested against a software TPM and real evidence only, never inside Azure"
)

Ask: TypeAlias = Callable[[str, str, bytes | None], bytes]
"""Method, path, body: the answer of Azure's service."""


class AzureSource:
    """Evidence of this Azure machine, after PCR 15 was extended with the workload."""

    def __init__(
        self,
        device: TPMDevice,
        workload: Measurement | None,
        *,
        tee: str,
        devices: bytes = NO_DEVICES,
        ask: Ask = imds.ask,
        system: System = KERNEL,
    ) -> None:
        self._device = device
        self._ask = ask
        self._system = system
        self._tee = tee
        found = _tee_of(self._hcl_report())
        if found != tee:
            raise NoDevice(
                f"this Azure machine is {found}, not {tee}",
                check="TEE of this machine",
                expected=tee,
                seen=found,
                remedy=f"name it: --tee {found}",
            )
        if workload is not None:
            extend_workload(workload, device, devices)

    @property
    def tee(self) -> str:
        """`az-snp` or `az-tdx`."""
        return self._tee

    @property
    def notice(self) -> str:
        """A note on whom one trusts, and that it has never run inside Azure."""
        return f"{NOTICE}; you trust Microsoft's paravisor"

    def quote(self, report_data: bytes) -> bytes:
        """The body of evidence over these 64 bytes, in the form of version 1, without the event log."""
        report = self._hcl_report()
        message, signature, pcrs = consistent_quote(
            self._device, lambda: self._device.quote(AK_HANDLE, report_data), report_data
        )
        if signature.algorithm != ALG_RSASSA:
            raise NoDevice(
                "the paravisor's attestation key signs no RSASSA", check="attestation key", expected="RSASSA"
            )
        td_quote = vcek = None
        if isinstance(report.hardware, TDREPORT):
            td_quote = self._td_quote(report.hardware)
        else:
            vcek = self._vcek()
        return encode_body(
            report.raw, vcek=vcek, td_quote=td_quote, message=message, signature=signature.value, pcrs=pcrs
        )

    def event_log(self) -> bytes:
        """The firmware's event log of this boot."""
        return read_event_log(self._system)

    def close(self) -> None:
        """Let the TPM go."""
        self._device.close()

    def _hcl_report(self) -> HCLReport:
        raw = self._device.nv_read(HCL_REPORT_INDEX)
        if raw is None:
            raise NoDevice(
                "this machine's TPM holds no report of Azure's paravisor",
                check=f"NV index {HCL_REPORT_INDEX:#x}",
                expected="the report of the paravisor",
                seen="no such index",
                remedy="use an Azure confidential machine (DCasv5, DCesv6 and others); other machines have --tee tpm",
            )
        try:
            return parse_hcl_report(raw)
        except EvidenceError as error:
            raise _unusable("the paravisor's report", error) from error

    def _vcek(self) -> bytes:
        answer = self._answer("GET", CERTIFICATION, None)
        text = answer.get("vcekCert")
        try:
            (certificate,) = split_pem(text if isinstance(text, str) else "", "VCEK")
        except (EvidenceError, ValueError) as error:
            raise _unusable("the chip's certificate from Azure's service", error) from error
        return certificate

    def _td_quote(self, report: TDREPORT) -> bytes:
        body = json.dumps({"report": base64.urlsafe_b64encode(report.raw).rstrip(b"=").decode()}).encode()
        text = self._answer("POST", TD_QUOTE, body).get("quote")
        try:
            return base64.urlsafe_b64decode(f"{text}{'=' * (-len(str(text)) % 4)}")
        except (binascii.Error, ValueError) as error:
            raise _unusable("the quote from Azure's service", error) from error

    def _answer(self, method: str, path: str, body: bytes | None) -> dict[str, object]:
        raw = self._ask(method, path, body)
        try:
            return parse_json_object(
                raw, what="answer of Azure's service", refuse=MalformedQuote, limit_bytes=imds.MAX_ANSWER_BYTES
            )
        except EvidenceError as error:
            raise _unusable(f"the answer of Azure's service {path}", error) from error


def _tee_of(report: HCLReport) -> str:
    return "az-tdx" if isinstance(report.hardware, TDREPORT) else "az-snp"


def _unusable(what: str, error: Exception) -> NoDevice:
    return NoDevice(
        f"{what} cannot be used: {str(error)[:160]}",
        check=what,
        expected="what an Azure confidential machine gives",
        seen=str(error)[:160],
        remedy="restart the machine; where that does not help, report it with this text",
    )


def open_azure(
    tee: str, workload: Measurement | None, devices: bytes = NO_DEVICES, system: System = KERNEL
) -> AzureSource:
    """The sources `az-snp` and `az-tdx`: the TPM of this Azure machine."""
    return AzureSource(TPMDevice(DeviceFile.open()), workload, tee=tee, devices=devices, system=system)
