"""Whatever chain a client shows becomes a request: a refusal has its error, and nothing raises."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from adyton.attest.ratls import make_certificate
from adyton.errors import UsageError
from adyton.keyserver.receive import received_chain
from adyton.release.messages import ServerIdentity
from adyton.values import Digest

IDENTITY = ServerIdentity(Digest(bytes(32)), "adyton-key-server")
NOW = datetime(2030, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
GOOD = make_certificate(
    ec.generate_private_key(ec.SECP256R1()), lambda _: b"quote" * 100, not_before=NOW - HOUR, not_after=NOW + HOUR
)
NAMES = st.none() | st.text(max_size=40) | st.text(max_size=20).map(lambda key: f"{key}.keys.adyton-key-server")


@given(st.lists(st.binary(max_size=300) | st.just(GOOD), max_size=3), NAMES)
@settings(deadline=None)
def test_any_chain_becomes_a_request(chain: list[bytes], name: str | None) -> None:
    """Only one certificate with evidence has none of it wrong; what was shown with an error names no key."""
    received = received_chain(chain, name, IDENTITY, "peer", NOW)
    if received.error is not None:
        assert received.names == ()
    else:
        assert chain == [GOOD]
    assert (received.evidence != b"") == (chain == [GOOD])
    assert (received.report_data is None) == (received.evidence == b"")


@given(NAMES)
def test_name_of_the_server_names_one_key_or_none(name: str | None) -> None:
    """KEY.keys.SERVER names that key where it can be one's name; any other name leaves the key open."""
    received = received_chain([GOOD], name, IDENTITY, "peer", NOW)
    assert received.error is None or isinstance(received.error, UsageError)
    if received.names:
        assert f"{received.names[0]}.keys.adyton-key-server" == name
    elif received.error is None:
        assert name is None or not name.endswith(".keys.adyton-key-server")


@given(st.timedeltas(min_value=timedelta(days=-1), max_value=timedelta(days=1)))
def test_certificate_counts_in_its_validity_only(offset: timedelta) -> None:
    """Before and after it the request is refused, and its evidence is not looked at."""
    received = received_chain([GOOD], None, IDENTITY, "peer", NOW + offset)
    assert (received.error is None) == (-HOUR <= offset <= HOUR)
    assert (received.evidence != b"") == (received.error is None)
