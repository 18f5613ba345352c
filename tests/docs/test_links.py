"""Links of the pages that the site's build does not see lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import REPOSITORY

OUTSIDE = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "examples").rglob("*.md")])


@pytest.mark.parametrize("page", OUTSIDE, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_relative_links_lead_to_files(page: Path) -> None:
    """README, CONTRIBUTING, SECURITY, CHANGELOG and the examples' pages name files and folders that exist."""
    targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing
