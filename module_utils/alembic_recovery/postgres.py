"""How SQL is asked: psql in the database's own container, psycopg 3 (or psql beside pg_dump) elsewhere.

Every question is asked in a read-only transaction of a new connection. :meth:`Database.act` alone changes something.
"""

from __future__ import annotations

import abc
import contextlib
import glob
import json
import os
import re
import shutil
import typing as t

from ansible.module_utils.alembic_recovery import process, sql
from ansible.module_utils.alembic_recovery.errors import DatabaseError
from ansible.module_utils.alembic_recovery.postgres_errors import Login, no_connection, refused
from ansible.module_utils.alembic_recovery.runtime import DockerRuntime, HostRuntime, Runtime

Rows = t.List[t.Dict[str, t.Any]]

# A statement_timeout that hangs on the database or the role (fault 38) must not end our own questions: a row count of
# a large table may take minutes. It is bounded all the same.
_QUESTION_TIMEOUT_S = 900
_BEGIN = (
    "begin transaction isolation level repeatable read read only",
    f"set local statement_timeout = '{_QUESTION_TIMEOUT_S}s'",
    "set local idle_in_transaction_session_timeout = 0",
)
_LOCK_TIMEOUT_S = 30
_WHILE_ACTING = (f"lock_timeout = '{_LOCK_TIMEOUT_S}s'", "statement_timeout = 0", "search_path = pg_catalog")
_LOCK_NOT_AVAILABLE = "55P03"
_CORRUPTED = ("XX001", "XX002")

IDENTITY = """
select d.oid::bigint as oid, d.datname as name, current_user as "user",
       current_setting('server_version') as server_version,
       current_setting('server_version_num')::int as server_version_num,
       pg_is_in_recovery() as in_recovery,
       pg_database_size(d.oid) as size_bytes,
       extract(epoch from pg_postmaster_start_time())::text as server_started,
       (select system_identifier::text from pg_control_system()) as system_identifier
from pg_database d where d.datname = current_database()
"""

# Which table (of a TOAST table: whose it is) or index a file of the data directory belongs to.
_RELATION_OF_FILE = """
select n.nspname || '.' || r.relname as name
from pg_class c left join pg_class o on o.reltoastrelid = c.oid and o.oid <> c.oid
     join pg_class r on r.oid = coalesce(o.oid, c.oid) join pg_namespace n on n.oid = r.relnamespace
where c.oid = pg_filenode_relation({tablespace}, {file})
"""
_EXCLUSIVE_LOCKS = """
select distinct n.nspname || '.' || c.relname as name, a.application_name as holder, a.pid
from pg_locks l join pg_stat_activity a on a.pid = l.pid join pg_class c on c.oid = l.relation
     join pg_namespace n on n.oid = c.relnamespace
where l.granted and l.mode = 'AccessExclusiveLock' and c.relkind in ('r', 'p', 'm') and n.nspname !~ '^pg_'
      and l.database = (select oid from pg_database where datname = current_database())
order by 1 limit 5
"""


class Snapshot(abc.ABC):
    """A session whose transaction holds one snapshot, so that several questions and a dump see the same moment."""

    @abc.abstractmethod
    def ask(self, query: str) -> Rows:
        """The rows of one query.

        :raises DatabaseError: it failed.
        """

    @abc.abstractmethod
    def lines(self, query: str) -> t.Iterator[str]:
        """The rows of one query as JSON texts, one by one, never all in memory; to be read to the end.

        :raises DatabaseError: it failed; rows may have come before that.
        """

    @abc.abstractmethod
    def tell(self, statement: str) -> None:
        """Run a statement that gives no rows.

        :raises DatabaseError: it failed; psql says so only when the next question is asked.
        """

    def export(self) -> str:
        """The name under which `pg_dump --snapshot` can use it as long as the session lives."""
        return str(self.ask("select pg_export_snapshot() as name")[0]["name"])


