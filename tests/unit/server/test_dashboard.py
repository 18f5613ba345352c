"""The owner's web page: who may see it, what it shows, what can be done there, and how it looks in a real browser."""

from __future__ import annotations

import contextlib
import html
import json
import os
import re
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from adyton.collateral.store import CollateralStore
from adyton.errors import Denied
from adyton.keystore.approval import APPROVED, PENDING, REVOKED
from adyton.keystore.clock import now_ms
from adyton.keystore.tables import approvals as approvals_module
from adyton.manifest.signed import SignedManifest
from adyton.release.client import obtain_keys
from adyton.server.dashboard import guesses, http_timeouts
from adyton.server.dashboard.guesses import FREE
from adyton.server.dashboard.login import NOTES_A_MINUTE
from adyton.server.dashboard.pages import programs as programs_module
from adyton.server.dashboard.pages.timeline import PAGE
from adyton.server.dashboard.serve import PASSWORD_FILE, DashboardThread
from adyton.server.dashboard.sessions import Sessions
from adyton.sim.chip import simulated_guest
from adyton.values import Measurement
from tests.support import chromium
from tests.support.owner_world import RUNTIME_PARTS, Running, World, now, running
from tests.support.release_by_hand import wait_until

COOKIE = "__Host-adyton"
DEVICE_COOKIE = "__Host-adyton-device"


@pytest.fixture
def page(world: World) -> Iterator[str]:
    """The dashboard's address."""
    thread = DashboardThread(world.home, world.store, CollateralStore(world.home.collateral_path), "127.0.0.1", 0)
    yield f"https://127.0.0.1:{thread.address[1]}"
    thread.stop()


def password(world: World) -> str:
    """The dashboard's password."""
    return (world.home.path / PASSWORD_FILE).read_text().strip()


@pytest.fixture
def client(world: World, page: str) -> Iterator[httpx.Client]:
    """A client that is logged in and trusts the owner's CA."""
    context = ssl.create_default_context(cadata=world.ca_pem)
    with httpx.Client(base_url=page, verify=context) as found:
        assert found.post("/login", data={"password": password(world)}).status_code == 303
        yield found


def csrf(client: httpx.Client) -> str:
    """The token of this session's forms."""
    found = re.search(r'name="csrf" value="([^"]+)"', client.get("/").text)
    assert found is not None
    return found[1]


PAGES = ["/", "/programs", "/timeline", "/timeline?kind=denial", "/platforms", "/keys", "/entries/1"]


@pytest.mark.parametrize("path", PAGES)
def test_page_without_login_shows_nothing(page: str, path: str) -> None:
    """Every page but the login asks for it."""
    with httpx.Client(base_url=page, verify=False) as anybody:
        answer = anybody.get(path)
        assert answer.status_code == 303
        assert answer.headers["location"] == "/login"
        assert answer.text == ""


@pytest.mark.parametrize("path", [*PAGES, "/login", "/style.css", "/nosuch"])
def test_page_has_a_strict_policy_and_no_script(client: httpx.Client, path: str) -> None:
    """Nothing may run, be framed, or come from elsewhere."""
    answer = client.get(path)
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "script-src" not in policy
    assert "unsafe" not in policy
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["cache-control"] == "no-store"
    assert "<script" not in answer.text
    assert " style=" not in answer.text
    assert not re.search(r'(src|href)="(https?:)?//', answer.text)


def test_login_wrong_password_is_refused_and_guessing_is_slowed(page: str, world: World) -> None:
    """Wrong passwords are refused, and after some even the right one has to wait, for a time that is said."""
    with httpx.Client(base_url=page, verify=False) as guesser:
        for _ in range(FREE):
            assert guesser.post("/login", data={"password": "wrong"}).status_code == 403
        answer = guesser.post("/login", data={"password": password(world)})
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "1"
        assert COOKIE not in answer.cookies


