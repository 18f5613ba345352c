"""A stranger who guesses: whether a key exists, what is approved, how near his own program comes. He learns nothing.

Each case differs in what the owner keeps; what he sends and what he is told are the same in all of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from adyton.attest.appraise import appraise
from adyton.attest.bundle import EvidenceBundle
from adyton.keystore.approval import PENDING, REVOKED
from adyton.keystore.tables.keys import KEY
from adyton.manifest.signed import SignedManifest
from adyton.release.messages import (
    PATH_CHALLENGE,
    PATH_RELEASE,
    EnclaveKey,
    Refusal,
    ReleaseRequest,
    challenge_request,
    parse_challenge,
)
from adyton.release.shown_program import PATH_EXPLAIN, explain_message
from adyton.release.wire import PROTOCOL
from adyton.server.process import server_identity
from adyton.server.protocols import BEAT_S, MAX_BEATS, until_beat
from tests.support.owner_world import RUNTIME_PARTS, World, make_world, now, running
from tests.support.release_by_hand import credential, entries, explanation, https, post, provision, reason, wait_until
from tests.support.run_keys import RUN_KEY


def nothing(_world: World, _signed: SignedManifest) -> None:
    """The key is there, and nobody may have it but another program."""


def nearly(world: World, _signed: SignedManifest) -> None:
    """An approved program differs from this one in one argument."""
    world.approve(world.program(argument="guess2.py"))


def revoked(world: World, signed: SignedManifest) -> None:
    """This very program was approved, and is not any more."""
    with world.store.write() as change:
        change.change_approval(
            change.add_approval(world.approval(signed.measurement), actor="t").id, actor="t", state=REVOKED
        )


def pending(world: World, signed: SignedManifest) -> None:
    """This very program waits for its approval."""
    with world.store.write() as change:
        change.add_approval(world.approval(signed.measurement), actor="t", state=PENDING)


def expired(world: World, signed: SignedManifest) -> None:
    """Its approval has ended."""
    world.approve(signed, expires_at=now() - timedelta(days=1))


def other_protocol(world: World, signed: SignedManifest) -> None:
    """It is approved for the other protocol only."""
    world.approve(signed, protocols=("ra-tls",))


def used_up(world: World, signed: SignedManifest) -> None:
    """Its runs are used up."""
    world.approve(signed, max_runs=1)
    with running(world) as server, https(world, server.adyton) as connection:
        assert ask(world, connection, signed, "weights")[0] == 200


def other_tee(world: World, signed: SignedManifest) -> None:
    """It is approved on hardware, and this platform is simulated."""
    world.approve(signed, tees=("sgx",))


def other_manifest(world: World, signed: SignedManifest) -> None:
    """Its measurement is approved with another manifest's hash."""
    world.approve(signed, manifest_sha256=world.program(argument="other.py").manifest_sha256)


CASES: list[Callable[[World, SignedManifest], None]] = [
    nothing,
    nearly,
    revoked,
    pending,
    expired,
    other_protocol,
    used_up,
    other_tee,
    other_manifest,
]


def ask(world: World, connection: Any, signed: SignedManifest, *names: str, debug: bool = False) -> tuple[int, Any]:
    """A request as it should be, for these names."""
    _, challenge = post(connection, PATH_CHALLENGE, challenge_request())
    nonce = parse_challenge(json.dumps(challenge).encode()).nonce
    unsigned = ReleaseRequest(
        nonce, EnclaveKey().public_bytes, signed.manifest_sha256, names, EvidenceBundle(), run_key=RUN_KEY
    )
    quote = world.enclave(signed, debug=debug).quote(unsigned.report_data(server_identity(world.home)))
    return post(connection, PATH_RELEASE, replace(unsigned, evidence=EvidenceBundle(cpu=quote)).to_bytes())


def told(document: dict[str, Any], key: str = "weights") -> str:
    """A refusal's text without what is fresh in each (its id) and what was asked for."""
    return json.dumps(document, sort_keys=True).replace(document["denial"], "ID").replace(repr(key), "KEY")


