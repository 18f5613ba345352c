"""The runtime's identity: complete, the same wherever it lies, and changed by any byte of any part."""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adyton import elf
from adyton.errors import NoDevice
from adyton.manifest.measure import RUNTIME_LABEL, combine
from adyton.runtime import identity
from adyton.runtime.identity import PACKAGES, runtime_identity
from adyton.values import Digest
from tests.mount import world

PACKAGE = Path(identity.__file__).parent.parent

RUN_MODULES = """
import sys
import adyton.cli.main, adyton.cli.run, adyton.workflow.run, adyton.workflow.run_process, adyton.runtime.launch
import adyton.runtime.run_plan, adyton.release.client, adyton.release.secret_provisioning
import adyton.sim.platform, adyton.tee.source_choice, adyton.vfs.fuse, adyton.vfs.encrypted, adyton.vfs.attestation
import adyton.manifest.signed, adyton.storage.files, adyton.runtime.log, adyton.runtime.launcher, adyton.runtime.sandbox
"""


def of_copy(folder: Path) -> str:
    """The identity that Adyton computes when it runs from a copy of its package."""
    code = "from adyton.runtime.identity import runtime_identity; print(runtime_identity().digest)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"},
    )
    return done.stdout.strip()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package, importable from its folder."""
    shutil.copytree(PACKAGE, tmp_path / "adyton", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_identity_is_the_documented_hash_over_its_parts() -> None:
    """Label, then each part's name and digest in the order of names."""
    found = runtime_identity()
    digest = hashlib.sha256(RUNTIME_LABEL)
    for name in sorted(found.parts):
        digest.update(len(name).to_bytes(4, "little") + name.encode() + found.parts[name].raw)
    assert found.digest.raw == digest.digest()
    assert len(RUNTIME_LABEL) == 32
    assert combine({"a": Digest(bytes(32))}) != combine({"b": Digest(bytes(32))})


def test_identity_has_every_part_that_runs() -> None:
    """Adyton, interpreter, standard library, packages, the C library, libfuse, bubblewrap."""
    parts = runtime_identity().parts
    for name in ("adyton", "python interpreter", "python standard library", "python start-up", "library libc.so.6"):
        assert name in parts
    assert {f"package {name}" for name in PACKAGES} <= set(parts)
    assert ("program bwrap" in parts) == (shutil.which("bwrap") is not None)


def test_identity_covers_every_package_that_a_run_imports() -> None:
    """Whatever third-party package the run path imports is one of the parts, and nothing else is (but see ADR 8)."""
    code = RUN_MODULES + (
        "print('\\n'.join({n.split('.')[0] for n, m in sys.modules.items()"
        " if 'site-packages' in (getattr(m, '__file__', None) or '')}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split()) - {"_distutils_hack", "__editable___adyton_0_1_0_finder"}
    assert loaded == set(PACKAGES) - {"OpenSSL"}


def measured() -> set[str]:
    """Every file that is hashed into the identity, without links."""
    return {os.path.realpath(path) for members in identity.measured_files().values() for _, path in members}


def code_in(maps: str) -> set[str]:
    """The files of /proc/PID/maps that hold code: every one that is mapped to be executed."""
    lines = [line.split(maxsplit=5) for line in maps.splitlines()]
    return {words[5] for words in lines if len(words) == 6 and "x" in words[1] and words[5].startswith("/")}


def test_identity_covers_everything_that_the_modules_of_a_run_map() -> None:
    """Whatever code the imports of a run bring into a process is one of the parts, wherever it lies."""
    code = RUN_MODULES + "print(open('/proc/self/maps').read())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(code_in(done.stdout)) > 10
    assert code_in(done.stdout) - measured() == set()


@pytest.mark.mount
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may read what a process that cannot be traced has mapped")
@pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="/dev/fuse cannot be opened here (modprobe fuse)")
def test_identity_covers_everything_that_a_real_run_maps(tmp_path: Path) -> None:
    """Each process of a run but the program itself: front, keeper, file server, bubblewrap, all that they loaded."""
    (tmp_path / "out").mkdir()
    spec = world.shell("echo hi > /out/a; echo ready; sleep 60", mounts=[["encrypted", "/out", "file:out/"]])
    process = world.start(tmp_path, spec)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        found = {pid: Path(f"/proc/{pid}/comm").read_text().strip() for pid in processes_below(process.pid)}
        ours = {pid for pid, name in found.items() if name not in ("sh", "dash", "sleep")}
        assert {"adyton-keeper", "adyton-files", "bwrap"} <= set(found.values())
        mapped = {path for pid in ours for path in code_in(Path(f"/proc/{pid}/maps").read_text())}
    finally:
        process.kill()
        world.finish(process)
    assert any("libfuse3" in path for path in mapped)
    assert mapped - measured() == set()


