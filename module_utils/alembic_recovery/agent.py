"""The agent: the application's own Alembic, run in the application's own Python, reporting what it sees.

This file is sent over standard input to the application's interpreter (see `agent_client.py`), so it needs nothing but
the standard library, SQLAlchemy (1.4 and later) and Alembic (1.7 and later), on Python 3.8 and later. It runs the
application's unmodified `env.py` with a function of its own, and answers in JSON lines on the real standard output;
whatever the application prints goes to standard error. It never decides: it returns evidence.

A request is one JSON object: `command` (`status`, `plan`, `upgrade`, `downgrade`), `config` (the ini file), `section`,
`steps` (revisions in order, for the last three), `settings` (session settings by name), `heal` (bool).
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

import argparse  # noqa: E402
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
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory
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


class SetupError(Exception):
    """The request names something that is not there."""


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

    def __init__(self, reporter: Reporter, settings: t.Mapping[str, str]) -> None:
        self._reporter = reporter
        self._settings = dict(settings)
        self._same: t.Optional[t.Dict[str, t.Any]] = None
        self.revision: t.Optional[str] = None
        self.commits = 0

    def listen(self) -> None:
        """Attach to every engine of the process, those included that are made later."""
        event.listen(Engine, "connect", self._on_connect)
        event.listen(Engine, "before_cursor_execute", self._before)
        event.listen(Engine, "after_cursor_execute", self._after)
        event.listen(Engine, "commit", self._on_commit)

    def flush(self) -> None:
        """Report the statement that has been counted so far."""
        if self._same is not None:
            self._reporter.tell("statement", **self._same)
            self._same = None

    def _on_connect(self, connection: t.Any, _record: t.Any) -> None:
        if "sqlite" in type(connection).__module__:
            return
        cursor = connection.cursor()
        for name, value in self._settings.items():
            cursor.execute("select set_config('%s', '%s', false)" % (name, value))
        cursor.close()
        # A setting made in a transaction that is rolled back is gone with it.
        connection.commit()

    def _before(self, _conn: t.Any, _cursor: t.Any, _sql: str, _params: t.Any, context: t.Any, _many: bool) -> None:
        if context is not None:
            context.alembic_recovery_started = time.monotonic()

    def _after(self, _conn: t.Any, cursor: t.Any, text: str, _params: t.Any, context: t.Any, _many: bool) -> None:
        if self.revision is None:
            return
        seconds = time.monotonic() - getattr(context, "alembic_recovery_started", time.monotonic())
        # Row by row is how data migrations work: equal statements in a row are one line of the journal. Parameters
        # are data of the application and are never reported.
        if self._same is None or self._same["sql"] != text or self._same["revision"] != self.revision:
            self.flush()
            self._same = {"revision": self.revision, "sql": text, "count": 0, "seconds": 0.0, "rows": 0}
        self._same["count"] += 1
        self._same["seconds"] = round(self._same["seconds"] + seconds, 6)
        self._same["rows"] += max(getattr(cursor, "rowcount", 0) or 0, 0)

    def _on_commit(self, _conn: t.Any) -> None:
        if self.revision is not None:
            self.commits += 1
            self.flush()
            self._reporter.tell("commit", revision=self.revision)


class Agent:
    """One request, from its first look to its last word."""

    def __init__(self, request: t.Mapping[str, t.Any], reporter: Reporter) -> None:
        self._request = request
        self._reporter = reporter
        self._journal = Journal(reporter, request.get("settings") or {})
        self._config = self._read_config()
        self._script = ScriptDirectory.from_config(self._config)

    def run(self) -> None:
        """Do what the request asks for."""
        self._journal.listen()
        command = self._request["command"]
        if command == "status":
            self._status()
        elif command == "plan":
            for revision in self._request["steps"]:
                self._plan(revision)
        else:
            self._walk(command)

    # -- looking ---------------------------------------------------------------------------------------------------

    def _status(self) -> None:
        seen: t.List[t.Dict[str, t.Any]] = []

        def look(rows: t.Any, context: t.Any) -> t.List[t.Any]:
            where = context.connection.exec_driver_sql(WHERE).mappings().first()
            seen.append(
                {
                    "rows": sorted(str(row) for row in rows),
                    "version_table": context.version_table,
                    "version_table_schema": context.version_table_schema,
                    "database": dict(where),
                }
            )
            return []

        # dont_mutate: Alembic would create its version table even to look (alembic#694).
        self._environment(look, dont_mutate=True)
        self._reporter.tell(
            "status",
            databases=seen,
            # Read only now: env.py may set version locations, and the scripts outside of it are not all there are.
            heads=sorted(self._script.get_heads()),
            bases=sorted(self._script.get_bases()),
            revisions=[self._describe(revision) for revision in self._script.walk_revisions()],
        )

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
        }

    def _plan(self, revision: str) -> None:
        """The SQL of one step as Alembic's offline mode writes it, or why there is none."""
        script = self._script.get_revision(revision)
        before = _ids(script.down_revision)
        out = io.StringIO()
        self._config.output_buffer = out

        def steps(rows: t.Any, _context: t.Any) -> t.Any:
            return self._script._upgrade_revs(revision, rows)

        try:
            self._environment(
                steps, as_sql=True, starting_rev=before[0] if before else "base", destination_rev=revision
            )
        except Exception as error:  # a revision that reads rows has no offline form: any error may come of that
            reason = "%s: %s" % (type(error).__name__, (str(error).splitlines() or [""])[0][:200])
            self._reporter.tell("plan", revision=revision, sql=None, reason=reason)
        else:
            self._reporter.tell("plan", revision=revision, sql=out.getvalue(), reason=None)

    # -- acting ----------------------------------------------------------------------------------------------------

    def _walk(self, command: str) -> None:
        for number, target in enumerate(self._request["steps"]):
            if number and sys.stdin.readline().strip() != "go":
                self._reporter.tell("stopped", before=target)
                return
            self._step(command, target)

    def _step(self, command: str, target: str) -> None:
        """One revision in a transaction of its own; `target` is absolute, never relative."""
        self._reporter.tell("starting", revision=target)
        started = time.monotonic()
        commits = self._journal.commits

        def steps(rows: t.Any, _context: t.Any) -> t.Any:
            choose = self._script._upgrade_revs if command == "upgrade" else self._script._downgrade_revs
            return choose(target, rows)

        self._journal.revision = target
        try:
            with TransactionWatch(bool(self._request.get("heal"))) as watch:
                self._environment(steps, on_version_apply=watch.applied, destination_rev=target)
        finally:
            self._journal.revision = None
            self._journal.flush()
        self._reporter.tell(
            "applied",
            revision=target,
            seconds=round(time.monotonic() - started, 3),
            commits=self._journal.commits - commits,
            healed=watch.healed,
            lost=watch.lost,
        )

    # -- Alembic ---------------------------------------------------------------------------------------------------

    def _read_config(self) -> Config:
        name = self._request.get("config") or "alembic.ini"
        if not os.path.exists(name):
            raise SetupError("There is no %s in %s." % (name, os.getcwd()))
        # env.py may read x arguments or options from here; the command line always gives them.
        options = argparse.Namespace(x=[], config=name, name=self._request.get("section") or "alembic", raiseerr=True)
        return Config(name, ini_section=options.name, cmd_opts=options)

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


