"""Each attempt of the demo is refused by the side that must, by that check alone: without it the key is released."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from demo.attacks import ATTEMPTS, ENCLAVE, SERVER, Attempt, attempt, judge
from demo.show import People, document
from demo.steps import Journey, Program
from demo.story import tell
from demo.world import World

if TYPE_CHECKING:
    from collections.abc import Iterator

TINY = Path(__file__).parent / "tiny"
SHOUT = Program(
    name="shout",
    script=TINY / "shout.py",
    arguments=("words/speech.txt", "output/loud.txt"),
    inputs=("words",),
    output="output",
    prepare=TINY / "prepare.py",
)

APPROVAL = "approval of the program and its platform"
"""What the key server calls every refusal of genuine evidence: which line stands in the way, the cloud is not told."""

EXPECTED = {
    "script": ("Denied", APPROVAL, "shout.py"),
    "library": ("Denied", APPROVAL, "library.so"),
    "module": ("Denied", APPROVAL, "runtime: adyton"),
    "argument": ("Denied", APPROVAL, "loader.argv"),
    "variable": ("Denied", APPROVAL, "PYTHONINSPECT"),
    "mount": ("Denied", APPROVAL, "mount /"),
    "pinned server": ("Denied", "report data", "server_name"),
    "owner": ("Denied", APPROVAL, "loader.env.CLINIC"),
    "root": ("Denied", "root", "root that is not trusted"),
    "tampered input": ("IntegrityError", "tag", "speech.txt"),
    "false server": ("Denied", "identity of the key server", ""),
    "out of date": ("Denied", APPROVAL, "OutOfDate"),
}
"""Attempt -> error class, what the check's name says, what the refusal or the owner's record of it names."""


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Journey]:
    """The whole workflow, gone once with a tiny program."""
    with World(tmp_path_factory.mktemp("world")) as world:
        made = Journey(world, SHOUT)
        made.walk()
        yield made


def test_workflow_gives_the_plain_result(journey: Journey) -> None:
    """The decrypted result of the protected run is the plain run's."""
    assert journey.decrypted_result == journey.plain_result != ""
    assert [step.number for step in journey.steps if step.number] == [1, 2, 3, 4, 6, 7, 8]


def test_expectations_cover_every_attempt() -> None:
    """No attempt of the demo goes without a test."""
    assert set(EXPECTED) == {what.name for what in ATTEMPTS}


@pytest.mark.parametrize("what", ATTEMPTS, ids=lambda what: what.name)
def test_attempt_is_refused_by_its_check_alone(journey: Journey, what: Attempt) -> None:
    """The attempt is refused; once exactly that obstacle is taken away, the same attempt gets the key."""
    scene, refusal = attempt(journey, what)
    error, check, named = EXPECTED[what.name]
    assert not refusal.released
    assert refusal.error == error, refusal
    assert check in refusal.check
    if what.refused_by == SERVER and what.name != "out of date":
        assert named in refusal.record, refusal
        assert not named or named not in refusal.seen or what.name == "root"
    else:
        assert named in refusal.seen + refusal.message
    assert refusal.expected
    assert refusal.remedy
    assert what.refused_by == (ENCLAVE if what.name in ("tampered input", "false server") else SERVER)
    what.allow(scene)
    again = judge(what, scene.run())
    assert again.released or again.error == what.then, again


@pytest.mark.slow
def test_whole_story_is_good_with_a_tiny_program(tmp_path: Path) -> None:
    """The demo's verdict holds for another program, and its document has what programs read."""
    with World(tmp_path / "world") as world:
        told = tell(Journey(world, SHOUT), People(quiet=True))
        assert told.good
        made = document(told)
    assert {"steps", "result", "refusals", "canary"} <= set(made)