class Database(abc.ABC):
    """One database, asked over new connections."""

    def __init__(self, login: Login, where: str) -> None:
        self.login = login
        self.where = where

    def ask(self, query: str) -> Rows:
        """The rows of one query, as dictionaries.

        :raises DatabaseError: no connection, or the query failed.
        """
        return self.ask_all({"query": query})["query"]

    def ask_all(self, queries: t.Mapping[str, str], *, search_path: str | None = None) -> dict[str, Rows]:
        """The rows of several queries by their names: one connection, one snapshot, one process start.

        :raises DatabaseError: no connection, or a query failed (it is named).
        """
        with self.snapshot(search_path=search_path) as snapshot:
            answers: dict[str, Rows] = {}
            for name, query in queries.items():
                try:
                    answers[name] = snapshot.ask(query)
                except DatabaseError as error:
                    if len(queries) == 1:
                        raise
                    raise DatabaseError(f"{name}: {error.message}", **error.details) from error
            return answers

    @contextlib.contextmanager
    def snapshot(self, *, search_path: str | None = None, lock_timeout: int = _LOCK_TIMEOUT_S) -> t.Iterator[Snapshot]:
        """A session with one snapshot (which the first question takes), ended with the context.

        :param lock_timeout: seconds to wait for a lock.
        :raises DatabaseError: no connection, or a question in it failed.
        """
        settings = [f"set local lock_timeout = '{lock_timeout}s'"]
        settings += [f"set local search_path = {search_path}"] if search_path else []
        try:
            with self._session([*_BEGIN, *settings]) as session:
                yield session
        except DatabaseError as error:
            raise self._explained(error) from error

    def act(
        self,
        statements: t.Sequence[str],
        *,
        at_once: bool = False,
        returning: str = "select 1 as done",
        before_commit: t.Callable[[Rows], None] | None = None,
    ) -> Rows:
        """Execute statements that change something, over a new connection, in order; the rows of one last question.

        :param at_once: all of them in one transaction; else each by itself, as CREATE DATABASE must be.
        :param returning: what is asked last; with `at_once`, still in the transaction.
        :param before_commit: with `at_once`, is given those rows; what it raises undoes everything.
        :raises DatabaseError: no connection, or one of them failed (`details['sqlstate']`); later ones were not tried.
        """
        opening = [f"set {name}" for name in _WHILE_ACTING]
        with self._session([*opening, *(["begin"] if at_once else []), *statements]) as session:
            # psql tells of an error only when it is asked for something.
            rows = session.ask(returning)
            if at_once:
                if before_commit is not None:
                    before_commit(rows)
                session.tell("commit")
                session.ask("select 1 as done")
            return rows

    @abc.abstractmethod
    def _session(self, opening: t.Sequence[str]) -> t.ContextManager[Snapshot]:
        """A new connection that has run the statements of `opening`."""

    def damaged_relation(self, said: str) -> str | None:
        """Which table or index PostgreSQL means where it names a file of its data directory, if it does.

        :param said: for example `invalid page in block 0 of relation base/5/16384`.
        """
        match = re.search(r"\b(?:base|pg_tblspc/(\d+)/\S+?)/\d+/(\d+)", said)
        if match is None:
            return None
        rows = self._look_up(_RELATION_OF_FILE.format(tablespace=match.group(1) or 0, file=match.group(2)))
        return str(rows[0]["name"]) if rows else None

    def _explained(self, error: DatabaseError) -> DatabaseError:
        """The same error, with what a person needs to know and PostgreSQL's message does not say."""
        state = error.details.get("sqlstate")
        if state in _CORRUPTED:
            return DatabaseError(f"{error.message} {damage(self.damaged_relation(error.message))}", **error.details)
        if state == _LOCK_NOT_AVAILABLE:
            held = [f"{row['name']} by {row['holder'] or 'a client without a name'} (process {row['pid']})"
                    for row in self._look_up(_EXCLUSIVE_LOCKS)]  # fmt: skip
            if held:
                return DatabaseError(f"{error.message}. Locked now: {', '.join(held)}.", **error.details)
        return error

    def _look_up(self, query: str) -> Rows:
        """The rows of a query that only explains an error: none where that fails, too."""
        try:
            with self._session(_BEGIN) as session:
                return session.ask(query)
        except DatabaseError:
            return []

    def identity(self) -> dict[str, t.Any]:
        """Which database of which server this is: oid, name, user, versions, size in bytes, system identifier.

        :raises DatabaseError: no connection.
        """
        return self.ask(IDENTITY)[0]