def test_login_cookie_is_for_this_site_and_the_browser_only(page: str, world: World) -> None:
    """The cookies of the session and of the browser are out of reach of scripts and other sites."""
    with httpx.Client(base_url=page, verify=False) as someone:
        headers = someone.post("/login", data={"password": password(world)}).headers.get_list("set-cookie")
    assert [header.partition("=")[0] for header in headers] == [COOKIE, DEVICE_COOKIE]
    for header in headers:
        for word in ("httponly", "secure", "samesite=strict", "path=/"):
            assert word in header.lower()
        assert "domain" not in header.lower()


def test_logout_ends_the_session(client: httpx.Client) -> None:
    """After logging out the old cookie opens nothing."""
    cookie = client.cookies[COOKIE]
    assert client.post("/logout", data={"csrf": csrf(client)}).status_code == 303
    assert client.get("/", headers={"Cookie": f"{COOKIE}={cookie}"}).status_code == 303


def test_session_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A login does not last for ever."""
    sessions = Sessions(b"secret password")
    session = sessions.log_in("secret password")
    assert session is not None
    assert sessions.find(session.token) is session
    session.seen -= 3601
    assert sessions.find(session.token) is None


def test_form_without_the_session_token_changes_nothing(client: httpx.Client, world: World) -> None:
    """A form that another site sends, or that lacks the token, is refused."""
    approval = world.approve(world.program())
    for fields, headers in (
        ({"id": approval}, {}),
        ({"id": approval, "csrf": "x" * 43}, {}),
        ({"id": approval, "csrf": csrf(client)}, {"Origin": "https://evil.example"}),
    ):
        assert client.post("/revoke", data=fields, headers=headers).status_code == 403
    with world.store.read() as view:
        assert view.approval(approval).state == APPROVED


def test_revoke_and_approve_on_the_page(client: httpx.Client, world: World) -> None:
    """The owner approves what was proposed and revokes what was approved."""
    with world.store.write() as change:
        signed = world.program()
        proposed = change.add_approval(world.approval(signed.measurement), actor="test", state=PENDING)
        change.remember(signed.measurement, signed.manifest_bytes, parts())
    assert "Approve for key weights" in client.get(f"/approvals/{proposed.id}").text
    client.post("/approve", data={"id": proposed.id, "csrf": csrf(client)})
    with world.store.read() as view:
        assert view.approval(proposed.id).state == APPROVED
    client.post("/revoke", data={"id": proposed.id, "csrf": csrf(client)})
    with world.store.read() as view:
        assert view.approval(proposed.id).state == REVOKED
        assert view.history(proposed.id)[-1]["actor"] == "dashboard"
    answer = client.post("/approve", data={"id": proposed.id, "csrf": csrf(client)})
    assert answer.status_code == 400
    assert "revoked" in answer.text


def test_accept_what_never_asked_is_refused(client: httpx.Client, world: World) -> None:
    """Only what really asked, on that platform, can be accepted here."""
    fields = {"measurement": "ab" * 32, "tee": world.tee, "key": "weights", "app": "x", "version": "1"}
    assert client.post("/accept", data={**fields, "csrf": csrf(client)}).status_code == 400


def test_page_escapes_what_others_wrote(client: httpx.Client, world: World) -> None:
    """What comes from outside is text, never markup."""
    with world.store.write() as change:
        change.record("note", "", {"said": "<script>alert(1)</script>", "name": '"><img src=x>'}, 1)
        change.change_approval(world_note(world, change), actor="<b>bob</b>", state=REVOKED)
    for path in ("/timeline", "/programs"):
        text = client.get(path).text
        assert "<script>alert" not in text
        assert "<b>bob" not in text
        assert "<img" not in text


def world_note(world: World, change: object) -> str:
    """An approval with a remark that would be markup."""
    from adyton.keystore.transaction import Transaction

    assert isinstance(change, Transaction)
    approval = world.approval(world.program().measurement, note="<img src=x onerror=alert(1)>")
    return change.add_approval(approval, actor="test").id


def test_form_too_long_is_refused(client: httpx.Client) -> None:
    """A form has its bound."""
    assert client.post("/login", data={"password": "x" * 20_000}).status_code == 413
    assert client.post("/revoke", data={"csrf": csrf(client), "id": "x" * 70_000}).status_code == 413


def record(world: World, kind: str) -> list[dict[str, Any]]:
    """The bodies of the audit entries of one kind."""
    with world.store.read() as view:
        return [json.loads(entry.body) for entry in view.entries(kind=kind)]


def test_login_is_recorded_also_where_it_is_refused(page: str, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who guesses at the password stands in the record, and not for ever: the rest is counted."""
    monkeypatch.setattr(guesses, "FREE", 1000)
    with httpx.Client(base_url=page, verify=False) as guesser:
        for _ in range(NOTES_A_MINUTE + 3):
            guesser.post("/login", data={"password": "wrong"})
    found = record(world, "dashboard")
    assert [entry["what"] for entry in found] == ["login refused"] * NOTES_A_MINUTE
    assert found[0]["peer"] == "127.0.0.1"
    assert "wrong" not in json.dumps(found)