def processes_below(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def test_identity_changes_with_a_library_that_only_another_library_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library that a measured library is made to need is measured too: nobody names it."""
    for name, needs in (("libinner.so", []), ("libouter.so", ["-L.", "-linner", "-Wl,-rpath,$ORIGIN"])):
        (tmp_path / "x.c").write_text(f"int {name[3:-3]}(void) {{ return 1; }}\n")
        words = ["gcc", "-shared", "-o", name, "x.c", "-Wl,--no-as-needed", *needs]
        subprocess.run(words, cwd=tmp_path, check=True)
    monkeypatch.setattr(identity, "LOADED_BY_NAME", (str(tmp_path / "libouter.so"),))
    before = runtime_identity()
    assert "library libinner.so" in before.parts
    with (tmp_path / "libinner.so").open("ab") as file:
        file.write(b"\0")
    changed = runtime_identity()
    assert {name for name, part in changed.parts.items() if part != before.parts[name]} == {"library libinner.so"}


def test_identity_of_a_copy_elsewhere_is_the_same(copy: Path) -> None:
    """Where it lies, and cached bytecode, do not count."""
    assert of_copy(copy) == str(runtime_identity().digest)
    assert of_copy(copy) == of_copy(copy)


@pytest.mark.parametrize(
    "name",
    [
        "errors.py",
        "pfile/gcm.c",
        "pfile/gcm.h",
        "vfs/_reads.c",
        "runtime/_launcher.c",
        "runtime/identity.py",
        "cli/run.py",
        "manifest/new_module.py",
    ],
)
def test_identity_changes_with_any_module(copy: Path, name: str) -> None:
    """One more comment in one file, or one more file, is another runtime."""
    before = of_copy(copy)
    with (copy / "adyton" / name).open("a") as file:
        file.write("\n# changed\n")
    assert of_copy(copy) != before


@pytest.mark.parametrize("planted", ["selectors.py", "json/__init__.py", "statistics.pyc"])
def test_identity_changes_with_a_module_before_the_library(copy: Path, planted: str) -> None:
    """What stands under a library module's name earlier on the path would run in its place, so it counts."""
    before = of_copy(copy)
    path = copy / planted
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    changed = of_copy(copy)
    assert changed != before
    if not planted.endswith("pyc"):
        path.write_bytes(b"# another\n")
        assert of_copy(copy) not in (before, changed)


@pytest.mark.parametrize("name", identity.LOADED_BY_ENVIRONMENT)
def test_startup_changes_with_what_the_environment_loads(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library or configuration that the environment names counts by its content, wherever it lies."""
    monkeypatch.delenv(name, raising=False)
    before = identity._startup()
    found = []
    for folder, content in (("a", b"one"), ("b", b"one"), ("c", b"two")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "library.so").write_bytes(content)
        monkeypatch.setenv(name, str(tmp_path / folder / "library.so"))
        found.append(identity._startup())
    assert found[0] == found[1] != found[2]
    assert before not in found


def test_libraries_of_programs_are_those_without_our_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bubblewrap is started with an empty environment: where ours leads elsewhere, both libraries are measured."""
    monkeypatch.setattr(elf, "mapped", lambda: ())
    before = {name: path for name, ((_, path), *_) in identity.measured_files().items() if name.startswith("library")}
    (tmp_path / "libc.so.6").write_bytes(Path(before["library libc.so.6"]).read_bytes())
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    after = identity.measured_files()
    assert after["library libc.so.6"] == [("", str(tmp_path / "libc.so.6"))]
    assert after["library libc.so.6 of programs"] == [("", before["library libc.so.6"])]


def test_startup_changes_with_the_loaders_preload_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What /etc/ld.so.preload names is loaded into every program, so its content counts."""
    monkeypatch.setattr(identity, "_PRELOAD", str(tmp_path / "ld.so.preload"))
    before = identity._startup()
    (tmp_path / "library.so").write_bytes(b"one")
    (tmp_path / "ld.so.preload").write_text(f"{tmp_path}/library.so\n")
    one = identity._startup()
    (tmp_path / "library.so").write_bytes(b"two")
    assert len({before, one, identity._startup()}) == 3


def test_name_services_are_those_that_the_machine_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The C library loads a library for each service of nsswitch.conf: those that are there are parts."""
    parts = runtime_identity().parts
    for name in identity._name_services():
        assert (f"library {name}" in parts) == bool(elf.libraries([], [name]))


def test_startup_changes_with_a_module_that_a_pth_line_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code behind an import line of a .pth file counts, and not the line alone."""
    (tmp_path / "cryptography").mkdir()
    (tmp_path / "x.pth").write_text("import adyton_planted\n")
    (tmp_path / "adyton_planted.py").write_text("")
    monkeypatch.setattr(identity, "_spec_of", lambda _name: (str(tmp_path / "cryptography" / "__init__.py"), []))
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("adyton_planted")
    monkeypatch.setitem(sys.modules, "adyton_planted", module)
    before = identity._startup()
    (tmp_path / "adyton_planted.py").write_text("# changed\n")
    assert identity._startup() != before


def test_identity_without_a_package_is_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing part is named, not left out."""
    monkeypatch.setattr(identity, "PACKAGES", ("cryptography", "no_such_package"))
    with pytest.raises(NoDevice, match="no_such_package"):
        runtime_identity()


def test_identity_with_an_unreadable_part_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A part that vanishes while it is hashed is an error, in either thread."""
    for name in ("gone.so", "gone.py"):
        monkeypatch.setattr(identity, "_programs", lambda name=name: {"program x": str(tmp_path / name)})
        with pytest.raises(FileNotFoundError):
            runtime_identity()


def test_identity_costs_little_when_warm() -> None:
    """A run waits for it: about 0.1 s of processor time. Time on the clock would measure what else the machine does."""
    runtime_identity()
    times = []
    for _ in range(5):
        began = time.process_time()
        runtime_identity()
        times.append(time.process_time() - began)
    assert min(times) < 0.6
