"""A co-owner's manifest that exposes the owner's data is approved in no way before she has named what it exposes."""

from __future__ import annotations

import ast
import hashlib
import html
import json
import re
import ssl
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

import adyton
from adyton.errors import MalformedManifest
from adyton.keystore.approval import APPROVED, PENDING
from adyton.keystore.certificates import make_ca
from adyton.manifest.signed import SignedManifest, load_signed, signed_attributes
from adyton.manifest.sigstruct import generate_signer, load_signer, sign
from tests.faults.owner.conftest import PARTS, Desk, Post, pending

KEY = "0" * 32
EXPOSING = {
    "debug": "",
    "key-in-manifest=weights": f'fs.insecure__keys.weights = "{KEY}"',
    "output-in-clear": "adyton.insecure__stdio = true",
    "unlisted-files": 'sgx.file_check_policy = "allow_all_but_log"',
    "environment-from-host": "loader.insecure__use_host_env = true",
    "variable-from-host=TOKEN": "loader.env.TOKEN = { passthrough = true }",
    "allowed-file=file:/tmp/out": 'sgx.allowed_files = ["file:/tmp/out"]',
    "input-from-host": "adyton.insecure__stdin = true",
    "unlisted-environment=file:env": 'loader.env_src_file = "file:env"',
    "no-aslr": "loader.insecure__disable_aslr = true",
    "eventfd-of-host": "sys.insecure__allow_eventfd = true",
    "fault-addresses": "sgx.insecure__allow_memfaults_without_exinfo = true",
    "exitless-calls": "sgx.insecure__rpc_thread_num = 1",
}
"""Finding -> what a co-owner wrote into the manifest."""


def program(desk: Desk, name: str) -> SignedManifest:
    """The program with this finding."""
    if name == "debug":
        return desk.world.program(debug=True)
    return desk.world.program(extra=EXPOSING[name])


def foreign(desk: Desk) -> tuple[SignedManifest, str]:
    """A program that takes the owner's key from somebody else's key server, and its finding."""
    pem = make_ca("mallory", datetime.now(UTC)).certificate_pem.decode()
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
    return desk.world.program(ca_pem=pem), f"foreign-ca=weights@{digest}"


@pytest.mark.parametrize("name", EXPOSING)
def test_exposing_manifest_is_refused_at_the_command_line_until_it_is_named(desk: Desk, name: str) -> None:
    """Refused without a name and with another one; named, it is approved, and the record says what was named."""
    signed = program(desk, name)
    status, _, error = desk.approve(signed)
    assert status == 2, error
    assert f"{name}:" in error
    assert "--allow" in error
    assert desk.approve(signed, "--allow", "network-of-host")[0] == 2
    assert desk.approvals() == []
    assert desk.recorded() == []
    status, out, error = desk.approve(signed, "--allow", name, "--json")
    assert status == 0, error
    (made,) = json.loads(out)["approvals"]
    assert made["allowed"] == [name]
    (policy,) = desk.recorded()
    assert policy["allowed"] == [name]
    assert name in desk.adyton("policy", "show")[1]
    assert f"- {name}" in desk.adyton("audit", "show", made["id"])[1]


@pytest.mark.parametrize("name", EXPOSING)
def test_exposing_program_that_asked_is_refused_on_the_dashboard_until_its_box_is_ticked(
    desk: Desk, page: httpx.Client, post: Post, name: str
) -> None:
    """The page shows a box for it, not ticked; the server looks whether it was."""
    signed = program(desk, name)
    desk.waits(signed)
    shown = page.get(f"/candidates/{signed.measurement}/weights").text
    (box,) = re.findall(r'<input type="checkbox" name="allow" value="([^"]+)">', shown)
    assert html.unescape(box) == name
    assert post("/accept", signed).status_code == 400
    assert post("/accept", signed, allow=("debug=no",)).status_code == 400
    assert desk.approvals() == []
    assert post("/accept", signed, allow=(name,)).status_code == 303
    (made,) = desk.approvals()
    assert (made.state, made.approval.allowed) == (APPROVED, (name,))


