"""From a manifest to a plan."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from adyton.errors import MalformedManifest, UsageError
from adyton.gpu_nodes import DeviceNode
from adyton.manifest.model import AdytonTable, Manifest, Mount, Secret, TrustedFile
from adyton.runtime.run_plan import DEFAULT_LOG, Plan, plan, with_devices
from adyton.values import Digest

DIGEST = Digest(bytes(32))
BASE = Manifest(
    entrypoint="/bin/app",
    mounts=(Mount("chroot", "/bin", "file:/host/bin"), Mount("encrypted", "/out", "file:./out/", "k")),
    trusted_files=(TrustedFile("file:/host/bin/app", DIGEST, 10, True), TrustedFile("file:argv", DIGEST, 10)),
)
"""A program, an output; the root mount is the start folder."""


def _plan(manifest: Manifest = BASE, content: bytes = b"", **more: Any) -> Plan:
    return plan(manifest, read_trusted=lambda _: content, **more)


def test_plan_says_what_is_staged_served_and_logged() -> None:
    """Paths inside, stored paths, keys."""
    made = _plan()
    assert [(entry.source, entry.targets) for entry in made.staged] == [
        ("/host/bin/app", ("/bin/app",)),
        ("argv", ("/argv",)),
    ]
    assert [(mount.path, mount.source, mount.read_only) for mount in made.encrypted] == [("/out", "out", False)]
    assert made.log is not None
    assert (made.log.source, made.log.key_name) == (DEFAULT_LOG, "k")
    assert made.key_names == ("k",)
    assert made.argv == ("/bin/app",)
    assert made.env == {}


def test_entrypoint_that_nothing_shows_is_refused() -> None:
    """It must be a trusted file at that path."""
    with pytest.raises(MalformedManifest, match="entrypoint"):
        _plan(replace(BASE, entrypoint="/bin/other"))


def test_file_listed_twice_is_staged_once() -> None:
    """By itself and through its folder, as Gramine's lists may have it; two contents under one path are refused."""
    twice = replace(BASE, trusted_files=(*BASE.trusted_files, TrustedFile("file:./argv", DIGEST, 10)))
    assert [entry.targets for entry in _plan(twice).staged] == [("/bin/app",), ("/argv",)]
    other = replace(twice, trusted_files=(*BASE.trusted_files, TrustedFile("file:./argv", Digest(b"x" * 32), 10)))
    with pytest.raises(MalformedManifest, match="argv is listed twice"):
        _plan(other)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/out/token", "encrypted mount /out"),
        ("/bin/app", "a trusted file is there"),
        ("/bin", "a trusted file is there"),
        ("/shared/token", "where the host reads it"),
        ("/tmp/token", "would hide it"),
        ("/dev/token", "would hide it"),
        ("/proc/self/token", "would hide it"),
    ],
)
def test_secret_file_in_the_place_of_something_else_is_refused(path: str, said: str) -> None:
    """It would overwrite what was verified, be hidden, or be written where the host sees it."""
    mounts = (*BASE.mounts, Mount("tmpfs", "/tmp", None), Mount("chroot", "/shared", "file:shared"))
    table = AdytonTable(secrets=(Secret("token", None, path, None),))
    with pytest.raises(MalformedManifest, match=re.escape(said)):
        _plan(replace(BASE, mounts=mounts, allowed_files=("file:shared/",), adyton=table))
    assert _plan(replace(BASE, adyton=replace(table, secrets=(Secret("t", None, "/run/secrets/t", None),)))).secrets


@pytest.mark.parametrize(
    "inner",
    [
        Mount("encrypted", "/shared/out", "file:./out/", "k"),
        Mount("chroot", "/shared/app", "file:/host/bin"),
        Mount("tmpfs", "/shared/tmp", None),
    ],
    ids=lambda mount: mount.type,
)
def test_mount_in_an_allowed_folder_is_refused(inner: Mount) -> None:
    """The host's folder would hide it, or its mount point would be a name, or a link, of the host."""
    mounts = (*BASE.mounts, Mount("chroot", "/shared", "file:shared"), inner)
    with pytest.raises(MalformedManifest, match="allowed folder /shared"):
        _plan(replace(BASE, mounts=mounts, allowed_files=("file:shared/",)))


def test_allowed_file_in_an_allowed_folder_shows_through_the_folder_alone() -> None:
    """Mounted there a second time, it would follow a link that the host puts under its name."""
    mounts = (*BASE.mounts, Mount("chroot", "/shared", "file:shared"))
    made = _plan(replace(BASE, mounts=mounts, allowed_files=("file:shared/a", "file:shared/", "file:shared/b/")))
    assert [entry.target for entry in made.allowed] == ["/shared"]


