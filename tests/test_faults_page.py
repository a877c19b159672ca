"""docs/faults.md names a test for every fault; this checks that they exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and "---" not in line]
FAULTS = [row for row in ROWS if not row.startswith("| fault |")]


def test_there_is_a_row_for_every_kind() -> None:
    assert len(FAULTS) >= 25


@pytest.mark.parametrize("row", FAULTS, ids=lambda row: row.split("|")[1].strip()[:60])
def test_a_row_names_a_test_that_exists(row: str) -> None:
    found = re.search(r"`(tests/\S+\.py)(?:::(\w+))?` \|$", row)
    assert found, "the last column is a test"
    path, name = found.groups()
    source = (ROOT / path).read_text(encoding="utf-8")
    assert re.search(rf"def {name or 'test_'}", source)
