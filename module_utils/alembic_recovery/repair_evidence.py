"""Whether what is there too early holds anything that somebody could miss. Everything here only reads."""

from __future__ import annotations

import re
import typing as t

from ansible.module_utils.alembic_recovery import blemishes, catalog, repair, sql, status
from ansible.module_utils.alembic_recovery.postgres import Database, Snapshot
from ansible.module_utils.alembic_recovery.repair import Object

# A default that is the same for every row: one literal, with its type. now() or nextval() tell rows apart.
_CONSTANT = re.compile(r"\(?(?:-?\d+(?:\.\d+)?|true|false|'(?:[^']|'')*')\)?(?:::[\w .()\"\[\]]+)?")

_TABLE = """
select c.relkind as kind, c.relispartition or exists (
           select 1 from pg_inherits i where c.oid in (i.inhparent, i.inhrelid)) as inherits,
       concat_ws(', ', case when exists (select 1 from pg_publication_rel p where p.prrelid = c.oid)
                            then 'a place in a publication' end,
                 case when exists (select 1 from pg_statistic_ext s where s.stxrelid = c.oid)
                      then 'extended statistics' end,
                 case when exists (select 1 from pg_rewrite r where r.ev_class = c.oid) then 'rules' end,
                 case when c.relreplident <> 'd' then 'a replica identity' end) as besides
from pg_class c where c.oid = to_regclass({path})"""
_COLUMN = """
select format_type(a.atttypid, a.atttypmod) as type, a.attgenerated <> '' as generated,
       pg_get_expr(d.adbin, d.adrelid) as "default",
       concat_ws(', ', case when a.attacl is not null then 'privileges of its own' end,
                 case when exists (select 1 from pg_statistic_ext s
                                   where s.stxrelid = a.attrelid and a.attnum = any (s.stxkeys::int2[]))
                      then 'extended statistics' end) as besides
from pg_attribute a left join pg_attrdef d on (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
where a.attrelid = to_regclass({path}) and a.attname = {name} and not a.attisdropped"""


def look(database: Database, seen: status.Status) -> tuple[repair.State, dict[Object, str]]:
    """What a repair is decided from: the state, and which objects must not be removed, and why.

    :raises DatabaseError: something could not be read.
    """
    with database.snapshot(search_path=catalog.SEARCH_PATH) as snapshot:
        structure = {part: snapshot.ask(query) for part, query in blemishes.NAMES.items()}
        names = status.names_in(seen.declarations, structure, snapshot.ask(blemishes.CONSTRAINTS))
        state = repair.State(
            verdict=seen.verdict.name,
            known=seen.code.known,
            heads=seen.code.heads,
            rows=sorted(seen.schema.rows or ()),
            version_table=seen.tables[0].path if len(seen.tables) == 1 else "",
            missing=seen.verdict.missing,
            declarations=seen.declarations,
            catalog=names,
        )
        return state, kept(snapshot, repair.objects(state))


def kept(snapshot: Snapshot, objects: t.Sequence[Object]) -> dict[Object, str]:
    """Those of the objects that must not be removed, and why, in words. Indexes and constraints hold no data.

    :param snapshot: of a session whose search path is pg_catalog.
    :raises DatabaseError: one could not be read; whether it holds data is not known then.
    """
    # Else policies would hide rows, and a table that has some would look empty. Where they would, this is an error.
    snapshot.tell("set local row_security = off")
    found: dict[Object, str] = {}
    for thing in objects:
        why = _data(snapshot, thing) if thing.kind in ("table", "column") else None
        if why:
            found[thing] = why
    return found


def _data(snapshot: Snapshot, thing: Object) -> str | None:
    path = sql.identifier(thing.schema, thing.table)
    rows = snapshot.ask(_TABLE.format(path=sql.literal(path)))
    if not rows or rows[0]["kind"] != "r":
        return f"{thing.table} is no ordinary table"
    if rows[0]["inherits"]:
        return f"{thing.table} is a part of another table, or has parts"
    if thing.kind == "table":
        # What goes with it, and what the comparison afterwards does not see.
        besides = f"it has {rows[0]['besides']}" if rows[0]["besides"] else None
        return "it has rows" if _any(snapshot, f"select 1 from {path}") else besides
    return _values(snapshot, thing, path)


def _values(snapshot: Snapshot, thing: Object, path: str) -> str | None:
    rows = snapshot.ask(_COLUMN.format(path=sql.literal(path), name=sql.literal(thing.name)))
    if not rows:
        return "it could not be looked at"
    if rows[0]["besides"]:
        return f"it has {rows[0]['besides']}"
    if rows[0]["generated"]:
        return None
    name, default = sql.identifier(thing.name), rows[0]["default"]
    told = f"{name} is not null"
    if default is None or not _CONSTANT.fullmatch(default):
        return "it has values" if _any(snapshot, f"select 1 from {path} where {told}") else None
    same = f"{name}::text is not distinct from (({default})::{rows[0]['type']})::text"
    if _any(snapshot, f"select 1 from {path} where {told} and not {same}"):
        return "it has values"
    # All rows have the default, or none has: it was set after the column was made. Else somebody has stored a NULL.
    mixed = all(_any(snapshot, f"select 1 from {path} where {part}") for part in (f"{name} is null", told))
    return "some rows have its default, and others NULL" if mixed else None


def _any(snapshot: Snapshot, query: str) -> bool:
    return bool(snapshot.ask(f"select exists ({query}) as found")[0]["found"])
