"""The agent: the application's own Alembic, run in the application's own Python, reporting what it sees.

This file and its parts are sent over standard input to the application's interpreter (see `agent_client.py`), so
they need nothing but the standard library, SQLAlchemy (1.4 and later) and Alembic (1.7 and later), on Python 3.8 and
later. It runs the application's unmodified `env.py` with a function of its own, and answers in JSON lines on the real
standard output; whatever the application prints goes to standard error. It never decides: it returns evidence.

A request is one JSON object: `command` (`status`, `plan`, `upgrade`, `downgrade`), `config` (the ini file), `section`,
`x_arguments`, `script_location`, `options` and `prepare` (see `agent_config.py`), `steps` (revisions in order, for the
last three), `goals` (for a downgrade and its plan, by revision: the revision that
is left when that one, and no other, has been undone, or `base`), `settings` (session settings by name), `heal` (bool),
`measure` (bool: locks are watched), `redirect` (the database of the same server that every connection is to go to
instead of its own), `models` (bool: a status also compares the models with the catalog, if that is at head, and hashes
the revisions applied last).
Before each step but the first it waits for one line on standard input: `go`, or the end, which stops it between
revisions.
"""

from __future__ import annotations

import sys

# `python -c` puts the working directory first on the path, where an application may keep its migrations in a package
# called `alembic`. The real one must be imported before that directory, or one that the ini prepends, can be seen.
if __name__ == "__main__":
    sys.path[:] = [entry for entry in sys.path if entry != ""]
    # To look leaves no trace: no compiled copies of the application's files beside them.
    sys.dont_write_bytecode = True

import contextlib  # noqa: E402
import hashlib  # noqa: E402
import io  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import platform  # noqa: E402
import re  # noqa: E402
import time  # noqa: E402
import traceback  # noqa: E402
import typing as t  # noqa: E402

try:
    import alembic
    import sqlalchemy
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory
    from ansible.module_utils.alembic_recovery.agent_config import prepared, read_config
    from ansible.module_utils.alembic_recovery.agent_declared import Declarations, with_ancestors
    from ansible.module_utils.alembic_recovery.agent_listen import LockWatch, Redirection, TransactionWatch
    from ansible.module_utils.alembic_recovery.agent_models import compare, skipped
    from ansible.module_utils.alembic_recovery.agent_sessions import (
        PoolerError,
        PoolerWatch,
        SilentCommits,
        commits,
        is_autocommit,
        keeps_something,
        only_ends,
        sqlstate_of,
        told,
        transaction_id,
    )
    from ansible.module_utils.alembic_recovery.agent_source import digest_of, downgrade_of
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    MISSING = None
except ImportError as error:  # reported by main(): an import of this file must never end a process
    MISSING = error

WHERE = """
select current_database() as name,
       (select oid::bigint from pg_database where datname = current_database()) as oid,
       extract(epoch from pg_postmaster_start_time())::text as server_started,
       current_user as "user"
"""
# Where a version table is that is not named with its schema: that depends on the application's own search path.
SCHEMA = """
select n.nspname from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where c.oid = to_regclass(quote_ident(:name))
"""
# A bound, for a status must stay cheap on a chain of thousands.
HASHED = 100


class AmbiguousStepError(Exception):
    """Alembic would do something else than the one revision that was asked for."""


