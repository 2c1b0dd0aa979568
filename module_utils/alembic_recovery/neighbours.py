"""The databases of a server, looked at from the one beside them: what hinders a copy or a rename, and how one goes.

Nothing in here connects to the database itself: it may be closed, broken or missing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import typing as t

from ansible.module_utils.alembic_recovery import arguments, files, naming, properties, runtime, sql
from ansible.module_utils.alembic_recovery.errors import DatabaseError, RecoveryError, StackError
from ansible.module_utils.alembic_recovery.postgres import Database, Rows

#: The kinds of databases that a run may drop: `old` and `aside` are what the application has used.
DISPOSABLE: t.Sequence[str] = ("new", "scratch", "before", "restored")
# NAMEDATALEN of PostgreSQL is 64: it cuts longer names silently.
_LONGEST = 63
_RESERVE = 64 << 20
# Measured: restoring 1 935 MB wrote 2 853 MB of WAL, and gave a database of 1 944 MB.
_RESTORED_FACTOR = 1.1
_WAL_FACTOR = 1.5

_SERVER = """
select current_user as "user", r.rolsuper as superuser, r.rolcreatedb as createdb,
       current_setting('server_version') as server_version,
       current_setting('server_version_num')::int as server_version_num, pg_is_in_recovery() as in_recovery,
       (select system_identifier::text from pg_control_system()) as system_identifier,
       (select setting from pg_settings where name = 'data_directory') as data_directory,
       pg_size_bytes(current_setting('max_wal_size')) as max_wal_bytes,
       current_setting('archive_mode') <> 'off' or exists (select 1 from pg_replication_slots) as keeps_wal
from pg_roles r where r.rolname = current_user
"""
# Whoever may not connect to a database may not know its size.
_SIZE = """case when has_database_privilege(d.oid, 'connect') or pg_has_role('pg_read_all_stats', 'usage')
     then pg_database_size(d.oid) end"""
_DATABASE = """
select d.oid::bigint as oid, d.datname as name, d.datallowconn as allow_connections, d.datistemplate as is_template,
       d.datconnlimit = -2 as invalid, pg_get_userbyid(d.datdba) as owner,
       pg_has_role(d.datdba, 'usage') as belongs_to_us, {size} as size_bytes,
       (select spcname from pg_tablespace where oid = d.dattablespace) as tablespace,
       coalesce((select jsonb_agg(gid order by gid) from pg_prepared_xacts where database = d.datname), '[]')
           as prepared,
       coalesce((select jsonb_agg(slot_name order by slot_name) from pg_replication_slots
                 where database = d.datname), '[]') as slots,
       coalesce((select jsonb_agg(subname order by subname) from pg_subscription where subdbid = d.oid), '[]')
           as subscriptions
from pg_database d where {where} order by d.datname
"""
# An autovacuum worker gives way by itself; it has no role. What may not be seen of others (a backend's type, say) is
# null, so it must not decide.
_SESSIONS = """
select pid, usename as "user", application_name as application, client_addr::text as address, state,
       extract(epoch from now() - coalesce(state_change, backend_start))::int as since_seconds,
       query_start::text as query_start
