"""A privacy budget: how much the runs of an agreement may tell about one party's data, all together.

The measured program adds the noise. No key server can see whether it does: the parties agree on a program that they
have read. What the key server does is to count steps. It reserves the most that one run may use when it releases the
key, and settles that by what the run says that it used.

An agreement has one mechanism, and each run uses steps of it. The accounting is dp-accounting's, with its Rényi
accountant (RdpAccountant, its own orders, neighbours by adding or removing one record). It comes with
`pip install adyton[dp]`. Without it nothing is released on such an agreement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from adyton.errors import Unavailable

if TYPE_CHECKING:
    from adyton.typed_document import TypedDocument

MAX_STEPS: Final = 10**9
_TOP: Final = {"epsilon": 1000.0, "delta": 0.5, "noise_multiplier": 1e6, "sampling_probability": 1.0}
_MEMBERS: Final = {"key", "epsilon", "delta", "noise_multiplier", "sampling_probability", "steps"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The budget of one key's data: epsilon at delta, the mechanism, and the most steps of it that one run may use.

    The mechanism is Gaussian noise on a Poisson sample. `noise_multiplier` is the standard deviation over the
    sensitivity. `sampling_probability` is that of each record (1: no sampling).
    """

    key: str
    epsilon: float
    delta: float
    noise_multiplier: float
    sampling_probability: float
    steps: int

    def to_dict(self) -> dict[str, Any]:
        """As the table `privacy` of an agreement."""
        return {
            "key": self.key,
            "epsilon": self.epsilon,
            "delta": self.delta,
            "noise_multiplier": self.noise_multiplier,
            "sampling_probability": self.sampling_probability,
            "steps": self.steps,
        }

    def epsilon_of(self, steps: int) -> float:
        """Epsilon at this delta after so many steps in all. Infinite where the accountant gives no bound.

        Raises Unavailable where dp-accounting is not installed.
        """
        return _epsilon(self.noise_multiplier, self.sampling_probability, steps, self.delta) if steps > 0 else 0.0


def read_budget(table: TypedDocument) -> Budget:
    """Read the table `privacy`. Raises what the document refuses with. The caller checks the key."""
    table.only(_MEMBERS)
    steps = table.number("steps", MAX_STEPS)
    if steps == 0:
        raise table.wrong("steps", f"a whole number from 1 to {MAX_STEPS}", "0")
    return Budget(
        key=table.text("key", 64),
        epsilon=_positive(table, "epsilon"),
        delta=_positive(table, "delta"),
        noise_multiplier=_positive(table, "noise_multiplier"),
        sampling_probability=_positive(table, "sampling_probability"),
        steps=steps,
    )


def _positive(table: TypedDocument, name: str) -> float:
    """A finite number above 0, up to the top of its kind."""
    value, top = table.get(name), _TOP[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= top:
        raise table.wrong(name, f"a number above 0, up to {top:g}")
    return float(value)


@lru_cache(maxsize=1024)
def _epsilon(noise_multiplier: float, sampling_probability: float, steps: int, delta: float) -> float:
    try:
        from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
        from dp_accounting.rdp import RdpAccountant
    except ImportError as error:
        raise Unavailable(
            "privacy budgets cannot be counted here",
            check="dp-accounting",
            expected="the package dp-accounting",
            seen="not installed",
            remedy="pip install 'adyton[dp]' where the key server runs, and start it again",
        ) from error
    event = GaussianDpEvent(noise_multiplier)
    if sampling_probability < 1:
        event = PoissonSampledDpEvent(sampling_probability, event)
    accountant = RdpAccountant()
    accountant.compose(event, steps)
    found = float(accountant.get_epsilon(delta))
    return math.inf if math.isnan(found) else found
