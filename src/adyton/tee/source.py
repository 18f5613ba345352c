"""Where evidence comes from: the one interface that every TEE's source has.

A source is always chosen by name (`tee.source_choice`). Nothing guesses. The simulated TEE is never chosen silently.
"""

from __future__ import annotations

from typing import Final, Protocol

TEES: Final = ("sgx", "tdx", "snp", "tpm", "az-snp", "az-tdx", "nitrotpm", "sim", "sim-tdx", "sim-tpm")


class QuoteSource(Protocol):
    """Something that signs 64 bytes of the caller's choice together with what runs here."""

    @property
    def tee(self) -> str:
        """The TEE's name as policies write it, without a root: one of `TEES`."""
        ...

    @property
    def notice(self) -> str | None:
        """A note for the user about this source (simulated, or never run on hardware), if there is one."""
        ...

    def quote(self, report_data: bytes) -> bytes:
        """Evidence over these 64 bytes. Raises UsageError for another length, NoDevice or Timeout if there is none."""
        ...

    def event_log(self) -> bytes | None:
        """The TCG event log of this boot, where verifiers of this TEE need one beside its evidence. None elsewhere.

        Raises NoDevice where it cannot be read.
        """
        ...
