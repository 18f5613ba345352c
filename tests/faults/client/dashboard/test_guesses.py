"""Strangers who guess at the dashboard's password at full rate do not keep its owner out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest

from adyton.errors import UsageError
from adyton.server.dashboard.devices import LIFETIME_S, Devices
from adyton.server.dashboard.guesses import FORGET_S, FREE, LONGEST_WAIT_S, MAX_SOURCES, Guesses, source_of
from adyton.server.dashboard.serve import LEAST_PASSWORD_BYTES, PASSWORD_FILE, password_of
from tests.support.owner_world import World

Browser = Callable[[str], httpx.Client]
DEVICE = "__Host-adyton-device"
SESSION = "__Host-adyton"


def log_in(client: httpx.Client, password: str) -> int:
    """The status of a login."""
    return client.post("/login", data={"password": password}).status_code


@contextmanager
def attack(browser: Browser, address: str, threads: int = 4) -> Iterator[dict[int, int]]:
    """Wrong passwords from one address, as fast as they are answered; what was answered, by status."""
    stop, answered = threading.Event(), dict.fromkeys((403, 429), 0)

    def guess(client: httpx.Client) -> None:
        while not stop.is_set():
            try:
                status = log_in(client, "wrong")
            except httpx.TransportError:
                continue
            answered[status] = answered.get(status, 0) + 1

    workers = [threading.Thread(target=guess, args=(browser(address),), daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + 60
    while answered[429] < 20 and time.monotonic() < deadline:
        time.sleep(0.05)
    try:
        yield answered
    finally:
        stop.set()
        for worker in workers:
            worker.join(30)


def test_owner_logs_in_from_another_address_during_an_attack(browser: Browser, password: str) -> None:
    """The attacker uses up his own budget, and nobody else's."""
    with attack(browser, "127.0.0.1") as answered:
        assert answered[429] >= 20
        for _ in range(3):
            assert log_in(browser("127.0.0.2"), password) == 303
    assert set(answered) == {403, 429}


def test_owner_logs_in_from_the_attackers_address_with_a_browser_that_is_known(browser: Browser, password: str) -> None:
    """A browser that logged in before has a budget of its own, also where a stranger guesses from its address."""
    known, unknown = browser("127.0.0.1"), browser("127.0.0.1")
    assert log_in(known, password) == 303
    device = known.cookies[DEVICE]
    with attack(browser, "127.0.0.1"):
        again = browser("127.0.0.1")
        assert (
            again.post("/login", data={"password": password}, headers={"Cookie": f"{DEVICE}={device}"}).status_code
            == 303
        )
        assert log_in(unknown, password) == 429


FORGED = [
    "A" * 22 + ".99999999999." + "A" * 43,
    "A" * 22 + ".99999999999.",
    "",
    "x" * 5000,
    "\xff",
    "A" * 22 + ".-1." + "A" * 43,
]


@pytest.mark.parametrize("cookie", FORGED)
def test_forged_device_has_no_budget_of_its_own(browser: Browser, password: str, cookie: str) -> None:
    """What this server did not sign counts as no device: its guesses are the address's."""
    client = browser("127.0.0.3")
    headers = {b"Cookie": f"{DEVICE}={cookie}".encode("latin-1")}
    for _ in range(FREE):
        assert client.post("/login", data={"password": "wrong"}, headers=headers).status_code == 403
    assert client.post("/login", data={"password": password}).status_code == 429
    assert client.post("/login", data={"password": password}, headers=headers).status_code == 429


def test_stolen_device_uses_up_neither_the_address_nor_other_devices(browser: Browser, password: str) -> None:
    """Who has one browser's cookie can use up that one; the owner still has her address and her other browsers."""
    stolen, other = browser("127.0.0.1"), browser("127.0.0.1")
    assert log_in(stolen, password) == 303
    assert log_in(other, password) == 303
    thief = browser("127.0.0.4")
    cookie = {"Cookie": f"{DEVICE}={stolen.cookies[DEVICE]}"}
    for _ in range(4 * FREE):
        thief.post("/login", data={"password": "wrong"}, headers=cookie)
    assert thief.post("/login", data={"password": password}, headers=cookie).status_code == 429
    assert log_in(browser("127.0.0.1"), password) == 303
    assert log_in(other, password) == 303


