"""A run in a guest image, with a script in QEMU's place that does what the guest's first program does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adyton.cli import main as command_line
from adyton.errors import MalformedManifest, RunError, ScriptFailed, UsageError
from adyton.pack_archive import read_contents
from adyton.workflow.run import Ran, Request
from adyton.workflow.run_vm import Console, GuestRun, printed_run, require, run_in_guest
from tests.support.image_files import firmware, write_small_image

TDX = ((0x1000, 0x3000, 0xFFFFB000, 0x3000, 0, 1),)

GUEST = """#!{python}
import os, sys, time
from pathlib import Path
from adyton.image import guest
words = sys.argv[1:]
def disk(name):
    (word,) = [word for word in words if word.startswith("if=none,id=" + name + ",")]
    return Path(word.partition("file=")[2])
print("[    0.1] a word of the kernel", flush=True)
share = Path({share!r})
settings, stamps = guest.unpack(disk("inputs"), share, 1 << 30)
stamps |= guest.unpack_pack(settings, share)
(share / "settings").write_text(" ".join(settings.command()))
stamps["settings"] = guest._stamp(share / "settings")
work = share / "run/work"
print("adyton guest: starting run.adyton", flush=True)
status = 0
{body}
print("adyton guest: adyton run ended with", status, flush=True)
guest.write_outputs(disk("outputs"), share, stamps, guest._status(status))
"""

TEMPLATE = """
libos.entrypoint = "/app"
loader.argv = ["app"]
fs.mounts = [
  {{ path = "/app", uri = "file:app" }},
  {{ type = "encrypted", path = "/in", uri = "file:in", key_name = "k" }},
  {{ type = "encrypted", path = "/out", uri = "file:out", key_name = "k"{pinned} }},
]
sgx.trusted_files = ["file:app"]
{more}
[adyton]
read_only = ["/in"]
insecure__stdio = {stdio}
"""


def adyton(*words: str | Path) -> None:
    """A verb that must succeed."""
    with pytest.raises(SystemExit) as ended:
        command_line.main([str(word) for word in words])
    assert not ended.value.code


class World:
    """A folder with a built manifest, an image, and a place for the guest's files."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.monkeypatch = monkeypatch
        monkeypatch.setenv("ADYTON_HOME", str(folder / "owner"))
        (folder / "temporary").mkdir()
        monkeypatch.setenv("TMPDIR", str(folder / "temporary"))
        monkeypatch.setattr("tempfile.tempdir", None)
        write_small_image(folder / "image")
        (folder / "image/OVMF.fd").write_bytes(firmware(tdx=TDX))
        self.desk = folder / "desk"
        for name in ("in", "out"):
            (self.desk / name).mkdir(parents=True)
        monkeypatch.chdir(self.desk)
        adyton("init")
        adyton("key", "new", "k")
        (folder / "plain").write_bytes(b"secret")
        adyton("encrypt", folder / "plain", "-o", "in/data", "--key", "k")
        adyton("encrypt", folder / "plain", "-o", "out/old", "--key", "k")
        Path("app").write_bytes(b"#!/bin/sh\n")
        self.build()

    def build(self, *, stdio: bool = False, more: str = "", pinned: bool = False) -> None:
        """Build the manifest for the image."""
        mount = ", pinned = true" if pinned else ""
        Path("app.manifest.template").write_text(TEMPLATE.format(stdio=str(stdio).lower(), more=more, pinned=mount))
        adyton("build", "app.manifest.template", "--runtime", self.folder / "image/image.json")

    def guest(self, body: str) -> None:
        """A machine in which `body` happens while the program runs. A file is sealed where it copies another."""
        share, program = self.folder / "guest", self.folder / "bin/qemu-system-x86_64"
        share.mkdir(exist_ok=True)
        program.parent.mkdir(exist_ok=True)
        program.write_text(GUEST.format(python=sys.executable, share=str(share), body=body))
        program.chmod(0o755)
        self.monkeypatch.setenv("PATH", str(program.parent))

    def run(self, manifest: str = "app.manifest", **more: float) -> Ran:
        """Run it, with what the console and the program said in `said`."""
        self.said: dict[str, list[str]] = {"notice": [], "console": [], "printed": []}
        request = Request(
            manifest=Path(manifest), tee="tdx", key_servers=("localhost:4433", "o=k.example.org:1"), arguments=("a b",)
        )
        ran = run_in_guest(
            GuestRun(request=request, image=self.folder / "image", **more),  # type: ignore[arg-type]
            self.said["notice"].append,
            console=self.said["console"].append,
            printed=self.said["printed"].append,
        )
        self.nothing_is_left()
        return ran

    def nothing_is_left(self) -> None:
        """No file in the folder for temporary ones, no part of a file on the desk."""
        assert list((self.folder / "temporary").iterdir()) == []
        assert not list(self.desk.rglob(".*"))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """One of each."""
    return World(tmp_path, monkeypatch)


WRITES = """
(work / "out/result").write_bytes((work / "in/data").read_bytes())
(work / "out/old").unlink()
(work / "app.log").write_bytes((work / "in/data").read_bytes())
"""


