"""The catalog as data: what the database is made of, in a form that two databases can be compared by.

Nothing in it depends on object ids or on `search_path`, so a database and its restored copy give the same fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import typing as t

from ansible.module_utils.alembic_recovery import properties, sql
from ansible.module_utils.alembic_recovery.postgres import Database, Rows, Snapshot

# Everything is asked with this search_path: pg_get_viewdef(), format_type() and regclass write names without their
# schema when it is on the path, and a role's own path must not change what is read.
SEARCH_PATH = "pg_catalog"

_OURS = "n.nspname !~ '^pg_' and n.nspname <> 'information_schema'"
_NOT_OF_EXTENSION = "not exists (select 1 from pg_depend e where e.objid = {oid} and e.deptype = 'e')"

#: The parts of the fingerprint. Values of sequences are not among them: they move outside of transactions. Privileges
#: that PostgreSQL gives by itself are nothing, noted (after a GRANT and its REVOKE) or not: a dump cannot tell.
STRUCTURE: t.Mapping[str, str] = {
    "schemas": f"""
        select n.nspname as name, pg_get_userbyid(n.nspowner) as owner,
               coalesce((select string_agg(x::text, ',' order by x::text)
                         from unnest(nullif(n.nspacl, acldefault('n', n.nspowner))) x), '') as acl
        from pg_namespace n where {_OURS} order by 1""",
    "relations": f"""
        select n.nspname as schema, c.relname as name, c.relkind as kind, c.relpersistence as persistence,
               pg_get_userbyid(c.relowner) as owner, c.relrowsecurity as row_security,
               coalesce((select string_agg(x::text, ',' order by x::text) from unnest(
                   nullif(c.relacl, acldefault(case c.relkind when 'S' then 's' else 'r' end::"char", c.relowner))
               ) x), '') as acl,
               coalesce(c.reloptions::text, '') as options,
               case when c.relkind in ('v', 'm') then pg_get_viewdef(c.oid) else '' end as definition,
               coalesce(obj_description(c.oid, 'pg_class'), '') as comment
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where {_OURS} and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S', 'c') order by 1, 2""",
    "columns": f"""
        select n.nspname as schema, c.relname as relation, a.attname as name,
               format_type(a.atttypid, a.atttypmod) as type, a.attnotnull as not_null,
               a.attidentity as identity, a.attgenerated as generated,
               coalesce(pg_get_expr(d.adbin, d.adrelid), '') as "default", coalesce(l.collname, '') as collation,
               coalesce(col_description(c.oid, a.attnum), '') as comment
        from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace
             left join pg_attrdef d on (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
             left join pg_collation l on l.oid = a.attcollation
        where a.attnum > 0 and not a.attisdropped and c.relkind in ('r', 'p', 'v', 'm', 'f', 'c') and {_OURS}
        order by 1, 2, 3""",
    "constraints": f"""
        select n.nspname as schema, k.conrelid::regclass::text as relation, k.conname as name,
               k.convalidated as validated, pg_get_constraintdef(k.oid) as definition
        from pg_constraint k join pg_namespace n on n.oid = k.connamespace
        where {_OURS} and k.contype <> 'n' order by 1, 2, 3, 5""",
    "indexes": f"""
        select n.nspname as schema, i.indrelid::regclass::text as relation, c.relname as name,
               i.indisvalid as valid, i.indisunique as is_unique, pg_get_indexdef(i.indexrelid) as definition
        from pg_index i join pg_class c on c.oid = i.indexrelid join pg_namespace n on n.oid = c.relnamespace
        where {_OURS} order by 1, 2, 3""",
    "sequences": """
        select s.schemaname as schema, s.sequencename as name, s.data_type::text as type, s.start_value,
               s.increment_by, s.cycle
        from pg_sequences s where s.schemaname !~ '^pg_' order by 1, 2""",
    "enums": f"""
        select n.nspname as schema, y.typname as name, string_agg(e.enumlabel, ',' order by e.enumsortorder) as labels
        from pg_enum e join pg_type y on y.oid = e.enumtypid join pg_namespace n on n.oid = y.typnamespace
        where {_OURS} group by 1, 2 order by 1, 2""",
    "functions": f"""
        select p.oid::regprocedure::text as name, md5(p.prosrc) as source, pg_get_userbyid(p.proowner) as owner,
               p.prosecdef as security_definer
        from pg_proc p join pg_namespace n on n.oid = p.pronamespace
        where {_OURS} and {_NOT_OF_EXTENSION.format(oid="p.oid")} order by 1""",
    "triggers": """
        select g.tgrelid::regclass::text as relation, g.tgname as name, g.tgenabled as enabled,
               pg_get_triggerdef(g.oid) as definition
        from pg_trigger g where not g.tgisinternal order by 1, 2""",
    "policies": """
        select schemaname as schema, tablename as relation, policyname as name, permissive, cmd,
               coalesce(qual, '') as qual, coalesce(with_check, '') as with_check
        from pg_policies order by 1, 2, 3""",
    "extensions": "select extname as name, extversion as version from pg_extension order by 1",
    "default_privileges": """
        select pg_get_userbyid(a.defaclrole) as role, coalesce(n.nspname, '') as schema, a.defaclobjtype as type,
               (select string_agg(x::text, ',' order by x::text) from unnest(a.defaclacl) x) as acl
        from pg_default_acl a left join pg_namespace n on n.oid = a.defaclnamespace order by 1, 2, 3""",
    "publications": "select pubname as name, puballtables as all_tables from pg_publication order by 1",
}

