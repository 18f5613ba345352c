"""The SGX enclave report body, 384 bytes: the processor's statement about an enclave.

It stands in every SGX quote, once for the application's enclave and once for the quoting enclave.
Source: Intel SGX ECDSA Quote Library Reference, "Enclave Report Body"; Intel SDM Vol. 3D, "REPORT".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from adyton.attest.layout import Span, check_size, pack

REPORT_BYTES: Final = 384

FIELDS: Final[dict[str, Span]] = {
    "cpu_svn": Span(0, 16),
    "misc_select": Span(16, 4),
    "isv_ext_prod_id": Span(32, 16),
    "flags": Span(48, 8),
    "xfrm": Span(56, 8),
    "mrenclave": Span(64, 32),
    "mrsigner": Span(128, 32),
    "config_id": Span(192, 64),
    "isv_prod_id": Span(256, 2),
    "isv_svn": Span(258, 2),
    "config_svn": Span(260, 2),
    "isv_family_id": Span(304, 16),
    "report_data": Span(320, 64),
}
"""Field -> place. Bytes between fields are reserved."""

FLAG_INIT: Final = 1 << 0
FLAG_DEBUG: Final = 1 << 1
FLAG_MODE64: Final = 1 << 2
FLAG_PROVISION_KEY: Final = 1 << 4
FLAG_EINITTOKEN_KEY: Final = 1 << 5

_ATTRIBUTES: Final = Span(48, 16)


@dataclass(frozen=True, slots=True)
class EnclaveReport:
    """An enclave report body. The fields are read from the bytes as they are asked for."""

    raw: bytes

    def __post_init__(self) -> None:
        check_size(self.raw, REPORT_BYTES, "enclave report")

    @classmethod
    def build(cls, **fields: bytes | int) -> Self:
        """Make a report from named fields (see FIELDS). Everything not named is zero."""
        return cls(pack(REPORT_BYTES, FIELDS, fields))

    def replace(self, **fields: bytes | int) -> Self:
        """The same report with some fields changed."""
        return type(self)(pack(REPORT_BYTES, FIELDS, fields, self.raw))

    def to_bytes(self) -> bytes:
        """The 384 bytes."""
        return self.raw

    @property
    def cpu_svn(self) -> bytes:
        """CPUSVN when the report was made, 16 bytes. The platform's TCB is not judged by it."""
        return FIELDS["cpu_svn"].of(self.raw)

    @property
    def misc_select(self) -> int:
        """MISCSELECT."""
        return FIELDS["misc_select"].number(self.raw)

    @property
    def attributes(self) -> bytes:
        """ATTRIBUTES, 16 bytes: flags then XFRM."""
        return _ATTRIBUTES.of(self.raw)

    @property
    def flags(self) -> int:
        """ATTRIBUTES.FLAGS."""
        return FIELDS["flags"].number(self.raw)

    @property
    def xfrm(self) -> int:
        """ATTRIBUTES.XFRM."""
        return FIELDS["xfrm"].number(self.raw)

    @property
    def debug(self) -> bool:
        """Whether a debugger may read the enclave."""
        return bool(self.flags & FLAG_DEBUG)

    @property
    def mrenclave(self) -> bytes:
        """Measurement of the enclave, 32 bytes."""
        return FIELDS["mrenclave"].of(self.raw)

    @property
    def mrsigner(self) -> bytes:
        """SHA-256 of the signer's modulus, 32 bytes."""
        return FIELDS["mrsigner"].of(self.raw)

    @property
    def isv_prod_id(self) -> int:
        """The signer's number for the product."""
        return FIELDS["isv_prod_id"].number(self.raw)

    @property
    def isv_svn(self) -> int:
        """The signer's security version of the product."""
        return FIELDS["isv_svn"].number(self.raw)

    @property
    def report_data(self) -> bytes:
        """The 64 bytes that the enclave chose."""
        return FIELDS["report_data"].of(self.raw)