def test_outputs_come_back_to_their_places_and_removed_files_are_gone(world: World) -> None:
    """As after a run here. The guest was told what was said here, and this machine's address as it sees it."""
    world.guest(WRITES)
    ran = world.run()
    assert (ran.exit_code, ran.tee, ran.log) == (0, "tdx", "app.log")
    assert Path("out/result").read_bytes() == Path("in/data").read_bytes() == Path("app.log").read_bytes()
    assert not Path("out/old").exists()
    told = (world.folder / "guest/settings").read_text()
    assert told == "run --tee tdx --key-server 10.0.2.2:4433 --key-server o=k.example.org:1 ./run.adyton -- a b"
    assert world.said["printed"] == []
    assert world.said["console"][0] == "[    0.1] a word of the kernel"


def test_pack_runs_in_its_own_folder_and_goes_on_where_it_ended(world: World) -> None:
    """What the first run wrote is there in the second."""
    adyton("pack", "app.manifest", "--runtime", world.folder / "image/image.json")
    for name in ("app.manifest", "app", "app.sig"):
        Path(name).unlink()
    world.guest(WRITES)
    assert world.run("app.adyton").log == str(world.desk / "app/work/app.log")
    assert Path("app/work/out/result").exists()
    assert Path("out/old").exists()
    subprocess.run(["/bin/rm", "-r", str(world.folder / "guest")], check=True)
    world.guest("assert (work / 'out/result').exists() and not (work / 'out/old').exists()\nstatus = 7")
    ran = world.run("app.adyton")
    assert ran.exit_code == 7
    with pytest.raises(ScriptFailed) as refused:
        require(ran)
    assert refused.value.status == 7


def test_guest_cannot_write_beside_what_the_program_may_write(world: World) -> None:
    """Not the manifest, not the inputs, not above the folder; and nothing is removed there."""
    before = {name: Path(name).read_bytes() for name in ("app.manifest", "app", "in/data")}
    world.guest(
        "(work / 'app.manifest').write_bytes(b'another')\n"
        "(work / 'in/data').write_bytes(b'another')\n"
        "(work / 'app').unlink()\n"
        "(work / 'outside').write_bytes(b'x')\n"
        "(share / 'elsewhere').write_bytes(b'x')\n"
        "(work / 'out/result').write_bytes(b'x')\n"
    )
    world.run()
    assert {name: Path(name).read_bytes() for name in before} == before
    assert Path("out/result").read_bytes() == b"x"
    assert sorted(path.name for path in world.desk.iterdir()) == sorted(
        ["app", "app.manifest", "app.manifest.template", "app.sig", "in", "out"]
    )
    (told,) = [text for text in world.said["notice"] if "left out" in text]
    assert "3 files" in told


def test_history_of_a_pinned_folder_comes_back_with_it(world: World) -> None:
    """Else the folder would be newer than its history, and no run would take it again."""
    world.build(pinned=True)
    Path("out.adyton-roots").write_bytes(b"before")
    world.guest(
        "assert (work / 'out.adyton-roots').read_bytes() == b'before'\n"
        "(work / 'out/result').write_bytes(b'x')\n"
        "(work / 'out.adyton-roots').write_bytes(b'after')\n"
        "(work / 'in.adyton-roots').write_bytes(b'after')\n"
    )
    world.run()
    assert Path("out/result").read_bytes() == b"x"
    assert Path("out.adyton-roots").read_bytes() == b"after"
    assert not Path("in.adyton-roots").exists()


def test_link_in_the_outputs_folder_leads_nowhere(world: World) -> None:
    """Somebody put it there; the outputs would land in another place."""
    (world.folder / "elsewhere").mkdir()
    Path("out/deep").symlink_to(world.folder / "elsewhere")
    Path("out/deep").unlink()
    world.guest(
        "(work / 'out/deep').mkdir()\n(work / 'out/deep/result').write_bytes(b'x')\n"
        f"os.symlink({str(world.folder / 'elsewhere')!r}, {str(world.desk / 'out/deep')!r})\n"
    )
    with pytest.raises(UsageError, match="is a link"):
        world.run()
    assert list((world.folder / "elsewhere").iterdir()) == []


def test_what_the_program_prints_is_told_apart(world: World) -> None:
    """Where its manifest says so. Lines of Adyton and of the boot stay beside the result."""
    world.build(stdio=True)
    world.guest("print('hello', flush=True); print('adyton: a note', flush=True)")
    assert world.run().log is None
    assert world.said["printed"] == ["hello"]
    assert "adyton: a note" in world.said["console"]
    lines: list[str] = []
    console = Console(lines.append, lines.append, programs=False)
    console.line("hello")
    assert lines == ["hello"]


