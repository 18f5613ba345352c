"""TCB statuses: Intel's words for how up to date a platform is."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class TCBStatus(StrEnum):
    """How up to date a platform, module or quoting enclave is."""

    UP_TO_DATE = "UpToDate"
    SW_HARDENING_NEEDED = "SWHardeningNeeded"
    CONFIGURATION_NEEDED = "ConfigurationNeeded"
    CONFIGURATION_AND_SW_HARDENING_NEEDED = "ConfigurationAndSWHardeningNeeded"
    OUT_OF_DATE = "OutOfDate"
    OUT_OF_DATE_CONFIGURATION_NEEDED = "OutOfDateConfigurationNeeded"
    TD_RELAUNCH_ADVISED = "TDRelaunchAdvised"
    TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED = "TDRelaunchAdvisedConfigurationNeeded"
    REVOKED = "Revoked"
    NOT_SUPPORTED = "NotSupported"
    NOT_STATED = "NotStated"
    """AMD: there is no status service. The policy's minimum versions decide."""


NEVER_ACCEPTED: Final = frozenset({TCBStatus.REVOKED, TCBStatus.NOT_SUPPORTED})
"""No policy can accept these."""

IN_TCB_INFO: Final = frozenset(
    {
        TCBStatus.UP_TO_DATE,
        TCBStatus.SW_HARDENING_NEEDED,
        TCBStatus.CONFIGURATION_NEEDED,
        TCBStatus.CONFIGURATION_AND_SW_HARDENING_NEEDED,
        TCBStatus.OUT_OF_DATE,
        TCBStatus.OUT_OF_DATE_CONFIGURATION_NEEDED,
        TCBStatus.REVOKED,
    }
)
"""What a platform's TCB level may say."""

IN_IDENTITY: Final = frozenset({TCBStatus.UP_TO_DATE, TCBStatus.OUT_OF_DATE, TCBStatus.REVOKED})
"""What a TCB level of a quoting enclave or a TDX module may say."""
