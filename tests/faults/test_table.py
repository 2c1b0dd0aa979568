"""docs/faults.md names every test of a fault or of a security point, wherever it is, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from tests.faults.test_cut_off import STAGES, VICTIMS
from tests.support.ansible_run import ROOT

_NUMBERED = re.compile(r"^test_(row_\d\d|rows(_\d\d){2,}|s\d\d(_s\d\d)*)_[a-z]\w*$")
_PAGE = ROOT / "docs" / "faults.md"


def names_in(folder: str) -> set[str]:
    """The names of the tests in a folder, without those of this file."""
    files = [path for path in (ROOT / "tests" / folder).glob("test_*.py") if path != Path(__file__)]
    return {name for path in files for name in re.findall(r"^ *def (test_\w+)", path.read_text(), re.MULTILINE)}


def test_the_table_names_exactly_the_tests_that_there_are() -> None:
    there = {
        name
        for folder in ("faults", "integration", "playbooks", "docker")
        for name in names_in(folder)
        if re.match(r"test_(rows?_\d|s\d)", name)
    }
    assert [name for name in sorted(there) if not _NUMBERED.match(name)] == []
    assert [name for name in sorted(names_in("faults")) if not _NUMBERED.match(name)] == []
    named = set(re.findall(r"`(test_\w+)`", _PAGE.read_text()))
    assert named == there


def test_each_row_and_each_point_is_there_and_has_a_test_or_a_reason() -> None:
    lines = [line.split("|")[1:-1] for line in _PAGE.read_text().splitlines() if re.match(r"\| (S?\d)", line)]
    numbers = [number for cells in lines for number in re.findall(r"S?\d+", cells[0])]
    assert sorted(numbers) == sorted({*map(str, range(1, 58)), *(f"S{number}" for number in range(1, 24))})
    for cells in lines:
        is_proved = "`test_" in cells[-1]
        assert is_proved or re.search(r"Does not apply|Not built|comes with|first issue", cells[-2]), cells


def test_every_pair_of_a_stage_and_a_victim_has_a_result() -> None:
    section = _PAGE.read_text().partition("## Every pair\n")[2]
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in section.splitlines() if "|" in line]
    assert [cell.strip("`") for cell in rows[0][1:]] == list(VICTIMS)
    assert [row[0].strip("`") for row in rows[2:]] == list(STAGES)
    assert all(len(row) == len(VICTIMS) + 1 and all(row) for row in rows)
