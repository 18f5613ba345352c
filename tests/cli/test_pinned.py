"""Pinned folders from end to end: protect, run, run again, and a host that puts something back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.chain import Ended, Place, until

pytestmark = [
    pytest.mark.mount,
    pytest.mark.timeout(240),
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed (apt-get install strace)"),
]

SCRIPT = """\
import os, time
rows = open("data/rows.csv").read()
count = int(open("out/count").read()) + 1 if os.path.exists("out/count") else 1
with open("out/count.new", "w") as file:
    file.write(str(count))
os.replace("out/count.new", "out/count")
os.makedirs(f"out/run{count}", exist_ok=True)
with open(f"out/run{count}/result", "w") as file:
    file.write(rows.upper())
"""


@dataclass
class Machine:
    """The owner's folder, in which the program runs, too, and her key server, which can be put back."""

    place: Place
    home: Path

    @property
    def folder(self) -> Path:
        """Where the program's encrypted data lie."""
        return self.place.folder / "encrypted"

    def serve(self) -> subprocess.Popen[str]:
        """Start the key server."""
        ready = self.home.with_name("ready")
        ready.unlink(missing_ok=True)
        server = self.place.start("serve", "--listen", "127.0.0.1:0", "--ready-file", ready)
        until(lambda: (ready.exists() and bool(ready.read_text())) or server.poll() is not None)
        self.place.address = json.loads(ready.read_text())["adyton"]
        return server

    def run(self) -> Ended:
        """Run the program."""
        return self.place.adyton("run", "main.manifest", "--tee", "sim", "--key-server", self.place.address, "--json")

    def count(self) -> str:
        """What the last run left, as its owner reads it."""
        return self.place.adyton("decrypt", "encrypted/out/count", "-o", "-", "--key", "default").out


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A program protected with pinned folders, and a key server that serves."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ADYTON_", "VIRTUAL_ENV"))}
    home = tmp_path / "keys"
    project = tmp_path / "project"
    (project / "data").mkdir(parents=True)
    (project / "out").mkdir()
    (project / "main.py").write_text(SCRIPT)
    (project / "data" / "rows.csv").write_text("a,b\n1,2\n")
    place = Place(
        project,
        {
            **environment,
            "OMP_NUM_THREADS": "1",
            "HOME": str(tmp_path),
            "ADYTON_HOME": str(home),
            "ADYTON_SIM_PLATFORM": str(tmp_path / "platform"),
        },
    )
    ended = place.adyton("protect", "--tee", "sim", "--pinned", "--json", "main.py")
    assert ended.status == 0, ended.err
    assert "adyton pin encrypted/out --key default" in json.loads(ended.out)["steps"]
    machine = Machine(place, home)
    server = machine.serve()
    try:
        yield machine
    finally:
        server.terminate()
        server.communicate(timeout=20)


def _well(ended: Ended) -> dict[str, object]:
    assert ended.status == 0, ended.err
    found: dict[str, object] = json.loads(ended.out)
    assert found["events"] == []
    return found


def _refused(ended: Ended, *words: str) -> None:
    assert ended.status != 0, ended.out
    for word in ("root of the folder", *words):
        assert word in ended.out + ended.err


def test_runs_go_on_and_nothing_older_is_taken(machine: Machine, tmp_path: Path) -> None:
    """Two runs, then the host puts back single files, folders, everything, inputs, and at last the newest."""
    _well(machine.run())
    assert machine.count() == "1"
    shutil.copytree(machine.folder, tmp_path / "first")
    _well(machine.run())
    assert machine.count() == "2"
    newest = tmp_path / "second"
    shutil.copytree(machine.folder, newest)

    def put_back(source: Path) -> None:
        shutil.rmtree(machine.folder)
        shutil.copytree(source, machine.folder)

    put_back(tmp_path / "first")
    _refused(machine.run(), "is older than its key server knows it", "by g-")
    for name in ("decrypt", "mount"):
        target = ("-o", tmp_path / "plain") if name == "decrypt" else (tmp_path / "plain", "--read-only")
        _refused(machine.place.adyton(name, "encrypted/out", *target, "--key", "default"))
    put_back(newest)
    shutil.copy2(tmp_path / "first/out/count", machine.folder / "out/count")
    _refused(machine.run(), "count: an older or another version")
    put_back(newest)
    shutil.rmtree(machine.folder / "out/run1")
    _refused(machine.run(), "run1: missing")
    put_back(newest)
    (machine.folder / "data/rows.csv").unlink()
    _refused(machine.run(), "rows.csv: missing")
    put_back(newest)
    (machine.folder / "out.adyton-roots").unlink()
    _refused(machine.run(), "is gone")
    put_back(newest)
    _well(machine.run())
    assert machine.count() == "3"
    told = machine.place.adyton("audit", "list", "--kind", "folder-root", "--json")
    events = [
        json.loads(entry["body"])["event"] if isinstance(entry["body"], str) else entry["body"]["event"]
        for entry in json.loads(told.out)["entries"]
    ]
    assert events.count("ended") == 3


def test_owner_accepts_after_a_loss(machine: Machine) -> None:
    """What is lost is named, and taken only after the owner has said so."""
    _well(machine.run())
    (machine.folder / "out/count").unlink()
    _refused(machine.run(), "count: missing")
    _refused(machine.place.adyton("pin", "encrypted/out", "--key", "default"), "adyton pin --accept")
    accepted = machine.place.adyton("pin", "encrypted/out", "--key", "default", "--accept")
    assert accepted.status == 0, accepted.err
    _well(machine.run())
    assert machine.count() == "1"


def test_folder_that_is_not_pinned_is_refused(machine: Machine) -> None:
    """A manifest asks for a root that the key server does not keep."""
    template = machine.place.folder / "main.manifest.template"
    template.write_text(template.read_text().replace("file:encrypted/out/", "file:encrypted/other/"))
    (machine.folder / "other").mkdir()
    assert machine.place.adyton("build", "main.manifest.template").status == 0
    tee = json.loads(
        machine.place.adyton("platform", "show", machine.place.environment["ADYTON_SIM_PLATFORM"], "--json").out
    )
    root = f"sim:{tee['root_fingerprint']}"
    approved = machine.place.adyton("approve", "main.manifest", "--key", "default", "--tee", root)
    assert approved.status == 0, approved.err
    _refused(machine.run(), "keeps no root", "adyton pin encrypted/other --key default")