@pytest.mark.parametrize(
    "mounts",
    [
        (Mount("tmpfs", "/a/b", None), Mount("chroot", "/a", "file:src")),
        (Mount("tmpfs", "/a", None), Mount("chroot", "/a", "file:src")),
        (Mount("encrypted", "/a/b", "file:in/", "k"), Mount("chroot", "/a", "file:src")),
        (Mount("encrypted", "/a/b", "file:in/", "k"), Mount("encrypted", "/a", "file:out2/", "k")),
    ],
)
def test_mount_that_covers_an_earlier_one_is_refused(mounts: tuple[Mount, ...]) -> None:
    """The earlier one is mounted all the same: it would hide trusted files of the later one."""
    with pytest.raises(MalformedManifest, match="covers the earlier mount"):
        _plan(replace(BASE, mounts=(*BASE.mounts, *mounts)))


NESTED = (
    Mount("encrypted", "/out", "file:./out/", "k"),
    Mount("chroot", "/out/app", "file:/host/bin/app"),
    Mount("chroot", "/out/src", "file:src"),
    Mount("encrypted", "/out/deep/in", "file:in/", "k"),
    Mount("chroot", "/out/src/more", "file:more"),
)


def test_trusted_files_and_encrypted_mounts_show_in_an_encrypted_folder() -> None:
    """Each at its point, with what shows there; a mount in one of them is that one's."""
    made = _plan(replace(BASE, mounts=(*BASE.mounts[:1], Mount("tmpfs", "/tmp", None), *NESTED)))
    points = {mount.path: [(point.path, point.is_folder) for point in mount.points] for mount in made.encrypted}
    assert points == {"/out": [("app", False), ("src", True), ("deep/in", True)], "/out/deep/in": []}
    assert [(mount.path, mount.points) for mount in made.memory] == [("/tmp", ())]
    assert made.staged[0].targets == ("/bin/app", "/out/app")


@pytest.mark.parametrize(
    "mounts",
    [
        (Mount("encrypted", "/out", "file:./out", "k"), NESTED[1]),
        (NESTED[0], Mount("chroot", "/out", "file:src")),
        (NESTED[0], Mount("tmpfs", "/out/tmp", None)),
    ],
)
def test_mount_in_an_encrypted_one_is_refused_where_it_cannot_show(mounts: tuple[Mount, ...]) -> None:
    """The outer one must be a folder, and what lies in it trusted or encrypted."""
    with pytest.raises(MalformedManifest, match="lies in the encrypted mount"):
        _plan(replace(BASE, mounts=(*BASE.mounts[:1], *mounts)))


def test_mount_in_an_encrypted_input_is_refused() -> None:
    """Inputs are staged: the host could put a file of its own in the place of a trusted one."""
    with pytest.raises(MalformedManifest, match="lies in the encrypted mount"):
        _plan(replace(BASE, mounts=(*BASE.mounts[:1], *NESTED[:2]), adyton=AdytonTable(read_only=("/out",))))


def test_relative_entrypoint_is_below_the_start_folder() -> None:
    """As in Gramine."""
    assert _plan(replace(BASE, entrypoint="app", start_dir="/bin")).entrypoint == "/bin/app"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"trusted_files": (TrustedFile("file:/host/bin/"),)}, "template"),
        ({"file_check_policy": "allow_all_but_log"}, "file_check_policy"),
        ({"root": Mount("encrypted", "/", "file:.")}, "fs.root"),
        ({"root": Mount("untrusted_shm", "/", "dev:/x")}, "fs.root"),
        ({"mounts": (*BASE.mounts, Mount("chroot", "/dev/x", "file:/x"))}, "makes /dev itself"),
        ({"mounts": (*BASE.mounts, Mount("chroot", "/proc", "file:/proc"))}, "makes /proc itself"),
        ({"mounts": (*BASE.mounts, Mount("untrusted_shm", "/shm", "dev:/dev/shm"))}, "only under SGX"),
        ({"mounts": (*BASE.mounts, Mount("tmpfs", "/out/tmp", None))}, "lies in the encrypted mount"),
        ({"mounts": (*BASE.mounts, Mount("encrypted", "/out", "file:other", "k"))}, "lies in the encrypted mount"),
        ({"adyton": AdytonTable(read_only=("/in",))}, "/in"),
        ({"mounts": BASE.mounts[:1]}, "nowhere to go"),
    ],
)
def test_what_the_runtime_cannot_honour_is_refused_with_the_reason(change: dict[str, Any], said: str) -> None:
    """Each says what to write instead."""
    with pytest.raises(MalformedManifest, match=said) as raised:
        _plan(replace(BASE, **change))
    assert raised.value.remedy is not None


