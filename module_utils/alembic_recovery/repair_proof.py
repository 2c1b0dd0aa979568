"""What a repair has done to a copy, and whether the revisions have made anew what it removed. Pure."""

from __future__ import annotations

import json
import typing as t

from ansible.module_utils.alembic_recovery import catalog
from ansible.module_utils.alembic_recovery.postgres import Rows
from ansible.module_utils.alembic_recovery.repair import Plan

Seen = t.Mapping[str, t.Any]

# What an object is known by, within its part of the catalog.
_KEYS = ("schema", "relation", "name")


def taken(before: t.Mapping[str, Rows], after: t.Mapping[str, Rows]) -> dict[str, Rows]:
    """The rows of the catalog that are no more, by part: what went along with the removed objects is among them."""
    found: dict[str, Rows] = {}
    for part in catalog.STRUCTURE:
        there = {_text(row) for row in after.get(part, [])}
        gone = [row for row in before.get(part, []) if _text(row) not in there]
        if gone:
            found[part] = gone
    return found


def problems(before: Seen, after: Seen, plan: Plan, version_table: str) -> list[str]:
    """What else is different than what was to be done, one sentence each; nothing, as it should be.

    :param before: what `catalog.read_all` says, with row counts and contents; `after`: the same afterwards.
    :param version_table: as `schema.table`; what the version is, is proved by the next look.
    """
    found = [
        f"{part} has changed: {', '.join(filter(None, map(_name, rows)))}."
        for part, rows in taken(after["structure"], before["structure"]).items()
    ]
    if plan.version is not None and before["fingerprint"] != after["fingerprint"]:
        found.append("The catalog has changed, and only the version was to.")
    removed = set(plan.removed)
    for table, count in before["row_counts"].items():
        expected = None if table in removed else count
        if table != version_table and after["row_counts"].get(table) != expected:
            found.append(f"{table} had {count} rows, and has {after['row_counts'].get(table, 'gone')}.")
    for table, columns in before["content"].items():
        if table in removed or table == version_table:
            continue
        now = after["content"].get(table) or {}
        unlike = [
            name for name, value in columns.items() if f"{table}.{name}" not in removed and now.get(name) != value
        ]
        found += [f"{table}.{name} does not hold what it held." for name in unlike]
    return found


def not_made_anew(
    removed: t.Mapping[str, Rows], columns: t.Mapping[str, t.Sequence[str]], structure: t.Mapping[str, Rows]
) -> list[str]:
    """Where what has come is not what was removed, one sentence for each object.

    :param removed: the rows of `taken`.
    :param columns: which columns a table that was removed may have now, by `schema.table`.
    :param structure: the catalog after the migration.
    """
    found: list[str] = []
    for part, rows in removed.items():
        now = structure.get(part, [])
        for row in rows:
            # An index that was never finished is to come back as one that is.
            wanted = {**row, "valid": True} if "valid" in row else dict(row)
            if _text(wanted) not in {_text(other) for other in now}:
                found.append(_difference(part, wanted, now))
    for row in structure.get("columns", []):
        table = f"{row['schema']}.{row['relation']}"
        if row["name"] not in columns.get(table, [row["name"]]):
            found.append(f"columns: {table}.{row['name']} was not there, and is now.")
    return found


def _difference(part: str, wanted: t.Mapping[str, t.Any], now: Rows) -> str:
    identity = [wanted.get(key) for key in _KEYS]
    alike = [row for row in now if [row.get(key) for key in _KEYS] == identity]
    if not alike:
        return f"{part}: {_name(wanted)} was there, and no revision makes it."
    unlike = [
        f"{key} was {wanted[key]!r}, is {alike[0].get(key)!r}" for key in wanted if wanted[key] != alike[0].get(key)
    ]
    return f"{part}: {_name(wanted)} is made otherwise: {', '.join(unlike)}."


def _name(row: t.Mapping[str, t.Any]) -> str:
    # Of a constraint or an index, `relation` has the schema.
    relation = str(row.get("relation") or "")
    schema = [] if "." in relation else [row.get("schema")]
    return ".".join(str(part) for part in [*schema, relation, row.get("name")] if part)


def _text(row: t.Mapping[str, t.Any]) -> str:
    return json.dumps(row, sort_keys=True)
