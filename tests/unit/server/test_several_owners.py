"""Several owners, several refusals: one error that says them all."""

from __future__ import annotations

import pytest

from adyton.errors import Denied, Error, FetchFailed, Timeout
from adyton.release.client import _all_of

DENIED = Denied("the key server of maker refused: no", check="approval", expected="one", seen="none", remedy="ask her")
OTHER = Denied("the key server of clinic refused: no", check="approval", expected="one", seen="revoked")
AWAY = FetchFailed("the key server at h:1 cannot be reached", check="connection", remedy="start it")
SLOW = Timeout("the key server at h:2 did not answer", check="answer")


def test_refusals_one_owner_stays_as_it_is() -> None:
    """With one refusal there is nothing to join."""
    assert _all_of([DENIED]) is DENIED


def test_refusals_two_owners_say_both_reasons() -> None:
    """Both messages, and what differs in the parts; what is equal stands once."""
    both = _all_of([OTHER, DENIED])
    assert isinstance(both, Denied)
    assert "clinic refused" in both.message
    assert "maker refused" in both.message
    assert (both.check, both.seen, both.remedy) == ("approval", "revoked; none", "ask her")


@pytest.mark.parametrize(
    ("refusals", "kind"),
    [([AWAY, DENIED], Denied), ([DENIED, SLOW], Denied), ([AWAY, SLOW], FetchFailed), ([SLOW, AWAY], Timeout)],
)
def test_refusals_mixed_are_a_verdict_only_if_one_of_them_is(refusals: list[Error], kind: type[Error]) -> None:
    """*Could not check* never turns into a verdict, and a verdict is never hidden behind it."""
    joined = _all_of(refusals)
    assert type(joined) is kind
    assert all(refusal.message in joined.message for refusal in refusals)


def test_refusals_keep_every_denial_to_quote() -> None:
    """The numbers under which the owners find the refusals travel along."""
    joined = _all_of([Denied("a", denials=["d-1"]), Denied("b", denials=["d-2"])])
    assert isinstance(joined, Denied)
    assert joined.denials == ("d-1", "d-2")