class Reporter:
    """JSON lines on what was standard output when the process started; print() and C code go to standard error."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        sys.stdout = sys.stderr

    def tell(self, event_name: str, **facts: t.Any) -> None:
        """Write one message and flush it."""
        self._out.write(json.dumps({"event": event_name, **facts}, default=str) + "\n")
        self._out.flush()


class Journal:
    """What the application's connections do: statements with their durations, commits, and session settings.

    Class-level SQLAlchemy events reach every engine that the process makes, on any driver, however `env.py` came by
    its URL; `PGOPTIONS` would be ignored by asyncpg.
    """

    def __init__(self, reporter: Reporter, settings: t.Mapping[str, str], acts: bool) -> None:
        self._reporter = reporter
        self._settings = dict(settings)
        self._acts = acts
        self._same: t.Optional[t.Dict[str, t.Any]] = None
        self.pooler = PoolerWatch()
        self.revision: t.Optional[str] = None
        self.commits = 0
        self._silent = SilentCommits()

    def listen(self) -> None:
        """Attach to every engine of the process, those included that are made later."""
        self.pooler.listen()
        event.listen(Engine, "connect", self._on_connect)
        event.listen(Engine, "begin", self._on_begin)
        event.listen(Engine, "before_cursor_execute", self._before)
        event.listen(Engine, "after_cursor_execute", self._after)
        event.listen(Engine, "commit", self._on_commit)
        event.listen(Engine, "rollback", self._on_rollback)

    def begin(self, revision: t.Optional[str]) -> None:
        """What comes now belongs to this revision."""
        self.revision, self._silent = revision, SilentCommits()

    def flush(self) -> None:
        """Report the statement that has been counted so far."""
        if self._same is not None:
            self._reporter.tell("statement", **self._same)
            self._same = None

    def _on_connect(self, connection: t.Any, record: t.Any) -> None:
        if "sqlite" in type(connection).__module__:
            return
        mode = self.pooler.look(connection)
        if mode is not None and not self._acts:
            # Whatever kind it is: a session that may be somebody else's next keeps no setting of ours.
            record.info["alembic_recovery_local"] = True
            return
        if mode in ("transaction", "unknown"):
            raise PoolerError("a connection of the application goes through a pooler that may share its session")
        cursor = connection.cursor()
        for name, value in self._settings.items():
            cursor.execute("select set_config('%s', '%s', false)" % (name, value))
        cursor.close()
        # A setting made in a transaction that is rolled back is gone with it.
        connection.commit()

    def _on_begin(self, conn: t.Any) -> None:
        if not conn.info.get("alembic_recovery_local"):
            return
        cursor = conn.connection.dbapi_connection.cursor()
        for name, value in self._settings.items():
            # The default of a session says nothing about a transaction that has begun.
            local = "transaction_read_only" if name == "default_transaction_read_only" else name
            cursor.execute("select set_config('%s', '%s', true)" % (local, value))
        cursor.close()

    def _before(self, conn: t.Any, _cursor: t.Any, text: str, _params: t.Any, context: t.Any, _many: bool) -> None:
        ours = self.revision is not None and conn.dialect.name == "postgresql"
        if ours:
            self._look_for_an_end(conn)
            if self._same is not None and self._same["sql"] != text:
                # This one may take long, or wait: what came before it is known by then.
                self.flush()
        if ours and commits(text):
            self.flush()
            # Whatever else is in the same text may be a transaction of its own, of which nobody knows beforehand.
            alone = only_ends(text)
            xid = transaction_id(conn) if alone else None
            self._reporter.tell("commit_in_sql", revision=self.revision, xid=xid, more=not alone)
            self._silent.known(conn)
        elif ours and only_ends(text):
            self._silent.known(conn)
        # A statement outside of a transaction may leave something even if it fails (CREATE INDEX CONCURRENTLY).
        alone = ours and is_autocommit(conn.connection.dbapi_connection) and keeps_something(text)
        if alone:
            self._reporter.tell("outside_transaction", revision=self.revision)
        if context is not None:
            context.alembic_recovery_started = time.monotonic()
            context.alembic_recovery_alone = alone

    def _after(self, conn: t.Any, cursor: t.Any, text: str, _params: t.Any, context: t.Any, _many: bool) -> None:
        if self.revision is None:
            return
        seconds = time.monotonic() - getattr(context, "alembic_recovery_started", time.monotonic())
        alone = getattr(context, "alembic_recovery_alone", False)
        # Row by row is how data migrations work: equal statements in a row are one line of the journal. Parameters
        # are data of the application and are never reported.
        same = self._same
        if same is None or (same["sql"], same["revision"], same["alone"]) != (text, self.revision, alone):
            self.flush()
            same = {"revision": self.revision, "sql": text, "count": 0, "seconds": 0.0, "longest": 0.0, "rows": 0}
            same["alone"] = alone
            self._same = same
        same["count"] += 1
        same["seconds"] = round(same["seconds"] + seconds, 6)
        same["longest"] = max(same["longest"], round(seconds, 6))
        same["rows"] += max(getattr(cursor, "rowcount", 0) or 0, 0)
        if conn.dialect.name == "postgresql":
            self._look_for_an_end(conn)
            blind = self._silent.blind
            self._silent.ran(conn)
            if self._silent.blind and not blind:
                self._reporter.tell("blind", revision=self.revision)

    def _look_for_an_end(self, conn: t.Any) -> None:
        if self._silent.ended(conn):
            self.flush()
            self._reporter.tell("commit", revision=self.revision, xid=None)

    def _on_rollback(self, conn: t.Any) -> None:
        if self.revision is not None and conn.dialect.name == "postgresql":
            self._look_for_an_end(conn)
            self._silent.known(conn)

    def _on_commit(self, conn: t.Any) -> None:
        if self.revision is not None:
            if conn.dialect.name == "postgresql":
                self._look_for_an_end(conn)
                self._silent.known(conn)
            self.commits += 1
            self.flush()
            self._reporter.tell("commit", revision=self.revision, xid=transaction_id(conn))


class Agent:
    """One request, from its first look to its last word."""

    def __init__(self, request: t.Mapping[str, t.Any], reporter: Reporter) -> None:
        self._request = request
        self._reporter = reporter
        acts = request["command"] in ("upgrade", "downgrade")
        self._journal = Journal(reporter, request.get("settings") or {}, acts)
        self._locks = LockWatch()
        self._config = read_config(request)

    def run(self) -> None:
        """Do what the request asks for."""
        if self._request.get("redirect"):
            # First: what is not where it should be is given no setting either.
            Redirection(self._request["redirect"]).listen()
        self._journal.listen()
        if self._request.get("measure"):
            self._locks.listen()
        # From here on code of the application runs: the path of its scripts may be that of a package.
        self._script = ScriptDirectory.from_config(self._config)
        with prepared(self._request):
            command = self._request["command"]
            if command == "status":
                self._status()
            elif command == "plan":
                self._plan_all()
            else:
                self._walk(command)

    # -- looking ---------------------------------------------------------------------------------------------------

    def _status(self) -> None:
        seen: t.List[t.Dict[str, t.Any]] = []
        declarations: t.List[Declarations] = []
        models: t.List[t.Dict[str, t.Any]] = []
        wanted = bool(self._request.get("models"))

        def look(rows: t.Any, context: t.Any) -> t.List[t.Any]:
            connection, table = context.connection, context.version_table
            where = connection.exec_driver_sql(WHERE).mappings().first()
            seen.append(
                {
                    "rows": sorted(str(row) for row in rows),
                    "version_table": table,
                    "version_table_schema": context.version_table_schema,
                    "found_in_schema": connection.execute(sqlalchemy.text(SCHEMA), {"name": table}).scalar(),
                    "database": dict(where),
                }
            )
            declarations.append(Declarations(context))
            if wanted and models:  # of another database, or of another schema: they would not be compared as one
                models.append(skipped("not the first"))
            elif wanted:
                applied = {revision.revision for revision in self._applied(rows)}
                at_head = applied.issuperset(self._script.get_heads())
                models.append(compare(context, self._script.dir, at_head=at_head))
            return []

        # dont_mutate: Alembic would create its version table even to look (alembic#694).
        self._environment(look, dont_mutate=True)
        scripts = list(self._script.walk_revisions())
        self._reporter.tell(
            "status",
            databases=seen,
            pooler=self._journal.pooler.mode,
            # Read only now: env.py may set version locations, and the scripts outside of it are not all there are.
            heads=sorted(self._script.get_heads()),
            bases=sorted(self._script.get_bases()),
            revisions=[self._describe(revision) for revision in scripts],
            # Of several version tables, each would have to be compared in its own schema.
            declared=declarations[0].collect(scripts, seen[0]["rows"]) if len(seen) == 1 else None,
            models=models,
            sources=self._sources([row for one in seen for row in one["rows"]]) if wanted else {},
            places=sorted({os.path.dirname(os.path.abspath(revision.path)) for revision in scripts}),
        )

    def _applied(self, rows: t.Iterable[str]) -> t.List[t.Any]:
        """The revisions that version rows stand for, newest first."""
        scripts = list(self._script.walk_revisions())
        names = with_ancestors({revision.revision: revision for revision in scripts}, rows)
        return [revision for revision in scripts if revision.revision in names]

    def _sources(self, rows: t.Sequence[str]) -> t.Dict[str, str]:
        """What the newest of the applied revisions do, as a hash of each."""
        found = {}
        for revision in self._applied(rows)[:HASHED]:
            with open(revision.path, "rb") as file:
                digest = digest_of(file.read())
            if digest is not None:
                found[revision.revision] = digest
        return found

    def _describe(self, revision: t.Any) -> t.Dict[str, t.Any]:
        with open(revision.path, "rb") as file:
            source = file.read()
        text = source.decode("utf-8", "replace")
        return {
            "revision": revision.revision,
            "down": _ids(revision.down_revision),
            "depends_on": _ids(revision._resolved_dependencies or revision.dependencies),
            "branch_labels": sorted(revision.branch_labels or ()),
            "message": (revision.doc or "").strip(),
            "file": os.path.basename(revision.path),
            "sha256": hashlib.sha256(source).hexdigest(),
            "commits": bool(re.search(r"\.commit\(\s*\)|[\"']\s*commit\s*;?\s*[\"']", text, re.IGNORECASE)),
            "autocommit_block": "autocommit_block" in text,
            "downgrade": downgrade_of(source),
        }

    def _plan_all(self) -> None:
        # env.py may set version locations: only when it has run once are all scripts there.
        self._environment(lambda _rows, _context: [], dont_mutate=True)
        for revision in self._request["steps"]:
            self._plan(revision)

    def _plan(self, revision: str) -> None:
        """The SQL of one step as Alembic's offline mode writes it, or why there is none."""
        goal = (self._request.get("goals") or {}).get(revision)
        before = _ids(self._script.get_revision(revision).down_revision)
        start = revision if goal else before[0] if before else "base"
        out = io.StringIO()
        self._config.output_buffer = out

        def steps(rows: t.Any, _context: t.Any) -> t.Any:
            return self._chosen(revision, goal, rows)

        try:
            self._environment(steps, as_sql=True, starting_rev=start, destination_rev=goal or revision)
        except Exception as error:  # a revision that reads rows has no offline form: any error may come of that
            reason = "%s: %s" % (type(error).__name__, describe_error(error)["message"][:200])
            self._reporter.tell("plan", revision=revision, sql=None, reason=reason)
        else:
            self._reporter.tell("plan", revision=revision, sql=out.getvalue(), reason=None)

    def _chosen(self, revision: str, goal: t.Optional[str], rows: t.Any) -> t.Any:
        """Alembic's own steps for one revision, up to it, or with a goal, down from it: itself and no other."""
        if goal is None:
            return self._script._upgrade_revs(revision, rows)
        chosen = self._script._downgrade_revs(goal, rows)
        named = [step.revision.revision for step in chosen]
        if named != [revision]:
            raise AmbiguousStepError(
                "To undo %s alone, Alembic would undo: %s." % (revision, ", ".join(named) or "nothing")
            )
        return chosen

    # -- acting ----------------------------------------------------------------------------------------------------

    def _walk(self, command: str) -> None:
        for number, target in enumerate(self._request["steps"]):
            if number and sys.stdin.readline().strip() != "go":
                self._reporter.tell("stopped", before=target)
                return
            self._step(command, target)

    def _step(self, command: str, revision: str) -> None:
        """One revision in a transaction of its own; where it goes is absolute, never relative."""
        self._reporter.tell("starting", revision=revision)
        started = time.monotonic()
        commits = self._journal.commits
        goal = self._request["goals"][revision] if command == "downgrade" else None

        def steps(rows: t.Any, _context: t.Any) -> t.Any:
            return self._chosen(revision, goal, rows)

        self._journal.begin(revision)
        self._locks.begin()
        try:
            with TransactionWatch(bool(self._request.get("heal"))) as watch:
                self._environment(steps, on_version_apply=watch.applied, destination_rev=goal or revision)
        finally:
            locks = self._locks.end()
            self._journal.begin(None)
            self._journal.flush()
        self._reporter.tell(
            "undone" if goal else "applied",
            revision=revision,
            seconds=round(time.monotonic() - started, 3),
            commits=self._journal.commits - commits,
            healed=watch.healed,
            lost=watch.lost,
            locks=locks,
        )

    # -- Alembic ---------------------------------------------------------------------------------------------------

    def _environment(self, work: t.Any, on_version_apply: t.Any = None, **options: t.Any) -> None:
        """Run the application's env.py, with `work` where Alembic's commands put theirs."""
        with contextlib.ExitStack() as stack:
            environment = EnvironmentContext(self._config, self._script, fn=work, **options)
            if on_version_apply is not None:
                # A subclass would not do: the `alembic.context` proxy is set up for the class itself.
                original = environment.configure

                def configure(*args: t.Any, **kw: t.Any) -> None:
                    theirs = kw.get("on_version_apply") or ()
                    theirs = tuple(theirs) if isinstance(theirs, (list, tuple, set)) else (theirs,)
                    original(*args, **{**kw, "on_version_apply": (*theirs, on_version_apply)})

                environment.configure = configure  # type: ignore[method-assign]
            stack.enter_context(environment)
            self._script.run_env()


