"""What has been written to a database since a moment: rows whose transaction is at or after a given one.

A row carries the low half of the number of the transaction that has made it, as inserted or as updated. What was
deleted leaves no row: it can only be told from the number of rows then and now, and so only at least.
"""

from __future__ import annotations

import dataclasses
import json
import re
import typing as t

from ansible.module_utils.alembic_recovery import sql
from ansible.module_utils.alembic_recovery.errors import DatabaseError
from ansible.module_utils.alembic_recovery.postgres import Snapshot

_HALF = 1 << 31
_ROUND = 1 << 32

# Leaf partitions are ordinary tables; the table above them has no rows of its own.
_TABLES = """
select n.nspname as schema, c.relname as name, c.relkind as kind, c.relhassubclass as has_children,
       exists (select 1 from pg_index i where i.indrelid = c.oid and i.indisprimary) as has_key
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'm') and c.relpersistence <> 't' and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
order by 1, 2
"""
_COLUMNS = """
select n.nspname as schema, c.relname as relation, a.attname as name
from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace
where a.attnum > 0 and not a.attisdropped and c.relkind = 'r' order by 1, 2, a.attnum
"""
_NOW = "select pg_snapshot_xmax(pg_current_snapshot())::text as xid"


@dataclasses.dataclass(frozen=True)
class Table:
    """One table: its rows now, those written since, and how many more there are than then (``None``: not known)."""

    table: str
    rows: int
    written: int
    net: int | None
    has_key: bool


def check_distance(since: str, now: int) -> int:
    """The low half of `since`, if rows can be told by it.

    :param since: the 64-bit number of a transaction, as `pg_current_xact_id()` gives it.
    :param now: the next transaction's.
    :raises DatabaseError: it is no such number, it is still to come, or it is too long ago.
    """
    if not re.fullmatch(r"\d{1,19}", since):
        raise DatabaseError(f"since_xid {since!r} is not the number of a transaction. It is in the record of the run.")
    distance = now - int(since)
    if distance < 0:
        raise DatabaseError(
            f"Transaction {since} is still to come: the server's next one is {now}. Is it another server than the one "
            "of the swap, or was it restored since? What was written since cannot be told."
        )
    # Half of a round is as far as PostgreSQL itself can tell older from newer.
    if distance >= _HALF - 1:
        raise DatabaseError(
            f"The server has had {distance} transactions since transaction {since}. Rows tell their transaction only "
            f"for {_HALF} of them: what was written since can no longer be told. Compare with the backup instead."
        )
    return int(since) % _ROUND


def condition(low: int) -> str:
    """Whether a row was written at or after a transaction; `low` is from :func:`check_distance`.

    The age of a row that was frozen by PostgreSQL before 9.4 is greater than any; a negative one is that of a row which
    was frozen a round or more ago.
    """
    return f"age(xmin) between 0 and age('{low}'::xid)"


def begin(snapshot: Snapshot, since: str) -> tuple[int, bool]:
    """The low half of `since`, and whether rows of a former round of transaction numbers could be taken for new ones.

    :raises DatabaseError: what was written since cannot be told.
    """
    # Rows that a policy hides are an error then, not a smaller number.
    snapshot.tell("set local row_security = off")
    now = int(snapshot.ask(_NOW)[0]["xid"])
    return check_distance(since, now), now >= _ROUND


def tables_of(snapshot: Snapshot, version_table: str) -> list[dict[str, t.Any]]:
    """The ordinary tables in a fixed order, without Alembic's own.

    :param version_table: as `table` or `schema.table`.
    """
    return [
        {**row, "table": f"{row['schema']}.{row['name']}"}
        for row in snapshot.ask(_TABLES)
        if row["kind"] == "r" and version_table not in (row["name"], f"{row['schema']}.{row['name']}")
    ]


def rows_since(row: t.Mapping[str, t.Any], low: int) -> str:
    """The query for the rows of a table that were written since."""
    return f"select * from only {sql.identifier(row['schema'], row['name'])} where {condition(low)}"


