"""What a look reads of a catalog: the names that are there, and what is wrong whatever the version says.

Everything here only reads. The names are written with their schema; the session's search path is pg_catalog.
"""

from __future__ import annotations

import typing as t

from ansible.module_utils.alembic_recovery import sql
from ansible.module_utils.alembic_recovery.errors import DatabaseError
from ansible.module_utils.alembic_recovery.postgres import Rows, Snapshot

_OURS = "n.nspname !~ '^pg_' and n.nspname <> 'information_schema'"

#: The names of what is there. Nothing in it opens a table, as pg_get_expr() does: a locked one keeps nobody waiting.
NAMES: t.Mapping[str, str] = {
    "relations": f"""
        select n.nspname as schema, c.relname as name, c.relkind as kind
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where {_OURS} and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S', 'c') order by 1, 2""",
    "columns": f"""
        select n.nspname as schema, c.relname as relation, a.attname as name
        from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace
        where {_OURS} and a.attnum > 0 and not a.attisdropped and c.relkind in ('r', 'p', 'v', 'm', 'f', 'c')
        order by 1, 2, 3""",
    "indexes": f"""
        select n.nspname as schema, c.relname as name, i.indisvalid as valid
        from pg_index i join pg_class c on c.oid = i.indexrelid join pg_namespace n on n.oid = c.relnamespace
        where {_OURS} order by 1, 2""",
}

#: Constraints by the schema and the name of their table.
CONSTRAINTS = f"""
    select n.nspname as schema, c.relname as relation, k.conname as name, k.convalidated as validated
    from pg_constraint k join pg_class c on c.oid = k.conrelid join pg_namespace n on n.oid = c.relnamespace
    where {_OURS} and k.contype <> 'n' order by 1, 2, 3"""

# Sequences that a column owns (serial, identity). Only where a B-tree has the column's highest value at its end: any
# other table would have to be read whole.
_OWNED_SEQUENCES = f"""
    select distinct sn.nspname as sequence_schema, s.relname as sequence, n.nspname as schema, c.relname as relation,
           a.attname as name, q.last_value, q.start_value
    from pg_class s join pg_namespace sn on sn.oid = s.relnamespace
         join pg_sequences q on q.schemaname = sn.nspname and q.sequencename = s.relname
         join pg_depend d on d.objid = s.oid and d.classid = 'pg_class'::regclass and d.deptype in ('a', 'i')
              and d.refclassid = 'pg_class'::regclass and d.refobjsubid > 0
         join pg_class c on c.oid = d.refobjid and c.relkind in ('r', 'p') join pg_namespace n on n.oid = c.relnamespace
         join pg_attribute a on a.attrelid = c.oid and a.attnum = d.refobjsubid
         join pg_index i on i.indrelid = c.oid and i.indkey[0] = a.attnum and i.indisvalid and i.indpred is null
         join pg_class b on b.oid = i.indexrelid join pg_am m on m.oid = b.relam and m.amname = 'btree'
    where s.relkind = 'S' and {_OURS} and q.increment_by > 0 and not c.relrowsecurity
          and a.atttypid in ('int2'::regtype, 'int4'::regtype, 'int8'::regtype)
          and has_table_privilege(c.oid, 'select') and has_sequence_privilege(s.oid, 'select')
    order by 1, 2, 3, 4, 5"""
# A table that somebody has locked must not keep a look waiting.
_LOCK_TIMEOUT = "set local lock_timeout = '1s'"


def sequences_behind(snapshot: Snapshot) -> Rows:
    """Sequences whose next value is in their column already: the next INSERT fails on a duplicate key.

    Each as `sequence` and `table` (quoted, with their schemas), `column`, `last_value` (None: never used), `highest`.

    :raises DatabaseError: a table could not be read.
    """
    rows = snapshot.ask(_OWNED_SEQUENCES)
    if not rows:
        return []
    parts = [
        f"select {number} as number, (select max({sql.identifier(row['name'])}) from "
        f"{sql.identifier(row['schema'], row['relation'])})::bigint as highest"
        for number, row in enumerate(rows)
    ]
    highest = {answer["number"]: answer["highest"] for answer in snapshot.ask(" union all ".join(parts))}
    found: Rows = []
    for number, row in enumerate(rows):
        top = highest[number]
        last = row["start_value"] - 1 if row["last_value"] is None else row["last_value"]
        if top is not None and top > last:
            found.append(
                {
                    "sequence": sql.identifier(row["sequence_schema"], row["sequence"]),
                    "table": sql.identifier(row["schema"], row["relation"]),
                    "column": row["name"],
                    "last_value": row["last_value"],
                    "highest": top,
                }
            )
    return found


def read(snapshot: Snapshot) -> tuple[Rows, dict[str, t.Any]]:
    """All constraints, and what is to be told: constraints that were never checked, sequences behind their column.

    The last questions of their snapshot: where a table is locked or may not be read, sequences are left out, and
    `not_read` says why.

    :raises DatabaseError: the catalog could not be read.
    """
    constraints = snapshot.ask(CONSTRAINTS)
    found: dict[str, t.Any] = {
        "unchecked_constraints": [
            {"table": sql.identifier(row["schema"], row["relation"]), "name": sql.identifier(row["name"])}
            for row in constraints
            if not row["validated"]
        ]
    }
    try:
        snapshot.tell(_LOCK_TIMEOUT)
        found["sequences_behind"] = sequences_behind(snapshot)
    except DatabaseError as error:
        found["not_read"] = error.message
    return constraints, found
