"""What is so in a replica and around it, seen with PostgreSQL's own programs, the engine and system calls.

Nothing in here uses the product's code. ``python -m tests.docker.observation PREFIX FILE DIRECTORY …`` writes down what
is so now, for a later comparison.
"""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import docker.errors

from replica.application import DATABASE, USER
from replica.docker import SERVICES, DockerReplica
from replica.engine import containers
from replica.server import Server

ONE_OFF_LABEL = "alembic-recovery.run"
# On what belongs to a rehearsal: the name of the database's container.
OF_LABEL = "alembic-recovery.of"
# What a run leaves in its directory on the target, and what of that is its rehearsal's.
REHEARSAL_FILES = {"rehearsal.jsonl", "rehearsal-back.jsonl", "contents.json"}
RUN_FILES = {
    "record.json",
    "audit.jsonl",
    "journal.jsonl",
    "rehearsal.jsonl",
    "rehearsal-back.jsonl",
    "contents.json",
    "keeper.py",
    "keeper.log",
    "BREAK-GLASS.txt",
}
# What a login writes down, whoever logs in and whatever for.
_OF_LOGINS = ("/var/log", "/var/log/wtmp", "/var/log/lastlog", "/run/motd.dynamic", "/run/sudo", "/var/lib/sudo")

_TABLES = """
select coalesce(json_agg(json_build_array(quote_ident(n.nspname) || '.' || quote_ident(c.relname), c.relname,
         (select json_agg(a.attname order by a.attnum) from pg_attribute a
          where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped),
         (select json_agg(quote_ident(a.attname) order by a.attnum) from pg_index i join pg_attribute a
          on a.attrelid = c.oid and a.attnum = any (i.indkey) where i.indrelid = c.oid and i.indisprimary))), '[]')
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind = 'r' and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
"""
_REST = """
select json_build_object(
  'version', (select json_agg(version_num order by version_num) from alembic_version),
  'databases', (select json_agg(datname order by datname) from pg_database),
  'sequences', (select json_object_agg(sequencename, last_value) from pg_sequences),
  'writes', (select json_object_agg(relname, n_tup_ins + n_tup_upd + n_tup_del) from pg_stat_user_tables))
"""


def observe(replica: DockerReplica, directories: Iterable[Path] = ()) -> dict[str, Any]:
    """Look at everything that a run could change.

    Args:
        replica: What is looked at, together with its server, if it has one.
        directories: Directories on this machine, with all that is in them.

    Returns:
        JSON types: what `database()` and `engine()` return, and ``files``.
    """
    return {**database(replica), **engine(replica), "files": files(directories)}


def database(replica: DockerReplica, name: str = DATABASE) -> dict[str, Any]:
    """Look at a database of the replica's server, by default the application's.

    Returns:
        ``version`` (rows), ``databases``, ``sequences`` and ``writes`` (rows ever written, by table), ``rows`` (how
        many, by table), ``content`` (a checksum by ``table.column``), ``schema`` and ``globals`` (as SQL, by line).
    """
    tables = json.loads(ask(replica, _TABLES, name))
    parts = [
        f"""'{table}', (select json_build_array(count(*), {", ".join(_sums(columns, key))}) from {place})"""
        for place, table, columns, key in tables
    ]
    answers = json.loads(ask(replica, f"select json_build_object({', '.join(parts)})", name))
    return {
        **written(replica, name),
        "rows": {table: answers[table][0] for _, table, _, _ in tables},
        "content": {
            f"{table}.{column}": checksum
            for _, table, columns, _ in tables
            for column, checksum in zip(columns, answers[table][1:], strict=True)
        },
        "schema": _sql(replica, "pg_dump", "--schema-only", "-U", USER, "-d", name),
        "globals": _sql(replica, "pg_dumpall", "--globals-only", "--no-role-passwords", "-U", USER),
    }


def kept(replica: DockerReplica, name: str) -> dict[str, Any]:
    """Look at a database that is closed: it is opened for that, and closed again."""
    state = f"select datallowconn from pg_database where datname = '{name}'"
    assert ask(replica, state, "postgres") == "f", f"{name} is not closed"
    ask(replica, f"alter database {name} allow_connections true", "postgres")
    try:
        return database(replica, name)
    finally:
        ask(replica, f"alter database {name} allow_connections false", "postgres")


