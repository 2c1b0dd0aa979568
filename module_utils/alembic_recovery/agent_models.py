"""A part of the agent: what the application's models and the catalog have not in common, as `alembic check` sees it.

Like `agent.py`, it runs in the application's own Python: the standard library, SQLAlchemy, Alembic, Python 3.8.

Alembic's own comparison is asked, on the connection and with the settings of the application's `env.py`: its models,
`include_object`, `include_name`, `include_schemas`, `compare_type`, `compare_server_default`. Its
`process_revision_directives` is not called: that is code for writing revision files. Nothing is decided here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import typing as t

try:
    import alembic
    import sqlalchemy
    from alembic.autogenerate import compare_metadata
    from ansible.module_utils.alembic_recovery.agent_sessions import is_autocommit
except ImportError:  # agent.py reports it
    pass

Facts = t.Dict[str, t.Any]

# A table that somebody is just changing must not keep a look waiting.
_PATIENCE = "select set_config('lock_timeout', '5s', true)"
# Partitions are made and dropped as the data comes and goes, and models have only their parent.
_PARTITIONS = """
select n.nspname as place, c.relname as name, pg_table_is_visible(c.oid) as visible
from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace where c.relispartition
"""
_SHOWN = 200

_MISSING, _EXTRA, _OTHER = "missing", "extra", "other"


def compare(context: t.Any, directory: str, *, at_head: bool) -> Facts:
    """`differences`, and the `fingerprint` of all that decides them but the catalog; `state` says whether they could be
    compared (compared, no_models, below_head, failed), `reason` why not.

    :param context: Alembic's, as `env.py` has configured it.
    :param directory: where `env.py` is.
    :param at_head: below the head, models and catalog differ by what is to come.
    """
    metadata = context.opts.get("target_metadata")
    if metadata is None:
        return _not("no_models", "env.py gives Alembic no models (target_metadata)")
    if not at_head:
        return _not("below_head", "the database is not at head")
    try:
        context.connection.exec_driver_sql(_PATIENCE)
        with _apart(context.connection):
            partitions = _partitions(context.connection)
            differences = compare_metadata(context, metadata)
        found = [describe(difference) for difference in differences if not _is_of_partitions(difference, partitions)]
        found = [one for one in found if one["side"] != _EXTRA or one["table"] not in partitions]
        fingerprint = _fingerprint(metadata, context.dialect, directory)
    except Exception as error:  # whatever a type, a filter or the server makes of it: a status must not fail of it
        return _not("failed", "Alembic could not compare them (%s)" % type(error).__name__)
    ordered = sorted(found, key=lambda one: json.dumps(one, sort_keys=True))
    return {"state": "compared", "fingerprint": fingerprint, "differences": ordered, "reason": None}


def _not(state: str, reason: str) -> Facts:
    return {"state": state, "fingerprint": None, "differences": [], "reason": reason}


def skipped(reason: str) -> Facts:
    """What `compare()` would have said, where nothing was compared."""
    return _not("failed", reason)


@contextlib.contextmanager
def _apart(connection: t.Any) -> t.Iterator[None]:
    """Behind a savepoint: SQL of the comparison that fails must leave the transaction of `env.py` as it was."""
    if is_autocommit(connection.connection.dbapi_connection):
        yield
        return
    with connection.begin_nested():
        yield


def _is_of_partitions(difference: t.Any, partitions: t.Container[str]) -> bool:
    """Whether it is the foreign key that PostgreSQL keeps on the referring table for each partition of the other."""
    if isinstance(difference, list) or difference[0] != "remove_fk":
        return False
    return all(element.target_fullname.rpartition(".")[0] in partitions for element in difference[1].elements)


def _partitions(connection: t.Any) -> set[str]:
    """The names of all partitions, as Alembic knows tables: without the schema where the search path leads to them."""
    rows = connection.exec_driver_sql(_PARTITIONS).mappings().all()
    return {_path(row["place"], row["name"]) for row in rows} | {row["name"] for row in rows if row["visible"]}


def describe(difference: t.Any) -> Facts:
    """One of Alembic's differences without objects: `side` (missing, extra in the catalog, or other), `table`, `object`
    (in words) and `detail`.

    Alembic groups what it would modify of one column in a list; such a list is one difference.
    """
    if isinstance(difference, list):
        return _modified(difference)
    kind, words = str(difference[0]), difference[1:]
    side = _MISSING if kind.startswith("add_") else _EXTRA if kind.startswith("remove_") else _OTHER
    what = kind.partition("_")[2]
    if what == "table":
        return _facts(side, _path(words[0].schema, words[0].name), "table", "")
    if what == "column":
        table = _path(words[0], words[1])
        return _facts(side, table, "column %s.%s" % (table, words[2].name), _text(words[2].type))
    if what in ("index", "constraint", "fk"):
        part = words[0]
        table = _path(getattr(part.table, "schema", None), getattr(part.table, "name", None))
        word = {"index": "index", "constraint": "constraint", "fk": "foreign key"}[what]
        return _facts(side, table, "%s %s on %s" % (word, part.name or "without a name", table), _parts(part))
    if what == "table_comment":
        table = _path(words[0].schema, words[0].name)
        return _facts(_OTHER, table, "comment of table %s" % table, _hidden([words[0].comment, *words[1:]]))
    # An extension of Alembic has differences of its own.
    return _facts(side, "", kind.replace("_", " "), ", ".join(_text(word) for word in words))


def _modified(group: t.Sequence[t.Any]) -> Facts:
    _kind, place, name, column = group[0][:4]
    table = _path(place, name)
    details = []
    for kind, _schema, _table, _column, _existing, there, wanted in group:
        what = str(kind).partition("_")[2]
        if what in ("type", "nullable"):
            details.append("%s is %s, the models say %s" % (what, _text(there), _text(wanted)))
        else:  # defaults and comments may hold anything
            details.append("another %s %s" % (what, _hidden([_default(there), _default(wanted)])))
    return _facts(_OTHER, table, "column %s.%s" % (table, column), "; ".join(details))


def _facts(side: str, table: str, named: str, detail: str) -> Facts:
    return {"side": side, "table": table, "object": named if named != "table" else "table " + table, "detail": detail}


def _path(schema: t.Any, name: t.Any) -> str:
    return "%s.%s" % (schema, name) if schema else str(name)


def _text(thing: t.Any) -> str:
    try:
        return str(thing)[:_SHOWN]
    except Exception:  # a type of its own that has no text outside of its dialect
        return type(thing).__name__


def _default(value: t.Any) -> str:
    if value is None or isinstance(value, str):
        return _text(value)
    if hasattr(value, "sqltext"):  # a column that is generated
        return "%s %s" % (_text(value.sqltext), getattr(value, "persisted", None))
    # Not its repr(): some have the address in memory in it.
    return _text(value.arg) if hasattr(value, "arg") else type(value).__name__


def _hidden(values: t.Sequence[t.Any]) -> str:
    """Enough to tell another value from this one, and not the value."""
    return "(%s)" % hashlib.sha256(repr([_text(value) for value in values]).encode()).hexdigest()[:12]


def _parts(part: t.Any) -> str:
    """The columns or expressions of an index or a constraint, and what it refers to."""
    names = [_text(getattr(one, "name", None) or one) for one in getattr(part, "expressions", None) or part.columns]
    more = ["unique"] if getattr(part, "unique", False) else []
    # Not `element.column`: that the other table is there is what is in question.
    more += ["to " + element.target_fullname for element in getattr(part, "elements", ())]
    return ", ".join([*names, *more])


def _fingerprint(metadata: t.Any, dialect: t.Any, directory: str) -> str:
    """Of the models, `env.py`, and the versions of the two libraries and of the server: with another of these, Alembic
    may see other differences in the same catalog.
    """
    with open(os.path.join(directory, "env.py"), "rb") as file:
        env = hashlib.sha256(file.read()).hexdigest()
    many = metadata if isinstance(metadata, (list, tuple)) else [metadata]
    tables = sorted((_described(table, dialect) for one in many for table in one.tables.values()), key=json.dumps)
    server = (getattr(dialect, "server_version_info", None) or [None])[0]
    everything = [alembic.__version__, sqlalchemy.__version__, server, env, tables]
    return hashlib.sha256(json.dumps(everything).encode()).hexdigest()


def _described(table: t.Any, dialect: t.Any) -> list[t.Any]:
    columns = [
        [column.name, _type(column.type, dialect), column.nullable, _default(column.server_default), column.comment]
        for column in table.columns
    ]
    parts = [
        [type(part).__name__, _text(part.name), _parts(part), *_rules(part)]
        for part in [*table.indexes, *table.constraints]
    ]
    checks = [_text(getattr(part, "sqltext", "")) for part in table.constraints]
    ordered = [sorted(columns, key=json.dumps), sorted(parts, key=json.dumps), sorted(checks)]
    return [_path(table.schema, table.name), table.comment, *ordered]


def _rules(part: t.Any) -> list[str]:
    """What Alembic compares of an index or a constraint besides: its expressions, and the rules of a foreign key."""
    written = [_text(one) for one in getattr(part, "expressions", ())]
    rules = ("ondelete", "onupdate", "deferrable", "initially")
    return [*written, *(_text(getattr(part, rule, None)) for rule in rules)]


def _type(kind: t.Any, dialect: t.Any) -> str:
    values = getattr(kind, "enums", None) or []
    try:
        name = str(kind.compile(dialect=dialect))
    except Exception:  # it is in no catalog by this name either
        name = type(kind).__name__
    return " ".join([name, *(str(value) for value in values)])
