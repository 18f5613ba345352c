"""What a program gives to the functions: what cannot be meant is refused, and nothing is accepted by mistake."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import adyton
from adyton.errors import AppraisalFailed, MalformedQuote, StorageFailed, UsageError
from adyton.keystore.approval import APPROVED, REVOKED
from adyton.values import Key128
from adyton.workflow.sources import Pipes
from tests.support.evidence_factory import MRENCLAVE, NOW, REPORT_DATA, Scenario
from tests.support.owner_world import make_world


def test_serving_under_sgx_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is run or made."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "serve.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(UsageError) as refused:
        adyton.protect("serve.py", tee="sgx", serve=8000, home=tmp_path / "home")
    assert refused.value.check == "--serve"
    assert not (tmp_path / "home").exists()


def test_time_to_watch_without_a_server_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program is watched to its end."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "serve.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(UsageError) as refused:
        adyton.new("serve.py", watch=1.0)
    assert refused.value.check == "--watch"


@pytest.fixture
def judge() -> Callable[..., adyton.Verdict]:
    """Verify simulated evidence as of its time, by a policy that names its program, bound to its report data."""
    built = Scenario(simulated=True).built()
    root = next(iter(built.roots.sim))
    policy = {"tees": [f"sim:{root}"], "measurements": [MRENCLAVE.hex()]}

    def verify(**changes: object) -> adyton.Verdict:
        given = {"collateral": built.collateral, "at": NOW, "policy": policy, "report_data": REPORT_DATA, **changes}
        return adyton.verify(built.quote, **given)  # type: ignore[arg-type]

    return verify


def test_verdict_of_good_evidence_is_true_and_gives_its_claims(judge: Callable[..., adyton.Verdict]) -> None:
    """The claims are there, and nothing is raised."""
    verdict = judge()
    assert verdict
    assert verdict.error is None
    assert verdict.require() is verdict.assessment.claims
    assert verdict.to_dict()["verdict"] == "accepted"


@pytest.mark.parametrize("changes", [{"policy": None}, {"policy": {}}, {"report_data": bytes(64)}])
def test_refused_verdict_is_false_and_raises_where_claims_are_wanted(
    judge: Callable[..., adyton.Verdict], changes: dict[str, object]
) -> None:
    """`if verify(...)` cannot take a refusal for an acceptance."""
    verdict = judge(**changes)
    assert not verdict
    with pytest.raises(type(verdict.error) if verdict.error else AppraisalFailed):
        verdict.require()
    assert verdict.to_dict()["verdict"] == "refused"


@pytest.mark.parametrize(
    "changes",
    [
        {"at": datetime(2026, 1, 15)},  # noqa: DTZ001 - it is refused for that
        {"report_data": REPORT_DATA[:32]},
        {"report_data": REPORT_DATA, "program_data": b"x"},
        {"program_data": None, "workload": MRENCLAVE},
    ],
    ids=["no zone", "a hash", "two of them", "workload alone"],
)
def test_verify_refuses_what_cannot_be_meant(judge: Callable[..., adyton.Verdict], changes: dict[str, object]) -> None:
    """A time without zone, and report data that is no report data."""
    with pytest.raises(UsageError):
        judge(**changes)


def test_verify_of_noise_raises(tmp_path: Path) -> None:
    """What does not parse has no verdict."""
    with pytest.raises(MalformedQuote):
        adyton.verify(b"noise" * 100)
    with pytest.raises(StorageFailed):
        adyton.verify(tmp_path / "nowhere")


def test_key_itself_and_key_file_exclude_each_other(tmp_path: Path) -> None:
    """Exactly one of them is meant."""
    plain, key = tmp_path / "plain", Key128(bytes(range(16)))
    plain.write_text("plain")
    for given in ({}, {"key": key, "key_file": tmp_path / "key"}, {"key": "a", "key_file": tmp_path / "key"}):
        with pytest.raises(UsageError, match="say which key"):
            adyton.encrypt(plain, tmp_path / "sealed", **given)  # type: ignore[arg-type]
    done = adyton.encrypt(plain, tmp_path / "sealed", key=key)
    assert done.to_dict()["encrypted"][0]["size_bytes"] == 5
    adyton.decrypt(tmp_path / "sealed", tmp_path / "again", key=key)
    assert (tmp_path / "again").read_text() == "plain"


@pytest.mark.parametrize("verb", [adyton.encrypt, adyton.decrypt])
def test_no_source_at_all_is_refused(verb: Callable[..., object], tmp_path: Path) -> None:
    """An empty list is more likely a mistake than a wish."""
    with pytest.raises(UsageError, match="no source"):
        verb([], tmp_path / "target", key=Key128(bytes(range(16))))
    assert not (tmp_path / "target").exists()


def test_dash_is_no_pipe_unless_one_is_given(tmp_path: Path) -> None:
    """A library never reads standard input or writes standard output by itself."""
    key = Key128(bytes(range(16)))
    with pytest.raises(UsageError, match="command line"):
        adyton.encrypt("-", tmp_path / "sealed", key=key)
    with pytest.raises(UsageError, match="command line"):
        adyton.decrypt(tmp_path / "sealed", "-", key=key)
    (tmp_path / "plain").write_text("plain")
    adyton.encrypt(tmp_path / "plain", tmp_path / "sealed", key=key)
    out = bytearray()
    adyton.decrypt(tmp_path / "sealed", "-", key=key, pipes=Pipes(0, out.extend))
    assert out == b"plain"


@pytest.mark.parametrize(
    "wrong",
    [{"keys": "data", "tees": ["sim"]}, {"keys": ["data"], "tees": "sgx"}, {"keys": []}, {"protocols": "adyton"}],
)
def test_approve_takes_no_bare_name_for_several(wrong: dict[str, object], tmp_path: Path) -> None:
    """A string would be taken for the sequence of its letters."""
    with pytest.raises(UsageError, match="one name or several"):
        adyton.approve(tmp_path / "x.manifest", **{"keys": ["data"], "tees": ["sgx"], **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [str, lambda found: [found], lambda found: iter([found]), lambda found: {found}])
def test_revoke_takes_back_what_is_named_however_it_is_given(given: Callable[[str], Any], tmp_path: Path) -> None:
    """An iterator that was used up by a first look would revoke nothing, and nobody would be told."""
    with make_world(tmp_path) as world:
        approvals = [world.approve(world.program(argument=name)) for name in ("one.py", "two.py")]
        done = adyton.revoke(given(approvals[0]), home=world.home.path)
        assert done.to_dict() == {"revoked": approvals[:1]}
        with world.store.read() as view:
            states = {item.id: item.state for item in view.approvals()}
    assert states == {approvals[0]: REVOKED, approvals[1]: APPROVED}


@pytest.mark.parametrize("nothing", [(), [], iter(())])
def test_revoke_of_nothing_is_refused(nothing: Any, tmp_path: Path) -> None:
    """Also where it could only be seen by looking."""
    with pytest.raises(UsageError, match="say what to revoke"):
        adyton.revoke(nothing, home=tmp_path / "nowhere")


def test_server_that_would_serve_nothing_is_refused(tmp_path: Path) -> None:
    """Before a home is looked for."""
    with pytest.raises(UsageError, match="nothing to serve"):
        adyton.serve(home=tmp_path / "nowhere")
    with pytest.raises(UsageError, match="nothing to serve"), adyton.serving(home=tmp_path / "nowhere"):
        pass


def test_run_raises_the_errors_of_its_process(tmp_path: Path) -> None:
    """An error crosses the pipe with all that it says."""
    with pytest.raises(UsageError) as caught:
        adyton.run(tmp_path / "nowhere.manifest", tee="sim", provisioning="by post")
    assert (caught.value.check, caught.value.seen) == ("--provisioning", "by post")
