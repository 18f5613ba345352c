"""A real software TPM (swtpm) for a test, over its Unix socket."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adyton.sim.software_tpm import SoftwareTPM
from adyton.tee.tpm_device import TPMDevice

needs_swtpm = pytest.mark.skipif(shutil.which("swtpm") is None, reason="swtpm is not installed")


def _listens(path: Path) -> bool:
    """Whether something accepts connections there. The file is there a little earlier."""
    with socket.socket(socket.AF_UNIX) as trying:
        try:
            trying.connect(str(path))
        except OSError:
            return False
    return True


@contextmanager
def running_swtpm(place: Path | None = None) -> Iterator[Path]:
    """A fresh TPM, started up. Gives the path of its socket."""
    with tempfile.TemporaryDirectory(prefix="swtpm.") as folder:
        path = Path(folder) / "tpm.sock" if place is None else place
        arguments = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder}"]
        arguments += ["--server", f"type=unixio,path={path}", "--flags", "not-need-init,startup-clear"]
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            end = time.monotonic() + 30
            while not _listens(path):
                if process.poll() is not None or time.monotonic() > end:
                    pytest.fail("swtpm did not start")
                time.sleep(0.01)
            yield path
        finally:
            process.terminate()
            process.wait(30)


@contextmanager
def software_tpm() -> Iterator[TPMDevice]:
    """The commands of a fresh TPM."""
    with running_swtpm() as path:
        device = TPMDevice(SoftwareTPM(path))
        try:
            yield device
        finally:
            device.close()
