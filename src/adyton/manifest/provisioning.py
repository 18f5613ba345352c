"""Gramine's own secret provisioning in a template: taken out, since the key comes in Adyton's way, and said.

A template of a Gramine user preloads `libsecret_prov_attest.so`, which asks a key server before the program starts.
Under Adyton's runtime that library finds neither its server nor evidence of its form, and ends the program. Under SGX
the library does bring the key, but with the settings that `gramine_manifest` writes.
"""

from __future__ import annotations

import re
from typing import Any, Final

from adyton.errors import MalformedManifest

LIBRARY: Final = "libsecret_prov_attest.so"
PREFIX: Final = "SECRET_PROVISION_"
SERVERS: Final = f"{PREFIX}SERVERS"
SECRET_STRING: Final = f"{PREFIX}SECRET_STRING"

_TAKEN_OUT: Final = tuple(f"{PREFIX}{name}" for name in ("CONSTRUCTOR", "SET_KEY", "SET_PF_KEY", "CA_CHAIN_PATH"))
_TRUE: Final = ("1", "true", "TRUE")


def value_of(entry: Any) -> str:
    """The value that a variable of `loader.env` has in the manifest. Empty where the host gives it."""
    if isinstance(entry, dict):
        return str(entry.get("value", ""))
    return entry or ""


def without_library(preload: str) -> str:
    """A value of LD_PRELOAD without Gramine's provisioning library (ld.so(8): names with colons or spaces between)."""
    return ":".join(part for part in re.split(r"[: ]+", preload) if part and part.rpartition("/")[2] != LIBRARY)


def take_out_provisioning(document: dict[str, Any]) -> tuple[str, ...]:
    """Take Gramine's provisioning before the start out of a document, in place. Returns what to say of it.

    A program that calls the library by itself keeps its settings. Raises MalformedManifest where the program waits for
    a secret text and no secret of the manifest brings it.
    """
    environment = document.get("loader", {}).get("env", {})
    constructor = environment.get(f"{PREFIX}CONSTRUCTOR")
    from_host = isinstance(constructor, dict) and "passthrough" in constructor
    if not from_host and value_of(constructor) not in _TRUE:
        return ()
    names_key = f"{PREFIX}SET_KEY" in environment or value_of(environment.get(f"{PREFIX}SET_PF_KEY")) in _TRUE
    if not names_key:
        _check_secret_text(document)
    taken = [name for name in _TAKEN_OUT if environment.pop(name, None) is not None]
    preload = value_of(environment.get("LD_PRELOAD"))
    kept = without_library(preload)
    if kept != preload:
        taken.insert(0, f"{LIBRARY} in LD_PRELOAD")
        del environment["LD_PRELOAD"]
        if kept:
            environment["LD_PRELOAD"] = kept
    said = (
        f"taken out of loader.env: {', '.join(taken)}: Adyton brings keys and secrets by itself, from the key server of"
        " adyton.owners, under that owner's CA"
    )
    if SERVERS not in environment:
        return (said,)
    servers = (
        f"{SERVERS} has no meaning under Adyton's runtime, where --key-server names the address; under sgx it is the"
        " address, unless adyton.owners.*.address is given"
    )
    return said, servers


def _check_secret_text(document: dict[str, Any]) -> None:
    secrets = document.get("adyton", {}).get("secrets", {})
    if any(secret.get("env") == SECRET_STRING for secret in secrets.values()):
        return
    raise MalformedManifest(
        f"the program waits for a text from Gramine's secret provisioning, in {SECRET_STRING}, and no secret of the"
        " manifest brings it",
        check=f"manifest key loader.env.{PREFIX}CONSTRUCTOR",
        expected=f"{PREFIX}SET_KEY, or an entry of adyton.secrets for {SECRET_STRING}",
        seen="neither",
        remedy=f'write [adyton.secrets.NAME] env = "{SECRET_STRING}", and keep the text with `adyton key new NAME'
        " --secret FILE`; or leave SECRET_PROVISION_CONSTRUCTOR out",
    )
