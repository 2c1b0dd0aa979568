"""Assertions on data: SQL from the inventory whose one value is compared with a limit, or with its value before."""

from __future__ import annotations

import typing as t

from ansible.module_utils.alembic_recovery.errors import DatabaseError, StackError
from ansible.module_utils.alembic_recovery.postgres import Database

#: In place of a limit: what the same query gave before the migration.
BEFORE = "before"
_COMPARISONS: t.Mapping[str, tuple[str, t.Callable[[t.Any, t.Any], bool]]] = {
    "at_least": ("at least", lambda value, limit: value >= limit),
    "at_most": ("at most", lambda value, limit: value <= limit),
    "equals": ("exactly", lambda value, limit: value == limit),
}


def due(queries: t.Sequence[t.Mapping[str, t.Any]], phase: str) -> list[t.Mapping[str, t.Any]]:
    """The queries to run in a phase (``before`` or ``after``): before, only those whose value will be compared."""
    if phase == BEFORE:
        return [query for query in queries if BEFORE in [query.get(name) for name in _COMPARISONS]]
    return list(queries)


def check_names(queries: t.Sequence[t.Mapping[str, t.Any]]) -> None:
    """Refuse queries of which two have one name.

    :raises StackError: so it is.
    """
    if len({query["name"] for query in queries}) != len(queries):
        raise StackError("Two of expect.queries have the same name; give each its own.")


def measure(database: Database, queries: t.Sequence[t.Mapping[str, t.Any]]) -> dict[str, dict[str, t.Any]]:
    """The value of each query by its name, `{value: …}`, or why it has none, `{error: …}`.

    :raises DatabaseError: no connection.
    """
    by_name = {query["name"]: _first_column_named(query["sql"]) for query in queries}
    try:
        answers = {name: _value(rows) for name, rows in database.ask_all(by_name).items()}
        return {name: answers[name] for name in by_name}
    except DatabaseError as error:
        if "sqlstate" not in error.details:
            raise
    # One of them failed: each by itself, so that the others have their say.
    return {name: _measure_one(database, text) for name, text in by_name.items()}


def compare(query: t.Mapping[str, t.Any], measured: t.Mapping[str, t.Any], before: t.Mapping[str, t.Any]) -> str | None:
    """Why an assertion does not hold, or nothing where it does.

    :param measured: what :func:`measure` gave for it.
    :param before: values before the migration, by name.
    """
    name = query["name"]
    if "error" in measured:
        return f"{name}: {measured['error']}"
    for option, (words, holds) in _COMPARISONS.items():
        limit = query.get(option)
        if limit is None:
            continue
        if limit == BEFORE:
            if name not in before:
                continue  # verify on its own has nothing to compare with, and says so
            limit = before[name]
        value, wanted = _alike(measured["value"], limit)
        if value is None or not holds(value, wanted):
            return f"{name}: the query gives {measured['value']!r}, expected {words} {limit!r}."
    return None


def uncompared(queries: t.Sequence[t.Mapping[str, t.Any]], before: t.Mapping[str, t.Any]) -> list[str]:
    """The names of those that are to be compared with a value before, of which there is none."""
    return [query["name"] for query in due(queries, BEFORE) if query["name"] not in before]


def _first_column_named(text: str) -> str:
    """The query with a name of its own for its first column: two columns of one name would look like one."""
    return "select * from (\n" + text.strip().rstrip(";") + '\n) q("the value")'


def _measure_one(database: Database, text: str) -> dict[str, t.Any]:
    try:
        return _value(database.ask(text))
    except DatabaseError as error:
        return {"error": error.message}


def _value(rows: t.Sequence[t.Mapping[str, t.Any]]) -> dict[str, t.Any]:
    if len(rows) != 1 or len(rows[0]) != 1:
        columns = len(rows[0]) if rows else 0
        return {"error": f"the query gives {len(rows)} rows of {columns} columns, expected one value."}
    return {"value": next(iter(rows[0].values()))}


def _alike(value: t.Any, limit: t.Any) -> tuple[t.Any, t.Any]:
    """Both as numbers where both can be: the inventory's limits are text, and jsonb's numbers are not."""
    try:
        return float(value), float(limit)
    except (TypeError, ValueError):
        return (None if value is None else str(value)), str(limit)
