"""A backup of ours, restored into a new database and compared with its manifest; or nothing."""

from __future__ import annotations

import dataclasses
import os
import re
import time
import typing as t

from ansible.module_utils.alembic_recovery import (
    catalog,
    dump,
    files,
    naming,
    neighbours,
    postgres,
    properties,
    sql,
    workbench,
)
from ansible.module_utils.alembic_recovery.errors import DatabaseError, StackError

Manifest = t.Mapping[str, t.Any]

# Measured: more jobs than processors are no faster, and the server does most of the work.
_MOST_JOBS = 4
# The kinds of names that a restored copy gets: those that a run removes, and that nobody else has.
_COPIES = ("restored", "scratch")
_WITH_CONTENT = ("database", "structure", "fingerprint", "row_counts", "sequence_values", "version_table", "revisions")
# A sequence, and the column of numbers that it belongs to (serial, identity, OWNED BY).
_OWNED = """
select n.nspname as schema, s.relname as name, tn.nspname as table_schema, c.relname as table, a.attname as column
from pg_depend d join pg_class s on s.oid = d.objid and s.relkind = 'S' join pg_namespace n on n.oid = s.relnamespace
     join pg_class c on c.oid = d.refobjid join pg_namespace tn on tn.oid = c.relnamespace
     join pg_attribute a on a.attrelid = c.oid and a.attnum = d.refobjsubid
where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.deptype in ('a', 'i')
      and n.nspname !~ '^pg_' and a.atttypid in (20, 21, 23, 1700) order by 1, 2
"""


def jobs(wanted: int | None) -> int:
    """How many processes restore at once: not more than there are processors, and not more than four."""
    return wanted or min(os.cpu_count() or 1, _MOST_JOBS)


def read(path: str) -> dict[str, t.Any]:
    """The manifest of a backup whose files are what was written, to the last bit.

    :raises StackError: it is none, a file is missing or is another one, or it cannot be compared with.
    """
    try:
        manifest = dump.intact(path, hashes=True)
    except StackError as error:
        hint = "Take another copy of this backup (the controller keeps one), or an older backup. Nothing was made."
        raise StackError(f"{error.message} {hint}", **error.details) from error
    missing = [name for name in _WITH_CONTENT if name not in manifest]
    if missing:
        raise StackError(f"{path} says nothing of {', '.join(missing)}: a restored copy could not be proved.")
    return manifest


def check(
    manifest: Manifest, who: t.Mapping[str, t.Any], name: str, *, other_database: bool, other_cluster: bool
) -> None:
    """:raises StackError: the backup is not one of this database, of this server, or of a version that it can read."""
    source = manifest["database"]
    if source["name"] != name and not other_database:
        raise StackError(
            f"This is a backup of database {source['name']}, not of {name}. Set other_database: true if that is meant."
        )
    if source["server_version_num"] // 10000 > who["server_version_num"] // 10000:
        raise StackError(
            f"This is a backup of PostgreSQL {source['server_version']}; a server of version {who['server_version']} "
            "cannot read it. Restore it on a server of that version or a newer one. Nothing was made."
        )
    if source["system_identifier"] != who["system_identifier"] and not other_cluster:
        # Restoring runs code that superusers of the other server have written (security point S13).
        raise StackError(
            f"This is a backup from another server (system identifier {source['system_identifier']}, this one has "
            f"{who['system_identifier']}). Restoring it runs code from there. Set other_cluster: true if that is meant."
        )


def check_into(manifest: Manifest, name: str, into: str, *, other_cluster: bool) -> None:
    """:raises StackError: a restored copy must not get this name: what it gets, a run drops again."""
    source = manifest["database"]["name"]
    if any(naming.kind_of(known, into) in _COPIES for known in (name, source)):
        return
    # A throwaway server for a rehearsal has the database under its own name.
    if other_cluster and into == source:
        return
    raise StackError(
        f"{into} is not the name of a restored copy of {source}. Give it one such as "
        f"{naming.database(source, 'restored', '20251021T031500Z-7f3a1c')}. Nothing was made."
    )