def test_key_of_the_owner_under_a_strangers_ca_is_refused(desk: Desk) -> None:
    """The program would take its key from the stranger, and write under it what the owner believes to be hers."""
    signed, name = foreign(desk)
    status, _, error = desk.approve(signed)
    assert status == 2
    assert name in error
    other, another = foreign(desk)
    assert desk.approve(other, "--allow", name)[0] == 2
    assert desk.approve(other, "--allow", another)[0] == 0


def test_key_of_the_owner_beside_the_approved_one_is_looked_at_too(desk: Desk) -> None:
    """Approving one key does not wave through that another of hers is pinned to a stranger."""
    status, _, _ = desk.adyton("key", "new", "photo")
    assert status == 0
    pem = make_ca("mallory", datetime.now(UTC)).certificate_pem.decode()
    owners = (
        f"[adyton.owners.bob]\nca = '''{pem}'''\n[adyton.keys]\nweights = \"alice\"\nphoto = \"bob\"\nhis = \"bob\"\n"
    )
    signed = desk.world.program(keys=("weights", "photo", "his"), tables=owners)
    status, _, error = desk.approve(signed)
    assert status == 2
    assert "foreign-ca=photo@" in error
    assert "note: other-owner=his@" in error
    assert "foreign-ca=his@" not in error


def test_secret_hides_no_key_of_the_same_name(desk: Desk) -> None:
    """A secret `weights` of the owner's own, beside a stranger's key `weights`: only the former was looked at."""
    pem = make_ca("mallory", datetime.now(UTC)).certificate_pem.decode()
    owners = f"[adyton.owners.bob]\nca = '''{pem}'''\n[adyton.keys]\nweights = \"bob\"\n"
    for secret, refused in (("weights", "name of a file key"), ("token", "foreign-ca=weights@")):
        tables = f'{owners}[adyton.secrets.{secret}]\nenv = "X"\nowner = "alice"\n'
        try:
            _, _, error = desk.approve(desk.world.program(tables=tables))
        except MalformedManifest as malformed:
            error = str(malformed)
        assert refused in error
    assert desk.approvals() == []


@pytest.mark.parametrize("hidden", "\u115f\u3164\u2800\ufe0f\u034f\u200b\u202e\u00ad\u00a0\U000e0101\U000e0041")
def test_two_names_that_look_alike_for_what_cannot_be_seen_are_told_apart(desk: Desk, hidden: str) -> None:
    """Blank letters, selectors and joiners in a file's name are shown as escapes, and the name so shown is taken."""
    signed = desk.world.program(extra=f"sgx.allowed_files = ['file:/tmp/a{hidden}b']")
    _, _, error = desk.approve(signed)
    assert hidden not in error
    named = re.search(r"exposes: (allowed-file=file:/tmp/a\\\S+b):", error)
    assert named is not None
    assert desk.approve(signed, "--allow", named[1])[0] == 0


def test_flood_of_findings_buries_none_of_them(desk: Desk, page: httpx.Client, post: Post) -> None:
    """50,000 allowed files were 5 MB on the terminal before the refusal, and 12 MB of a page with a button below."""
    files = ", ".join(f'"file:{at}"' for at in range(5000))
    signed = desk.world.program(extra=f"adyton.insecure__stdio = true\nsgx.allowed_files = [{files}]")
    status, out, error = desk.approve(signed)
    assert status == 2
    assert "more open than anybody can look at" in error
    assert len(out + error) < 2000
    desk.waits(signed)
    shown = page.get(f"/candidates/{signed.measurement}/weights")
    assert shown.status_code == 200
    assert "more open than anybody can look at" in shown.text
    assert 'action="/accept"' not in shown.text
    assert 'action="/dismiss"' in shown.text
    assert len(shown.text) < 20_000
    assert post("/accept", signed).status_code == 400
    assert desk.approvals() == []


def test_two_things_are_named_each(desk: Desk) -> None:
    """One name opens one thing: two files are two names."""
    signed = desk.world.program(extra='sgx.allowed_files = ["file:a", "file:b"]')
    assert desk.approve(signed, "--allow", "allowed-file=file:a")[0] == 2
    assert desk.approve(signed, "--allow", "allowed-file")[0] == 2
    assert desk.approve(signed, "--allow", "allowed-file=file:a", "--allow", "allowed-file=file:b")[0] == 0


