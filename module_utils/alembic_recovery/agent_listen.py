"""A part of the agent: what it does by listening to every SQLAlchemy engine of the application's process.

Like `agent.py`, it runs in the application's own Python: the standard library, SQLAlchemy, Python 3.8.
"""

from __future__ import annotations

import sys
import time
import typing as t

try:
    from ansible.module_utils.alembic_recovery.agent_sessions import is_idle
    from sqlalchemy import event
    from sqlalchemy.engine import Engine
except ImportError:  # agent.py reports it
    pass

# The strongest last. The names are those of pg_locks.
_MODES = (
    "AccessShareLock",
    "RowShareLock",
    "RowExclusiveLock",
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    "AccessExclusiveLock",
)
# An index goes by the name of its table: whoever plans a query on a table locks all of its indexes.
_HELD = """
select c.oid::bigint, n.nspname || '.' || r.relname, l.mode
from pg_catalog.pg_locks l join pg_catalog.pg_class c on c.oid = l.relation
     left join pg_catalog.pg_index i on i.indexrelid = c.oid
     join pg_catalog.pg_class r on r.oid = coalesce(i.indrelid, c.oid)
     join pg_catalog.pg_namespace n on n.oid = r.relnamespace
where l.pid = pg_catalog.pg_backend_pid() and l.granted and l.locktype = 'relation'
      and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
"""
# Beyond so many different statements of one transaction, it is only looked every so often.
_EACH_OF = 500
_THEN_EVERY_S = 0.1


class RedirectError(Exception):
    """A connection went to another database than it was told to."""


class Redirection:
    """Sends every connection of the process to another database of the same server, and lets it prove that it is there.

    Class-level SQLAlchemy events reach every engine, however `env.py` or a revision came by its URL. A connection that
    is made by other means (`creator=`, a driver of its own) is not reached; the first kind is refused when it is made.
    """

    def __init__(self, database: str) -> None:
        self._database = database

    def listen(self) -> None:
        """Attach to every engine of the process, those included that are made later."""
        event.listen(Engine, "do_connect", self._on_do_connect)
        event.listen(Engine, "connect", self._on_connect)

    def _on_do_connect(self, dialect: t.Any, _record: t.Any, _cargs: t.Any, cparams: dict[str, t.Any]) -> None:
        if dialect.name != "postgresql":
            return
        # A keyword overrides what a connection string says, be it a positional argument or one of `connect_args`. Two
        # names for one thing are refused by some drivers.
        ours, other = ("dbname", "database") if dialect.driver.startswith("psycopg") else ("database", "dbname")
        cparams.pop(other, None)
        cparams[ours] = self._database

    def _on_connect(self, connection: t.Any, _record: t.Any) -> None:
        if "sqlite" in type(connection).__module__:
            return
        cursor = connection.cursor()
        cursor.execute("select current_database()")
        found = cursor.fetchone()[0]
        cursor.close()
        connection.rollback()
        if found != self._database:
            raise RedirectError(
                "A connection of the application was to go to %s, and went to %s: env.py or a revision makes it in a "
                "way that cannot be redirected (creator=, a driver of its own)." % (self._database, found)
            )


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
        self.healed: list[str] = []
        self.lost: list[str] = []

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


class LockWatch:
    """The strongest lock on each relation that the process's own sessions hold during a revision, and for how long.

    A session is asked about itself after each statement that differs from those before it. The time is counted from the
    start of the statement that took the lock, so it is never less than the truth, to the end of the transaction. What a
    statement outside of a transaction locks (an autocommit block) is gone before it can be seen.
    """

    def __init__(self) -> None:
        self._active = False
        self._open: dict[int, _Held] = {}
        self._strongest: dict[int, dict[str, t.Any]] = {}

    def listen(self) -> None:
        """Attach to every engine of the process, those included that are made later."""
        event.listen(Engine, "after_cursor_execute", self._after)
        event.listen(Engine, "commit", self._on_end)
        event.listen(Engine, "rollback", self._on_end)

    def begin(self) -> None:
        """A revision begins."""
        self._active, self._open, self._strongest = True, {}, {}

    def end(self) -> list[dict[str, t.Any]]:
        """It has ended: `oid`, `relation`, `mode` and `seconds` of the strongest lock on each relation.

        An index has its own oid and the name of its table.
        """
        self._active = False
        for key in list(self._open):
            self._close(key)
        return sorted(self._strongest.values(), key=lambda lock: str(lock["relation"]))

    def _after(self, conn: t.Any, _cursor: t.Any, text: str, _params: t.Any, context: t.Any, _many: bool) -> None:
        if not self._active or conn.dialect.name != "postgresql":
            return
        raw = conn.connection.dbapi_connection
        if is_idle(raw):
            # Ended by a COMMIT in plain SQL, or none was begun: to ask would begin one.
            self._close(id(raw))
            return
        held = self._open.setdefault(id(raw), _Held())
        now = time.monotonic()
        if not held.is_worth_a_look(text, now):
            return
        started = getattr(context, "alembic_recovery_started", now)
        # A cursor of its own: the application has not read the rows of its statement yet.
        cursor = raw.cursor()
        cursor.execute(_HELD)
        for oid, relation, mode in cursor.fetchall():
            held.note(oid, relation, mode, started)
        cursor.close()

    def _on_end(self, conn: t.Any) -> None:
        if self._open:
            self._close(id(conn.connection.dbapi_connection))

    def _close(self, key: int) -> None:
        held = self._open.pop(key, None)
        now = time.monotonic()
        for oid, (relation, mode, since) in (held.locks if held else {}).items():
            known = self._strongest.get(oid)
            seconds = now - since
            if known is not None and known["mode"] == mode:
                seconds += known["seconds"]
            elif known is not None and _MODES.index(known["mode"]) > _MODES.index(mode):
                continue
            self._strongest[oid] = {"oid": oid, "relation": relation, "mode": mode, "seconds": round(seconds, 3)}


class _Held:
    """The locks of one session's transaction."""

    def __init__(self) -> None:
        self.locks: dict[int, tuple[str, str, float]] = {}
        self._texts: set[str] = set()
        self._looked = 0.0

    def is_worth_a_look(self, text: str, now: float) -> bool:
        """Equal statements take equal locks, and data migrations are made of very many of them."""
        if text in self._texts or (len(self._texts) >= _EACH_OF and now - self._looked < _THEN_EVERY_S):
            return False
        if len(self._texts) < _EACH_OF:
            self._texts.add(text)
        self._looked = now
        return True

    def note(self, oid: int, relation: str, mode: str, since: float) -> None:
        """A lock that is held."""
        known = self.locks.get(oid)
        if mode in _MODES and (known is None or _MODES.index(known[1]) < _MODES.index(mode)):
            self.locks[oid] = (relation, mode, since)
