"""What is computed from the catalog's rows."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.alembic_recovery import catalog

STRUCTURE: dict[str, list[dict[str, Any]]] = {
    "relations": [{"schema": "public", "name": "songs", "kind": "r"}, {"schema": "aux", "name": "log", "kind": "r"}],
    "columns": [{"schema": "public", "relation": "songs", "name": "id"}],
    "indexes": [
        {"schema": "public", "relation": "songs", "name": "ix_ok", "valid": True},
        {"schema": "public", "relation": "songs", "name": "ix_bad", "valid": False},
    ],
}


@pytest.mark.parametrize("wanted", ["songs", "public.songs", "songs.id", "public.songs.id", "aux.log", "log"])
def test_relation_is_there(wanted: str) -> None:
    assert catalog.missing_relations(STRUCTURE, [wanted]) == []


@pytest.mark.parametrize("wanted", ["song", "songs.sketch_id", "aux.songs", "public.songs.sketch_id", "SONGS"])
def test_relation_is_missing(wanted: str) -> None:
    assert catalog.missing_relations(STRUCTURE, [wanted]) == [wanted]


def test_invalid_indexes() -> None:
    assert catalog.invalid_indexes(STRUCTURE) == ["public.ix_bad"]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        pytest.param({"public.songs": 3}, {"public.songs": 3, "public.new": 0}, [], id="same and new"),
        pytest.param({"public.songs": 3}, {"public.songs": 4}, [], id="more"),
        pytest.param({"public.songs": 3}, {"public.songs": 2}, ["public.songs has 2 rows, there were 3."], id="fewer"),
        pytest.param({"public.songs": 3}, {}, ["public.songs had 3 rows and is no more."], id="gone"),
        pytest.param({"public.alembic_version": 2}, {"public.alembic_version": 1}, [], id="version table"),
        pytest.param({"aux.alembic_version": 2}, {"aux.alembic_version": 1}, [], id="version table elsewhere"),
    ],
)
def test_lost_rows(before: dict[str, int], after: dict[str, int], expected: list[str]) -> None:
    assert catalog.lost_rows(before, after, "alembic_version") == expected


def test_fingerprint_depends_on_the_structure_and_not_on_the_order_of_keys() -> None:
    other = {part: [dict(reversed(list(row.items()))) for row in rows] for part, rows in reversed(STRUCTURE.items())}
    changed = {**STRUCTURE, "columns": [{"schema": "public", "relation": "songs", "name": "ID"}]}
    assert catalog.fingerprint(other) == catalog.fingerprint(STRUCTURE)
    assert catalog.fingerprint(changed) != catalog.fingerprint(STRUCTURE)


def test_differences_name_what_came_and_what_went() -> None:
    after = {**STRUCTURE, "indexes": STRUCTURE["indexes"][:1]}
    found = catalog.differences(STRUCTURE, after)
    assert list(found) == ["indexes"]
    assert found["indexes"]["added"] == []
    assert "ix_bad" in found["indexes"]["removed"][0]