def written(replica: DockerReplica, name: str = DATABASE) -> dict[str, Any]:
    """Look only at what tells whether anything was written: part of what `database()` returns, in a moment."""
    seen: dict[str, Any] = json.loads(ask(replica, _REST, name))
    return seen


def _sums(columns: list[str], key: list[str]) -> list[str]:
    """For each column an expression that is the checksum of its values in the order of the primary key."""
    return [
        f"""md5(string_agg(coalesce(md5("{column}"::text), 'null'), ',' order by {", ".join(key)}))"""
        for column in columns
    ]


def ask(replica: DockerReplica, statement: str, name: str = DATABASE) -> str:
    """Ask a database with psql in its container; return rows as lines, columns separated by ``|``."""
    command = ["psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-U", USER, "-d", name, "-c", statement]
    done = replica.execute("postgres", command)
    assert done.returncode == 0, done.stderr
    return done.stdout.rstrip("\n")


def engine(replica: DockerReplica) -> dict[str, Any]:
    """Look at the containers.

    Returns:
        ``containers`` (for each of the replica's: id, image, start, restarts, policy, state), ``changed_files`` (by
        container, the server's included: what differs from its image), ``one_offs`` (what runs have made and not
        removed).
    """
    seen = {service: replica.container(service) for service in SERVICES}
    state = {
        service: {
            "id": container.id,
            "image": container.attrs["Image"],
            "started": container.attrs["State"]["StartedAt"],
            "restarts": container.attrs["RestartCount"],
            "policy": container.attrs["HostConfig"]["RestartPolicy"]["Name"],
            "state": container.attrs["State"]["Status"],
        }
        for service, container in seen.items()
    }
    changed = {service: _changes(container) for service, container in seen.items()}
    for container in containers(replica.client, name=f"^{Server(replica).name}$", status="running"):
        changed["server"] = [path for path in _changes(container) if path not in _OF_LOGINS]
    return {"containers": state, "changed_files": changed, "one_offs": one_offs(replica)}


def one_offs(replica: DockerReplica) -> list[str]:
    """Return what runs have made for this replica and not removed: containers, and networks and volumes of rehearsals.

    There may be runs of others on this engine.
    """
    client, mine = replica.client, f"{OF_LABEL}={replica.name('postgres')}"
    networks = [str(network.name) for network in client.networks.list(filters={"label": mine})]
    volumes = [str(volume.name) for volume in client.volumes.list(filters={"label": mine})]
    beside = places(replica) | set(networks)
    found = [
        str(one.name)
        for one in containers(client, label=ONE_OFF_LABEL)
        if one.attrs["HostConfig"]["NetworkMode"] in beside or one.labels.get(OF_LABEL) == replica.name("postgres")
    ]
    return sorted([*found, *networks, *volumes])


def places(replica: DockerReplica) -> set[str]:
    """Return the network modes of containers that are beside this replica's."""
    return {replica.network, *(f"container:{replica.container(service).id}" for service in SERVICES)}


def files(directories: Iterable[Path]) -> dict[str, list[Any]]:
    """Return mode, size in bytes and time of change (ns) of all that is in the directories, by path."""
    found: dict[str, list[Any]] = {}
    for directory in directories:
        for path in [directory, *directory.rglob("*")] if directory.exists() else []:
            seen = path.lstat()
            found[str(path)] = [stat.filemode(seen.st_mode), seen.st_size, seen.st_mtime_ns]
    return found


def _changes(container: Any) -> list[str]:
    """Paths in a container that are not as in its image."""
    try:
        return sorted(entry["Path"] for entry in container.diff() or [])
    except docker.errors.NotFound:
        return []


def _sql(replica: DockerReplica, *command: str) -> list[str]:
    """What one of PostgreSQL's programs writes, without comments and without what differs each time."""
    done = replica.execute("postgres", command)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line and not line.startswith(("--", "\\"))]


def main(arguments: list[str]) -> None:
    """Write down what is so now."""
    prefix, target, *directories = arguments
    seen = observe(DockerReplica(prefix), [Path(directory) for directory in directories])
    Path(target).write_text(json.dumps(seen, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
