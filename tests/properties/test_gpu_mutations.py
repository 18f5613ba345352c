"""Mutations of GPU evidence over every field: each is refused, or gives exactly the claims of the unmutated evidence.

Half of them are signed again under the test's root, so that they reach what is behind the signatures. A re-signed
report may say something else and be accepted, but only in a field that no verdict depends on; those are named here.
"""

from __future__ import annotations

import functools
import random
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest

from adyton.attest.nvidia.assess import GPUAssessment
from adyton.attest.nvidia.collateral import GPUCollateral, KnownRIM
from adyton.attest.nvidia.explain import to_dict
from adyton.attest.nvidia.ocsp import Answer, parse_answer
from adyton.attest.nvidia.rim import parse_rim
from adyton.errors import Error, EvidenceError, Unavailable
from adyton.sim.gpu import DRIVER, DRIVER_INDEXES
from tests.support.gpu_world import NONCE, GPUWorld, gpu, vendor

if TYPE_CHECKING:
    from adyton.attest.nvidia.evidence import DeviceEvidence

SHORT: Final = 1500
LONG: Final = 100_000

NO_CLAIM: Final = {"parameters of the response", "nonce of the device", "inactive measurement", "kind of measurement"}
"""Parts of a report that say nothing to a verdict: a device may sign anything there."""
MAY_CHANGE: Final[dict[str, set[str]]] = {
    "field 36": {"mode"},
    "field 11": {"measurements"},
    "head of a field": {"mode", "measurements"},
}
"""Fields that a device may sign differently and be accepted, and which claims then differ.

Field 36 is the mode of confidential computing, which is shown. With field 11 NVDEC0 is enabled, so that measurement 35
is compared, too. A field under an unknown type is as if it were not there: old firmware leaves fields out, too.
"""


def _parts(report: bytes) -> list[tuple[str, int, int]]:
    """Every byte of a report by the field that it belongs to: name, start, end."""
    found = [
        ("head of the request", 0, 4),
        ("nonce", 4, 36),
        ("slot", 36, 37),
        ("head of the response", 37, 39),
        ("parameters of the response", 39, 41),
        ("number of blocks", 41, 42),
        ("length of the record", 42, 45),
    ]
    at = 45
    active = {*DRIVER_INDEXES, *range(12)}
    for index in range(64):
        found.append(("head of a block", at, at + 4))
        found.append(("kind of measurement", at + 4, at + 5))
        found.append(("size of a measurement", at + 5, at + 7))
        found.append(("active measurement" if index in active else "inactive measurement", at + 7, at + 55))
        at += 55
    found += [("nonce of the device", at, at + 32), ("length of the opaque data", at + 32, at + 34)]
    at += 34
    for kind, data in gpu().opaque_fields():
        found.append(("head of a field", at, at + 4))
        found.append((f"field {kind}", at + 4, at + 4 + len(data)))
        at += 4 + len(data)
    found.append(("signature", at, at + 96))
    assert found[-1][2] == len(report)
    return found


def _mutated(raw: bytes, start: int, end: int, rng: random.Random) -> bytes:
    """The bytes with one change inside a field: a bit, a byte, zeros, a cut, or a byte more."""
    out = bytearray(raw)
    place = rng.randrange(start, end)
    kind = rng.randrange(5)
    if kind == 0:
        out[place] ^= 1 << rng.randrange(8)
    elif kind == 1:
        out[place] = rng.randrange(256)
    elif kind == 2:
        out[start:end] = bytes(end - start)
    elif kind == 3:
        del out[place]
    else:
        out.insert(place, rng.randrange(256))
    return bytes(out)


def _claims(found: GPUAssessment) -> dict[str, Any]:
    """What a verdict says, without the time and without its checks."""
    document = to_dict(found)
    return {name: document[name] for name in ("tee", "verdict", "genuine", "gpus", "bound", "notes")}