def needed_roles(manifest: Manifest) -> dict[str, str]:
    """The roles that must be there before a backup can be restored, each with one of the things that need it."""
    needed: dict[str, str] = {}
    for part, rows in manifest["structure"].items():
        for row in rows:
            what = ".".join(str(row[key]) for key in ("schema", "name") if row.get(key)) or part
            named = [row[key] for key in ("owner", "role") if isinstance(row.get(key), str)]
            named += [role for role in roles_of_acl(row.get("acl") or "") if role]
            for role in named:
                needed.setdefault(role, what)
    like = manifest["database"]["properties"]
    for role in properties.roles(like) if "plain_acl" in like else {like["owner"]}:
        needed.setdefault(role, f"the database {manifest['database']['name']}")
    return needed


def roles_of_acl(text: str) -> list[str]:
    """The roles in `grantee=privileges/grantor,…`, as PostgreSQL writes it: names are quoted where they need it.

    >>> roles_of_acl('app=arwd/app,=r/app,"we""ird, o=ne"=r*/app')
    ['app', 'app', 'app', 'we"ird, o=ne', 'app']
    """
    name = r'((?:"(?:[^"]|"")*"|[^",=/])*)'
    found: list[str] = []
    for grantee, grantor in re.findall(rf"{name}=[A-Za-z*]*/{name}(?:,|$)", text):
        found += [_unquoted(part) for part in (grantee, grantor) if part]
    return found


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def missing_roles(maintenance: postgres.Database, manifest: Manifest) -> list[str]:
    """The roles that are not in the server, each with what needs it."""
    there = {row["name"] for row in maintenance.ask("select rolname as name from pg_roles")}
    return [f"{role} (for {what})" for role, what in sorted(needed_roles(manifest).items()) if role not in there]


def check_needs(maintenance: postgres.Database, manifest: Manifest, like: properties.Properties) -> dict[str, str]:
    """Whether what a dump refers to is in this server; the version of each extension that this server installs.

    :raises StackError: roles, extensions or the tablespace are not there.
    """
    problems = []
    roles = missing_roles(maintenance, manifest)
    if roles:
        saved = f" They are in {manifest['globals']['name']} beside the manifest." if manifest.get("globals") else ""
        problems.append(
            f"Roles that the backup needs are not in this server: {', '.join(roles)}. Make them first.{saved}"
        )
    rows = maintenance.ask("select name, default_version as version from pg_available_extensions")
    versions = {row["name"]: row["version"] for row in rows}
    extensions = [row["name"] for row in manifest["structure"]["extensions"] if row["name"] not in versions]
    if extensions:
        problems.append(f"Extensions that the backup needs are not installed here: {', '.join(extensions)}.")
    tablespaces = {row["name"] for row in maintenance.ask("select spcname as name from pg_tablespace")}
    if like["tablespace"] not in tablespaces:
        problems.append(f"There is no tablespace {like['tablespace']} in this server.")
    if problems:
        raise StackError(f"{' '.join(problems)} Nothing was made.", missing_roles=roles)
    return versions


