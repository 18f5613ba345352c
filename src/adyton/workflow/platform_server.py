"""Serve a simulated platform's collateral, as Intel's PCS or a PCCS does."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from adyton.address import parse_listening_address
from adyton.atomic_file import write_file
from adyton.sim import pcs_server
from adyton.sim.platform import SimPlatform

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def _ignore(_url: str, _fingerprint: str) -> None:
    """Ignore the address."""


def serve_platform(
    directory: Path,
    *,
    listen: str = "127.0.0.1:0",
    pccs: bool = False,
    per_minute: int | None = None,
    ready_file: Path | None = None,
    listening: Callable[[str, str], object] = _ignore,
) -> None:
    """Serve a platform's collateral over HTTP until interrupted, as `adyton platform serve` does.

    `listening` is called with the URL and the fingerprint of the simulated root. Raises UsageError, StorageFailed.
    """
    platform = SimPlatform.load(directory)
    form = "pccs" if pccs else "pcs"
    fingerprint = str(platform.root_fingerprint)
    platform.publication()
    socket = pcs_server.bind(*parse_listening_address(listen))
    with socket:
        url = pcs_server.url_of(socket)
        listening(url, fingerprint)
        if ready_file is not None:
            ready = {"url": url, "form": form, "simulated": True, "root_fingerprint": fingerprint}
            write_file(ready_file, json.dumps(ready).encode() + b"\n", 0o644)
        pcs_server.serve(
            pcs_server.application(platform, form="pccs" if pccs else "pcs", per_minute=per_minute), socket
        )