from pg_stat_activity
where datname = {name} and pid <> pg_backend_pid() and usesysid is not null order by backend_start, pid
"""


@dataclasses.dataclass
class Look:
    """What is known of a database, read beside it.

    `for_clone` and `for_rename` are the reasons, in sentences, why it cannot be; `unknown` what could not be told.
    """

    server: dict[str, t.Any]
    database: dict[str, t.Any] | None
    sessions: Rows
    leftovers: Rows
    for_clone: list[str]
    for_rename: list[str]
    unknown: list[str]
    free_bytes: int | None = None
    needed_bytes: int | None = None

    @property
    def reasons(self) -> list[str]:
        """All of them, each once."""
        return list(dict.fromkeys([*self.for_rename, *self.for_clone]))


def server(maintenance: Database) -> dict[str, t.Any]:
    """Who we are in which server.

    :raises DatabaseError: it cannot be asked.
    """
    return maintenance.ask(_SERVER)[0]


def databases(maintenance: Database, name: str, *, leftovers: bool = False) -> Rows:
    """The database of that name, if it is there.

    :param leftovers: also those whose names may be ones that we have given.
    :raises DatabaseError: the server cannot be asked.
    """
    where = f"d.datname = {sql.literal(name)}"
    if leftovers:
        # The size of a database is the sum of all its files: those of others are not counted.
        where += f" or d.datname ~ '_({'|'.join(naming.KINDS)})_'"
    return maintenance.ask(_DATABASE.format(size=_SIZE, where=where))


def look(places: arguments.Places, name: str, maintenance_db: str) -> Look:
    """Look at a database of the server.

    :raises RecoveryError: the server cannot be asked.
    """
    maintenance = places.maintenance()
    who, beside = server(maintenance), databases(maintenance, name, leftovers=True)
    found = next((row for row in beside if row["name"] == name), None)
    leftovers = []
    for row in beside:
        kind = naming.kind_of(name, row["name"])
        if kind is not None:
            leftovers.append(
                {
                    **{key: row[key] for key in ("name", "oid", "size_bytes")},
                    "kind": kind,
                    "open": row["allow_connections"] and not row["invalid"],
                }
            )
    seen = Look(who, found, maintenance.ask(_SESSIONS.format(name=sql.literal(name))), leftovers, [], [], [])
    if found is None:
        seen.for_clone = seen.for_rename = [f"There is no database {name} in this server."]
        return seen
    seen.for_rename = [*_may_not(who), *_prepared_in(found)]
    if not (who["superuser"] or found["belongs_to_us"]):
        seen.for_rename.append(
            f"{who['user']} neither is a superuser nor has the rights of {found['owner']}, to whom {name} belongs. "
            "Set admin_user in recovery_stack.database."
        )
    if found["invalid"]:
        seen.for_rename.append(f"{name} is invalid: somebody was interrupted in dropping it.")
    if name == maintenance_db:
        seen.for_rename.append(
            f"{name} is the database to be connected to meanwhile. Set maintenance_db in recovery_stack.database to "
            "another one."
        )
    seen.for_clone = [*seen.for_rename, *_only_on(found), *_not_carried(maintenance, who, name)]
    _look_for_room(places, maintenance, seen, found)
    return seen


def _look_for_room(places: arguments.Places, maintenance: Database, seen: Look, found: dict[str, t.Any]) -> None:
    if found["size_bytes"] is None:
        seen.unknown.append(f"The size of {found['name']} is unknown: {seen.server['user']} may not connect to it.")
        return
    seen.needed_bytes = int(found["size_bytes"]) + _RESERVE
    seen.free_bytes, why = free_bytes(places, maintenance, seen.server, found["tablespace"])
    if seen.free_bytes is None:
        seen.unknown.append(why)
    elif seen.free_bytes < seen.needed_bytes:
        seen.for_clone.append(no_room(seen.free_bytes, seen.needed_bytes, f"a copy of {found['name']}"))


def no_room(free: int, needed: int, what: str) -> str:
    """The sentence for too little space on the file system of the data directory."""
    return (
        f"There is no room for {what}: {files.shown_size(needed)} are needed on the file system of the server's data, "
        f"{files.shown_size(free)} are free."
    )


def room_for_restored(who: t.Mapping[str, t.Any], size: int) -> int:
    """The space that restoring a database of `size` bytes needs: the data, and the WAL that is kept meanwhile."""
    wal = int(size * _WAL_FACTOR)
    if not who["keeps_wal"]:
        wal = min(wal, 2 * int(who["max_wal_bytes"]))
    return int(size * _RESTORED_FACTOR) + wal + _RESERVE


def free_bytes(
    places: arguments.Places, maintenance: Database, who: t.Mapping[str, t.Any], tablespace: str
) -> tuple[int | None, str]:
    """The free space where the files of a tablespace are, or ``None`` and why it is unknown."""
    rows = maintenance.ask(
        f"select pg_tablespace_location(oid) as place from pg_tablespace where spcname = {sql.literal(tablespace)}"
    )
    place = (rows[0]["place"] if rows else "") or who["data_directory"]
    if not place:
        return None, f"The free space is unknown: {who['user']} may not know where the server keeps its data."
    where = places.database_runtime()
    if isinstance(where, runtime.DockerRuntime):
        try:
            done = runtime.collect(where, ["df", "-Pk", place])
            return int(done.stdout.splitlines()[-1].split()[-3]) * 1024, ""
        except (RecoveryError, IndexError, ValueError):
            return None, f"The free space is unknown: df says nothing of {place} in {where.where}."
    host = maintenance.login.host
    if host and not host.startswith("/") and host not in ("localhost", "127.0.0.1", "::1"):
        return None, f"The free space is unknown: the server is on {host}."
    try:
        seen = os.statvfs(place)
    except OSError as error:
        return None, f"The free space is unknown: {place} cannot be looked at ({error.strerror})."
    return seen.f_bavail * seen.f_frsize, ""


def refuse_making(who: t.Mapping[str, t.Any]) -> None:
    """:raises StackError: no database can be made in this server by whom we are."""
    reasons = _may_not(who)
    if reasons:
        raise StackError(" ".join(reasons), impossible=reasons)


def check_new_name(maintenance: Database, name: str) -> None:
    """:raises StackError: a database cannot get this name, or has it already."""
    if not name or len(name.encode()) > _LONGEST:
        raise StackError(f"{name!r} cannot be the name of a database: it has none, or more than {_LONGEST} bytes.")
    found = databases(maintenance, name)
    if found:
        raise StackError(
            f"A database {name} is there already (oid {found[0]['oid']}); whether it is whole cannot be told. "
            "Choose another name, or drop it first if it is nobody's.",
            oid=found[0]["oid"],
        )


def drop(maintenance: Database, name: str) -> None:
    """End the sessions of a database, and drop it, if it is there. Who calls this has made sure that it is ours.

    :raises DatabaseError: something hangs on it, or it could not be dropped.
    """
    there = databases(maintenance, name)
    if not there:
        return
    found = there[0]
    hanging = hanging_on(found)
    if hanging:
        # An inactive logical slot would go with it without a word.
        raise DatabaseError(f"{name} is not dropped. {' '.join(hanging)}")
    quoted = sql.identifier(name)
    # One that an interrupted drop has left can only be dropped.
    if not found["invalid"]:
        closing = [f"alter database {quoted} allow_connections false"]
        if found["is_template"]:
            closing.insert(0, f"alter database {quoted} is_template false")
        maintenance.act(closing)
    maintenance.act([f"drop database {quoted} with (force)"])


@contextlib.contextmanager
def whole_or_dropped(maintenance: Database, name: str) -> t.Iterator[None]:
    """Work on a database that has just been made; if that fails in whatever way, drop it, and say so.

    :raises RecoveryError: that failed; or it did, and the database could not be dropped.
    """
    try:
        yield
    except BaseException as error:
        try:
            drop(maintenance, name)
        except (RecoveryError, ValueError) as second:
            raise DatabaseError(f"{error} And {name} could not be dropped: {second}") from error
        if isinstance(error, RecoveryError):
            end = "" if error.message.endswith((".", "!", "?")) else "."
            error.message = f"{error.message}{end} {name} was dropped again; nothing else was touched."
        raise


def shown_sessions(sessions: Rows) -> str:
    """Who is connected, for a message."""
    shown = [
        f"{row['application'] or 'a client without a name'} (process {row['pid']}, {row['user']}, "
        f"{row['address'] or 'local'}, {row['state'] or 'unknown'} for {row['since_seconds']} s)"
        for row in sessions[:10]
    ]
    more = [f"and {len(sessions) - 10} more"] if len(sessions) > 10 else []
    return ", ".join([*shown, *more])


def _may_not(who: t.Mapping[str, t.Any]) -> list[str]:
    reasons = []
    if who["in_recovery"]:
        reasons.append("This server is a standby: nothing can be changed in it. Name the primary in recovery_stack.")
    if not (who["superuser"] or who["createdb"]):
        reasons.append(
            f"{who['user']} may not make or rename databases. Set admin_user in recovery_stack.database, or give it "
            "CREATEDB."
        )
    return reasons


def hanging_on(found: t.Mapping[str, t.Any]) -> list[str]:
    """What hangs on a database and would go with it, whatever its name is."""
    return [*_prepared_in(found), *_only_on(found)]


def _prepared_in(found: t.Mapping[str, t.Any]) -> list[str]:
    if not found["prepared"]:
        return []
    held = ", ".join(found["prepared"])
    return [f"Prepared transactions hold {found['name']}: {held}. Commit them or roll them back."]


def _only_on(found: t.Mapping[str, t.Any]) -> list[str]:
    """What stays with a database through a rename and back, and what a clone of it does not have."""
    name, reasons = found["name"], []
    if found["slots"]:
        reasons.append(
            f"Logical replication slots hang on {name}: {', '.join(found['slots'])}. They stay with the old database, "
            "and whoever reads from them loses the place."
        )
    if found["subscriptions"]:
        reasons.append(f"Subscriptions hang on {name}: {', '.join(found['subscriptions'])}.")
    return reasons


def _not_carried(maintenance: Database, who: t.Mapping[str, t.Any], name: str) -> list[str]:
    """The settings of a database that this role may not give a clone; a superuser may everything."""
    source = properties.read(maintenance, name)
    if who["superuser"] or source is None:
        return []
    names = sorted({text.partition("=")[0].lower() for part in source["settings"] for text in part["settings"]})
    listed = ", ".join(map(sql.literal, names))
    query = f"select lower(name) as name, context from pg_settings where lower(name) = any (array[{listed}]::text[])"
    contexts = {row["name"]: row["context"] for row in maintenance.ask(query)}
    found = properties.not_carried(source, who["user"], contexts)
    if not found:
        return []
    they = ", ".join(found)
    return [f"{who['user']} may not give a copy these settings of {name}: {they}. A superuser may (admin_user)."]
