"""docs/faults.md names every test of faults, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.ansible_run import ROOT


def test_the_table_names_exactly_the_tests_that_there_are() -> None:
    files = [path for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__)]
    there = {name for path in files for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)}
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "faults.md").read_text()))
    assert named == there
    assert all(re.match(r"test_(row_\d\d|rows_\d\d_\d\d|s\d\d)_", name) for name in there)
