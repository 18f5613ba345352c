"""What runs say to a key server after their grant, over its real connections."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from adyton.errors import Error, OutOfOrder, StoreError, Unavailable
from adyton.keyserver.run_messages import RunMessages, VerifiedMessage
from adyton.keystore.granted_run import GrantedRun
from adyton.manifest.signed import SignedManifest
from adyton.release.client import tell_server
from adyton.release.messages import PATH_CHALLENGE, challenge_request
from adyton.release.run_key import RunKey
from adyton.release.run_messages import PATH_RUN, ROOT_COMMIT, ROOT_INTENT, RunMessage
from adyton.server import protocols
from adyton.server.process import server_identity
from tests.support.owner_world import RA_TLS, Running, World
from tests.support.release_by_hand import entries, https, obtain, post

Answers = Callable[[VerifiedMessage], Mapping[str, Any]]


def taking(world: World, server: Running, handler: Answers) -> None:
    """Have the server hand one action to this handler."""
    identity = server_identity(world.home)
    server.server.service.run_messages = RunMessages(world.store, identity, {ROOT_INTENT: handler})


def granted(world: World, server: Running, signed: SignedManifest, **changes: Any) -> tuple[RunKey, str]:
    """A run with its grant."""
    world.approve(signed)
    key = RunKey()
    return key, obtain(world, server, signed, run_key=key, **changes).grants[0].grant


def tell(server: Running, signed: SignedManifest, key: RunKey, grant: str, action: str = ROOT_INTENT) -> Any:
    """Say something, as a run does."""
    return dict(tell_server(signed, "alice", {"alice": server.adyton}, key, action, grant, b"payload", timeout_s=10))


def test_the_run_itself_reaches_the_handler(world: World, server: Running) -> None:
    """The record has the run's key; the handler gets the run and the payload, and its members come back."""
    signed = world.program()
    key, grant = granted(world, server, signed)
    seen: list[VerifiedMessage] = []

    def handler(message: VerifiedMessage) -> dict[str, Any]:
        seen.append(message)
        return {"taken": len(message.payload)}

    taking(world, server, handler)
    assert tell(server, signed, key, grant) == {"taken": 7}
    (message,) = seen
    assert message.payload == b"payload"
    assert (message.run.grant, message.run.run_key) == (grant, key.public_bytes)
    (entry,) = entries(world, "release")
    assert base64.b64decode(entry["run_key"]) == key.public_bytes
    assert message.run.run == entry["run"]
    assert message.run.facts["keys"][0]["version"] == 1


def test_an_unknown_run_learns_nothing(world: World, server: Running) -> None:
    """A false signature and a grant that is not there get one answer, and no handler hears of it."""
    signed = world.program()
    key, grant = granted(world, server, signed)
    taking(world, server, lambda _message: pytest.fail("heard"))
    for other_key, other_grant in ((RunKey(), grant), (key, "g-nothing")):
        with pytest.raises(OutOfOrder) as caught:
            tell(server, signed, other_key, other_grant)
        assert caught.value.check == "grant of the run"
    message = RunMessage.create(key, server_identity(world.home), ROOT_COMMIT, grant, b"payload")
    with https(world, server.adyton) as connection:
        answers = [
            post(connection, f"{PATH_RUN}/{ROOT_INTENT}", each.to_bytes())
            for each in (message, replace(message, grant="g-nothing"), replace(message, payload=b"other"))
        ]
    assert answers == [(409, {"protocol": "adyton-release/4", "status": "unknown"})] * 3


def test_a_grant_over_ra_tls_has_no_run_key(world: World, server: Running) -> None:
    """Gramine's protocol has none, so no message counts for such a grant."""
    signed = world.program(tables=RA_TLS)
    world.approve(signed, protocols=("ra-tls",))
    obtain(world, server, signed, protocol="ra-tls")
    (entry,) = entries(world, "release")
    assert "run_key" not in entry
    with world.store.read() as view:
        assert GrantedRun.load(view, entry["grant"]) is None


def test_an_action_without_a_handler_is_refused_in_words(world: World, server: Running) -> None:
    """An older server says what it does not take, to the run itself only."""
    signed = world.program()
    key, grant = granted(world, server, signed)
    taking(world, server, lambda _message: {})
    with pytest.raises(Error) as caught:
        tell(server, signed, key, grant, ROOT_COMMIT)
    assert caught.value.check == "action of the message"
    for path in (f"{PATH_RUN}/other", PATH_RUN):
        with https(world, server.adyton) as connection:
            assert post(connection, path, b"{}")[0] == 426


def test_what_fails_inside_the_server_is_not_told(world: World, server: Running) -> None:
    """The run reads only that it could not be checked."""
    signed = world.program()
    key, grant = granted(world, server, signed)

    def handler(_message: VerifiedMessage) -> dict[str, Any]:
        raise StoreError("a secret of the database")

    taking(world, server, handler)
    with pytest.raises(Unavailable) as caught:
        tell(server, signed, key, grant)
    assert "secret" not in str(caught.value.details())


def test_messages_that_wait_are_limited(world: World, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the pool a message is refused at once: what runs say cannot take the threads of releases."""
    signed = world.program()
    key, grant = granted(world, server, signed)
    inside, end = threading.Semaphore(0), threading.Event()

    def handler(_message: VerifiedMessage) -> dict[str, Any]:
        inside.release()
        assert end.wait(60)
        return {}

    taking(world, server, handler)
    monkeypatch.setattr(server.server._run_messages, "_most", protocols.RUN_MESSAGE_THREADS)
    told = [
        threading.Thread(target=tell, args=(server, signed, key, grant)) for _ in range(protocols.RUN_MESSAGE_THREADS)
    ]
    for thread in told:
        thread.start()
        assert inside.acquire(timeout=60)
    try:
        with pytest.raises(Unavailable) as caught:
            tell(server, signed, key, grant)
        assert caught.value.check == "messages of runs at a time"
        assert obtain(world, server, signed).keys
    finally:
        end.set()
        for thread in told:
            thread.join(60)


def test_older_versions_of_the_protocol_are_told_so(world: World, server: Running) -> None:
    """1, 2 and 3 get 426."""
    for version in (1, 2, 3):
        with https(world, server.adyton) as connection:
            path = PATH_CHALLENGE.replace("/v4/", f"/v{version}/")
            assert post(connection, path, challenge_request())[0] == 426