def _mutate_reports(count: int, seed: int) -> Counter[str]:
    """Judge mutated reports, half of them signed again. Returns what was accepted, by field."""
    rng = random.Random(seed)
    world = GPUWorld()
    collateral = world.collateral()
    world.collateral = lambda: collateral  # type: ignore[method-assign]
    good: DeviceEvidence = gpu().evidence(NONCE)
    claims = _claims(world.judge([good]))
    assert claims["verdict"] == "accepted"
    parts = _parts(good.report)
    accepted: Counter[str] = Counter()
    for number in range(count):
        name, start, end = (
            parts[rng.randrange(len(parts))]
            if rng.random() < 0.5
            else rng.choice([part for part in parts if "measurement" not in part[0] and "block" not in part[0]])
        )
        again = number % 2 == 0 and name != "signature"
        if again:
            raw = gpu().sign(_mutated(good.report[:-96], start, end, rng))
        else:
            raw = _mutated(good.report, start, end, rng)
        if raw[:-96] == good.report[:-96] if again else raw == good.report:
            continue
        found = world.judge([replace(good, report=raw)])
        if found.verdict == "accepted":
            assert again, f"{name}: accepted without a good signature"
            accepted[name] += 1
            changed = MAY_CHANGE.get(name, set())
            assert _without(_claims(found), changed) == _without(claims, changed), name
        else:
            assert isinstance(found.error, EvidenceError | Unavailable)
    return accepted


def _without(claims: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """The claims without some facts of each device, and without its checks, whose texts show what was seen."""
    gpus = [{name: value for name, value in row.items() if name not in names | {"checks"}} for row in claims["gpus"]]
    return {**claims, "gpus": gpus}


def _check_accepted(accepted: Counter[str]) -> None:
    """Only in fields that no verdict depends on."""
    project = {"field 15", "field 17", "field 18"}  # they choose the RIM's id, and these RIMs came without one
    unread = {"field 34"}  # a version that is known, too
    assert set(accepted) <= NO_CLAIM | project | unread | set(MAY_CHANGE), accepted


def test_mutated_reports_are_refused_or_say_the_same() -> None:
    """A few of each field."""
    _check_accepted(_mutate_reports(SHORT, seed=1))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_mutated_reports_are_refused_or_say_the_same() -> None:
    """All of them, and which fields were accepted is printed."""
    accepted = _mutate_reports(LONG, seed=2)
    print(sorted(accepted.items()))
    _check_accepted(accepted)


@pytest.mark.parametrize("what", ["chain", "rim", "answer"])
def test_mutated_collateral_and_chains_are_refused_or_say_the_same(what: str) -> None:
    """Bytes that somebody else signed: no change of them is accepted, but for one that parses to the same."""
    rng = random.Random(3)
    world, good = GPUWorld(), gpu().evidence(NONCE)
    whole = world.collateral()
    world.collateral = lambda: whole  # type: ignore[method-assign]
    claims = _without(_claims(world.judge([good])), set())
    for _ in range(SHORT // 5):
        evidence = good
        if what == "chain":
            evidence = replace(good, chain=_mutated(good.chain, 0, len(good.chain), rng))
        try:
            if what == "rim":
                raw = _mutated(world.rims[0], 0, len(world.rims[0]), rng)
                whole = GPUCollateral(rims=(KnownRIM(parse_rim(raw)), *whole.rims[1:]), answers=whole.answers)
            elif what == "answer":
                place = rng.randrange(len(world.answers))
                changed = parse_answer(_mutated(world.answers[place], 0, len(world.answers[place]), rng))
                answers = (*answers_of(world)[:place], changed, *answers_of(world)[place + 1 :])
                whole = GPUCollateral(rims=whole.rims, answers=answers)
        except Error:
            continue
        found = world.judge([evidence])
        if found.verdict == "accepted":
            assert _without(_claims(found), set()) == claims


@functools.cache
def _answers(raw: tuple[bytes, ...]) -> tuple[Answer, ...]:
    return tuple(map(parse_answer, raw))


def answers_of(world: GPUWorld) -> tuple[Answer, ...]:
    """The good answers of a world, parsed."""
    return _answers(tuple(world.answers))


def test_rim_that_is_signed_again_counts_only_with_its_values() -> None:
    """A changed golden value under a good signature is a mismatch, at its index."""
    rng = random.Random(4)
    for _ in range(10):
        index = rng.choice(DRIVER_INDEXES)
        rims = list(vendor().rims((gpu(),)))
        rims[0] = vendor().rim("HOPPER", DRIVER, DRIVER_INDEXES, golden={index: (rng.randbytes(48),)})
        found = GPUWorld(rims=rims).judge()
        assert found.verdict == "refused"
        assert [item.index for item in found.devices[0].mismatched] == [index]
