"""The public key of a run that signs nothing, for requests that tests make by hand."""

from __future__ import annotations

from typing import Final

from adyton.release.run_key import RunKey

RUN_KEY: Final = RunKey().public_bytes