def test_other_site_cannot_spend_the_owners_budget(browser: Browser, password: str) -> None:
    """A page elsewhere that lets the owner's browser send wrong passwords is refused before they count."""
    client = browser("127.0.0.5")
    for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        for _ in range(2 * FREE):
            assert client.post("/login", data={"password": "wrong"}, headers=headers).status_code == 403
    assert log_in(client, password) == 303


def test_session_of_an_attacker_is_not_taken_over_at_login(browser: Browser, password: str) -> None:
    """A session's name is made at the login: one that somebody planted before is worth nothing after it."""
    client = browser("127.0.0.6")
    planted = {"Cookie": f"{SESSION}={'p' * 43}"}
    answer = client.post("/login", data={"password": password}, headers=planted)
    assert answer.status_code == 303
    assert answer.cookies[SESSION] != "p" * 43
    assert browser("127.0.0.6").get("/", headers=planted).status_code == 303


def test_new_login_ends_the_session_that_it_came_with(browser: Browser, password: str) -> None:
    """An old session's cookie that was copied opens nothing after its owner logs in anew."""
    client = browser("127.0.0.6")
    log_in(client, password)
    copied = {"Cookie": f"{SESSION}={client.cookies[SESSION]}"}
    assert browser("127.0.0.7").get("/", headers=copied).status_code == 200
    log_in(client, password)
    assert browser("127.0.0.7").get("/", headers=copied).status_code == 303


def test_two_cookies_of_one_name_are_none(browser: Browser, password: str) -> None:
    """Who can plant a second cookie chooses nothing by its place."""
    client = browser("127.0.0.6")
    log_in(client, password)
    good = client.cookies[SESSION]
    for header in (f"{SESSION}=x; {SESSION}={good}", f"{SESSION}={good}; {SESSION}=x"):
        assert browser("127.0.0.7").get("/", headers={"Cookie": header}).status_code == 303


def test_wait_doubles_to_its_bound_and_is_forgotten() -> None:
    """Five are free, then one second, two, four, up to five minutes; after a quiet hour it begins anew."""
    tries, now, waits = Guesses(), 0.0, []
    for _ in range(FREE + 12):
        tries.wrong("a", now)
        waits.append(tries.wait_s("a", now))
        now += waits[-1]
    assert waits[: FREE + 3] == [0.0] * (FREE - 1) + [1.0, 2.0, 4.0, 8.0]
    assert waits[-1] == LONGEST_WAIT_S
    assert tries.wait_s("b", now) == 0.0
    tries.wrong("a", now + FORGET_S + 1)
    assert tries.wait_s("a", now + FORGET_S + 1) == 0.0
    tries.right("a")
    assert tries.wait_s("a", now) == 0.0


def test_sources_are_bounded_and_ipv6_counts_by_its_network() -> None:
    """Many addresses fill no memory, and the 2^64 addresses of one customer are one source."""
    assert source_of("2001:db8:1:2:3:4:5:6") == source_of("2001:db8:1:2:ffff::1") == "2001:db8:1:2::/64"
    assert source_of("2001:db8:1:3::1") != source_of("2001:db8:1:2::1")
    assert source_of("::ffff:192.0.2.1") == source_of("192.0.2.1") == "192.0.2.1"
    assert source_of("fe80::1%eth0") == "fe80::/64"
    assert source_of("what is this") == "elsewhere"
    tries = Guesses()
    for number in range(MAX_SOURCES + 100):
        tries.wrong(f"s{number}", float(number))
    assert len(tries._tries) == MAX_SOURCES


def test_device_is_known_for_its_time_under_its_password_alone() -> None:
    """A cookie ends, and a new password forgets every device."""
    one, same, other = Devices(b"p" * 24), Devices(b"p" * 24), Devices(b"q" * 24)
    token = one.new(1000.0)
    assert one.known(token, 1000.0) == same.known(token, 1000.0) == token.partition(".")[0]
    assert other.known(token, 1000.0) is None
    assert one.known(token, 1000.0 + LIFETIME_S) is None
    assert one.known(token.replace(".", ".9", 1), 1000.0) is None
    assert one.known(None, 0.0) is None


def test_password_that_can_be_guessed_is_not_served(world: World) -> None:
    """The budgets bound one source; against many the password's length does."""
    assert len(password_of(world.home)) >= LEAST_PASSWORD_BYTES
    (world.home.path / PASSWORD_FILE).write_text("summer2026\n")
    with pytest.raises(UsageError, match="can be guessed"):
        password_of(world.home)
