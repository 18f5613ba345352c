"""A template as a Gramine user has it runs under Adyton's runtime as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from adyton.manifest.finalize import finish
from adyton.manifest.host import host_facts, multiarch_libdir
from adyton.manifest.template import render
from tests.mount.test_proposed import RUN
from tests.mount.world import REPOSITORY, decrypt, encrypt
from tests.support import machine

PYTHON = machine.SYSTEM_PYTHON
LIBRARY = f"/usr/lib/{Path(PYTHON).name}"

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(
        not Path(LIBRARY, "os.py").exists(), reason="the distribution's Python is missing (apt-get install python3)"
    ),
]

TEMPLATE = """
libos.entrypoint = "{{ python }}"
loader.argv = ["python3", "/app.py"]
loader.env.LD_LIBRARY_PATH = "/lib:{{ arch_libdir }}:/usr{{ arch_libdir }}"
loader.env.LD_PRELOAD = "libsecret_prov_attest.so"
loader.env.SECRET_PROVISION_CONSTRUCTOR = "1"
loader.env.SECRET_PROVISION_SET_KEY = "k"
loader.env.SECRET_PROVISION_CA_CHAIN_PATH = "/ca.crt"
loader.env.SECRET_PROVISION_SERVERS = "localhost:4433"
fs.mounts = [
  { path = "/lib", uri = "file:{{ gramine.runtimedir() }}" },
  { path = "{{ arch_libdir }}", uri = "file:{{ arch_libdir }}" },
  { path = "/usr", uri = "file:/usr" },
  { path = "/app.py", uri = "file:app.py" },
  { path = "/etc", uri = "file:/etc" },
  { path = "/result.txt", uri = "file:result.txt" },
  { type = "encrypted", path = "/data", uri = "file:enc/", key_name = "k" },
  { type = "tmpfs", path = "/tmp" },
]
sgx.enclave_size = "1G"
sgx.max_threads = 16
sgx.remote_attestation = "dcap"
sgx.trusted_files = [
  "file:app.py", "file:{{ python }}", "file:{{ gramine.runtimedir() }}/",
  {% for lib in ldd(python) %}"file:{{ lib }}", {% endfor %}
  "file:{{ library }}/",
]
sgx.allowed_files = ["file:result.txt", "file:/etc/adyton-no-such-file"]
"""


@pytest.mark.timeout(240)
def test_template_of_a_gramine_user_runs_unchanged(tmp_path: Path) -> None:
    """Rendered without Gramine, built, run: an encrypted folder read and written, and /dev/attestation in its place.

    Gramine's provisioning is taken out, and the allowed files need not exist.
    """
    (tmp_path / "app.py").write_text(
        "import json, os\n"
        "text = open('/data/in.txt').read()\n"
        "open('/result.txt', 'w').write('in clear')\n"
        "kind = open('/dev/attestation/attestation_type').read()\n"
        "json.dump([text, kind, sorted(os.listdir('/data'))], open('/data/out.json', 'w'))\n"
    )
    encrypt(tmp_path, "enc/in.txt", b"secret")
    here = host_facts(None, programs=[PYTHON])
    variables = {"arch_libdir": str(multiarch_libdir()), "python": PYTHON, "library": LIBRARY}
    text = render(TEMPLATE, variables, facts=here)
    (tmp_path / "app.manifest").write_bytes(finish(text, tmp_path).manifest_bytes)
    done = subprocess.run(
        [sys.executable, "-c", RUN, "app.manifest"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}/src:{REPOSITORY}"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    log = decrypt(tmp_path, "program.log").decode() if (tmp_path / "program.log").exists() else ""
    assert done.returncode == 0, done.stdout + done.stderr + log
    assert decrypt(tmp_path, "enc/out.json") == b'["secret", "dcap", ["in.txt"]]'
    assert (tmp_path / "result.txt").read_text() == "in clear"
    assert "SECRET_PROVISION_CONSTRUCTOR" not in (tmp_path / "app.manifest").read_text()