class Restore:
    """One backup on its way into one new database."""

    def __init__(
        self,
        bench: workbench.Workbench,
        maintenance: postgres.Database,
        manifest: Manifest,
        dump_path: str,
        *,
        into: str,
        like: properties.Properties,
        server_version_num: int,
    ) -> None:
        """:param like: the properties that the new database gets."""
        self._bench = bench
        self._maintenance = maintenance
        self._manifest = manifest
        self._dump = bench.inside(dump_path)
        self._into = into
        self._like = like
        self._server_version_num = server_version_num
        self.restore_seconds = 0.0

    def check_dump(self) -> None:
        """:raises StackError: the dump is not that of the manifest's database, or these programs cannot restore it."""
        self._check_program()
        done = self._bench.run("pg_restore", "--list", self._dump, timeout=300.0, connect=False)
        if done.rc != 0:
            said, made_by = " ".join(done.stderr.split())[-1000:], self._manifest.get("tools", {}).get("pg_dump")
            hint = "Take another copy of this backup."
            if "unsupported version" in said:
                hint = (
                    f"A newer pg_dump has made it ({made_by}). Set bin_dir in recovery_stack.database to programs of "
                    "that version, and restore it on a server of that version or a newer one."
                )
            raise StackError(f"pg_restore cannot read the dump: {said}. {hint} Nothing was made.")
        found = re.search(r"^;\s+dbname: (.*)$", done.stdout, re.MULTILINE)
        if found is None or found[1].strip() != _as_listed(self._manifest["database"]["name"]):
            raise StackError(
                f"The dump is one of database {found[1].strip() if found else 'unknown'}, its manifest says "
                f"{self._manifest['database']['name']}. Take another copy of this backup. Nothing was made."
            )

    def _check_program(self) -> None:
        """A newer pg_restore sets what an older server does not know (17: transaction_timeout), and fails half-way."""
        said = self._bench.run("pg_restore", "--version", timeout=30.0, connect=False).stdout.strip()
        found = re.search(r"\(PostgreSQL\) (\d+)", said)
        if found and int(found[1]) > self._server_version_num // 10000:
            raise StackError(
                f"{said} is newer than the server ({self._server_version_num // 10000}), which would not understand "
                "it. Set bin_dir in recovery_stack.database to the programs of the server's version. Nothing was made."
            )

    def create(self) -> None:
        """Make the new database, with nothing in it.

        :raises DatabaseError: that could not be done; then there is none.
        """
        # Several processes restore at once, whatever the limit for others is.
        statement = properties.create_statement(
            self._like,
            self._into,
            self._like["owner"],
            server_version_num=self._server_version_num,
            connection_limit=-1,
            strategy="file_copy",
        )
        self._maintenance.act([statement])

    def fill(self, *, job_count: int, timeout: float) -> None:
        """Restore into the new database, which only those can be in who may be in the other one.

        :raises RecoveryError: that could not be done.
        """
        name, like = self._into, self._like
        self._maintenance.act(properties.access_statements(like, name), at_once=True)
        self._bench.login = dataclasses.replace(self._bench.login, database=name)
        started = time.monotonic()
        # A subscription would begin to fetch changes into a copy. Large objects and all else are as they are.
        words = ["--exit-on-error", f"--jobs={job_count}", "--no-subscriptions", self._dump]
        done = self._bench.run("pg_restore", *words, timeout=timeout)
        self.restore_seconds = round(time.monotonic() - started, 3)
        if done.rc != 0:
            raise DatabaseError(
                f"pg_restore ended with exit code {done.rc}: {workbench.first_error(done)}.", rc=done.rc
            )

    def finish(self, database: postgres.Database) -> None:
        """Statistics, without which the first queries are slow, and the settings of the database."""
        database.act(["analyze"])
        self._maintenance.act(properties.setting_statements(self._like, self._into), at_once=True)


def _as_listed(name: str) -> str:
    # pg_restore writes names in comments on one line.
    return name.replace("\r", " ").replace("\n", " ")


@dataclasses.dataclass
class Comparison:
    """What a restored database is, beside its manifest.

    `problems` and `accepted` are sentences; what is accepted is what no dump can give back.
    """

    proved: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)
    accepted: list[str] = dataclasses.field(default_factory=list)
    counted: dict[str, t.Any] = dataclasses.field(default_factory=dict)

    def note(self, what: str, problems: list[str]) -> None:
        """Note what was compared, and what differs."""
        self.problems += problems
        if not problems:
            self.proved.append(what)


def compare(database: postgres.Database, manifest: Manifest, default_versions: t.Mapping[str, str]) -> Comparison:
    """Compare a restored database with its manifest.

    :param default_versions: the version of each extension that this server installs.
    :raises RecoveryError: it cannot be read.
    """
    result = Comparison()
    content = manifest.get("content")
    seen = catalog.read_all(database, counts=True, content=content is not None)
    result.note("structure", _structure(manifest, seen, default_versions, result.accepted))
    # Rows of an extension's own tables come with the extension, those of materialized views from their queries.
    own = {catalog.qualified(row) for row in database.ask(catalog.LOCKABLE) if row["dumped"]}
    result.accepted += [
        f"{name} has {seen['row_counts'].get(name)} rows, there were {count}: they come from elsewhere."
        for name, count in manifest["row_counts"].items()
        if name not in own and seen["row_counts"].get(name) != count
    ]
    before = {name: count for name, count in manifest["row_counts"].items() if name in own}
    result.note("row_counts", _rows(before, {name: n for name, n in seen["row_counts"].items() if name in own}))
    if content is not None:
        result.note("content", _content(content, seen["content"], own))
    result.note("sequences", _sequences(database, manifest, seen, result.accepted))
    result.note("revisions", _revisions(database, manifest, seen["structure"]))
    if "large_objects" in manifest:
        there, wanted = seen["large_objects"], manifest["large_objects"]
        result.note("large_objects", [f"{there} large objects, there were {wanted}."] if there != wanted else [])
    result.counted = {
        "tables": len(before),
        "rows": sum(before.values()),
        "columns": sum(len(columns) for name, columns in (content or {}).items() if name in own),
        "sequences": len(manifest["sequence_values"]),
        "extensions": len(manifest["structure"]["extensions"]),
        "fingerprint": seen["fingerprint"],
    }
    return result


