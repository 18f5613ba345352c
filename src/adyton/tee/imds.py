"""Azure's services for a machine, at its link-local address: certificates of the chip, and TD quotes.

They are the host's, so an answer is data: its size and each wait are capped, no redirect is followed, and what it
says counts only where evidence verifies with it. Source: Microsoft, "THIM" and "Azure confidential VMs on TDX".
"""

from __future__ import annotations

import http.client
from typing import Final

from adyton.errors import NoDevice, Timeout

ADDRESS: Final = "169.254.169.254"
TIMEOUT_S: Final = 10.0
MAX_ANSWER_BYTES: Final = 64 << 10


def ask(method: str, path: str, body: bytes | None = None, *, address: str = ADDRESS, port: int = 80) -> bytes:
    """One request, and the body of its answer. Raises NoDevice, and Timeout after ten seconds without a byte."""
    headers = {"Metadata": "true", "Accept": "application/json"}
    if body is not None:
        headers["Content-Type"] = "application/json"
    connection = http.client.HTTPConnection(address, port, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, body=body, headers=headers)
        answer = connection.getresponse()
        found = answer.read(MAX_ANSWER_BYTES + 1)
    except TimeoutError:
        raise Timeout(f"Azure's service did not answer within {TIMEOUT_S:.0f} seconds: {path}") from None
    except (OSError, http.client.HTTPException) as error:
        raise _failed(path, str(error)[:160] or type(error).__name__) from error
    finally:
        connection.close()
    if answer.status != http.HTTPStatus.OK:
        raise _failed(path, f"status {answer.status}")
    if len(found) > MAX_ANSWER_BYTES:
        raise _failed(path, f"more than {MAX_ANSWER_BYTES} bytes")
    return found


def _failed(path: str, seen: str) -> NoDevice:
    return NoDevice(
        f"Azure's service for this machine gave no answer to use: {path}: {seen}",
        check=f"Azure's service {path}",
        expected=f"an answer with status 200, at most {MAX_ANSWER_BYTES} bytes",
        seen=seen,
        remedy="run inside an Azure confidential machine, whose network lets 169.254.169.254 through",
    )
