"""Roots of pinned folders at a key server: given with the keys, and taken from the one run that writes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from adyton.errors import Error, OutOfOrder
from adyton.keystore.stored_folder import PINNED, StoredFolder
from adyton.manifest.signed import SignedManifest
from adyton.release.client import tell_server
from adyton.release.root_messages import RootCommit, RootIntent, parse_commit, parse_intent
from adyton.release.run_key import RunKey
from adyton.release.run_messages import ROOT_COMMIT, ROOT_INTENT
from adyton.roots.root import OWNER, Root
from tests.support.owner_world import Running, World
from tests.support.release_by_hand import entries, obtain

FOLDER = "weights/weights"
FIRST = Root(1, b"\1" * 32, b"\2" * 32, 3, 1_700_000_000, OWNER)


def after(root: Root, *, fork: int = 0) -> Root:
    """A root that could follow another."""
    return Root(root.sequence + 1, bytes([root.sequence + 1, fork]) * 16, b"\3" * 32, 4, root.at_s + 60, "g-run")


class Run:
    """A run that was given the root of the folder."""

    def __init__(self, world: World, server: Running, signed: SignedManifest) -> None:
        self.server, self.signed, self.key = server, signed, RunKey()
        self.taken = FIRST
        (self.info,) = obtain(world, server, signed, run_key=self.key, folders=[FOLDER]).grants

    def tell(self, action: str, payload: bytes) -> dict[str, Any]:
        """Say something to the key server."""
        servers = {"alice": self.server.adyton}
        found = tell_server(self.signed, "alice", servers, self.key, action, self.info.grant, payload, timeout_s=10)
        return dict(found)

    def begin(self, root: Root, folder: str = FOLDER) -> int:
        """Become the writer."""
        return int(self.tell(ROOT_INTENT, RootIntent(folder, root).to_bytes())["fence"])

    def commit(self, fence: int, root: Root, *, is_last: bool = False) -> int:
        """Tell a new root."""
        commit = RootCommit(FOLDER, fence, self.taken.head, root, is_last)
        found = int(self.tell(ROOT_COMMIT, commit.to_bytes())["sequence"])
        self.taken = root
        return found


def pinned(world: World) -> SignedManifest:
    """An approved program, and a folder that its owner has pinned."""
    signed = world.program()
    world.approve(signed)
    with world.store.write() as change:
        change.set_folder(StoredFolder(FOLDER, FIRST, 0, ""), PINNED, 1, actor="test")
    return signed


def stored(world: World) -> StoredFolder:
    """What the server keeps."""
    with world.store.read() as view:
        found = view.folder(FOLDER)
    assert found is not None
    return found


def test_root_comes_with_the_keys(world: World, server: Running) -> None:
    """The grant has it, signed; of a folder that nobody pinned it says so; the record names both."""
    signed = pinned(world)
    (info,) = obtain(world, server, signed, run_key=RunKey(), folders=[FOLDER, "weights/other"]).grants
    assert info.roots == {FOLDER: FIRST.to_dict(), "weights/other": {}}
    assert entries(world, "release")[-1]["folders"] == {FOLDER: 1, "weights/other": 0}


def test_writer_commits_and_ends(world: World, server: Running) -> None:
    """Begin, commit, end: each is in the record, and the next run is given the last root."""
    signed = pinned(world)
    run = Run(world, server, signed)
    fence = run.begin(FIRST)
    assert fence == 1
    assert stored(world).holder == run.info.grant
    second = after(FIRST)
    assert run.commit(fence, second) == 2
    third = after(second)
    assert run.commit(fence, third, is_last=True) == 3
    assert (stored(world).root, stored(world).holder) == (third, "")
    assert [entry["event"] for entry in entries(world, "folder-root")] == ["pinned", "begun", "committed", "ended"]
    assert Run(world, server, signed).info.roots == {FOLDER: third.to_dict()}


def test_lost_answers_are_given_again(world: World, server: Running) -> None:
    """The same message gets the same answer, and nothing is recorded twice."""
    run = Run(world, server, pinned(world))
    assert run.begin(FIRST) == run.begin(FIRST) == 1
    second = after(FIRST)
    assert [run.commit(1, second, is_last=last) for last in (False, False, True, True)] == [2] * 4
    assert [entry["event"] for entry in entries(world, "folder-root")] == ["pinned", "begun", "committed", "ended"]


def test_run_goes_on_from_what_the_server_has_not_learned(world: World, server: Running) -> None:
    """A run ended without its server: the next one says from where it goes on."""
    run = Run(world, server, pinned(world))
    second = after(FIRST)
    assert run.begin(second) == 1
    assert stored(world).root == second


def test_second_writer_fences_the_first_off(world: World, server: Running) -> None:
    """Two clones of a folder: the one that began last writes, and the other is told."""
    signed = pinned(world)
    first, second = Run(world, server, signed), Run(world, server, signed)
    fence = first.begin(FIRST)
    first.commit(fence, after(FIRST))
    with pytest.raises(OutOfOrder) as caught:  # its copy of the folder lacks the first one's commit
        second.begin(FIRST)
    assert caught.value.check == "root of the folder"
    assert second.begin(after(FIRST)) == 2
    with pytest.raises(OutOfOrder, match="another run writes") as caught:
        first.commit(fence, after(after(FIRST)))
    assert caught.value.remedy


def test_clone_of_a_run_is_refused(world: World, server: Running) -> None:
    """Two clones have the same grant, key and number. What the first one committed is not passed over."""
    run = Run(world, server, pinned(world))
    fence = run.begin(FIRST)
    run.commit(fence, after(FIRST))
    run.taken = FIRST  # the clone knows nothing of it
    fork = after(after(FIRST, fork=9), fork=9)
    with pytest.raises(OutOfOrder, match="by another run meanwhile") as caught:
        run.commit(fence, fork)
    assert "which did not" in str(caught.value.seen)
    assert stored(world).root == after(FIRST)


@pytest.mark.parametrize(
    "root", [FIRST, replace(after(FIRST), head=b"\7" * 32), replace(after(FIRST), sequence=1)], ids=str
)
def test_root_never_goes_back(world: World, server: Running, root: Root) -> None:
    """An older root, another one of the same number, and one of another history are refused."""
    run = Run(world, server, pinned(world))
    fence = run.begin(FIRST)
    run.commit(fence, after(FIRST))
    with pytest.raises(OutOfOrder, match="by another run meanwhile"):
        run.commit(fence, root)
    assert stored(world).root == after(FIRST)


def test_run_speaks_only_of_folders_that_it_was_given(world: World, server: Running) -> None:
    """Another folder under the same key, which the run did not ask for, is not its own."""
    signed = pinned(world)
    other = StoredFolder("weights/other", FIRST, 0, "")
    with world.store.write() as change:
        change.set_folder(other, PINNED, 1)
    run = Run(world, server, signed)
    with pytest.raises(OutOfOrder, match="not given the root"):
        run.begin(FIRST, "weights/other")


def test_root_is_in_the_record_and_nowhere_else(world: World) -> None:
    """A new reader finds it, also from the stored facts; one that goes back is no entry of the record."""
    pinned(world)
    later = StoredFolder(FOLDER, after(FIRST), 1, "g-run")
    with world.store.write() as change:
        change.set_folder(later, "committed", 2)
        assert change.folder(FOLDER) == later
    again = world.home.open_store()
    try:
        with again.read() as view:
            assert view.folder(FOLDER) == later
            assert view.folders() == [later]
            assert view.folder("weights/other") is None
    finally:
        again.close()
    with pytest.raises(Error), world.store.write() as change:
        change.set_folder(StoredFolder(FOLDER, FIRST, 1, ""), PINNED, 3)
    assert stored(world) == later


@pytest.mark.parametrize("change", ["missing", "more", "type", "folder", "long"])
def test_payloads_have_one_form(change: str) -> None:
    """Every other form is refused."""
    for parse, payload in (
        (parse_intent, RootIntent(FOLDER, FIRST).to_bytes()),
        (parse_commit, RootCommit(FOLDER, 1, b"\1" * 32, FIRST, False).to_bytes()),
    ):
        assert parse(payload).to_bytes() == payload
        document = json.loads(payload)
        match change:
            case "missing":
                del document["root"]
            case "more":
                document["other"] = 1
            case "type":
                document["root"]["sequence"] = "1"
            case "folder":
                document["folder"] = "weights/a/../other"
            case _:
                document["root"]["writer"] = "g" * 5000
        with pytest.raises(Error):
            parse(json.dumps(document).encode())


def test_run_of_an_abandoned_state_does_not_bring_it_back(world: World, server: Running) -> None:
    """A run said that it goes on from a state which its owner then gave up: the host kept what it said for later."""
    run = Run(world, server, pinned(world))
    given_up = replace(after(after(FIRST)), writer="g-before")
    accepted = after(FIRST, fork=9)
    with world.store.write() as change:
        change.set_folder(StoredFolder(FOLDER, accepted, 1, ""), PINNED, 2, actor="test")
    with pytest.raises(OutOfOrder) as caught:
        run.begin(given_up)
    assert caught.value.check == "root of the folder"
    assert stored(world) == StoredFolder(FOLDER, accepted, 1, "")
    assert run.begin(accepted) == 2
