"""What is so, read with SQL and system calls of the tests' own: nothing in here uses the product's code."""

from __future__ import annotations

import contextlib
import hashlib
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
from psycopg import sql

from tests.support.waiting import wait_until

_OURS = "n.nspname !~ '^pg_' and n.nspname <> 'information_schema'"

# One line of text for each thing, so that a comparison that fails shows what differs.
_CATALOG = f"""
select format('relation %s.%s %s owner=%s acl=%s', n.nspname, c.relname, c.relkind,
              pg_get_userbyid(c.relowner), c.relacl)
from pg_class c join pg_namespace n on n.oid = c.relnamespace where {_OURS} and c.relkind in ('r', 'v', 'm', 'S', 'p')
union all
select format('column %s.%s %s %s notnull=%s default=%s', c.relname, a.attname, a.attnum,
              format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid))
from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace
     left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
where {_OURS} and a.attnum > 0 and not a.attisdropped and c.relkind in ('r', 'v', 'm', 'p')
union all
select format('constraint %s %s', k.conrelid::regclass, pg_get_constraintdef(k.oid))
from pg_constraint k join pg_namespace n on n.oid = k.connamespace where {_OURS}
union all
select format('index %s valid=%s', pg_get_indexdef(i.indexrelid), i.indisvalid)
from pg_index i join pg_class c on c.oid = i.indexrelid join pg_namespace n on n.oid = c.relnamespace where {_OURS}
union all
select format('function %s %s', p.oid::regprocedure, md5(p.prosrc))
from pg_proc p join pg_namespace n on n.oid = p.pronamespace where {_OURS}
union all
select format('trigger %s', pg_get_triggerdef(g.oid)) from pg_trigger g where not g.tgisinternal
union all
select format('enum %s %s', e.enumtypid::regtype, e.enumlabel) from pg_enum e
"""
_TABLES = f"""
select n.nspname, c.relname, array_agg(a.attname::text order by a.attnum),
       (select array_agg(k.attname::text order by k.attnum) from pg_index i join pg_attribute k
        on k.attrelid = c.oid and k.attnum = any (i.indkey) where i.indrelid = c.oid and i.indisprimary)
from pg_class c join pg_namespace n on n.oid = c.relnamespace
     join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
where c.relkind = 'r' and {_OURS} group by 1, 2, c.oid order by 1, 2
"""


@dataclass(frozen=True)
class Seen:
    """A database at one moment.

    `catalog` has a line for each thing, `rows` the number of rows by table, `content` a checksum by `table.column`,
    `sequences` the values, `transactions` the number of the server's next writing transaction: no write anywhere in
    the server leaves it as it was.
    """

    catalog: tuple[str, ...]
    rows: dict[str, int]
    content: dict[str, str]
    sequences: dict[str, tuple[Any, ...]]
    transactions: int


class Witness:
    """Reads one database, each time over a new connection."""

    def __init__(self, conninfo: str) -> None:
        """`conninfo` is libpq's connection string of somebody who may read everything."""
        self.conninfo = conninfo

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Return the rows of one statement."""
        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            return connection.execute(statement.encode()).fetchall()

    def value(self, statement: str) -> Any:
        """Return the first column of the first row."""
        return self.query(statement)[0][0]

    def execute(self, *statements: str) -> None:
        """Change something, each statement in a transaction of its own."""
        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def versions(self) -> list[str]:
        """Return the rows of alembic_version."""
        return sorted(row[0] for row in self.query("select version_num from alembic_version"))

    def has(self, relation: str) -> bool:
        """Return whether a table is there, or a column as `table.column`."""
        table, _, column = relation.partition(".")
        names = {
            row[0] for row in self.query(f"select attname from pg_attribute where attrelid = to_regclass('{table}')")
        }
        return bool(names) and (not column or column in names)

    def transactions(self) -> int:
        """Return the number of the server's next writing transaction."""
        return int(self.value("select pg_snapshot_xmax(pg_current_snapshot())::text"))

    def look(self) -> Seen:
        """Return everything at one moment."""
        with psycopg.connect(self.conninfo) as connection:
            connection.execute("set transaction isolation level repeatable read, read only")
            catalog = sorted(row[0] for row in connection.execute(_CATALOG.encode()))
            rows, content = _read_tables(connection)
            sequences = {
                row[0]: row[1:]
                for row in connection.execute(
                    "select sequencename, last_value, increment_by from pg_sequences where schemaname = 'public'"
                )
            }
        return Seen(tuple(catalog), rows, content, sequences, self.transactions())

    def wait_until_alone(self, seconds: float = 60) -> None:
        """Wait until nobody else is connected to the database; raise AssertionError with who is."""
        others = (
            "select pid, application_name, state, query from pg_stat_activity "
            "where datname = current_database() and pid <> pg_backend_pid()"
        )
        deadline = time.monotonic() + seconds
        while seen := self.query(others):
            assert time.monotonic() < deadline, f"still connected: {seen}"
            time.sleep(0.05)

    def wait_until_left(self, database: str) -> None:
        """Wait until nobody is connected to another database of this server: sessions that were closed end later."""
        here = f"select pid, application_name from pg_stat_activity where datname = '{database}'"
        wait_until(lambda: not self.query(here), f"the sessions of {database} have ended")


def _read_tables(connection: psycopg.Connection[Any]) -> tuple[dict[str, int], dict[str, str]]:
    rows: dict[str, int] = {}
    content: dict[str, str] = {}
    for schema, table, columns, key in connection.execute(_TABLES.encode()).fetchall():
        order = sql.SQL(", ").join(map(sql.Identifier, key or columns))
        sums = [
            sql.SQL("md5(string_agg(coalesce(md5({0}::text), 'null'), ',' order by {1}))").format(
                sql.Identifier(column), order
            )
            for column in columns
        ]
        query = sql.SQL("select count(*), {} from {}").format(sql.SQL(", ").join(sums), sql.Identifier(schema, table))
        count, *checksums = connection.execute(query).fetchone() or ()
        rows[table] = count
        content.update({f"{table}.{column}": text or "" for column, text in zip(columns, checksums, strict=True)})
    return rows, content


def files(*places: Path, without: Iterable[str] = ()) -> dict[str, tuple[int, int, int, str]]:
    """Return mode, size, time of change (ns) and SHA-256 of each file, and the mode of each directory.

    Args:
        places: Directories, with all below them, or files; one that is not there has nothing.
        without: Parts of paths to leave out.
    """
    skipped = set(without)
    found: dict[str, tuple[int, int, int, str]] = {}
    for place in places:
        for path in [place, *place.rglob("*")] if place.exists() else []:
            if skipped.intersection(path.parts) or path.is_socket():
                continue
            seen = path.lstat()
            mode = stat.S_IMODE(seen.st_mode)
            if path.is_file():
                found[str(path)] = (mode, seen.st_size, seen.st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
            else:
                found[str(path)] = (mode, 0, 0, "")
    return found


def mode(path: Path) -> int:
    """Return the permission bits of a file."""
    return stat.S_IMODE(path.lstat().st_mode)


def started(pid_file: Path) -> dict[int, tuple[str, float]]:
    """Return, for each process below supervisord (its pid is in `pid_file`), command line and time of start.

    A process that ends while they are read, or waits to be reaped (a server's children do, for moments), is not one.
    """
    found = {}
    for child in psutil.Process(int(pid_file.read_text())).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # ZombieProcess is one of these
            found[child.pid] = (" ".join(child.cmdline()), child.create_time())
    return found


def processes_named(text: str) -> list[str]:
    """Return the command lines in which a text occurs."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if text in line:
            found.append(line)
    return found