def _ids(value: t.Any) -> t.List[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else sorted(value)


def describe_error(error: BaseException) -> t.Dict[str, t.Any]:
    """An error without the application's data: the server's primary message, not the statement and its parameters."""
    inner = getattr(error, "orig", None) or error
    diag = getattr(inner, "diag", None)
    primary = getattr(diag, "message_primary", None) or told(inner).get("M")
    message = str(primary or (str(inner).splitlines() or [type(inner).__name__])[0])
    sqlstate = sqlstate_of(error)
    if isinstance(inner, ValueError) or str(sqlstate or "").startswith("22"):
        # These quote the value that they do not like.
        message = re.sub(r"([\"']).*(?:\1|$)", r"\1…\1", message, flags=re.DOTALL)
    return {
        "kind": "%s.%s" % (type(inner).__module__, type(inner).__name__),
        "message": message[:500],
        "sqlstate": sqlstate,
    }


def main() -> int:
    """Read the request, do it, and say how it ended; the exit code."""
    reporter = Reporter()
    if MISSING is not None:
        reporter.tell("error", kind="ImportError", message=str(MISSING), executable=sys.executable)
        return 3
    request = json.loads(sys.stdin.readline())
    sys.argv = ["alembic"]
    reporter.tell(
        "hello",
        python=platform.python_version(),
        executable=sys.executable,
        alembic=alembic.__version__,
        sqlalchemy=sqlalchemy.__version__,
        workdir=os.getcwd(),
    )
    try:
        Agent(request, reporter).run()
    except BaseException as error:  # SystemExit of an application's env.py included: nothing may pass as success
        traceback.print_exc()
        reporter.tell("error", **describe_error(error))
        return 1
    reporter.tell("end")
    return 0


if __name__ == "__main__":
    # Not sys.exit(): an application may have started threads that are no daemons, and nothing is left to wait for.
    code = main()
    sys.stderr.flush()
    os._exit(code)
