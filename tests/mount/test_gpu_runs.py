"""A program with GPUs, from its template to its end, as `adyton run` has it: what it sees, and what ends it before."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import adyton
from adyton.workflow.platform import platform_gpus
from tests.mount.world import REPOSITORY, shell_files

pytestmark = pytest.mark.mount

RUN = """
import json, sys
from pathlib import Path
from adyton.errors import Error
from adyton.gpu_nodes import DeviceNode
from adyton.sim.gpu_folder import SimGPUs
from adyton.tee import gpu_source
from adyton.workflow.run import Request, run_here

nodes = [DeviceNode(*node) for node in json.loads(sys.argv[2])]
SimGPUs.nodes = lambda self: tuple(nodes)  # a simulated GPU has none
try:
    ran = run_here(Request(manifest=Path("app.manifest"), tee=sys.argv[3], sim_platform=Path(sys.argv[1])))
except Error as error:
    print(json.dumps({"error": type(error).__name__, **error.details()}), file=sys.stderr)
    sys.exit(error.exit_code)
sys.exit(ran.exit_code)
"""


@dataclass
class Place:
    """A folder with a built manifest, and a simulated platform that has two GPUs."""

    folder: Path
    platform: Path

    def build(self, *, gpus: int, library: bool = True) -> None:
        """A program that lists /dev. With `library` a file poses as libcuda, among the trusted ones."""
        files = [entry.uri for entry in shell_files()]
        driver = self.folder / "libcuda.so.1"
        driver.write_text("not a driver")
        mounts = [{"path": path, "uri": f"file:{path}"} for path in ("/usr", "/lib", "/lib64")]
        if library:
            files.append(f"file:{driver}")
            mounts.append({"path": "/opt/libcuda.so.1", "uri": f"file:{driver}"})
        shown = ", ".join(f'{{ path = "{mount["path"]}", uri = "{mount["uri"]}" }}' for mount in mounts)
        template = f"""
libos.entrypoint = "{os.path.realpath("/bin/sh")}"
loader.argv = ["sh", "-c", "ls /dev"]
loader.env.PATH = "/usr/bin"
fs.mounts = [{shown}]
sgx.trusted_files = {json.dumps(files)}
[adyton]
gpus = {gpus}
insecure__stdio = true
"""
        (self.folder / "app.manifest.template").write_text(template)
        adyton.build(self.folder / "app.manifest.template", output=self.folder, home=self.folder / "home")

    def run(self, *nodes: tuple[str, int, int], tee: str = "sim-tdx") -> subprocess.CompletedProcess[str]:
        """Run it, with these nodes for its GPUs."""
        return subprocess.run(
            [sys.executable, "-c", RUN, str(self.platform), json.dumps(nodes), tee],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": f"{REPOSITORY}/src:{REPOSITORY}"},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    def refused(self, *nodes: tuple[str, int, int], tee: str = "sim-tdx") -> dict[str, Any]:
        """What a run says that does not start its program."""
        done = self.run(*nodes, tee=tee)
        assert done.returncode != 0
        assert done.stdout == ""
        told: dict[str, Any] = json.loads(done.stderr.splitlines()[-1])
        return told


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """An owner, and a platform."""
    adyton.init(tmp_path / "home", name="alice")
    from adyton.sim.platform import SimPlatform

    platform = tmp_path / "platform"
    SimPlatform.create(platform)
    platform_gpus(platform, tmp_path / "gpus.json", count=2)
    return Place(tmp_path, platform)


@pytest.mark.timeout(240)
def test_program_gets_the_nodes_of_its_gpus_and_a_program_without_gpus_gets_none(place: Place) -> None:
    """The same machine, two manifests. A simulated GPU by itself brings no node."""
    node = place.folder / "nvidia0"
    try:
        os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("this user may not make device nodes (mknod)")
    node.chmod(0o666)
    place.build(gpus=1)
    done = place.run((str(node), 1, 3))
    assert done.returncode == 0, done.stderr
    shown = done.stdout.split()
    assert "nvidia0" in shown
    done = place.run()
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == sorted(set(shown) - {"nvidia0"})
    place.build(gpus=0)
    done = place.run((str(node), 1, 3))
    assert done.returncode == 0, done.stderr
    assert "nvidia0" not in done.stdout


@pytest.mark.timeout(240)
def test_program_does_not_start_without_what_its_gpus_need(place: Place) -> None:
    """Too few GPUs, a node that is not there, a driver's library that is not measured, a TEE that names no GPU."""
    place.build(gpus=3)
    assert place.refused()["check"] == "number of GPUs"
    place.build(gpus=2)
    told = place.refused((str(place.folder / "nvidia0"), 195, 0))
    assert (told["error"], told["check"]) == ("NoDevice", "device node nvidia0")
    assert place.refused(tee="sim")["check"] == "adyton.gpus"
    told = place.refused(tee="tdx")
    assert told["check"] == "--gpu-collateral"
    place.build(gpus=2, library=False)
    told = place.refused((str(place.folder / "nvidia0"), 195, 0))
    assert told["check"] == "files of the GPU's driver"
