"""What the answer of a plain HTTP service means: its body, or an error that says what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from adyton.collateral.http_client import Response, retry_after_s, told_wait
from adyton.errors import FetchFailed, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping


def check_address(url: str) -> None:
    """Raise UsageError where this is no address of a service."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise UsageError(
            f"no address of a service: {url[:200]}",
            check="address of the service",
            expected="https://HOST[:PORT]",
            seen=url[:200],
        )


def body_of(response: Response, what: str, meanings: Mapping[int, tuple[str, str]]) -> bytes:
    """The body of an answer with status 200. Raises FetchFailed for any other.

    `meanings` says for a status what it means, and what to do.
    """
    if response.status != 200:
        wait_s = retry_after_s(response)
        meaning, remedy = meanings.get(response.status, ("the service failed", "try again later, or import a bundle"))
        raise FetchFailed(
            f"{what}: {meaning} (HTTP {response.status}{told_wait(wait_s)}) at {response.url[:200]}",
            check="status of the answer",
            expected="200",
            seen=response.status,
            remedy=remedy,
            status=response.status,
            retry_after_s=wait_s,
        )
    return response.body