def shown(world: World, signed: SignedManifest, document: dict[str, Any], address: str) -> tuple[int, Any]:
    """The answer to the explanation of a refusal."""
    parts = {name: digest.hex() for name, digest in RUNTIME_PARTS.items()}
    with https(world, address) as connection:
        message = explain_message(document["denial"], signed.manifest_bytes, parts)
        return post(connection, f"{PATH_EXPLAIN}/{document['denial']}", message)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_refusal_is_the_same_text_whatever_the_owner_keeps(
    world: World, case: Callable[[World, SignedManifest], None]
) -> None:
    """Status, text and length are those of a key that does not exist; the explanation's answer is, too."""
    signed = world.program(argument="guess.py")
    case(world, signed)
    with running(world) as server:
        with https(world, server.adyton) as connection:
            status, document = ask(world, connection, signed, "weights")
        why = reason(world)
        with https(world, server.adyton) as connection:
            none_status, none = ask(world, connection, signed, "nothing")
        assert (status, told(document)) == (none_status, told(none, "nothing")) == (403, told(none, "nothing"))
        assert signed.measurement.hex() in document["seen"]
        answers = [shown(world, signed, each, server.adyton) for each in (document, none)]
        assert answers == [(202, {"protocol": PROTOCOL, "status": "taken"})] * 2
        wait_until(lambda: len(entries(world, "explanation")) == 2, within_s=240)
    if case is not nothing and case is not nearly:
        assert why["check"] != "measurement of the program", why  # the owner's record has the true reason
    secret = [stored.id for stored in approvals(world)] + ["classify", "guess2.py"]
    assert not any(word in json.dumps([document, answers]) for word in secret)


def approvals(world: World) -> list[Any]:
    """All approvals."""
    with world.store.read() as view:
        return view.approvals()


def test_refusal_of_several_names_does_not_say_which_was_granted(world: World) -> None:
    """A name that the program may have, asked for beside one that does not exist, is refused as any two are."""
    signed = world.program(argument="guess.py")
    world.approve(signed)
    with running(world) as server, https(world, server.adyton) as connection:
        _, one = ask(world, connection, signed, "nothing", "weights")
        _, none = ask(world, connection, signed, "another", "nothing")
    assert one["message"].replace("'nothing', 'weights'", "") == none["message"].replace("'another', 'nothing'", "")
    assert (one["check"], one["seen"]) == (none["check"], none["seen"])