class PsqlDatabase(Database):
    """Asks through `psql`, in the database's container or beside it: no password, no port, the right version."""

    def __init__(self, runtime: Runtime, login: Login, psql: str = "psql") -> None:
        super().__init__(login, runtime.where)
        self._runtime = runtime
        self._psql = psql

    @contextlib.contextmanager
    def _session(self, opening: t.Sequence[str]) -> t.Iterator[Snapshot]:
        login = self.login
        argv = [self._psql, "--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--no-password"]
        argv += ["--set", "ON_ERROR_STOP=1", "--set", "VERBOSITY=verbose"]
        argv += login.options()
        env = {"PGAPPNAME": login.session, "PGCONNECT_TIMEOUT": "10", "LC_ALL": "C", **login.secrets()}
        # Else the answers come in the database's own encoding.
        env["PGCLIENTENCODING"] = "UTF8"
        with self._runtime.converse([*self._runtime.before_psql(env), *argv], env=env) as conversation:
            session = _PsqlSnapshot(conversation, self)
            for statement in opening:
                session.tell(statement)
            yield session
            conversation.send("commit;\n")
            conversation.close_stdin()
            conversation.wait()


class _PsqlSnapshot(Snapshot):
    def __init__(self, conversation: process.Conversation, database: Database) -> None:
        self._conversation = conversation
        self._database = database

    def tell(self, statement: str) -> None:
        self._conversation.send(f"{statement};\n")

    def ask(self, query: str) -> Rows:
        self.tell(sql.as_json(query))
        line = self._line()
        try:
            return t.cast(Rows, json.loads(line))
        except ValueError:
            # The Engine tells on standard output that a container does not have a program.
            raise refused(f"{line}\n{self._conversation.said}", self._database.login, self._database.where) from None

    def lines(self, query: str) -> t.Iterator[str]:
        self.tell(sql.as_copy(query))
        # Not said after an error, for psql ends there.
        self._conversation.send("\\echo end\n")
        while True:
            line = self._line()
            if line == "end":
                return
            if not line.startswith("{"):
                raise refused(f"{line}\n{self._conversation.said}", self._database.login, self._database.where)
            yield sql.from_copy(line)

    def _line(self) -> str:
        line = self._conversation.read_line(_QUESTION_TIMEOUT_S + 30.0)
        if line is None:
            self._conversation.wait()
            raise refused(self._conversation.said, self._database.login, self._database.where)
        return line


class PsycopgDatabase(Database):
    """Asks through psycopg 3: databases on the target itself, on another host, or managed ones."""

    def __init__(self, login: Login, where: str = "this host") -> None:
        super().__init__(login, where)

    @contextlib.contextmanager
    def _session(self, opening: t.Sequence[str]) -> t.Iterator[Snapshot]:
        import psycopg

        login = self.login
        try:
            with process.without_libpq_variables():
                connection = psycopg.connect(
                    dbname=login.database,
                    user=login.user,
                    host=login.host,
                    port=login.port,
                    password=login.password,
                    application_name=login.session,
                    connect_timeout=10,
                    autocommit=True,
                )
        except (psycopg.Error, UnicodeError) as error:
            # Python itself refuses a host name that cannot be one.
            raise no_connection(str(error), self.login, self.where) from error
        with connection:
            self._refuse_a_pooler(connection)
            session = _PsycopgSnapshot(connection)
            for statement in opening:
                session.tell(statement)
            yield session

    def _refuse_a_pooler(self, connection: t.Any) -> None:
        """A pooler gives a connection a process number of its own (BackendKeyData of the protocol).

        Behind one, a setting or a lock may be in the session of somebody else, and a database cannot be renamed.
        """
        with _refusals():
            (found,) = connection.execute("select pg_catalog.pg_backend_pid()").fetchone()
        # Something that passes bytes on may give none, which libpq makes a zero of.
        if connection.info.backend_pid not in (0, found):
            raise DatabaseError(
                f"The connection to database {self.login.database} as {self.login.user} in {self.where} goes through a "
                "pooler (PgBouncer, for one), and not to the server itself. Set host and port, or unix_socket, in "
                "recovery_stack.database to those of the server."
            )