@pytest.mark.parametrize(
    ("body", "error", "match"),
    [
        ("sys.exit(0)", RunError, "wrote no outputs"),
        ("sys.exit(1)", RunError, "QEMU failed"),
        ("guest.STATUS_MEMBER = 'another'", MalformedManifest, "do not say how the run ended"),
        ("guest.guest_result.FORMAT = 'another'", MalformedManifest, "result of the guest is wrong"),
        ("Path.write_bytes(disk('outputs'), b'x' * 4096); sys.exit(0)", MalformedManifest, "is not plain"),
    ],
)
def test_guest_that_fails_leaves_nothing(world: World, body: str, error: type[Exception], match: str) -> None:
    """Each with a clear error, and no output in its place."""
    world.guest("(work / 'out/result').write_bytes(b'x')\n" + body)
    with pytest.raises(error, match=match):
        world.run()
    world.nothing_is_left()
    assert not Path("out/result").exists()


def test_time_counts_up_to_the_program_only(world: World) -> None:
    """A boot that hangs is ended. A program may take as long as it wants."""
    world.guest("time.sleep(2)")
    assert world.run(timeout_s=1.5).exit_code == 0
    program = world.folder / "bin/qemu-system-x86_64"
    program.write_text(f"#!{sys.executable}\nimport time\nprint('up', flush=True)\ntime.sleep(60)\n")
    with pytest.raises(RunError, match=r"did not start the program within 1 s"):
        world.run(timeout_s=1.0)
    world.nothing_is_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_run_leaves_no_machine_and_no_files(world: World, number: signal.Signals) -> None:
    """Also where Adyton itself is killed: then the kernel ends the machine. Its folder of temporary files stays."""
    marker = world.folder / "machine"
    world.guest(f"Path({str(marker)!r}).write_text(str(os.getpid()))\ntime.sleep(600)")
    words = ["run", "--vm", str(world.folder / "image"), "--tee", "tdx", "app.manifest"]
    child = subprocess.Popen([sys.executable, "-m", "adyton", *words], stderr=subprocess.DEVNULL)
    ends_s = time.monotonic() + 60
    while not (marker.exists() and marker.read_text()):
        assert child.poll() is None
        assert time.monotonic() < ends_s
        time.sleep(0.02)
    child.send_signal(number)
    status = child.wait(30)
    assert status == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    machine = int(marker.read_text())
    while Path(f"/proc/{machine}").exists() and " Z " not in Path(f"/proc/{machine}/stat").read_text():
        assert time.monotonic() < ends_s
        time.sleep(0.02)
    if number != signal.SIGKILL:
        world.nothing_is_left()
    assert not Path("out/result").exists()


def test_what_a_guest_cannot_have_is_refused_before_anything_starts(world: World) -> None:
    """Another TEE, options that are not passed on, files of the host in clear, a manifest for another runtime."""
    image = world.folder / "image"
    for more in (
        {"tee": None},
        {"tee": "sim"},
        {"tee": "tpm"},
        {"provisioning": "ra-tls"},
        {"grants": Path("g")},
        {"gpu_collateral": Path("g")},
        {"agreements": ("ag-1",)},
        {"receipt": Path("r")},
        {"receipt_plaintext": True},
        {"after": (Path("r"),)},
    ):
        request = Request(manifest=Path("app.manifest"), **{"tee": "tdx", **more})  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=r"not passed on to a guest|other TEEs"):
            run_in_guest(GuestRun(request=request, image=image))
    world.build(more='sgx.allowed_files = ["file:scratch"]')
    with pytest.raises(UsageError, match="in clear"):
        world.run()
    adyton("build", "app.manifest.template")
    with pytest.raises(Exception, match="another manifest or another runtime"):
        world.run()


def test_print_gives_the_hosts_command_line_and_starts_nothing(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """For TDX; SEV-SNP only under firmware that measures the image."""
    request = Request(manifest=Path("app.manifest"), tee="tdx")
    line = printed_run(GuestRun(request=request, image=world.folder / "image", memory_mib=4096))
    assert "tdx-guest" in line
    assert "-m 4096" in line
    assert "inputs.raw" in line
    capsys.readouterr()
    adyton("run", "--vm", world.folder / "image", "--tee", "tdx", "--print", "app.manifest")
    assert "tdx-guest" in capsys.readouterr().out
    snp = GuestRun(request=Request(manifest=Path("app.manifest"), tee="snp"), image=world.folder / "image")
    with pytest.raises(UsageError, match="SEV-SNP would not measure this image"):
        printed_run(snp)


def test_options_of_the_machine_need_the_image(world: World) -> None:
    """Otherwise they would be taken and do nothing."""
    for words in (["--print"], ["--kvm"], ["--memory", "4096"], ["--firmware", "f"], ["--vcpus", "2"]):
        with pytest.raises(SystemExit) as ended:
            command_line.main(["run", *words, "--tee", "sim", "app.manifest"])
        assert ended.value.code == 2


def test_packs_memory_is_bounded_by_its_size(world: World) -> None:
    """The pack that goes in is a whole one."""
    world.guest("import shutil; shutil.copy(share / 'run.adyton', share / 'kept')\nos.environ['X'] = '1'")
    world.run()
    with (world.folder / "guest/kept").open("rb") as file:
        names = read_contents(file)
    assert names.index.manifest == "app.manifest"
    assert os.environ.get("X") is None