def test_timeline_can_be_paged_to_its_beginning(client: httpx.Client, world: World) -> None:
    """Every entry can be reached, each once, the newest first."""
    with world.store.write() as change:
        for number in range(2 * PAGE):
            change.record("note", "", {"said": f"note-{number}."}, 1)
    seen: list[str] = []
    path = "/timeline"
    for _ in range(4):
        text = client.get(path).text
        seen += re.findall(r"/entries/([0-9]+)", text)
        older = re.search(r'href="(/timeline[^"]*before=[0-9]+)"', text)
        if older is None:
            break
        path = older[1].replace("&amp;", "&")
    with world.store.read() as view:
        assert [int(seq) for seq in seen] == list(range(view.head().seq, 0, -1))


@pytest.mark.parametrize("before", ["x", "-1", "9" * 30, "\u0663"])
def test_timeline_before_what_is_no_number_shows_the_newest(client: httpx.Client, before: str) -> None:
    """What is no entry's number is left out of account."""
    assert client.get("/timeline", params={"before": before}).text == client.get("/timeline").text


def test_programs_show_how_far_an_approval_is_used(client: httpx.Client, world: World) -> None:
    """Runs and leases stand beside the bounds that they count against."""
    signed = world.program()
    approval = world.approve(signed, max_runs=7, max_active=3)
    with world.store.write() as change:
        for number, until in enumerate((1, 1 << 50, 1 << 50)):
            item = {"approval": approval, "release": f"r-{number}", "renewed": False, "lease_until_ms": until}
            body = {"grant": f"g-{number}", "run": f"run-{number}", "keys": [{**item, "key": "weights"}]}
            change.record("release", f"g-{number}", body, 0)
    assert "<dd>3 of 7 runs, 2 of 3 active</dd>" in client.get("/programs").text


def wait(world: World, measurement: Measurement) -> None:
    """Let a program wait for approval."""
    world.let_wait(measurement)


def test_dismiss_on_the_page(client: httpx.Client, world: World) -> None:
    """The owner waves a program away that asked; what does not wait cannot be."""
    measurement = world.program().measurement
    wait(world, measurement)
    assert "Dismiss" in client.get(f"/candidates/{measurement}/weights").text
    fields = {"measurement": measurement.hex(), "key": "weights", "csrf": csrf(client)}
    assert client.post("/dismiss", data={**fields, "csrf": "x"}).status_code == 403
    assert client.post("/dismiss", data=fields).status_code == 303
    assert client.post("/dismiss", data=fields).status_code == 400
    assert record(world, "candidate-dismissed")[0]["actor"] == "dashboard"