def test_notes_are_shown_and_need_no_name(desk: Desk) -> None:
    """What exposes nothing by itself is shown before the approval."""
    signed = desk.world.program(extra='adyton.network = "host"', keys=("photo",))
    status, _, error = desk.approve(signed)
    assert status == 0
    assert "note: network-of-host" in error
    assert "note: unused-key=weights" in error


def test_every_version_of_a_signer_is_named_by_its_option_and_recorded(desk: Desk) -> None:
    """What the signer signs later is not shown: the option that says so is the name."""
    signed = desk.world.program(extra="adyton.insecure__stdio = true")
    assert desk.approve(signed, "--by-signer")[0] == 2
    assert desk.approve(signed, "--by-signer", "--allow", "output-in-clear")[0] == 0
    assert set(desk.recorded()[0]["allowed"]) == {"any-version", "output-in-clear"}


def test_strangers_signer_is_named_beside_the_option(desk: Desk) -> None:
    """A co-owner's signer would decide from now on what has the owner's key."""
    key = load_signer(generate_signer())
    own = desk.world.program()
    sigstruct = sign(own.measurement, key, attributes=signed_attributes(own.manifest))
    hers = load_signed(own.manifest_bytes, sigstruct.to_bytes(), own.runtime)
    status, _, error = desk.approve(hers, "--by-signer")
    assert status == 2
    assert f"foreign-signer={hers.mrsigner}" in error
    assert desk.approve(hers, "--by-signer", "--allow", f"foreign-signer={own.mrsigner}")[0] == 2
    assert desk.approve(hers)[0] == 0
    assert desk.approve(own, "--by-signer")[0] == 0


# --- proposals ------------------------------------------------------------------------------------------------------


def test_proposal_is_looked_at_by_who_approves_it_not_by_who_made_it(
    desk: Desk, page: httpx.Client, post: Post
) -> None:
    """What the proposer named counts for nothing, at the command line and on the dashboard."""
    signed = desk.world.program(extra="adyton.insecure__stdio = true")
    assert desk.approve(signed, "--pending", "--allow", "output-in-clear")[0] == 0
    (made,) = desk.approvals()
    assert (made.state, made.approval.allowed) == (PENDING, ())
    status, _, error = desk.adyton("policy", "approve", made.id)
    assert status == 2
    assert "exposes: output-in-clear" in error
    assert post("/approve", id=made.id).status_code == 400
    assert 'value="output-in-clear"' in page.get(f"/approvals/{made.id}").text
    assert desk.approvals()[0].state == PENDING
    assert post("/approve", id=made.id, allow=("output-in-clear",)).status_code == 303
    assert desk.approvals()[0].approval.allowed == ("output-in-clear",)


def test_proposal_that_claims_to_be_reviewed_is_reviewed(desk: Desk, post: Post) -> None:
    """What a proposal says of itself is not believed where its manifest is known."""
    signed = desk.world.program(extra="adyton.insecure__stdio = true")
    claims = {"findings": ("flock",), "allowed": ("output-in-clear", "manifest-unknown")}
    made = pending(desk, desk.world.approval(signed.measurement, **claims))
    with desk.world.store.write() as change:
        change.remember(signed.measurement, signed.manifest_bytes, PARTS)
    assert post("/approve", id=made).status_code == 400
    assert desk.adyton("policy", "approve", made)[0] == 2
    assert desk.approvals()[0].state == PENDING


def test_proposal_of_what_the_store_does_not_know_is_not_believed_either(desk: Desk, post: Post) -> None:
    """Its own word of what was found is shown; that the manifest is not known must be named all the same."""
    made = pending(desk, desk.world.approval(desk.world.program().measurement, findings=("flock",)))
    assert post("/approve", id=made).status_code == 400
    assert post("/approve", id=made, allow=("manifest-unknown",)).status_code == 303
    assert desk.approvals()[0].approval.findings == ("manifest-unknown", "flock")


