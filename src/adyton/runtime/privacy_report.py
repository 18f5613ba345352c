"""What the program says that it used of a privacy budget: a small file in its memory, read when it has ended.

The program writes `{"steps": N}` to /dev/shm/adyton-privacy.json. It is measured, and all parties agreed on it. Nothing
here believes more of it than its owner's key server does.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from adyton.errors import Error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from adyton.manifest.signed import SignedManifest
    from adyton.release.client import GrantInfo
    from adyton.release.run_key import RunKey

NAME: Final = "adyton-privacy.json"
MAX_BYTES: Final = 1024


def read_report(folder: str) -> bytes | None:
    """The report in this folder, unparsed. None where there is none, or something that is no small plain file."""
    try:
        fd = os.open(f"{folder}/{NAME}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        raw = os.read(fd, MAX_BYTES + 1)
    except OSError:
        return None
    finally:
        os.close(fd)
    return raw if len(raw) <= MAX_BYTES else None


def tell_owners(
    signed: SignedManifest, servers: Mapping[str, str], key: RunKey, grants: Sequence[GrantInfo], report: bytes
) -> list[str]:
    """Tell each owner who released keys, signed with the run's key. Returns why, where none of them took it.

    Who of them has a budget, the enclave does not know: the others answer that nothing is reserved.
    """
    from adyton.release.client import tell_server
    from adyton.release.run_messages import PRIVACY

    refused: list[str] = []
    for grant in grants:
        try:
            tell_server(signed, grant.owner, servers, key, PRIVACY, grant.grant, report)
        except Error as error:
            refused.append(f"{grant.owner}: {error.message}")
    if len(refused) < len(grants):
        return []
    return [
        f"no owner took what the program says of its privacy budget; all of it stays reserved ({'; '.join(refused)})"
    ]
