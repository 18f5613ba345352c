"""Nothing that is parsed here ends in anything but a value or a refusal of Adyton's."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from adyton.errors import Error, MalformedManifest
from adyton.manifest.difference import differences
from adyton.manifest.explain import explain_manifest
from adyton.manifest.findings import findings, not_covered, runtime_refusals
from adyton.manifest.key_table import KEYS
from adyton.manifest.model import parse_manifest
from adyton.manifest.mrenclave import parse_pal
from adyton.manifest.observe import read_trace
from adyton.manifest.signed import decode
from adyton.manifest.sigstruct import SIGSTRUCT_BYTES, parse_sigstruct
from adyton.manifest.template import render

TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.sampled_from(
        ["file:a", "file:d/", "dev:x", "/a", "none", "dcap", "1G", "encrypted", "tmpfs", "default", "0x", "a" * 64]
    ),
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(TEXTS, st.booleans(), st.integers(-(1 << 40), 1 << 40), st.floats(allow_nan=False), st.dates()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(TEXTS, st.sampled_from(["uri", "path", "type", "sha256", "value", "passthrough", "name", "ca"])),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=6,
)
PATHS = st.one_of(
    st.sampled_from([key.name.replace("[]", "").replace("*", "some") for key in KEYS]).map(
        lambda name: name.split(".")
    ),
    st.lists(TEXTS.filter(bool), min_size=1, max_size=3),
)


def put(document: dict[str, Any], path: list[str], value: object) -> None:
    """Put a value at a path, in the way of nothing."""
    for name in path[:-1]:
        inner = document.setdefault(name, {})
        if not isinstance(inner, dict):
            return
        document = inner
    document.setdefault(path[-1], value)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(PATHS, VALUES), max_size=4))
def test_manifest_of_any_keys_and_values_is_read_or_refused(entries: list[tuple[list[str], Any]]) -> None:
    """Any value at any key: a manifest, or MalformedManifest. What was read can be reviewed, explained and compared."""
    document: dict[str, Any] = {"libos": {"entrypoint": "/app"}, "fs": {"mounts": []}}
    for path, value in entries:
        put(document, path, value)
    text = tomli_w.dumps(document)
    try:
        manifest = parse_manifest(text)
    except MalformedManifest:
        return
    findings(manifest)
    runtime_refusals(manifest)
    assert not_covered(manifest)
    assert explain_manifest(manifest)
    assert not differences(text, text)
    assert all(manifest.owner_of(name) is None or manifest.adyton.owners for name in manifest.key_names)


@given(st.text(max_size=60))
def test_text_that_is_hardly_toml_is_refused(text: str) -> None:
    """Random text is refused as text."""
    with contextlib.suppress(MalformedManifest):
        parse_manifest(text)


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "9" * 5000,
        "a = " + "[" * 5000,
        "a." * 3000 + "a = 1",
        "a = 2000-13-40",
        "a = 1e99999",
        "\0",
        "a = nan",
        f"{'a' * 90_000} = 1",
    ],
)
def test_text_that_exhausts_a_parser_is_refused(text: str) -> None:
    """Numbers of thousands of digits, deep nesting, impossible dates."""
    with pytest.raises(MalformedManifest):
        parse_manifest(text)


@given(st.binary(max_size=40))
def test_bytes_are_text_or_refused(raw: bytes) -> None:
    """Decoding refuses what is no UTF-8."""
    with contextlib.suppress(MalformedManifest):
        assert decode(raw).encode() == raw


@given(st.binary(min_size=SIGSTRUCT_BYTES, max_size=SIGSTRUCT_BYTES))
def test_sigstruct_of_any_bytes_is_refused_or_reads_back(raw: bytes) -> None:
    """1808 random bytes never raise anything else."""
    with contextlib.suppress(Error):
        assert parse_sigstruct(raw).to_bytes() == raw


@given(st.binary(max_size=400), st.integers(0, 70), st.integers(0, 70), st.integers(0, 400))
def test_library_of_any_bytes_is_refused_or_read(tail: bytes, size: int, count: int, table: int) -> None:
    """ELF headers of any numbers never raise anything else."""
    raw = (
        b"\x7fELF\x02\x01"
        + bytes(18)
        + struct.pack("<QQ", 1, table)
        + bytes(14)
        + struct.pack("<HH", size, count)
        + tail
    )
    with contextlib.suppress(Error):
        assert parse_pal(raw).span_bytes >= 0


@given(st.lists(st.text(max_size=80), max_size=8))
def test_trace_of_any_text_is_read(lines: list[str]) -> None:
    """strace's output is never trusted to be whole."""
    read_trace(lines, "/w")
    read_trace([f"1 openat(AT_FDCWD</w>, {line}" for line in lines], "/w")


@settings(deadline=None, max_examples=60)
@given(st.text(st.sampled_from("{}%#ab .|'\"()[]"), max_size=24))
def test_template_of_any_text_renders_or_is_refused(text: str) -> None:
    """Jinja's errors do not come through."""
    with contextlib.suppress(MalformedManifest):
        render(text)
