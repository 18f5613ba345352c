"""How a guest says that its run ended: parsed strictly, since the guest may be anybody's."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adyton.errors import MalformedManifest
from adyton.image.guest_result import FORMAT, GuestResult, parse_result

GOOD: dict[str, Any] = {"format": FORMAT, "exit_code": 3, "pcrs": {"sha256": {}}, "removed": ["run/work/out/a"]}


def _parse(document: object) -> GuestResult:
    return parse_result(json.dumps(document).encode())


def test_result_says_exit_code_and_what_is_gone() -> None:
    """Registers are for diagnosis."""
    assert _parse(GOOD) == GuestResult(3, ("run/work/out/a",))


@pytest.mark.parametrize(
    "change",
    [
        {"format": "adyton-output/2"},
        {"exit_code": -9},
        {"exit_code": 256},
        {"exit_code": True},
        {"exit_code": "0"},
        {"removed": "all"},
        {"removed": [1]},
        {"removed": ["../app.manifest"]},
        {"removed": ["/etc/passwd"]},
        {"removed": ["a\nb"]},
        {"removed": [""]},
        {"more": 1},
    ],
)
def test_everything_else_is_refused(change: dict[str, object]) -> None:
    """Above all names that lead elsewhere."""
    with pytest.raises(MalformedManifest):
        _parse({**GOOD, **change})


@pytest.mark.parametrize("missing", sorted(GOOD))
def test_no_member_may_be_missing(missing: str) -> None:
    """A guest of an earlier version, or a cut document."""
    with pytest.raises(MalformedManifest):
        _parse({name: value for name, value in GOOD.items() if name != missing})