SEQUENCE_VALUES = """
    select schemaname as schema, sequencename as name, last_value from pg_sequences
    where schemaname !~ '^pg_' order by 1, 2"""

LARGE_OBJECTS = "select count(*) as count from pg_largeobject_metadata"

#: What has rows; a materialized view that was never filled cannot be read.
TABLES = f"""
    select n.nspname as schema, c.relname as name, greatest(c.reltuples, 0)::bigint as estimate,
           pg_total_relation_size(c.oid) as size_bytes
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'm') and c.relispopulated and {_OURS} order by 1, 2"""

#: What a dump locks, and whether it holds the rows: those of an extension's own tables come with the extension.
LOCKABLE = f"""
    select n.nspname as schema, c.relname as name,
           c.relkind = 'r' and {_NOT_OF_EXTENSION.format(oid="c.oid")} as dumped
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p') and c.relpersistence <> 't' and {_OURS} order by 1, 2"""

#: What hangs on the database's own entry, which no dump of the database carries.
DATABASE_PROPERTIES = properties.query()

# The checksums are of values as text, and these decide how text is written: no setting of a role or a database may.
_TEXT_SETTINGS: t.Mapping[str, str] = {
    "timezone": "UTC",
    "datestyle": "ISO, YMD",
    "intervalstyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "xmloption": "content",
}


def read_structure(snapshot: Snapshot) -> dict[str, Rows]:
    """The structural parts by name, each a list of rows in a fixed order.

    :raises DatabaseError: the catalog could not be read.
    """
    return {name: snapshot.ask(query) for name, query in STRUCTURE.items()}


