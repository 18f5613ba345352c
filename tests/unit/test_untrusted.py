"""Documents of strangers: what is refused, and that no text costs more than its length allows."""

from __future__ import annotations

import contextlib
import time
import tomllib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.errors import Error, MalformedManifest, UsageError
from adyton.untrusted import MAX_DEPTH, parse_json, parse_json_object, parse_toml

if TYPE_CHECKING:
    from collections.abc import Callable

PARTS = ".".join("a" * (MAX_DEPTH - 1))
LONG = 400_000

TOML_SHAPES = {
    "deep dotted key": ".".join("a" * (LONG // 2)) + " = 1",
    "deep quoted key": '"a".' * (LONG // 4) + "a = 1",
    "deep dotted key with spaces": "a . " * (LONG // 4) + "a = 1",
    "deep header": "[" + ".".join("a" * (LONG // 2)) + "]",
    "keys below a deep header": f"[{PARTS}]\n" + "".join(f"b{n}=1\n" for n in range(LONG // 8)),
    "deep keys": "".join(f"{PARTS}{n}=1\n" for n in range(LONG // 70)),
    "nested lists": "a = " + "[" * LONG,
    "nested inline tables": "a = " + "{a = " * (LONG // 5),
    "many tables": "".join(f"[a{n}]\n" for n in range(LONG // 9)),
    "many inline tables": "a = [" + "{a=1}," * (LONG // 6) + "]",
    "a huge list": "a = [" + "1," * (LONG // 2) + "]",
    "an endless list": "a = [" + "1," * 3_000_000 + "]",
    "a long string": 'a = "' + "b" * LONG + '"',
    "escapes": 'a = "' + "\\n" * (LONG // 2) + '"',
    "a string that never ends": 'a = """' + '\\"""\n' * (LONG // 5),
    "strings that never end": '"""' + '\\"""\n' * (LONG // 5),
    "a long name": "[" + "a" * (LONG // 2) + "]\n" + "".join(f"b{n}=1\n" for n in range(LONG // 16)),
    "a long number": "a = " + "1" * LONG,
    "a long hexadecimal number": "a = 0x" + "f" * LONG,
    "a number of many megabytes": "a = " + "1" * (30 << 20),
    "deep headers": "".join(f"[a{n}.{PARTS.removeprefix('a.')}]\n" for n in range(60_000)),
    "many trusted files": "".join(f"[[sgx.trusted_files]]\nuri = 'file:{n}'\n" for n in range(LONG // 40)),
    "blank lines": "\n" * LONG,
    "comments": "#\n" * (LONG // 2),
}
JSON_SHAPES = {
    "nested lists": "[" * LONG,
    "nested lists that end": "[" * 900 + "]" * 900,
    "nested objects": '{"a":' * (LONG // 5),
    "a long number": "1" * LONG,
    "4,300 digits": "1" * 4300,
    "a huge list": "[" + "{}," * (LONG // 3) + "1]",
    "escapes": '"' + "\\n" * (LONG // 2) + '"',
}


def _cost_s(parse: Callable[[], object]) -> float:
    before = time.thread_time()
    with contextlib.suppress(Error):
        parse()
    return time.thread_time() - before


@pytest.mark.parametrize("text", TOML_SHAPES.values(), ids=TOML_SHAPES.keys())
def test_toml_of_400_kb_costs_seconds_at_most_in_its_worst_shapes(text: str) -> None:
    """About 0.3 seconds at most; a bound far above, since machines differ, and far below the hours that it was."""
    assert _cost_s(lambda: parse_toml(text, what="text")) < 5


@pytest.mark.parametrize("text", JSON_SHAPES.values(), ids=JSON_SHAPES.keys())
def test_json_of_400_kb_costs_seconds_at_most_in_its_worst_shapes(text: str) -> None:
    """The same for JSON."""
    assert _cost_s(lambda: parse_json(text, what="text")) < 5


@pytest.mark.parametrize(
    ("text", "check"),
    [
        (PARTS + ".a.a = 1", "parts of a key"),
        ("[" + PARTS + ".a.a]", "parts of a key"),
        (f"[{PARTS}]\n{PARTS} = 1", "depth"),
        ("a = " + "[" * 33 + "]" * 33, "depth"),
        ("a = " + "{a=" * 33 + "1" + "}" * 33, "depth"),
        ("a = 18446744073709551616", "a number"),
        ("a = 0x" + "f" * 4000, "a number"),
        ("a = nan", "a number"),
        ("a = -inf", "a number"),
        ("a = 1e999", "a number"),
        ("a" * 1025 + " = 1", "length of a name"),
        ("[" + "a" * 1000 + "]\n" + "b" * 30 + " = 1", "length of a name"),
        ("a = " + "1" * 4097, "bare key or number"),
        ("a" * 5000, "bare key or number"),
        ("a = 1" + " " * 5000 + "\n", "bare key or number"),
        ("".join(f"[a{n}.{PARTS[2:]}]\n" for n in range(5000)), "signs"),
        (b"a = '\xff'", "text encoding"),
        (b"a = 1#" + b"#" * (32 << 20), "size"),
    ],
)
def test_toml_beyond_a_bound_is_refused_with_what_is_wrong(text: str | bytes, check: str) -> None:
    """Check, expected and seen; the text itself is not shown."""
    with pytest.raises(MalformedManifest) as refused:
        parse_toml(text, what="policy")
    assert check in (refused.value.check or "")
    assert "policy" in refused.value.message
    assert refused.value.expected
    assert refused.value.seen
    assert len(refused.value.message) < 400


@pytest.mark.parametrize("text", ["a = ", "[a", "a = 1\na = 2", "a = " + "1" * 5000, 'a = "\ud800"', '"\\ud800" = 1'])
def test_text_that_is_not_toml_is_refused_by_the_class_that_was_asked_for(text: str) -> None:
    """A number of 5,000 digits is no TOMLDecodeError of tomllib; half of a character is none either."""
    with pytest.raises(UsageError, match=r"config\.toml"):
        parse_toml(text, what="config.toml", refuse=UsageError)


def test_signs_inside_strings_and_comments_do_not_count() -> None:
    """Dots and brackets in a value are only text."""
    many = "." * 100 + "[" * 100 + "{" * 100
    text = f'a = "{many}\\"{many}"\nb = \'{many}\' # {many}\'"\nc = """{many}""{many}"""""\n'
    text += f"d = '''{many}''''\ne.f = 1"
    assert parse_toml(text, what="text") == tomllib.loads(text)
    assert parse_toml(text.replace("\n", "\r\n"), what="text") == tomllib.loads(text)


_VALUES = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text("aé\"\\\n#.[{'\t", max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab.\"'#[]= é", max_size=6), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text("ab.\"'#[]= é", max_size=6), _VALUES, max_size=5))
def test_every_small_document_is_read_as_tomllib_reads_it(document: dict[str, Any]) -> None:
    """The look before parsing refuses nothing that is within the bounds."""
    import tomli_w

    assert parse_toml(tomli_w.dumps(document, multiline_strings=True), what="text") == document
    assert parse_toml(tomli_w.dumps(document).encode(), what="text") == document


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"a": 1, "a": 2}',
        "NaN",
        "-Infinity",
        "1e999",
        "1" * 21,
        '"\\ud800"',
        '{"\\udfff": 1}',
        "[" * 33 + "]" * 33,
        b"\xff",
        b"\xef\xbb\xbf1",
    ],
)
def test_json_beyond_what_is_plain_is_refused(text: str | bytes) -> None:
    """Duplicate names, numbers that are none, half characters, depth, encodings."""
    with pytest.raises(MalformedManifest, match="export"):
        parse_json(text, what="export")


def test_json_object_is_an_object() -> None:
    """A list, a text and a number are none."""
    assert parse_json_object(b'{"a": [1, 2.5, "\xc3\xa9", null, true]}', what="x") == {"a": [1, 2.5, "é", None, True]}
    for text in ("[]", '"a"', "1", "null"):
        with pytest.raises(MalformedManifest, match="an object"):
            parse_json_object(text, what="x")
