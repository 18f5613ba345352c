"""Fixtures of the tests of the verbs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.chain import Chain, Place, adopting_orphans, make_chain, nothing_left


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """An owner with a running key server, and a cloud to copy."""
    with make_chain(tmp_path_factory.mktemp("chain")) as made:
        yield made


@pytest.fixture
def cloud(chain: Chain, tmp_path: Path) -> Iterator[Place]:
    """A fresh cloud; at the end of the test no process, no mount, no plaintext and no key may be left in it."""
    place = chain.cloud(tmp_path / "cloud")
    with adopting_orphans(), nothing_left(tmp_path):
        yield place
    chain.check_secret(tmp_path)


@pytest.fixture
def owner(chain: Chain, tmp_path: Path) -> Iterator[Place]:
    """The owner in an empty folder; at the end of the test no process and no mount may be left."""
    place = Place(tmp_path / "desk", chain.owner.environment)
    place.folder.mkdir()
    with adopting_orphans(), nothing_left(tmp_path):
        yield place