class _PsycopgSnapshot(Snapshot):
    def __init__(self, connection: t.Any) -> None:
        self._connection = connection

    def tell(self, statement: str) -> None:
        self._execute(statement)

    def ask(self, query: str) -> Rows:
        return t.cast(Rows, json.loads(self._execute(sql.as_json(query)).fetchone()[0]))

    def lines(self, query: str) -> t.Iterator[str]:
        with _refusals(), self._connection.cursor().copy(sql.as_copy(query)) as copy:
            for row in copy.rows():
                yield row[0]

    def _execute(self, statement: str) -> t.Any:
        with _refusals():
            return self._connection.execute(statement)


@contextlib.contextmanager
def _refusals() -> t.Iterator[None]:
    """What psycopg raises inside, as our exception."""
    import psycopg

    try:
        yield
    except psycopg.Error as error:
        said = error.diag.message_primary or str(error)
        raise DatabaseError(f"PostgreSQL refused a question: {said}", sqlstate=error.sqlstate) from error


def open_database(login: Login, runtime: Runtime, *, bin_dir: str | None = None) -> Database:
    """The way to ask a database that belongs to where it lives.

    :param runtime: a container: psql in it. This host: psycopg 3 if this Python has it, else psql beside pg_dump.
    :raises DatabaseError: neither is here.
    """
    if isinstance(runtime, DockerRuntime):
        if not runtime.state.running:
            raise DatabaseError(
                f"The database's container {runtime.container} is not running (exit code {runtime.state.exit_code}). "
                f"Start it first: docker start {runtime.container}"
            )
        return PsqlDatabase(runtime, login)
    try:
        import psycopg  # noqa: F401  (only whether it is there)
    except ImportError:
        return PsqlDatabase(HostRuntime(), login, find_program("psql", bin_dir))
    return PsycopgDatabase(login)


def find_program(name: str, bin_dir: str | None = None) -> str:
    """The path of one of PostgreSQL's programs on this host: `bin_dir`, PATH, then where packages put them.

    :raises DatabaseError: it is nowhere.
    """
    places = [bin_dir] if bin_dir else [*os.environ.get("PATH", "").split(os.pathsep), *_package_places()]
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        raise DatabaseError(
            f"{name} is not in {', '.join(places)}. Set bin_dir in recovery_stack.database to the directory of "
            "PostgreSQL's programs of the server's version."
        )
    return found


def _package_places() -> list[str]:
    """Where Debian's, PGDG's, Homebrew's packages and Postgres.app keep programs that are not in PATH, newest first."""
    patterns = (
        "/usr/lib/postgresql/*/bin",
        "/usr/pgsql-*/bin",
        "/opt/homebrew/opt/libpq/bin",
        "/Applications/Postgres.app/Contents/Versions/latest/bin",
    )
    found = [place for pattern in patterns for place in glob.glob(pattern)]
    return sorted(found, key=lambda place: [int(number) for number in re.findall(r"\d+", place)], reverse=True)


def damage(relation: str | None) -> str:
    """What to say of a database whose files are damaged."""
    what = f"That is {relation}. " if relation else ""
    return (
        f"{what}The database itself is damaged. Stop here: take a physical copy of the data directory first, then look "
        "with pg_amcheck."
    )