def test_tdx_program_that_showed_itself_is_accepted_with_its_guest(client: httpx.Client, world: World) -> None:
    """What was refused in a TDX guest can be approved here: workload, guest image and manifest, and then it runs."""
    world.approve(world.program(), tees=(world.tee.replace("sim:", "sim-tdx:"),))
    signed = world.program(argument="other.py")
    with running(world) as server:
        with pytest.raises(Denied):
            obtain_keys(signed, world.enclave(signed, tdx=True), {"": server.adyton}, runtime_parts=parts)
        wait_until(lambda: bool(record(world, "explanation")), within_s=120)
        text = client.get(f"/candidates/{signed.measurement}/weights").text
        assert "loader.argv: approved ['python3', 'classify.py'], seen ['python3', 'other.py']" in html.unescape(text)
        guest = re.search(r'name="guest" value="([0-9a-f]{96})"', text)
        tee = re.search(r"<option>(sim-tdx:[^<]+)</option>", text)
        assert guest is not None
        assert tee is not None
        fields = {"measurement": signed.measurement.hex(), "key": "weights", "csrf": csrf(client)}
        fields |= {"tee": tee[1], "app": "classify", "version": "v2"}
        assert client.post("/accept", data={**fields, "guest": "ab" * 48}).status_code == 400
        assert client.post("/accept", data=fields).status_code == 400
        assert client.post("/accept", data={**fields, "guest": guest[1]}).status_code == 303
        with world.store.read() as view:
            (stored,) = [item for item in view.approvals() if item.approval.version == "v2"]
        assert stored.approval.guest_images == (simulated_guest(),)
        assert simulated_guest().mrtd.hex() == guest[1]
        assert stored.approval.manifest_sha256 == signed.manifest_sha256
        assert obtain_keys(signed, world.enclave(signed, tdx=True), {"": server.adyton}).keys


def test_tdx_program_is_not_accepted_by_what_its_host_showed(client: httpx.Client, world: World) -> None:
    """A real trust domain's registers are the host's choice: the page says so, and accepts nothing."""
    measurement = world.program().measurement
    world.let_wait(measurement, tee="tdx")
    assert "pins nothing" in client.get(f"/candidates/{measurement}/weights").text
    fields = {"measurement": measurement.hex(), "key": "weights", "csrf": csrf(client), "guest": "ab" * 48}
    refused = client.post("/accept", data={**fields, "tee": "tdx", "app": "classify", "version": "v2"})
    assert refused.status_code == 400
    assert "guest image" in refused.text
    with world.store.read() as view:
        assert view.approvals() == []


