"""bubblewrap's words, the launcher, the ELF interpreter, what is staged within the budget."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from adyton.cli.run import parse
from adyton.errors import SandboxFailed
from adyton.runtime import launcher, sandbox
from adyton.runtime.root import elf_interpreter
from adyton.runtime.run_plan import EncryptedMount, Plan
from adyton.runtime.staging_plan import plan_staging
from adyton.values import Digest
from adyton.vfs.owner import Owner
from adyton.vfs.stage import StagedFile


def _options(network: str = "none") -> list[str]:
    return sandbox.options("/r", uid=1, gid=2, start_dir="/", env={"A": "b c"}, network=network, shared_memory="/s")


@pytest.mark.parametrize(
    "word",
    ["--unshare-user", "--disable-userns", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-net",
     "--new-session", "--clearenv"],
)  # fmt: skip
def test_sandbox_always_asks_for_its_namespaces(word: str) -> None:
    """None of them depends on anything but, for the network, the manifest."""
    assert word in _options()
    assert (word in _options("host")) is (word != "--unshare-net")


def test_every_capability_is_dropped() -> None:
    """All of them, whoever starts it."""
    words = _options()
    assert words[words.index("--cap-drop") + 1] == "ALL"


def test_shared_memory_is_the_keepers() -> None:
    """Which bounds it as every other memory of the program, and looks how full it is."""
    words = _options()
    assert words[words.index("/dev/shm") - 2 : words.index("/dev/shm")] == ["--bind", "/s"]


@pytest.mark.parametrize("word", ["x\0--share-net", "\0"])
def test_word_with_a_null_byte_is_refused_before_anything_starts(word: str) -> None:
    """A secret in the environment cannot become options of the sandbox; the refusal does not show it."""
    with pytest.raises(SandboxFailed, match="null byte") as raised:
        sandbox.start(
            "/nonexistent", [*_options(), "--setenv", "TOKEN", word], ["/x"],
            stdin=0, stdout=1, stderr=2, owner=Owner.caller(), call_filter=b"", fds_limit=100, stack_bytes=1 << 20,
        )  # fmt: skip
    assert raised.value.check == "what follows 'TOKEN'"
    assert "share-net" not in str(raised.value.details())


def test_missing_bubblewrap_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package to install is named."""
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(SandboxFailed, match="not installed") as raised:
        sandbox.locate()
    assert "apt install bubblewrap" in str(raised.value.remedy)


def test_launcher_gives_the_program_its_argv_and_environment(tmp_path: Path) -> None:
    """argv[0] of the manifest's choice; a missing program is 127."""
    code = launcher.program()
    if code is None:
        pytest.skip("the C parts were not built (gcc and libssl-dev, then make setup)")
    path = tmp_path / "launch"
    path.write_bytes(code)
    path.chmod(0o755)
    command = [str(path), "/bin/sh", "my name", "-c", 'echo "$0|$1|$X"', "a", "b c"]
    done = subprocess.run(command, env={"X": "y"}, capture_output=True, text=True, check=True)
    assert done.stdout == "a|b c|y\n"
    shown = subprocess.run([str(path), "/bin/cat", "my name", "/proc/self/cmdline"], capture_output=True, check=True)
    assert shown.stdout == b"my name\0/proc/self/cmdline\0"
    for words in (["/nonexistent", "x"], ["/bin/true"], []):
        assert subprocess.run([str(path), *words], check=False).returncode == 127


def test_launcher_runs_where_nothing_else_is(tmp_path: Path) -> None:
    """It names no interpreter, needs no library, and has nothing to relocate: the kernel alone starts it."""
    code = launcher.program()
    if code is None:
        pytest.skip("the C parts were not built (gcc and libssl-dev, then make setup)")
    path = tmp_path / "launch"
    path.write_bytes(code)
    shown = subprocess.run(["readelf", "-ldr", str(path)], capture_output=True, text=True, check=True).stdout
    assert "INTERP" not in shown
    assert "NEEDED" not in shown
    assert "There are no relocations in this file." in shown


def test_elf_interpreter_is_read_from_the_program(tmp_path: Path) -> None:
    """PT_INTERP; nothing for scripts and garbage."""
    found = elf_interpreter(os.path.realpath("/bin/sh"))
    assert found is not None
    assert "ld-linux" in found
    (tmp_path / "script").write_text("#!/bin/sh\n")
    assert elf_interpreter(str(tmp_path / "script")) is None
    (tmp_path / "elf").write_bytes(b"\x7fELF\x02\x01" + os.urandom(500))
    elf_interpreter(str(tmp_path / "elf"))
    assert elf_interpreter(str(tmp_path / "missing")) is None


def _plan(budget: int, sizes: list[int]) -> Plan:
    staged = tuple(StagedFile(f"f{n}", Digest(bytes(32)), (f"/f{n}",), size) for n, size in enumerate(sizes))
    empty = Plan(
        "/f0", ("a",), {}, 0, 0, "/", staged, (), (), (), budget, "none", None, False, 1, 1, "none", False, (), {}, ()
    )
    return replace(empty, encrypted=(EncryptedMount("/in", "in", "k", True, False),))


def test_staging_plan_stages_everything_that_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the budget nothing is served."""
    monkeypatch.chdir(tmp_path)
    found = plan_staging(_plan(1 << 20, [1000, 5000]))
    assert found.served_files == ()
    assert found.served_mounts == ()


def test_staging_plan_serves_the_largest_first_and_never_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entrypoint is staged even where it is the largest; an input counts as a whole."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a").write_bytes(bytes(400_000))
    found = plan_staging(_plan(1 << 20, [900_000, 500_000, 1000]))
    assert [entry.source for entry in found.served_files] == ["f1"]
    assert [mount.path for mount in found.served_mounts] == ["/in"]
    assert [entry.source for entry in found.staged_files] == ["f0", "f2"]


@pytest.mark.parametrize(
    ("words", "plain"),
    [
        (["m", "--tee", "sim", "--key-server", "h:1"], True),
        (["--tee=sim", "m", "--json"], True),
        (["m", "--", "--help"], True),
        (["--help"], False),
        (["m", "--unknown"], False),
        (["m", "--provisioning", "other"], False),
        ([], False),
    ],
)
def test_plain_command_lines_are_parsed_by_hand_and_others_left_to_typer(words: list[str], plain: bool) -> None:
    """The quick way is only for what cannot be misunderstood."""
    assert (parse(words) is not None) is plain


def test_several_key_servers_and_arguments_are_kept_in_order() -> None:
    """Options may stand anywhere before --."""
    found = parse(["m", "--key-server", "a=h:1", "x", "--key-server", "b=h:2", "--", "-y"])
    assert found is not None
    assert found.request.key_servers == ("a=h:1", "b=h:2")
    assert found.request.arguments == ("x", "-y")
