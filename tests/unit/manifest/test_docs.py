"""docs/manifest.md and docs/measurement.md say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from adyton.manifest.findings import findings_table, runtime_refusals
from adyton.manifest.key_table import KEYS, Standing, reference_table
from adyton.manifest.measure import workload_measurement
from adyton.manifest.model import parse_manifest
from adyton.values import Digest

DOCS = Path(__file__).parent.parent.parent.parent / "docs"


def test_reference_table_of_keys_is_the_documented_one() -> None:
    """The table in docs/manifest.md is the one that `reference_table` makes of the keys."""
    _, _, table = (DOCS / "manifest.md").read_text().partition("<!-- keys -->\n")
    assert table.strip() == reference_table().strip()


def test_table_of_findings_is_the_documented_one() -> None:
    """Every finding stands in docs/manifest.md, with whether an owner must name it."""
    _, _, rest = (DOCS / "manifest.md").read_text().partition("<!-- findings -->\n")
    assert rest.partition("<!-- end of findings -->")[0].strip() == findings_table().strip()


def test_worked_measurement_is_the_documented_one() -> None:
    """The number in docs/measurement.md is computed."""
    found = re.findall(r"`([0-9a-f]{64})`", (DOCS / "measurement.md").read_text())
    assert found == [str(workload_measurement(b"", Digest(bytes(32))))]


REFUSING = {
    "sys.disallow_subprocesses": "sys.disallow_subprocesses = true",
    "sys.debug__mock_syscalls": "sys.debug__mock_syscalls = [{ name = 'fork', return = 1 }]",
    "sys.debug__mock_syscalls[].name": "sys.debug__mock_syscalls = [{ name = 'fork' }]",
    "sys.debug__mock_syscalls[].return": "sys.debug__mock_syscalls = [{ name = 'fork', return = 1 }]",
    "sys.ioctl_structs.*": "sys.ioctl_structs.x = [{ size = 4 }]\nsys.allowed_ioctls = [{ request_code = 1 }]",
    "sys.allowed_ioctls": "sys.allowed_ioctls = [{ request_code = 1 }]",
    "sys.allowed_ioctls[].request_code": "sys.allowed_ioctls = [{ request_code = 1 }]",
    "sys.allowed_ioctls[].struct": "sys.allowed_ioctls = [{ request_code = 1, struct = 'x' }]",
}


@pytest.mark.parametrize("name", [key.name for key in KEYS if key.standing is Standing.REFUSED])
def test_key_that_the_table_calls_refused_is_refused(name: str) -> None:
    """No key is called refused that the runtime would accept."""
    manifest = parse_manifest(f'libos.entrypoint = "/a"\nfs.mounts = []\n{REFUSING[name]}\n')
    assert runtime_refusals(manifest)