def fingerprint(structure: t.Mapping[str, Rows]) -> str:
    """The SHA-256 of the structure: equal for two databases of the same structure."""
    text = json.dumps(structure, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def qualified(row: t.Mapping[str, t.Any]) -> str:
    """`schema.table`, as people write it."""
    return f"{row['schema']}.{row['name']}"


def read_counts(snapshot: Snapshot) -> dict[str, int]:
    """The exact number of rows of each table and materialized view, by `schema.table`, in one question.

    :raises DatabaseError: a table could not be read.
    """
    tables = snapshot.ask(TABLES)
    if not tables:
        return {}
    parts = [
        f"select {sql.literal(qualified(row))} as name, count(*) as rows "
        f"from {sql.identifier(row['schema'], row['name'])}"
        for row in tables
    ]
    counted = snapshot.ask(" union all ".join(parts))
    return {row["name"]: row["rows"] for row in sorted(counted, key=lambda row: row["name"])}


def write_alike(snapshot: Snapshot) -> None:
    """Let values be written as texts in the same way in every database, whatever is set there."""
    for name, value in _TEXT_SETTINGS.items():
        snapshot.tell(f"set local {name} = {sql.literal(value)}")


def read_content(snapshot: Snapshot, columns: Rows) -> dict[str, dict[str, str]]:
    """A checksum of each column of each table, whatever order the rows are in: `{schema.table: {column: sum}}`.

    :param columns: the part `columns` of the structure.
    :raises DatabaseError: a table could not be read.
    """
    write_alike(snapshot)
    tables = {(row["schema"], row["name"]) for row in snapshot.ask(TABLES)}
    by_table: dict[tuple[str, str], list[str]] = {}
    for row in columns:
        key = (row["schema"], row["relation"])
        if key in tables:
            by_table.setdefault(key, []).append(row["name"])
    content: dict[str, dict[str, str]] = {}
    for (schema, table), names in sorted(by_table.items()):
        # Sums do not depend on the order; NULL and '' must differ, so a NULL is counted apart.
        sums = ", ".join(
            f"sum(hashtextextended({sql.identifier(name)}::text collate \"C\", 0)::numeric)::text || '/' || "
            f"count({sql.identifier(name)})::text as {sql.identifier(name)}"
            for name in names
        )
        row = snapshot.ask(f"select {sums} from {sql.identifier(schema, table)}")[0]
        content[f"{schema}.{table}"] = {name: row[name] or "empty" for name in names}
    return content


def missing_relations(structure: t.Mapping[str, Rows], wanted: t.Iterable[str]) -> list[str]:
    """Those of `wanted` that are not there.

    :param wanted: `table`, `table.column`, `schema.table` or `schema.table.column`.
    """
    names: set[str] = set()
    for row in structure["relations"]:
        names.update({row["name"], qualified(row)})
    for row in structure["columns"]:
        names.update({f"{row['relation']}.{row['name']}", f"{row['schema']}.{row['relation']}.{row['name']}"})
    return [name for name in wanted if name not in names]


def lost_rows(before: t.Mapping[str, int], after: t.Mapping[str, int], version_table: str) -> list[str]:
    """Where rows are missing, one sentence for each table.

    :param before: row counts by `schema.table`, as in a backup's manifest.
    :param version_table: as `table` or `schema.table`; its rows are judged by the verdict.
    """
    problems: list[str] = []
    for table, count in before.items():
        if version_table in (table, table.partition(".")[2]):
            continue
        if table not in after:
            problems.append(f"{table} had {count} rows and is no more.")
        elif after[table] < int(count):
            problems.append(f"{table} has {after[table]} rows, there were {count}.")
    return problems


def invalid_indexes(structure: t.Mapping[str, Rows]) -> list[str]:
    """Indexes that a failed CREATE INDEX CONCURRENTLY has left, as `schema.index`."""
    return [qualified(row) for row in structure["indexes"] if not row["valid"]]


def differences(before: t.Mapping[str, Rows], after: t.Mapping[str, Rows]) -> dict[str, dict[str, list[str]]]:
    """What came and what went, by part: `{part: {added: [...], removed: [...]}}`, parts without a change left out."""
    changed: dict[str, dict[str, list[str]]] = {}
    for part in STRUCTURE:
        old = {json.dumps(row, sort_keys=True) for row in before.get(part, [])}
        new = {json.dumps(row, sort_keys=True) for row in after.get(part, [])}
        if old != new:
            changed[part] = {"added": sorted(new - old), "removed": sorted(old - new)}
    return changed


def read_all(database: Database, *, counts: bool, content: bool) -> dict[str, t.Any]:
    """Structure, fingerprint, sequences' values, and on request row counts and content checksums: one moment.

    :raises DatabaseError: something could not be read.
    """
    with database.snapshot(search_path=SEARCH_PATH) as snapshot:
        structure = read_structure(snapshot)
        found: dict[str, t.Any] = {
            "structure": structure,
            "fingerprint": fingerprint(structure),
            "sequence_values": {qualified(row): row["last_value"] for row in snapshot.ask(SEQUENCE_VALUES)},
            "large_objects": snapshot.ask(LARGE_OBJECTS)[0]["count"],
            "database": snapshot.ask(DATABASE_PROPERTIES)[0],
        }
        if counts:
            found["row_counts"] = read_counts(snapshot)
        if content:
            found["content"] = read_content(snapshot, structure["columns"])
        return found
