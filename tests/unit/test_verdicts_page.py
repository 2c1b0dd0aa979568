"""docs/verdicts.md names every verdict that there is, every finding, every trap, and tests that exist."""

from __future__ import annotations

import re

from tests.support.ansible_run import ROOT

_PAGE = (ROOT / "docs" / "verdicts.md").read_text(encoding="utf-8")
_PACKAGE = ROOT / "module_utils" / "alembic_recovery"
_TESTS = ROOT / "tests"


def rows(first: str) -> list[list[str]]:
    """The cells of those table rows whose first cell is like `first`."""
    found = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in _PAGE.splitlines() if "|" in line]
    return [cells for cells in found if re.fullmatch(first, cells[0])]


def names_in(folder: str) -> set[str]:
    """The names of all tests below a folder of tests."""
    return {
        name
        for path in (_TESTS / folder).rglob("test_*.py")
        for name in re.findall(r"^ *def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }


def test_every_verdict_is_there_in_the_order_of_precedence() -> None:
    source = (_PACKAGE / "verdict.py").read_text(encoding="utf-8")
    order = re.findall(r"[A-Z_]{5,}", source.partition("first that holds:")[2].partition(".")[0])
    assert set(order) == set(re.findall(r'Verdict\(\s*"([A-Z_]+)"', source))
    assert [cells[0] for cells in rows(r"[A-Z_]{5,}")] == order


def test_every_verdict_says_what_is_done_and_has_a_test_named_after_it() -> None:
    there = names_in("verdicts")
    for verdict, recognised, done, tests in rows(r"[A-Z_]{5,}"):
        assert recognised
        assert done
        named = re.findall(r"`(test_\w+)`", tests)
        assert any(name.startswith(f"test_{verdict.lower()}") and name in there for name in named), verdict


def test_every_finding_is_there() -> None:
    source = "".join((_PACKAGE / f"{name}.py").read_text(encoding="utf-8") for name in ("verdict", "status"))
    for name in re.findall(r'Finding\(\s*"(\w+)"', source):
        assert f"`{name}`" in _PAGE, name


def test_every_trap_is_there_with_its_test_or_why_there_is_none() -> None:
    table = rows(r"\d+")
    assert [cells[0] for cells in table] == [str(number) for number in range(1, 21)]
    there = names_in("verdicts")
    for number, *_words, tests in table:
        own = [name for name in there if name.startswith(f"test_trap_{int(number):02}_")]
        assert own or re.match(r"Not (built|shown)|`test_", tests), number
        assert all(f"`{name}`" in tests for name in own), number


def test_every_test_that_is_named_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", _PAGE))
    assert sorted(named - names_in("")) == []
