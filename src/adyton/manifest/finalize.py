"""A rendered template -> the final manifest: owners inlined, defaults written out, every trusted file hashed.

Same inputs, same bytes: keys keep the template's order, defaults follow in a fixed one, and the trusted files close it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from adyton.manifest.cache import HashCache
from adyton.manifest.document import parse_document, write_document
from adyton.manifest.driver_files import driver_files
from adyton.manifest.host import c_library_files, multiarch_libdir, runtime_stand_in
from adyton.manifest.model import Manifest, TrustedFile, manifest_from
from adyton.manifest.pinned_ca import ca_within
from adyton.manifest.provisioning import take_out_provisioning
from adyton.manifest.schema_check import refuse
from adyton.manifest.signed import decode, read_named
from adyton.manifest.trusted import expand

MAX_CA_BYTES: Final = 64 << 10
MAX_LIST_BYTES: Final = 64 << 20
DEFAULT_OWNER: Final = "owner"
GRAMINE_DEFAULTS: Final = {"network": "host", "insecure__stdio": True, "insecure__stdin": True}
"""What a program has under Gramine without asking. Each stands in the final manifest, is measured, and is a finding."""


@dataclass(frozen=True, slots=True)
class Built:
    """A final manifest before it is signed, and what was changed in the template on the way, in words."""

    manifest_bytes: bytes
    manifest: Manifest
    notes: tuple[str, ...] = ()


def finish(
    text: str,
    base_dir: Path,
    *,
    name: str = "program",
    default_ca: str | None = None,
    gramine_defaults: bool = False,
    cache: HashCache | None = None,
    advance: Callable[[int], None] | None = None,
) -> Built:
    """Make a rendered template final. `default_ca` (PEM) becomes the owner's where the template names no owner.

    With `gramine_defaults` output, input and network are the host's where the template does not say: as under Gramine.
    Where Gramine is not installed, the stand-in for its runtime folder becomes this machine's library folder. As a
    trusted folder it means the C library alone, unless the template lists that folder in its own name as well.
    A program with GPUs gets the libraries of NVIDIA's driver as trusted files, where this machine has them.
    """
    stand_in, folder = str(runtime_stand_in()), str(multiarch_libdir())
    narrow = f"file:{stand_in}/" in _strings_of(text) and f"file:{folder}/" not in _strings_of(text)
    document, block = parse_document(text.replace(stand_in, folder))
    manifest = manifest_from(document, block)
    document = copy.deepcopy(document)
    notes = take_out_provisioning(document)
    if gramine_defaults:
        _fill(document.setdefault("adyton", {}), GRAMINE_DEFAULTS)
        manifest = manifest_from(document, block)
    if document.get("adyton", {}).pop("files", None) is not None:
        raise refuse("adyton.files", "is written by adyton build", expected="no such key in a template", seen="…")
    _pin_owners(document, base_dir, default_ca)
    _pin_connections(document, base_dir)
    _write_defaults(document, name, manifest)
    entries = [*manifest.trusted_files, *_listed(document, base_dir)]
    if manifest.adyton.gpus:
        entries += [TrustedFile(f"file:{path}") for path in driver_files(Path(folder))]
    if narrow:
        entries = _narrowed(entries, Path(folder))
    trusted = expand(entries, base_dir, cache=cache, advance=advance)
    if trusted:
        document["adyton"]["files"] = " ".join(entry.fact for entry in trusted)
    final = write_document(document, [(entry.uri, str(entry.sha256)) for entry in trusted])
    rest = {name: table for name, table in document.items() if name != "adyton"}
    rest["adyton"] = {name: value for name, value in document["adyton"].items() if name != "files"}
    rest["sgx"] = {name: value for name, value in document["sgx"].items() if name != "trusted_files"}
    return Built(final.encode(), replace(manifest_from(rest), trusted_files=trusted), notes)


def _pin_owners(document: dict[str, Any], base_dir: Path, default_ca: str | None) -> None:
    """Put each owner's CA certificate in the place of its file name."""
    table = document.setdefault("adyton", {})
    owners = table.get("owners", {})
    for name, owner in owners.items():
        if "ca_file" in owner and "ca" in owner:
            raise refuse(f"adyton.owners.{name}", "has both ca and ca_file", expected="one of them", seen="both")
        if "ca_file" in owner:
            place = f"adyton.owners.{name}.ca_file"
            owner["ca"] = _read_ca(owner.pop("ca_file"), base_dir, place, f"CA certificate of owner {name}")
        if "ca" not in owner:
            raise refuse(f"adyton.owners.{name}", "names no CA", expected="ca_file or ca", seen=sorted(owner))
        owner["ca"] = ca_within(owner["ca"], f"adyton.owners.{name}.ca")
        owner.setdefault("server_name", "adyton-key-server")
    if not owners and default_ca is not None:
        table["owners"] = {
            DEFAULT_OWNER: {
                "ca": ca_within(default_ca, f"adyton.owners.{DEFAULT_OWNER}.ca"),
                "server_name": "adyton-key-server",
            }
        }


