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
COUNTED = swap.Wish("live", "kept", "old", 10, "aside")

PLANS: list[tuple[str, swap.Wish, dict[str, Any], list[tuple[str, str]], str]] = [
    ("swap", SWAP, {"live": entry(10), "new": entry(11, is_open=True)}, [("live", "old"), ("new", "live")], "live"),
    ("swapped already", SWAP, {"live": entry(11, is_open=True), "old": entry(10)}, [], "live"),
    ("aside", ASIDE, {"live": entry(10)}, [("live", "aside")], "aside"),
    ("aside already", ASIDE, {"aside": entry(10)}, [], "aside"),
    ("back", BACK, {"aside": entry(10, is_open=True)}, [("aside", "live")], "live"),
    (
        "what was counted is kept, the old one comes back",
        COUNTED,
        {"aside": entry(10, is_open=True), "old": entry(9)},
        [("aside", "kept"), ("old", "live")],
        "live",
    ),
    ("the old one is back already", COUNTED, {"kept": entry(10), "live": entry(9, is_open=True)}, [], "live"),
    ("back already", BACK, {"live": entry(10, is_open=True)}, [], "live"),
]
REFUSALS: list[tuple[str, swap.Wish, dict[str, Any], str]] = [
    ("no replacement", SWAP, {"live": entry(10)}, "There is no database new"),
    ("another database", SWAP, {"live": entry(12), "new": entry(11)}, "its object id is 12, expected 10"),
    ("open", SWAP, {"live": entry(10, is_open=True), "new": entry(11)}, "live is open"),
    ("the name is taken", SWAP, {"live": entry(10), "new": entry(11), "old": entry(9)}, "There is a database old"),
    ("no live", SWAP, {"new": entry(11)}, "There is no database live"),
    ("not put aside", COUNTED, {"live": entry(10), "old": entry(9)}, "There is no database aside"),
    ("another aside", COUNTED, {"aside": entry(8), "old": entry(9)}, "its object id is 8, expected 10"),
    ("somebody made one", COUNTED, {"aside": entry(10), "old": entry(9), "live": entry(7)}, "a database live, beside"),
    ("in the way", BACK, {"live": entry(12), "aside": entry(10)}, "live is in the way of aside"),
]


@pytest.mark.parametrize(("wish", "seen", "renames", "opened"), [c[1:] for c in PLANS], ids=[c[0] for c in PLANS])
def test_plan(wish: swap.Wish, seen: dict[str, Any], renames: list[tuple[str, str]], opened: str) -> None:
    assert swap.plan(wish, seen) == swap.Plan(renames or (), opened, closes=wish is COUNTED and bool(renames))


@pytest.mark.parametrize(("wish", "seen", "message"), [c[1:] for c in REFUSALS], ids=[c[0] for c in REFUSALS])
def test_refusal(wish: swap.Wish, seen: dict[str, Any], message: str) -> None:
    with pytest.raises(StackError, match="Nothing was renamed") as raised:
        swap.plan(wish, seen)
    assert message in raised.value.message


DONE = {"old": "old", "new_oid": 11, "swap_xid": "812", "row_counts": {}}
COMPLETED: list[tuple[str, dict[str, Any], int | None, dict[str, Any]]] = [
    ("no swap", {}, 11, {}),
    ("it was only begun", {"swap": {"keep_as": "old", "replacement": "new"}}, 11, {}),
    ("killed before the commit", {"swap": {"done": DONE}}, 10, {}),
    ("killed before the commit, and nothing has the name", {"swap": {"done": DONE}}, None, {}),
    ("killed after the commit", {"swap": {"done": DONE}}, 11, DONE),
    ("written down", {"swap": {"done": DONE}, **DONE}, 11, {}),
    ("killed after a second one", {"swap": {"done": DONE}, "swap_xid": "700", "new_oid": 10}, 11, DONE),
]


@pytest.mark.parametrize(("facts", "oid", "expected"), [c[1:] for c in COMPLETED], ids=[c[0] for c in COMPLETED])
def test_what_a_killed_run_would_have_written_down(
    facts: dict[str, Any], oid: int | None, expected: dict[str, Any]
) -> None:
    assert swap.completed(facts, oid) == expected
