"""A dump from elsewhere, restored into a new database and compared with what the file itself says."""

from __future__ import annotations

import contextlib
import os
import shutil
import typing as t

from ansible.module_utils.alembic_recovery import (
    arguments,
    files,
    foreign_dump,
    plain_sql,
    postgres,
    process,
    properties,
    sql,
    workbench,
)
from ansible.module_utils.alembic_recovery.errors import DatabaseError, RecoveryError, StackError
from ansible.module_utils.alembic_recovery.runtime import DockerRuntime

_PIECE = 1 << 20

# Column names of pg_database by to_jsonb, so that one query serves all versions.
_TABLES = """
select n.nspname as schema, c.relname as name, c.relkind as kind,
       exists (select 1 from pg_depend e where e.objid = c.oid and e.deptype = 'e') as of_extension
from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.relkind in ('r', 'p', 'f')
"""


def create_statement(maintenance: postgres.Database, like: str, into: str, owner: str) -> str:
    """What makes an empty database of the encoding and locale of another one.

    :raises DatabaseError: there is no database `like`.
    """
    found = properties.read(maintenance, like)
    if found is None:
        raise DatabaseError(f"There is no database {like} whose encoding and locale the new one could have.")
    version = maintenance.ask("select current_setting('server_version_num')::int as number")[0]["number"]
    return properties.create_statement(found, into, owner, server_version_num=version, connection_limit=-1)