def _pin_connections(document: dict[str, Any], base_dir: Path) -> None:
    """Put the CA certificates of clients and of servers outside, and policies, in the places of their file names."""
    for kind, ca in (("ingress", "client_ca"), ("egress", "ca")):
        for number, table in enumerate(document["adyton"].get(kind, [])):
            place = f"adyton.{kind}[{number}].{ca}"
            if f"{ca}_file" in table:
                table[ca] = _read_ca(table.pop(f"{ca}_file"), base_dir, f"{place}_file", f"certificate of {place}")
            if ca in table:
                table[ca] = ca_within(table[ca], place)
            if "client_policy_file" in table:
                place = f"adyton.{kind}[{number}].client_policy"
                raw = _read_file(table.pop("client_policy_file"), base_dir, f"{place}_file", f"policy of {place}")
                table["client_policy"] = decode(raw)


def _read_ca(uri: str, base_dir: Path, place: str, what: str) -> str:
    return _read_file(uri, base_dir, place, what).decode("ascii", errors="replace")


def _read_file(uri: str, base_dir: Path, place: str, what: str) -> bytes:
    if not uri.startswith("file:"):
        raise refuse(place, "unsupported URI", expected='"file:…"', seen=uri)
    return read_named(base_dir / uri[5:], MAX_CA_BYTES, what)


def _listed(document: dict[str, Any], base_dir: Path) -> list[TrustedFile]:
    """The trusted files of the lists that the template names, in their order."""
    found = []
    for uri in document["adyton"].pop("trusted_from", []):
        raw = read_named(base_dir / uri[5:], MAX_LIST_BYTES, "list of trusted files")
        for line in decode(raw).splitlines():
            path = line.strip()
            if path and not path.startswith("#"):
                found.append(TrustedFile(f"file:{path}"))
    return found


def _strings_of(text: str) -> set[str]:
    """The strings between quotes in a text, each on one line."""
    return {match[1] or match[2] for match in re.finditer(r"\"([^\"\n]*)\"|'([^'\n]*)'", text)}


def _narrowed(entries: list[TrustedFile], folder: Path) -> list[TrustedFile]:
    """The entry of the system's library folder replaced by the C library's own files."""
    found: list[TrustedFile] = []
    for entry in entries:
        if entry.uri == f"file:{folder}/":
            found += [TrustedFile(f"file:{path}") for path in c_library_files(folder)]
        else:
            found.append(entry)
    return found


def _write_defaults(document: dict[str, Any], name: str, manifest: Manifest) -> None:
    """Append what the program's protection rests on where the template leaves it unsaid; Gramine's order, then ours."""
    _fill(
        document.setdefault("sgx", {}),
        {
            "isvprodid": 0,
            "isvsvn": 0,
            "remote_attestation": "none",
            "debug": False,
            "edmm_enable": False,
            "use_exinfo": False,
            "file_check_policy": "strict",
        },
    )
    table = document.setdefault("adyton", {})
    defaults: dict[str, Any] = {
        "network": "none",
        "memory_budget": "4G",
        "insecure__stdio": False,
        "insecure__stdin": False,
    }
    if manifest.log_key_name is not None:
        defaults["log"] = {"uri": f"file:{name}.log", "key_name": manifest.log_key_name}
    _fill(table, defaults)


def _fill(table: dict[str, Any], defaults: Mapping[str, Any]) -> None:
    for name, value in defaults.items():
        if isinstance(value, dict):
            _fill(table.setdefault(name, {}), value)
        else:
            table.setdefault(name, value)
