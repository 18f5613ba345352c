"""A database on another machine proves itself over TLS, whichever way libpq is led there."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from adyton.errors import StoreError
from adyton.keystore.database import make_engine
from adyton.keystore.database_transport import further_arguments, is_local

TLS = "sslmode=verify-full&sslrootcert=/etc/ca.crt"
BASE = "postgresql+psycopg://adyton@"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine of the tests says of PostgreSQL is left out of account."""
    for name in ("PGHOST", "PGHOSTADDR", "PGSERVICE", "PGSSLMODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "url",
    [
        f"{BASE}/adyton",
        f"{BASE}localhost/adyton",
        f"{BASE}127.0.0.1:5433/adyton",
        f"{BASE}[::1]/adyton",
        f"{BASE}/adyton?host=/run/postgresql",
        f"{BASE}/adyton?host=/run/a:5432&host=127.0.0.1:5433",
        f"{BASE}db.example/adyton?{TLS}",
        f"{BASE}/adyton?host=a.example:1&host=b.example:2&{TLS}",
        f"{BASE}/adyton?service=far&{TLS}",
    ],
)
def test_database_that_is_here_or_proves_itself_is_taken(url: str) -> None:
    """A socket, a loopback address, or verify-full with its CA."""
    make_engine(url).dispose()


@pytest.mark.parametrize(
    "url",
    [
        f"{BASE}db.example/adyton",
        f"{BASE}10.0.0.7/adyton",
        f"{BASE}127.0.0.1.example/adyton",
        f"{BASE}localhost.example/adyton",
        f"{BASE}0.0.0.0/adyton",
        f"{BASE}/adyton?host=db.example",
        f"{BASE}/adyton?host=/run/postgresql,db.example",
        f"{BASE}/adyton?host=127.0.0.1:5432&host=db.example:5432",
        f"{BASE}localhost/adyton?hostaddr=10.0.0.7",
        f"{BASE}/adyton?host=/run/postgresql&hostaddr=127.0.0.1,10.0.0.7",
        f"{BASE}/adyton?service=far",
        f"{BASE}db.example/adyton?sslmode=require",
        f"{BASE}db.example/adyton?sslmode=verify-ca&sslrootcert=/etc/ca.crt",
        f"{BASE}db.example/adyton?sslmode=verify-full",
        f"{BASE}db.example/adyton?sslrootcert=/etc/ca.crt",
        f"{BASE}db.example/adyton?{TLS}&sslmode=disable",
        f"{BASE}localhost/adyton?host=db.example&sslmode=prefer",
    ],
)
def test_database_elsewhere_without_proof_is_refused(url: str) -> None:
    """Whoever stands between could answer in its place."""
    with pytest.raises(StoreError, match="another machine") as caught:
        make_engine(url)
    assert "sslmode=verify-full&sslrootcert=" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("variable", "value"), [("PGHOST", "db.example"), ("PGHOSTADDR", "10.0.0.7"), ("PGSERVICE", "far")]
)
def test_environment_cannot_lead_elsewhere(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    """libpq fills in from the environment what the URL leaves out."""
    url = f"{BASE}/adyton?host=/run/postgresql" if variable == "PGHOSTADDR" else f"{BASE}/adyton"
    make_engine(url).dispose()
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    with pytest.raises(StoreError, match="another machine"):
        make_engine(url)
    make_engine(f"{url}{'&' if '?' in url else '?'}{TLS}").dispose()


def test_environment_that_is_overridden_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host in the URL counts before the environment's."""
    monkeypatch.setenv("PGHOST", "db.example")
    make_engine(f"{BASE}127.0.0.1/adyton").dispose()


@pytest.mark.parametrize("name", ["host%3Ddb.example", "postgresql%3A%2F%2Fdb.example%2Fx"])
def test_name_of_the_database_that_is_a_connection_string_is_refused(name: str) -> None:
    """libpq would read further parameters from it."""
    with pytest.raises(StoreError, match="connection string"):
        make_engine(f"{BASE}localhost/{name}")


@pytest.mark.parametrize("url", ["postgresql+psycopg2://h/x", "postgresql://h/x", "postgresql+asyncpg://h/x", "x"])
def test_other_drivers_are_refused(url: str) -> None:
    """They read other parameters, which nothing here looks at."""
    with pytest.raises(StoreError, match="no database"):
        make_engine(url)


def test_gss_does_not_take_the_place_of_tls() -> None:
    """Unless the URL says so, TLS is what proves the server."""
    arguments: dict[str, Any] = {"host": "db.example", "sslmode": "verify-full", "sslrootcert": "/etc/ca.crt"}
    assert further_arguments(arguments, {}) == {"gssencmode": "disable"}
    assert further_arguments({**arguments, "gssencmode": "require"}, {}) == {}
    assert further_arguments({"host": "/run"}, {}) == {}


def test_engine_gives_libpq_what_was_checked() -> None:
    """The arguments looked at are those of the driver itself."""
    url = sa.make_url(f"{BASE}/adyton?host=a:1&host=b:2")
    assert url.get_dialect()().create_connect_args(url)[1]["host"] == "a,b"
    hosts = ("127.9.9.9", "::1", "@name", "[::1]", "2130706433", "127.1")
    assert [is_local(host) for host in hosts] == [True, True, True, False, False, False]