def test_bare_measurement_is_approved_only_as_unknown(desk: Desk, page: httpx.Client, post: Post) -> None:
    """Where nobody showed a manifest, the owner says that she knows nothing of it."""
    signed = desk.world.program(extra="adyton.insecure__stdio = true")
    desk.waits(signed, known=False)
    assert "nothing is known" in page.get(f"/candidates/{signed.measurement}/weights").text
    assert post("/accept", signed).status_code == 400
    made = pending(desk, desk.world.approval(signed.measurement))
    assert desk.adyton("policy", "approve", made)[0] == 2
    assert post("/approve", id=made).status_code == 400
    assert {item.state for item in desk.approvals()} == {PENDING}
    assert desk.adyton("policy", "approve", made, "--allow", "manifest-unknown")[0] == 0
    assert desk.recorded()[-1]["allowed"] == ["manifest-unknown"]


def test_manifest_that_is_not_the_named_one_is_not_taken_for_it(desk: Desk, post: Post) -> None:
    """An approval that names another manifest's hash than the one that the store shows is not known by that one."""
    shown, meant = desk.world.program(), desk.world.program(argument="other.py")
    made = pending(desk, desk.world.approval(shown.measurement, manifest_sha256=meant.manifest_sha256))
    with desk.world.store.write() as change:
        change.remember(shown.measurement, shown.manifest_bytes, PARTS)
    assert post("/approve", id=made).status_code == 400
    assert desk.adyton("policy", "approve", made, "--allow", "manifest-unknown")[0] == 0


# --- changes of what stands -----------------------------------------------------------------------------------------


def test_changed_approval_is_looked_at_again(desk: Desk) -> None:
    """`policy set` is no way around: another program, debug, or another platform is shown and named like a new one."""
    good, bad = desk.world.program(), desk.world.program(extra="adyton.insecure__stdio = true")
    assert desk.approve(good)[0] == 0
    (made,) = desk.approvals()
    with desk.world.store.write() as change:
        change.remember(bad.measurement, bad.manifest_bytes, PARTS)
    other = [f'measurement="{bad.measurement}"', f'manifest_sha256="{bad.manifest_sha256}"']
    for changes in (other, [f'measurement="{"ab" * 32}"', "manifest_sha256=null"], ["allow_debug=true"]):
        status, _, error = desk.adyton("policy", "set", made.id, *changes)
        assert status == 2, error
        assert "did not name" in error
    assert desk.approvals()[0].revision == 1
    assert desk.adyton("policy", "set", made.id, "max_runs=5")[0] == 0
    assert desk.adyton("policy", "set", made.id, *other, "--allow", "output-in-clear")[0] == 0
    assert desk.approvals()[0].approval.allowed == ("output-in-clear",)
    assert desk.adyton("policy", "set", made.id, "max_runs=6")[0] == 0
    back = [f'measurement="{good.measurement}"', f'manifest_sha256="{good.manifest_sha256}"']
    assert desk.adyton("policy", "set", made.id, *back)[0] == 0
    assert desk.approvals()[0].approval.allowed == ()
    assert desk.adyton("policy", "set", made.id, *other)[0] == 2


@pytest.mark.parametrize("entry", ["allowed", "findings", "not_covered"])
def test_review_is_written_by_nobody(desk: Desk, entry: str) -> None:
    """What was found and named cannot be set by hand."""
    assert desk.approve(desk.world.program())[0] == 0
    status, _, error = desk.adyton("policy", "set", desk.approvals()[0].id, f'{entry}=["output-in-clear"]')
    assert status == 2
    assert "by hand" in error


def test_only_reviewed_approvals_come_to_stand() -> None:
    """In Adyton's own code nothing but `consent` makes an approval or changes one, other than revoking it."""
    source = Path(adyton.__file__).parent
    found = []
    for path in sorted(source.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr in ("add_approval", "change_approval"):
                states = [item.value for item in node.keywords if item.arg == "state"]
                revokes = [ast.unparse(state) for state in states] == ["REVOKED"]
                found.append((str(path.relative_to(source)), revokes))
    assert set(found) == {("keyserver/consent.py", False), ("workflow/revoke.py", True)}