def test_refusals_until_one_is_not_kept_say_nothing_of_the_approvals(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal takes as much of a day's bytes whether it lists no approval or many: counting them tells nothing."""
    charged: list[int] = []
    monkeypatch.setattr(
        "adyton.keyserver.record_limits.RefusalLimits.wrote",
        lambda _self, _platform, size, _at_ms: charged.append(size),
    )
    signed = world.program(argument="guess.py")
    for number in range(30):
        world.approve(world.program(argument=f"approved{number}.py"), version=f"v{number}")
    with running(world) as server, https(world, server.adyton) as connection:
        for name in ("weights", "another"):
            assert ask(world, connection, signed, name)[0] == 403
    sizes = [len(json.dumps(each["detail"])) for each in entries(world, "denial")]
    assert 3500 < sizes[0] < 5000
    assert sizes[1] < 100
    assert charged[0] == charged[1]
    assert entries(world, "denial")[0]["detail"]["more"] > 10


def test_debug_enclave_learns_nothing_of_the_measurement_that_it_pretends(world: World) -> None:
    """Whoever runs a guess in a debug enclave, which gets no key, cannot confirm it."""
    signed = world.program()
    with running(world) as server, https(world, server.adyton) as connection:
        _, approved = ask(world, connection, signed, "weights", debug=True)
        assert reason(world)["check"] == "debug"
        _, none = ask(world, connection, signed, "nothing", debug=True)
    assert told(approved) == told(none, "nothing")


def test_refusal_comes_on_the_beat_however_long_it_took(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a decision costs does not show: one that takes no time at all is told no sooner than any other."""
    beats: list[float] = []

    def counted(began_at: float, at: float, before: int) -> float:
        beats.append(until_beat(began_at, at, before))
        return beats[-1]

    monkeypatch.setattr("adyton.server.protocols.until_beat", counted)
    signed = world.program(argument="guess.py")
    service = world.service()
    with running(world, service=service) as server:
        with https(world, server.adyton) as connection:
            for name in ("weights", "nothing"):
                assert ask(world, connection, signed, name)[0] == 403
        assert provision(world, server, *credential(world, signed)) == b""
        answer = service.release
        at_once = Refusal("d-1", "message", "check", "expected", "seen", "remedy")

        def no_time(request: Any, peer: str) -> Any:
            future = answer(request, peer)
            future.result(60)
            future = type(future)()
            future.set_result(type("Answer", (), {"refusal": at_once})())
            return future

        monkeypatch.setattr(service, "release", no_time)
        with https(world, server.adyton) as connection:
            assert ask(world, connection, signed, "weights")[0] == 403
    assert len(beats) == 4
    assert all(0 < waited <= BEAT_S for waited in beats)


@pytest.mark.parametrize(("took", "beat"), [(0.0, 1), (0.001, 1), (0.249, 1), (0.251, 2), (0.9, 4)])
def test_beat_is_the_next_multiple(took: float, beat: int) -> None:
    """At least one beat passes, and the answer is told exactly on one."""
    assert took + until_beat(100.0, 100.0 + took) == pytest.approx(beat * BEAT_S)


@pytest.mark.parametrize(("before", "beats"), [(0, 1), (15, 1), (16, 2), (63, 4), (100_000, MAX_BEATS)])
@pytest.mark.parametrize("took", [0.001, 0.2])
def test_who_sends_many_at_a_time_is_told_by_their_number(took: float, before: int, beats: int) -> None:
    """Together they take long enough to see how long; so the beat is settled when a request comes."""
    assert took + until_beat(100.0, 100.0 + took, before) == pytest.approx(beats * BEAT_S)


def test_refusal_takes_as_many_judgements_whichever_key_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key with many approvals, one with few, one that does not exist: sent in numbers, they take the same time."""
    judged: list[str] = []

    def counted(*arguments: Any, **more: Any) -> Any:
        judged.append("")
        return appraise(*arguments, **more)

    monkeypatch.setattr("adyton.keyserver.decide.appraise", counted)
    with world.store.write() as change:
        change.add_key("few", b"f" * 16, KEY, actor="test")
    for number in range(30):
        world.approve(world.program(argument=f"approved{number}.py"), version=f"v{number}")
    world.approve(world.program(argument="few.py"), key="few")
    counts = []
    with running(world) as server, https(world, server.adyton) as connection:
        for name in ("weights", "few", "nothing"):
            judged.clear()
            assert ask(world, connection, world.program(argument="guess.py"), name)[0] == 403
            counts.append(len(judged))
    assert counts == [32, 32, 32]


def test_requests_without_an_answer_are_counted(world: World) -> None:
    """Also where whoever asked has gone, or nothing can be decided; once all is answered there are none."""
    service = world.service()
    try:
        with running(world, service=service) as server, https(world, server.adyton) as connection:
            for _ in range(3):
                assert ask(world, connection, world.program(argument="guess.py"), "weights")[0] == 403
            assert service.undecided == 0
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(service._queue, "put", lambda _job: False)
                assert ask(world, connection, world.program(), "weights")[0] == 503
            assert service.undecided == 0
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(service._queue, "put", lambda _job: True)
                held = [service.provision([], None, "peer") for _ in range(5)]
                assert service.undecided == 5
            for future in held:
                future.cancel()
            assert service.undecided == 0
    finally:
        service.close()


def test_ra_tls_says_nothing_at_all(world: World) -> None:
    """The end of the connection is the same for a key that is not approved, not there, or used up."""
    signed = world.program(argument="guess.py")
    with running(world) as server:
        pair = credential(world, signed)
        assert provision(world, server, *pair) == b""
        world.approve(signed, protocols=("ra-tls",), max_runs=1)
        assert provision(world, server, *pair) != b""
        assert provision(world, server, *credential(world, signed)) == b""
    assert reason(world)["check"] == "number of runs"


def test_owner_reads_what_the_stranger_does_not(world: World) -> None:
    """The comparison is in the record, with both values, under the id that the stranger can quote."""
    signed = world.program(argument="guess.py")
    with running(world) as server:
        with https(world, server.adyton) as connection:
            _, document = ask(world, connection, signed, "weights")
        shown(world, signed, document, server.adyton)
        found = explanation(world)
    assert found["denial"] == document["denial"]
    assert found["changed"] == ["loader.argv: approved ['python3', 'classify.py'], seen ['python3', 'guess.py']"]


def test_explanation_of_another_owners_denial_is_answered_as_any(world: World, tmp_path: Any) -> None:
    """Ids of refusals can be tried; there is one answer, whether such an entry is in the record or not."""
    with make_world(tmp_path / "other") as other, running(world) as server, running(other) as his:
        signed = world.program(argument="guess.py")
        with https(other, his.adyton) as connection:
            _, document = ask(other, connection, other.program(), "weights")
        for denial in (document["denial"], "d-" + 20 * "0", "not kept"):
            status, said = shown(world, signed, {"denial": denial.replace(" ", "%20")}, server.adyton)
            assert (status, said) == (409, {"protocol": PROTOCOL, "status": "unknown"})