def test_file_both_allowed_and_trusted_is_not_staged() -> None:
    """Gramine asks the list of allowed files first, and so does this."""
    made = _plan(replace(BASE, allowed_files=("file:argv",)))
    assert [entry.source for entry in made.staged] == ["/host/bin/app"]
    assert [(entry.source, entry.target) for entry in made.allowed] == [("argv", "/argv")]


def test_arguments_come_from_where_the_manifest_says() -> None:
    """Its own words, a trusted file, the command line; and nothing else."""
    assert _plan(replace(BASE, argv=("a", "b")), host_args=["x"]).argv == ("a", "b")
    assert "ignored" in _plan(replace(BASE, argv=("a",)), host_args=["x"]).notes[0]
    assert _plan(replace(BASE, use_cmdline_argv=True), host_args=["x"]).argv == ("/bin/app", "x")
    assert _plan(replace(BASE, argv_src_file="file:argv"), b"p\0q r\0").argv == ("p", "q r")
    with pytest.raises(UsageError, match="takes no arguments"):
        _plan(host_args=["x"])


@pytest.mark.parametrize("content", [b"p", b"", b"p\0q"])
def test_malformed_argument_file_is_refused(content: bytes) -> None:
    """Strings that do not end in NUL, or none."""
    with pytest.raises(MalformedManifest):
        _plan(replace(BASE, argv_src_file="file:argv"), content)


@pytest.mark.parametrize("name", ["argv_src_file", "env_src_file"])
def test_source_file_that_is_not_trusted_is_refused(name: str) -> None:
    """Gramine reads it unchecked; here it would be the host's to choose."""
    change: dict[str, Any] = {name: "file:other"}
    with pytest.raises(MalformedManifest, match="no trusted file"):
        _plan(replace(BASE, **change))


def test_environment_is_the_manifests_and_what_it_lets_through() -> None:
    """Passthrough by name, all of the host's only by the insecure name, the manifest's values always win."""
    host = {"A": "host", "B": "host", "C": "host"}
    assert _plan(replace(BASE, env={"A": "own"}), host_env=host).env == {"A": "own"}
    assert _plan(replace(BASE, env_passthrough=("B", "Z")), host_env=host).env == {"B": "host"}
    assert _plan(replace(BASE, use_host_env=True, env={"A": "own"}), host_env=host).env == {**host, "A": "own"}
    assert _plan(replace(BASE, env_src_file="file:argv"), b"X=1=2\0", host_env=host).env == {"X": "1=2"}
    with pytest.raises(MalformedManifest):
        _plan(replace(BASE, env_src_file="file:argv"), b"X\0")


def test_devices_need_the_measured_files_of_their_driver() -> None:
    """A program with a GPU loads libcuda, so a mount has to show it as a trusted file."""
    node = DeviceNode("/dev/nvidia0", 195, 0)
    with pytest.raises(MalformedManifest, match=r"no trusted file shows it libcuda\.so\.1"):
        with_devices(_plan(), [node])
    hidden = replace(BASE, trusted_files=(*BASE.trusted_files, TrustedFile("file:/elsewhere/libcuda.so.1", DIGEST, 1)))
    with pytest.raises(MalformedManifest, match="no trusted file shows"):
        with_devices(_plan(hidden), [node])
    shown = replace(BASE, trusted_files=(*BASE.trusted_files, TrustedFile("file:/host/bin/libcuda.so.1", DIGEST, 1)))
    assert with_devices(_plan(shown), [node]).devices == (node,)
    assert with_devices(_plan(), []).devices == ()


def _with_mounts(*mounts: Mount) -> Plan:
    return _plan(replace(BASE, mounts=(Mount("chroot", "/bin", "file:/host/bin"), *mounts)))


def test_pinned_mount_has_its_folder_id_and_a_recovery_log() -> None:
    """The id is that of key and folder; a power cut must not take what a root names."""
    made = _with_mounts(Mount("encrypted", "/out", "file:./out/", "k", pinned=True))
    assert [(mount.pinned, mount.recovery) for mount in made.pinned] == [("k/out", True)]
    assert _with_mounts(Mount("encrypted", "/out", "file:./out/", "k")).pinned == ()


@pytest.mark.parametrize(
    "other",
    [
        Mount("encrypted", "/in", "file:out/in/", "k"),
        Mount("encrypted", "/in", "file:out/", "k"),
        Mount("encrypted", "/out/in", "file:in/", "k"),
    ],
)
def test_pinned_folder_is_that_of_one_mount_alone(other: Mount) -> None:
    """Nothing lies in it, on the host or inside."""
    with pytest.raises(MalformedManifest, match="is not that of one mount alone") as caught:
        _with_mounts(Mount("encrypted", "/out", "file:./out/", "k", pinned=True), other)
    assert caught.value.check == "pinned mount /out"
