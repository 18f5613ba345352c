"""The README's first steps, on a machine that has nothing: bare roots of Debian 12 and 13, with their own Python."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.fresh import bare_root

SUITES = {"bookworm": "Debian 12, Python 3.11.2, libfuse 3.14", "trixie": "Debian 13, Python 3.13, libfuse 3.17"}


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("suite", SUITES)
def test_demo_and_tests_are_green_on_a_bare_machine(suite: str) -> None:
    """git, make and certificates are installed; `make demo` and `make test` do the rest. A failed root is kept."""
    folder = bare_root.default_folder()
    reason = bare_root.missing(folder)
    if reason is not None:
        pytest.skip(reason)
    root = bare_root.make(suite, folder)
    status = root.run(bare_root.FIRST_STEPS)
    assert status == 0, f"{SUITES[suite]}: status {status}; the root is kept at {root.path}"
    shutil.rmtree(root.path)


def test_readme_and_bare_roots_begin_alike() -> None:
    """The README names the steps that a bare root runs."""
    text = (bare_root.REPOSITORY / "README.md").read_text(encoding="utf-8")
    for step in ("git make ca-certificates", "make demo", "make test"):
        assert step in text
        assert step in bare_root.FIRST_STEPS


def test_pip_reaches_in_a_root_what_it_reaches_here() -> None:
    """Every local folder that pip's settings name here is shown in the root; certificates are the root's own."""
    paths = bare_root.pip_paths()
    assert all(os.path.exists(path) for path in paths)
    assert not [path for path in paths if path.startswith(("/etc/ssl", "/etc/pip"))]
