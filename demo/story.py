"""The whole demo in order: the workflow, the attempts of the hostile cloud, and the search for leaks."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from demo import evidence
from demo.attacks import ATTEMPTS, attempt
from demo.outcome import Told
from demo.world import CORES

if TYPE_CHECKING:
    from demo.attacks import Attempt, Refusal
    from demo.canary import Canary
    from demo.evidence import Searched
    from demo.show import People
    from demo.steps import Journey


def tell(journey: Journey, people: People) -> Told:
    """Run the whole demo. Raises StepFailed where a step that had to work failed."""
    began, began_clock = time.monotonic(), time.time()
    people.welcome()
    people.chapter("The workflow")
    journey.walk()
    people.result(journey)
    people.chapter("What the hostile cloud tries")
    with ThreadPoolExecutor(CORES) as pool:
        leak = pool.submit(_control, journey)
        refusals = []
        for refusal in pool.map(partial(_refusal, journey), (what for what in ATTEMPTS if not what.alone)):
            refusals.append(refusal)
            people.refusal(refusal)
    for what in ATTEMPTS:
        if what.alone:
            refusals.append(_refusal(journey, what))
            people.refusal(refusals[-1])
    canaries, control = leak.result()
    people.chapter("What the cloud could see")
    people.listing(journey.world.storage)
    seen = evidence.search_files(evidence.host_files(journey, began_clock), canaries)
    secrets = frozenset(canary.secret for canary in canaries)
    told = Told(journey, tuple(refusals), secrets, seen, control, time.monotonic() - began)
    people.canary(told)
    people.closing(told)
    return told


def _refusal(journey: Journey, what: Attempt) -> Refusal:
    return attempt(journey, what)[1]


def _control(journey: Journey) -> tuple[list[Canary], Searched]:
    canaries = evidence.secrets_of(journey)
    return canaries, evidence.positive_control(journey, canaries)