def _structure(
    manifest: Manifest, seen: Manifest, default_versions: t.Mapping[str, str], accepted: list[str]
) -> list[str]:
    """Differences, without what no dump can give back: an old version of an extension, and a half-built index."""
    before = dict(manifest["structure"])
    versions = {row["name"]: row["version"] for row in seen["structure"]["extensions"]}
    extensions = []
    for row in before["extensions"]:
        there = versions.get(row["name"])
        if there not in (None, row["version"]) and there == default_versions.get(row["name"]):
            accepted.append(f"Extension {row['name']} is {there}, it was {row['version']}: this server installs that.")
            extensions.append({**row, "version": there})
        else:
            extensions.append(row)
    indexes = []
    for row in before["indexes"]:
        if row["valid"]:
            indexes.append(row)
        else:
            accepted.append(f"The invalid index {catalog.qualified(row)} is not there.")
    changed = catalog.differences({**before, "extensions": extensions, "indexes": indexes}, seen["structure"])
    return [
        f"{part}: {word} {row}" for part, rows in changed.items() for word in ("added", "removed") for row in rows[word]
    ]


def _rows(before: t.Mapping[str, int], after: t.Mapping[str, int]) -> list[str]:
    return [
        f"{name} has {after.get(name, 'no')} rows, there were {before.get(name, 'none')}."
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]


def _content(
    before: t.Mapping[str, t.Mapping[str, str]], after: t.Mapping[str, t.Mapping[str, str]], own: t.Container[str]
) -> list[str]:
    return [
        f"{name}.{column}: other values than in the manifest."
        for name, columns in before.items()
        if name in own
        for column, checksum in columns.items()
        if after.get(name, {}).get(column) != checksum
    ]


def _sequences(database: postgres.Database, manifest: Manifest, seen: Manifest, accepted: list[str]) -> list[str]:
    """A sequence behind where it was would give a number for the second time."""
    backward = {catalog.qualified(row): row["increment_by"] < 0 for row in seen["structure"]["sequences"]}
    cycles = {catalog.qualified(row) for row in seen["structure"]["sequences"] if row["cycle"]}
    values, problems = seen["sequence_values"], []

    def behind(value: int | None, other: int | None, name: str) -> bool:
        if other is None or name in cycles:
            return False
        return value is None or (value > other if backward.get(name) else value < other)

    for name, value in manifest["sequence_values"].items():
        if behind(values.get(name), value, name):
            problems.append(f"Sequence {name} is at {values.get(name)}, it was at {value}.")
    for row in database.ask(_OWNED):
        name = catalog.qualified(row)
        column = sql.identifier(row["column"])
        extreme = "min" if backward.get(name) else "max"
        table = sql.identifier(row["table_schema"], row["table"])
        (found,) = database.ask(f"select {extreme}({column})::bigint as value from {table}")
        if behind(values.get(name), found["value"], name):
            sentence = f"Sequence {name} is at {values.get(name)}, {row['table']}.{row['column']} has {found['value']}."
            # So it was in the database that was backed up, too: its rows and its sequence are the same.
            same = values.get(name) == manifest["sequence_values"].get(name)
            (accepted if same else problems).append(f"{sentence} It was so before." if same else sentence)
    return problems


def _revisions(database: postgres.Database, manifest: Manifest, structure: t.Mapping[str, postgres.Rows]) -> list[str]:
    there = dump.revisions(database, structure, manifest["version_table"])
    if there == manifest["revisions"]:
        return []
    return [f"{manifest['version_table']} says {there}, the manifest {manifest['revisions']}."]


def check_room(free: int | None, who: t.Mapping[str, t.Any], size: int) -> None:
    """:raises StackError: there is too little space to restore a database of `size` bytes."""
    needed = neighbours.room_for_restored(who, size)
    if free is not None and free < needed:
        raise StackError(
            neighbours.no_room(free, needed, f"a restored copy of {files.shown_size(size)}")
            + " Make room. Nothing was made."
        )