class ForeignRestore:
    """One restore of one file, from the first look at it to the comparison; use as a context manager.

    :param params: the module's, with `path`, `into`, `plain_sql`, `version_table`, `work_directory`, `privileges`,
        `timeout`.
    """

    def __init__(self, params: t.Mapping[str, t.Any]) -> None:
        self._params = params
        self._places = arguments.Places(params)
        self._runtime = self._places.database_runtime()
        self._unpacked: str | None = None
        self.path: str = params["path"]
        self.found = foreign_dump.Description()

    def __enter__(self) -> ForeignRestore:
        return self

    def __exit__(self, *_unused: object) -> None:
        if self._unpacked is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._unpacked)

    def look(self, *, write: bool) -> None:
        """Look at the file and at the server; whatever speaks against a restore is said here.

        :param write: a compressed archive may be unpacked; without that, what is in it is not known.
        :raises RecoveryError: it must not be restored, or cannot be.
        """
        params, into = self._params, self._params["into"]
        maintenance = self._places.maintenance()
        if into in (params["database"]["name"], params["database"]["maintenance_db"]) or len(into.encode()) > 63:
            raise StackError(f"{into} cannot be the name of a new database here. Give another one of at most 63 bytes.")
        if maintenance.ask(f"select 1 from pg_database where datname = {sql.literal(into)}"):
            raise StackError(
                f"There is a database {into} already; a dump is only restored into a new one. Give another."
            )
        found = self.found = foreign_dump.describe(self.path, params["version_table"], unzstd=self._unzstd())
        if found.problems:
            raise StackError(f"{' '.join(found.problems)} Nothing was changed.", problems=found.problems)
        if found.kind == "plain" and params["plain_sql"] != "execute":
            raise StackError(
                f"{self.path} is plain SQL, and so a program: whatever is in it would be executed with the rights of "
                f"{params['database']['user']}. Read it, or trust whoever made it; then say plain_sql: execute."
            )
        workbench.check_programs(self._runtime, params["database"]["bin_dir"])
        if found.compression and write:
            self._unpack()
        if found.kind != "plain" and (write or not found.compression):
            self._read_through()
        self._check_version(int(maintenance.identity()["server_version_num"]) // 10000)

    def restore(self) -> dict[str, int]:
        """Make the database, restore into it, compare, and gather its statistics; the rows by table.

        :raises RecoveryError: it failed, or is not what the file says; the new database was dropped.
        """
        params, into = self._params, self._params["into"]
        maintenance = self._places.maintenance()
        statement = create_statement(maintenance, params["database"]["name"], into, params["database"]["user"])
        maintenance.act([statement])
        try:
            with self._bench(self._places.login(into)) as bench:
                self._execute(bench)
            counted = self._compare()
            # Without statistics the first hours would be slow. Tables of the system are not ours to look at.
            self._places.database(into).act(["set client_min_messages = error", "analyze"])
            self._carry_over(maintenance)
        except BaseException as error:
            self._drop(maintenance, error)
            raise
        return counted

    def _carry_over(self, maintenance: postgres.Database) -> None:
        """Give the new database what hangs on the entry of the application's own, and is in no dump of one database.

        :raises DatabaseError: that failed, or it came out otherwise.
        """
        source = properties.read(maintenance, self._params["database"]["name"])
        if source is None or source["owner"] != self._params["database"]["user"]:
            return  # privileges are of the owner's giving: where that is another role, they mean something else
        maintenance.act(properties.statements(source, self._params["into"]), at_once=True)
        made = properties.read(maintenance, self._params["into"])
        problems = ["It is gone."] if made is None else properties.differences(source, made)
        if problems:
            raise DatabaseError(
                f"The entry of {self._params['into']} is not that of the database in use: {' '.join(problems)} The new "
                "database was dropped; nothing else was changed."
            )

    def _drop(self, maintenance: postgres.Database, error: BaseException) -> None:
        into = self._params["into"]
        try:
            maintenance.act([f"drop database if exists {sql.identifier(into)} with (force)"])
        except RecoveryError as second:
            raise DatabaseError(
                f"{error} That is not so: it could not be dropped ({second.message}). Drop database {into} by hand; it "
                "is a copy of what is in the file."
            ) from error

    @contextlib.contextmanager
    def _bench(self, login: postgres.Login) -> t.Iterator[workbench.Workbench]:
        path = self._source()
        with workbench.open_workbench(
            self._runtime,
            login,
            path if os.path.isdir(path) else os.path.dirname(path),
            bin_dir=self._params["database"]["bin_dir"],
            run_id=self._params["run_id"],
            purpose="restore",
            writable=False,
        ) as bench:
            yield bench

    def _source(self) -> str:
        return os.path.realpath(self._unpacked or self.path)

    def _unzstd(self) -> foreign_dump.Opener | None:
        program, runtime = shutil.which("zstd"), self._runtime
        if program:
            argv = [program, "-dcq"]
        elif isinstance(runtime, DockerRuntime) and runtime.state.running:
            # The official image has it.
            argv = runtime.docker.exec_argv(runtime.container, ["zstd", "-dcq"])
        else:
            return None
        return lambda path: _unzstd(argv, path)

    def _unpack(self) -> None:
        directory = self._params["work_directory"]
        if not directory:
            raise StackError(
                f"{self.path} is compressed, and is unpacked before it is restored. Set work_directory to a place with "
                "room for it."
            )
        files.private_directory(directory)
        target = os.path.join(directory, f"unpacked_{self._params['run_id']}")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(target)
        self._unpacked = target
        try:
            files.open_private(target).close()
            with foreign_dump.opened(self.path, self.found.compression, self._unzstd()) as stream, open(
                target, "wb"
            ) as file:
                shutil.copyfileobj(stream, file, _PIECE)
        except foreign_dump.DumpError as error:
            raise StackError(f"{error} Nothing was changed.") from error
        except OSError as error:
            raise StackError(f"{self.path} cannot be unpacked into {directory}: {error.strerror}.") from error
        if self.found.kind != "plain":
            # Some of what can be wrong with an archive is seen only now.
            problems = foreign_dump.describe(target, self._params["version_table"]).problems
            if problems:
                raise StackError(f"{self.path}, unpacked: {' '.join(problems)} Nothing was changed.", problems=problems)

    def _read_through(self) -> None:
        """Let pg_restore decode an archive to its end, and count in what comes out."""
        scanner = plain_sql.Scanner(self._params["version_table"])
        login = self._places.admin_login(self._params["database"]["maintenance_db"])
        timeout = float(self._params["timeout"])
        with self._bench(login) as bench, bench.read(
            "pg_restore", "--file=-", bench.inside(self._source()), timeout=timeout
        ) as source:
            scanner.read(source.stream)
            done = source.finish()
        if done.rc != 0 or not scanner.complete:
            said = workbench.first_error(done)
            hint = "It is damaged or cut off. Copy it again, and compare its SHA-256 with the original's."
            if "unsupported version" in said:
                hint = (
                    "It was made by a newer pg_dump than this server's pg_restore can read. Restore it on a newer one."
                )
            raise StackError(f"{self.path} cannot be read through: {said}. {hint} Nothing was changed.")
        foreign_dump.take(scanner, self.found)

    def _check_version(self, server: int) -> None:
        dumped = foreign_dump.major(self.found.dumped_from)
        if dumped is not None and dumped > server:
            raise StackError(
                f"{self.path} is from a server of version {self.found.dumped_from}, this one is {server}: a dump goes "
                "to the same or a newer version only. Nothing was changed."
            )

    def _execute(self, bench: workbench.Workbench) -> None:
        path, timeout = bench.inside(self._source()), float(self._params["timeout"])
        if self.found.kind == "plain":
            program, words = "psql", [
                "--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--set", "VERBOSITY=terse", "--set",
                "SHOW_CONTEXT=never", "--single-transaction", "--output=/dev/null", f"--file={path}",
            ]  # fmt: skip
        else:
            privileges = [] if self._params["privileges"] else ["--no-privileges"]
            program = "pg_restore"
            words = ["--exit-on-error", "--no-owner", "--no-subscriptions", *privileges, path]
        done = bench.run(program, *words, timeout=timeout)
        if done.rc != 0:
            raise DatabaseError(
                f"{self.path} could not be restored: {workbench.first_error(done)}. The new database "
                f"{self._params['into']} was dropped; nothing else was changed.",
                rc=done.rc,
            )

    def _compare(self) -> dict[str, int]:
        found, into = self.found, self._params["into"]
        with self._places.database(into).snapshot(search_path="pg_catalog") as snapshot:
            tables = {f"{row['schema']}.{row['name']}": row for row in snapshot.ask(_TABLES)}
            counted: dict[str, int] = {}
            for name in found.rows:
                # What an extension has put into its own tables is not in the file.
                if name in tables and tables[name]["kind"] != "f" and not tables[name]["of_extension"]:
                    row = tables[name]
                    only = "" if row["kind"] == "p" else "only "
                    query = f"select count(*) as rows from {only}{sql.identifier(row['schema'], row['name'])}"
                    counted[name] = snapshot.ask(query)[0]["rows"]
            revisions = self._revisions(snapshot, tables)
        wrong = [f"{name} is not there" for name in sorted(set(found.rows) - set(tables))]
        wrong += [
            f"{name} has {counted[name]} rows, the file has {found.rows[name]}"
            for name in sorted(counted)
            if counted[name] != found.rows[name] and name not in found.uncounted
        ]
        if found.revisions is not None and revisions != found.revisions:
            wrong.append(f"the version rows are {revisions}, the file has {found.revisions}")
        if wrong:
            raise DatabaseError(
                f"What was restored from {self.path} is not what the file says: {'; '.join(wrong[:10])}. The new "
                f"database {into} was dropped; nothing else was changed."
            )
        return counted

    def _revisions(self, snapshot: postgres.Snapshot, tables: t.Mapping[str, t.Any]) -> list[str]:
        wanted = self._params["version_table"]
        names = [row for name, row in tables.items() if wanted in (name, row["name"]) and name in self.found.rows]
        if not names:
            return []
        query = f"select version_num from {sql.identifier(names[0]['schema'], names[0]['name'])}"
        return sorted(str(row["version_num"]) for row in snapshot.ask(query))


@contextlib.contextmanager
def _unzstd(argv: t.Sequence[str], path: str) -> t.Iterator[t.IO[bytes]]:
    with open(path, "rb") as raw, process.Source(argv, stdin=raw) as source:
        yield source.stream
        if source.stream.read(1):
            return  # nobody wants the rest
        done = source.finish()
    if done.rc in (126, 127):
        raise foreign_dump.DumpError(
            f"{path} is compressed with zstd, and neither this host nor the container has it. Decompress it: unzstd"
        )
    if done.rc != 0:
        mangled = foreign_dump.carriage_returns(path)
        why = "it was written through a terminal" if mangled else workbench.first_error(done)
        raise foreign_dump.DumpError(f"{path} cannot be decompressed: {why}. Copy it again, and compare its SHA-256.")