def test_approval_that_pins_the_firmware_only_is_shown_as_such(
    client: httpx.Client, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An approval of an earlier Adyton: it releases nothing, and the page says why and what to do."""
    with monkeypatch.context() as older, world.store.write() as change:
        older.setattr(approvals_module, "check_sound", lambda _approval: None)
        guests = (Measurement(b"g" * 48),)
        change.add_approval(world.approval(world.program().measurement, tees=("tdx",), guests=guests), actor="test")
    text = client.get("/programs").text
    assert "Releases nothing under tdx: guest image" in text
    assert "--rtmr1" in text


def test_waiting_program_is_said_in_words_before_any_hash(client: httpx.Client, world: World) -> None:
    """What would run and what changed come first; hashes are short, and whole on demand."""
    signed = world.program(argument="other.py")
    world.let_wait(signed.measurement)
    with world.store.write() as change:
        change.remember(signed.measurement, signed.manifest_bytes, parts())
        denial = change.candidates()[0].denial
        changed = [f"file {number}: approved x, seen y" for number in range(5)]
        change.record(
            "explanation", denial, {"denial": denial, "against": "classify v1", "changed": changed, "more": 2}, 1
        )
    folded = f"<summary><code>{signed.measurement.hex()[:16]}…</code></summary><code>{signed.measurement}</code>"
    for path in ("/", "/programs", f"/candidates/{signed.measurement}/weights"):
        text = client.get(path).text
        main = text[text.index("<main>") :]
        at = [main.index(word) for word in ("python3 other.py", "classify v1", "file 0: approved x", folded)]
        assert at == sorted(at), path
        assert ("file 4" in main) == ("/candidates/" in path)
        assert ("and 4 more" in main) == ("/candidates/" not in path)


def test_waiting_program_with_a_large_manifest_is_listed_without_reading_it(
    client: httpx.Client, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list never takes long for what a stranger wrote; the program's own page reads it."""
    signed = world.program()
    world.let_wait(signed.measurement)
    with world.store.write() as change:
        change.remember(signed.measurement, signed.manifest_bytes, parts())
    monkeypatch.setattr(programs_module, "MAX_LISTED_BYTES", len(signed.manifest_bytes) - 1)
    assert "Would run" not in client.get("/").text
    assert "What would run" in client.get(f"/candidates/{signed.measurement}/weights").text


def test_older_approvals_are_folded_and_those_that_still_release_are_said(client: httpx.Client, world: World) -> None:
    """The present version is open; of the older ones it is said whether they still release keys."""
    measurements = [world.program(argument=f"{number}.py").measurement for number in range(3)]
    ids = [world.approve(world.program(argument=f"{number}.py"), version=f"v{number}") for number in range(3)]
    assert len(set(measurements)) == 3
    text = client.get("/programs").text
    before, _, folded = text.partition('<details class="older">')
    assert "<h3>v2 " in before
    assert "2 older approvals: <strong>2 of them still release keys</strong>" in folded
    assert folded.index("<h3>v1 ") < folded.index("<h3>v0 ")
    for item in ids[:2]:
        client.post("/revoke", data={"id": item, "csrf": csrf(client)})
    assert "2 older approvals, which release nothing any more" in client.get("/programs").text


@pytest.mark.parametrize(
    ("path", "marked"),
    [
        ("/", '<a class="brand" href="/" aria-current="page">'),
        ("/programs", '<a href="/programs" aria-current="page">'),
        ("/timeline", '<a href="/timeline" aria-current="page">'),
        ("/entries/1", '<a href="/timeline" aria-current="true">'),
        ("/platforms", '<a href="/platforms" aria-current="page">'),
        ("/keys", '<a href="/keys" aria-current="page">'),
    ],
)
def test_page_marks_where_one_is(client: httpx.Client, path: str, marked: str) -> None:
    """One entry of the navigation is the present one."""
    header = client.get(path).text.partition("</header>")[0]
    assert marked in header
    assert header.count("aria-current") == 1


def test_times_name_their_zone(client: httpx.Client, world: World) -> None:
    """Every time that is shown is UTC, and says so."""
    world.approve(world.program())
    world.let_wait(world.program(argument="other.py").measurement)
    for path in PAGES:
        text = client.get(path).text.partition("<pre>")[0]
        assert re.findall(r"\d{2}:\d{2}(?::\d{2})?(?! UTC|:)\b", text) == [], path


def test_timeline_is_in_words(client: httpx.Client, world: World) -> None:
    """No entry is shown by the name of its kind."""
    text = client.get("/timeline").text
    assert "Made this key store" in text
    assert "store-created" not in text


def test_overview_plots_releases_and_refusals(client: httpx.Client, world: World) -> None:
    """An SVG within the page, with words for who cannot see it; no style and no script in it."""
    world.let_wait(world.program().measurement, at_ms=now_ms())
    text = client.get("/").text
    (plot,) = re.findall(r"<svg.*?</svg>", text, re.S)
    assert "The last 30 days, one bar a day: 0 released (above the line), 1 refused (below it)" in plot
    assert plot.count('<rect class="bad"') == 1
    assert '<rect class="good"' not in plot
    assert "style" not in plot


def half_request(world: World, page: str, source: str, said: bytes) -> ssl.SSLSocket:
    """A connection from this address that has said this much."""
    host, _, port = page.removeprefix("https://").rpartition(":")
    plain = socket.create_connection((host, int(port)), timeout=10, source_address=(source, 0))
    connection = ssl.create_default_context(cadata=world.ca_pem).wrap_socket(plain, server_hostname=host)
    try:
        connection.sendall(said)
    except BaseException:  # it was dropped already
        connection.close()
        raise
    return connection


HALF = [b"GET / HTTP/1.1\r\nHost: ", b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n"]


def test_silent_connection_is_dropped_in_time(world: World, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who says nothing is not waited for."""
    monkeypatch.setattr(http_timeouts, "REQUEST_S", 0.5)
    connection = half_request(world, page, "127.0.0.1", b"")
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        assert connection.recv(100) == b""
    connection.close()


@pytest.mark.parametrize("said", HALF)
def test_half_request_is_dropped_in_time_however_it_trickles_in(
    world: World, page: str, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    """A request must be whole in time; each further byte does not begin the time anew."""
    monkeypatch.setattr(http_timeouts, "REQUEST_S", 0.7)
    connection = half_request(world, page, "127.0.0.1", said)

    def trickle() -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            connection.sendall(b"x")
            time.sleep(0.1)

    with pytest.raises((ConnectionError, ssl.SSLError)):
        trickle()
    connection.close()


def test_half_requests_of_one_address_leave_room_for_the_owner(
    world: World, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One address has its share of connections; its oldest goes for each beyond, and the owner's page comes."""
    monkeypatch.setattr(http_timeouts, "REQUEST_S", 300)
    held = [half_request(world, page, "127.0.0.2", b"GET / HTT") for _ in range(http_timeouts.MAX_PER_ADDRESS)]
    beyond = half_request(world, page, "127.0.0.2", b"")
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        assert held[0].recv(100) == b""
    with httpx.Client(base_url=page, verify=False) as owner:
        assert owner.post("/login", data={"password": password(world)}).status_code == 303
        assert owner.get("/").status_code == 200
        assert owner.get("/programs").status_code == 200
    for connection in [*held, beyond]:
        connection.close()


def parts() -> dict[str, str]:
    """The runtime's parts as a client shows them."""
    return {name: digest.hex() for name, digest in RUNTIME_PARTS.items()}


def ask(world: World, server: Running, signed: SignedManifest) -> bool:
    """Whether a program gets its key."""
    try:
        obtain_keys(signed, world.enclave(signed), {"": server.adyton}, runtime_parts=parts)
    except Denied:
        return False
    return True


@pytest.mark.skipif(chromium.find() is None, reason="chromium is not installed (apt-get install chromium)")
def test_browser_login_refusal_approve_release(world: World, page: str, tmp_path: Path) -> None:
    """The owner's whole way in a real browser without JavaScript: log in, see a refusal, approve, see the release."""
    shots = Path(os.environ.get("ADYTON_SCREENSHOTS", tmp_path))
    world.approve(world.program())
    changed = world.program(argument="classify2.py")
    CollateralStore(world.home.collateral_path).import_bundle(world.platform.collateral().to_json().encode(), now())
    with running(world) as server, chromium.browser(tmp_path / "profile") as browser:
        assert ask(world, server, world.program())
        assert not ask(world, server, changed)
        wait_until(lambda: bool(record(world, "explanation")), within_s=120)
        browser.open(page)
        browser.screenshot(shots / "login.png")
        browser.type("input[name=password]", password(world))
        browser.click("main button")
        assert "Waiting for you" in browser.text()
        browser.screenshot(shots / "overview.png")
        browser.click(".events li.bad a")
        refusal = browser.text()
        assert "has not approved this program" in refusal
        assert "loader.argv: approved ['python3', 'classify.py'], seen ['python3', 'classify2.py']" in refusal
        assert "SIMULATED" in refusal.upper()
        browser.screenshot(shots / "refusal.png")
        browser.open(f"{page}/programs")
        browser.click(".card.waits .button")
        browser.screenshot(shots / "candidate.png")
        browser.type("input[name=version]", "v2")
        browser.click("form.stack button")
        assert "v2" in browser.text()
        browser.screenshot(shots / "programs.png")
        assert ask(world, server, changed)
        browser.open(f"{page}/timeline?kind=release")
        assert "to classify v2" in browser.text()
        browser.screenshot(shots / "timeline.png")
        browser.click(".events li.good a")
        browser.screenshot(shots / "release.png")
        for path in ("platforms", "keys"):
            browser.open(f"{page}/{path}")
            browser.screenshot(shots / f"{path}.png")
        browser.resize(390, 844)
        for path in ("", "programs", "platforms"):
            browser.open(f"{page}/{path}")
            assert browser.ask("document.documentElement.scrollWidth") <= 390
            browser.screenshot(shots / f"phone-{path or 'overview'}.png")