def count(snapshot: Snapshot, low: int, before: t.Mapping[str, int] | None, version_table: str) -> list[Table]:
    """Each ordinary table, and each that was there then and is no more.

    :param before: the number of rows then by `schema.table`, as pg_catalog counts them; ``None``: not known.
    :raises DatabaseError: a table could not be read.
    """
    tables = tables_of(snapshot, version_table)
    parts = []
    for row in tables:
        name = sql.identifier(row["schema"], row["name"])
        # Those then were counted with the tables that inherit from it.
        rows = f"(select count(*) from {name})" if row["has_children"] else "count(*)"
        parts.append(
            f"select {sql.literal(row['table'])} as name, {rows} as rows, "
            f"count(*) filter (where {condition(low)}) as written from only {name}"
        )
    counted = {row["name"]: row for row in snapshot.ask(" union all ".join(parts))} if parts else {}
    found = []
    for row in tables:
        name, seen = row["table"], counted[row["table"]]
        net = None if before is None else seen["rows"] - int(before.get(name, 0))
        found.append(Table(name, seen["rows"], seen["written"], net, row["has_key"]))
    # Materialized views were counted then, and are made from tables.
    known = {f"{row['schema']}.{row['name']}" for row in snapshot.ask(_TABLES)}
    gone = [name for name in sorted(set(before or {}) - known) if version_table not in (name, name.partition(".")[2])]
    return found + [Table(name, 0, 0, -int((before or {})[name]), False) for name in gone]


def into_added(
    snapshot: Snapshot, low: int | None, columns_before: t.Sequence[t.Mapping[str, t.Any]], version_table: str
) -> list[str]:
    """What is in tables and columns that were not there before, a few words for each that is not empty.

    :param low: only what was written at or after this transaction (:func:`check_distance`); ``None``: all of it.
    :param columns_before: the columns of before: `schema`, `relation`, `name`.
    :raises DatabaseError: a table could not be read.
    """
    known = {(row["schema"], row["relation"], row["name"]) for row in columns_before}
    tables = {(schema, relation) for schema, relation, _name in known}
    now: dict[tuple[str, str], list[str]] = {}
    for row in snapshot.ask(_COLUMNS):
        now.setdefault((row["schema"], row["relation"]), []).append(row["name"])
    since = "true" if low is None else condition(low)
    parts = []
    for table in tables_of(snapshot, version_table):
        place = (table["schema"], table["name"])
        name = sql.identifier(*place)
        if place not in tables:
            counts = [("rows", "count(*)")]
        else:
            added = [column for column in now.get(place, []) if (*place, column) not in known]
            counts = [(column, f"count({sql.identifier(column)})") for column in added]
        parts += [
            f"select {sql.literal(table['table'])} as name, {sql.literal(what)} as what, "
            f"{place not in tables} as whole, {aggregate} filter (where {since}) as number from only {name}"
            for what, aggregate in counts
        ]
    found = snapshot.ask(" union all ".join(parts)) if parts else []
    return [
        f"{row['name']}: {_number(row['number'], 'row')}"
        if row["whole"]
        else f"{row['name']}.{row['what']}: {_number(row['number'], 'value')}"
        for row in found
        if row["number"]
    ]


def _number(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def sentence(table: Table) -> str:
    """What happened to a table since, for people.

    >>> sentence(Table("public.songs", 123, 3, 3, True))
    'songs: 3 rows written since, 3 more than then.'
    """
    name = table.table[len("public.") :] if table.table.startswith("public.") else table.table
    rows = "no rows" if table.written == 0 else "1 row" if table.written == 1 else f"{table.written} rows"
    if table.net is None:
        return f"{name}: {rows} written since."
    if table.net == 0:
        than = "as many as then"
    else:
        than = f"{table.net} more than then" if table.net > 0 else f"{-table.net} fewer than then"
    return f"{name}: {rows} written since, {than}."


def export(snapshot: Snapshot, low: int, version_table: str, write: t.Callable[[str], t.Any]) -> dict[str, int]:
    """Give the rows written since to `write`, one line of JSON each; the number of them by table.

    :raises DatabaseError: a table could not be read.
    """
    counts: dict[str, int] = {}
    for row in tables_of(snapshot, version_table):
        for text in snapshot.lines(rows_since(row, low)):
            write(f'{{"table": {json.dumps(row["table"])}, "row": {text}}}\n')
            counts[row["table"]] = counts.get(row["table"], 0) + 1
    return counts
