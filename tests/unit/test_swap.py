"""Which databases are renamed: a table of what is there and what is wanted."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.alembic_recovery import swap
from ansible.module_utils.alembic_recovery.errors import StackError


def entry(oid: int, *, is_open: bool = False) -> dict[str, Any]:
    return {"oid": oid, "open": is_open}


SWAP = swap.Wish("live", "old", "new", 10)
ASIDE = swap.Wish("live", "aside", None, 10)
BACK = swap.Wish("live", None, "aside")

PLANS: list[tuple[str, swap.Wish, dict[str, Any], list[tuple[str, str]], str]] = [
    ("swap", SWAP, {"live": entry(10), "new": entry(11, is_open=True)}, [("live", "old"), ("new", "live")], "live"),
    ("swapped already", SWAP, {"live": entry(11, is_open=True), "old": entry(10)}, [], "live"),
    ("aside", ASIDE, {"live": entry(10)}, [("live", "aside")], "aside"),
    ("aside already", ASIDE, {"aside": entry(10)}, [], "aside"),
    ("back", BACK, {"aside": entry(10, is_open=True)}, [("aside", "live")], "live"),
    ("back already", BACK, {"live": entry(10, is_open=True)}, [], "live"),
]
REFUSALS: list[tuple[str, swap.Wish, dict[str, Any], str]] = [
    ("no replacement", SWAP, {"live": entry(10)}, "There is no database new"),
    ("another database", SWAP, {"live": entry(12), "new": entry(11)}, "its object id is 12, expected 10"),
    ("open", SWAP, {"live": entry(10, is_open=True), "new": entry(11)}, "live is open"),
    ("the name is taken", SWAP, {"live": entry(10), "new": entry(11), "old": entry(9)}, "There is a database old"),
    ("no live", SWAP, {"new": entry(11)}, "There is no database live"),
    ("in the way", BACK, {"live": entry(12), "aside": entry(10)}, "live is in the way of aside"),
]


@pytest.mark.parametrize(("wish", "seen", "renames", "opened"), [c[1:] for c in PLANS], ids=[c[0] for c in PLANS])
def test_plan(wish: swap.Wish, seen: dict[str, Any], renames: list[tuple[str, str]], opened: str) -> None:
    assert swap.plan(wish, seen) == swap.Plan(renames or (), opened)


@pytest.mark.parametrize(("wish", "seen", "message"), [c[1:] for c in REFUSALS], ids=[c[0] for c in REFUSALS])
def test_refusal(wish: swap.Wish, seen: dict[str, Any], message: str) -> None:
    with pytest.raises(StackError, match="Nothing was renamed") as raised:
        swap.plan(wish, seen)
    assert message in raised.value.message