class TransactionWatch:
    """Sees a version update that is about to be rolled back although nothing went wrong, and commits it.

    A revision that calls `commit()` closes Alembic's transaction; the version update that follows runs in a new one
    that nobody commits, and Alembic exits 0 (trap 1). The same becomes of a transaction that Alembic takes for an
    external one, because env.py has executed SQL before `configure()` (trap 2). Both end in the moment in which the
    connection is closed, with a rollback. Until then nothing is touched: an env.py that commits by itself stays in
    charge, and its context managers stay intact.
    """

    def __init__(self, heal: bool) -> None:
        self._heal = heal
        self._pending: t.Any = None
        self._commits = 0
        self.healed: t.List[str] = []
        self.lost: t.List[str] = []

    def __enter__(self) -> TransactionWatch:
        event.listen(Engine, "commit", self._on_commit)
        event.listen(Engine, "rollback", self._on_rollback)
        return self

    def __exit__(self, *_unused: object) -> None:
        event.remove(Engine, "commit", self._on_commit)
        event.remove(Engine, "rollback", self._on_rollback)

    def applied(self, *, ctx: t.Any, **_kw: t.Any) -> None:
        """Called by Alembic when the version row of a step has been updated."""
        if ctx.connection.in_transaction():
            self._pending = ctx.connection.connection.dbapi_connection

    def _on_commit(self, connection: t.Any) -> None:
        if self._pending is None:
            self._commits += 1
        elif self._is_pending(connection):
            self._pending = None

    def _on_rollback(self, connection: t.Any) -> None:
        # With an exception on its way, the rollback is what everybody wants.
        if not self._is_pending(connection) or sys.exc_info()[0] is not None:
            return
        self._pending = None
        kind = "revision_ended_transaction" if self._commits else "external_transaction"
        if self._heal:
            connection.dialect.do_commit(connection.connection)
            self.healed.append(kind)
        else:
            self.lost.append(kind)

    def _is_pending(self, connection: t.Any) -> bool:
        return self._pending is not None and connection.connection.dbapi_connection is self._pending


def _ids(value: t.Any) -> t.List[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else sorted(value)


def describe_error(error: BaseException) -> t.Dict[str, t.Any]:
    """An error without the application's data: the server's primary message, not the statement and its parameters."""
    inner = getattr(error, "orig", None) or error
    diag = getattr(inner, "diag", None)
    message = getattr(diag, "message_primary", None) or (str(inner).splitlines() or [type(inner).__name__])[0]
    return {
        "kind": "%s.%s" % (type(inner).__module__, type(inner).__name__),
        "message": message[:500],
        "sqlstate": getattr(inner, "sqlstate", None) or getattr(inner, "pgcode", None),
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
