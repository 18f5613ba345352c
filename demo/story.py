"""The whole demo in order: the workflow, the attempts of the hostile cloud, and the search for leaks."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from demo import evidence
from demo.attacks import ATTEMPTS, attempt
from demo.outcome import Told

if TYPE_CHECKING:
    from demo.show import People
    from demo.steps import Journey


def tell(journey: Journey, people: People) -> Told:
    """Run the whole demo. Raises StepFailed where a step that had to work failed."""
    began, began_clock = time.monotonic(), time.time()
    people.welcome()
    people.chapter("The workflow")
    journey.walk()
    people.result(journey)
    canaries = evidence.secrets_of(journey)
    control = evidence.positive_control(journey, canaries)
    people.chapter("What the hostile cloud tries")
    refusals = []
    for what in ATTEMPTS:
        _, refusal = attempt(journey, what)
        refusals.append(refusal)
        people.refusal(refusal)
    people.chapter("What the cloud could see")
    people.listing(journey.world.storage)
    seen = evidence.search_files(evidence.host_files(journey, began_clock), canaries)
    secrets = frozenset(canary.secret for canary in canaries)
    told = Told(journey, tuple(refusals), secrets, seen, control, time.monotonic() - began)
    people.canary(told)
    people.closing(told)
    return told
