"""`image.json`: one form, and everything else refused by the name of the member."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest

from adyton.errors import UsageError
from adyton.image.document import MAX_BYTES, parse_image
from adyton.manifest.measure import combine
from adyton.values import Digest
from tests.support.image_factory import image_document

if TYPE_CHECKING:
    from collections.abc import Callable


def _parse(document: object) -> Any:
    return parse_image(json.dumps(document).encode())


def test_document_round_trips_in_its_canonical_form() -> None:
    """Any spacing and order is read, and one form is written, which is read again."""
    image = _parse(image_document())
    assert image.to_dict() == image_document()
    raw = image.to_bytes()
    assert parse_image(raw) == image
    assert raw == (json.dumps(image_document(), sort_keys=True, indent=2) + "\n").encode()
    assert image.runtime_identity.hex() == image_document()["runtime"]["identity"]
    assert image.pcr("kernel-boot", 4) != image.pcr("disk-boot", 4)
    assert len(image.pcr("disk-boot", 12, "sha384")) == 48


def test_optional_parts_may_be_absent() -> None:
    """No host tables, no entry for TDX, no entry for SEV-SNP, a digest that covers only the firmware."""
    document = image_document()
    del document["tdx"][0]["acpi"]
    document["snp"][0]["covers"] = []
    assert _parse(document).tdx[0].acpi is None
    document["tdx"] = document["snp"] = []
    assert _parse(document).to_dict() == document


def _paths(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        for name, inner in value.items():
            found += _paths(inner, (*path, name))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            found += _paths(inner, (*path, number))
    return found


PATHS = _paths(image_document())
OPTIONAL = {("tdx", 0, "acpi")}


def _at(document: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        document = document[step]
    return document


@pytest.mark.parametrize(
    "path", [path for path in PATHS if isinstance(path[-1], str) and path not in OPTIONAL], ids=str
)
def test_member_that_is_missing_is_refused(path: tuple[str | int, ...]) -> None:
    """Every member is required, at every depth."""
    document = image_document()
    del _at(document, path[:-1])[path[-1]]
    with pytest.raises(UsageError, match="guest image document"):
        _parse(document)


STRANGE: tuple[object, ...] = (None, True, -1, 1.5, 1 << 63, "\x1b[31m", [], [[]], {}, {"x": 1}, ["00"])
EMPTY_LISTS = {("tdx",), ("snp",), ("inputs",), ("snp", 0, "covers")}


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_member_of_another_type_is_refused(path: tuple[str | int, ...]) -> None:
    """Each value in each place, but where the format really allows it."""
    for value in STRANGE:
        document = image_document()
        _at(document, path[:-1])[path[-1]] = value
        if (value == [] and path in EMPTY_LISTS) or (value == 1 << 63 and path == ("snp", 0, "guest_features")):
            _parse(document)
            continue
        with pytest.raises(UsageError):
            _parse(document)


@pytest.mark.parametrize(
    "path", [(), *(path for path in PATHS if isinstance(_at(image_document(), path), dict))], ids=str
)
def test_unknown_member_is_refused(path: tuple[str | int, ...]) -> None:
    """Nothing is ignored, in any table."""
    document = image_document()
    _at(document, path)["un known"] = "00" * 32
    with pytest.raises(UsageError):
        _parse(document)


def _set(*path: str | int, value: object) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        _at(document, path[:-1])[path[-1]] = copy.deepcopy(value)

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_set("format", value="adyton-guest-image/2"), "format"),
        (_set("architecture", value="aarch64"), "architecture"),
        (_set("version", value=""), "version"),
        (_set("version", value="1" * 65), "version"),
        (_set("inputs", 0, "name", value="a\nb"), "inputs[0].name"),
        (_set("inputs", value=[image_document()["inputs"][0]] * 4097), "inputs"),
        (_set("files", "../root", value={"sha256": "00" * 32, "bytes": 1}), "files"),
        (_set("verity", "hash", value="sha1"), "verity.hash"),
        (_set("verity", "data_block_size", value=512), "verity.data_block_size"),
        (_set("verity", "data_block_size", value=True), "verity.data_block_size"),
        (_set("verity", "salt", value=""), "verity.salt"),
        (_set("verity", "salt", value="0"), "verity.salt"),
        (_set("verity", "salt", value="0x"), "verity.salt"),
        (_set("verity", "salt", value="00" * 257), "verity.salt"),
        (_set("command_line", value=" quiet"), "command_line"),
        (_set("command_line", value="a" * 2048), "command_line"),
        (_set("command_line", value="a\0b"), "command_line"),
        (_set("runtime", "identity", value="00" * 32), "runtime.identity"),
        (_set("runtime", "parts", "adyton", value="00" * 32), "runtime.identity"),
        (_set("pcrs", "kernel-boot", "sha256", "12", value="01" + "00" * 31), "pcrs.kernel-boot.sha256.12"),
        (_set("pcrs", "disk-boot", "sha384", "13", value="01" + "00" * 47), "pcrs.disk-boot.sha384.13"),
        (_set("pcrs", "kernel-boot", "sha256", "4", value="00" * 32), "pcrs.kernel-boot.sha256.4"),
        (_set("pcrs", "disk-boot", "sha384", "11", value="00" * 48), "pcrs.disk-boot.sha384.11"),
        (_set("tdx", 0, "page_order", value="three-pass"), "tdx[0].page_order"),
        (_set("tdx", 0, "boot", value="net-boot"), "tdx[0].boot"),
        (_set("tdx", 0, "mrtd", value="00" * 48), "tdx[0].mrtd"),
        (_set("tdx", 0, "rtmr1", value="11" * 32), "tdx[0].rtmr1"),
        (_set("tdx", 0, "acpi", "rtmr0", value="00" * 48), "tdx[0].acpi.rtmr0"),
        (_set("snp", 0, "vcpus", value=0), "snp[0].vcpus"),
        (_set("snp", 0, "covers", value=["kernel", "cmdline"]), "snp[0].covers"),
        (_set("snp", 0, "covers", value=["kernel", "kernel"]), "snp[0].covers"),
        (_set("snp", 0, "covers", value=["acpi"]), "snp[0].covers"),
        (_set("snp", 0, "launch_digest", value="00" * 48), "snp[0].launch_digest"),
    ],
)
def test_value_that_the_format_does_not_allow_is_refused_by_its_name(change: Callable[[Any], None], named: str) -> None:
    """The refusal names the member."""
    document = image_document()
    change(document)
    with pytest.raises(UsageError) as refused:
        _parse(document)
    assert refused.value.check == f"guest image: {named}"
    assert refused.value.remedy


def test_identity_is_that_of_the_parts() -> None:
    """A part that is renamed gives another identity, and the document that says so is taken."""
    document = image_document()
    parts = {"adyton": "11" * 32}
    document["runtime"] = {
        "parts": parts,
        "identity": combine({name: Digest.from_hex(value) for name, value in parts.items()}).hex(),
    }
    assert _parse(document).runtime == {"adyton": Digest(b"\x11" * 32)}


def test_text_that_is_not_one_document_is_refused() -> None:
    """Too long, a name twice, no object, no JSON, no UTF-8."""
    raw = json.dumps(image_document()).encode()
    for bad in (raw + b" " * MAX_BYTES, raw.replace(b"{", b'{"format": "x", ', 1), b"[]", b"", raw[:-1], raw + b"\xff"):
        with pytest.raises(UsageError):
            parse_image(bad)


def test_what_would_not_be_read_is_not_written() -> None:
    """A value made by hand is checked when it is written."""
    image = _parse(image_document())
    object.__setattr__(image, "command_line", "")
    with pytest.raises(UsageError):
        image.to_bytes()
