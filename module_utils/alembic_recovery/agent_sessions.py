"""A part of the agent: what a driver's connection is to the server. Which process, which transaction, through a pooler?

Like `agent.py`, it runs in the application's own Python: the standard library, SQLAlchemy, Python 3.8.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import threading
import typing as t

try:
    from sqlalchemy import event
    from sqlalchemy.engine import Engine
except ImportError:  # agent.py reports it
    pass

_PROCESS = "select pg_catalog.pg_backend_pid()"
# Null in a transaction that has written nothing. Since PostgreSQL 10.
_TRANSACTION = "select pg_catalog.txid_current_if_assigned()"
_IN_FAILED_TRANSACTION = "25P02"
_ROUNDS = 2
# A pooler that has no session left lets a second connection wait, PgBouncer for two minutes: when it is made, or when
# it asks. What each driver has for that, by its name for SQLAlchemy.
_SECOND_S = 5
_PATIENCE = {
    "psycopg": {"connect_timeout": _SECOND_S},
    "psycopg_async": {"connect_timeout": _SECOND_S},
    "psycopg2": {"connect_timeout": _SECOND_S},
    "asyncpg": {"timeout": _SECOND_S, "command_timeout": _SECOND_S},
    "pg8000": {"timeout": _SECOND_S},
}

# END is COMMIT's other name, and the end of a function's body: the latter is taken for the former.
_COMMITS = re.compile(r"(?:^|;)\s*(?:commit|end)\b(?!\s+prepared)", re.IGNORECASE)
_ENDS_ALONE = re.compile(r"[\s;]*(?:commit|end|rollback|abort)(?:\s+(?:work|transaction))?[\s;]*", re.IGNORECASE)
# In one alternation, for each may hold the beginning of another. Block comments are nested, here once.
_COMMENTS = r"--[^\n]*|/\*(?:/\*.*?\*/|.)*?\*/"
_QUOTED = re.compile(
    _COMMENTS + r"""|(?<!\w)E'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|"(?:[^"]|"")*"|(\$\w*\$).*?\1""",
    re.DOTALL | re.IGNORECASE,
)
_KEEPS_NOTHING = re.compile(r"^\s*(?:show|set|reset)\b|^\s*select\s+(?:pg_catalog\.)?pg_\w*advisory", re.IGNORECASE)


class PoolerError(Exception):
    """A connection that is to change something shares its session with others."""


def commits(text: str) -> bool:
    """Whether a statement's text has a COMMIT, as far as it tells."""
    return _COMMITS.search(_bare(text)) is not None


def only_ends(text: str) -> bool:
    """Whether a statement's text is nothing but the end of a transaction, of either kind."""
    return _ENDS_ALONE.fullmatch(_bare(text)) is not None


def _bare(text: str) -> str:
    """SQL without its comments, and without what is in quotes."""
    return _QUOTED.sub(lambda found: " " if found.group().startswith(("--", "/*")) else "''", text)


def keeps_something(text: str) -> bool:
    """Whether anything may stay of a statement that runs outside of a transaction."""
    return _KEEPS_NOTHING.search(text) is None


def is_autocommit(raw: t.Any) -> bool:
    """Whether each statement of a driver's connection is a transaction of its own."""
    return bool(getattr(raw, "autocommit", False))


def is_idle(raw: t.Any) -> bool | None:
    """Whether the server has no transaction of a driver's connection open; ``None`` if the driver does not tell."""
    status = getattr(getattr(raw, "info", None), "transaction_status", None)
    if status is not None:  # psycopg, psycopg2 (2.8 and later)
        return bool(status == 0)
    asks = getattr(getattr(raw, "_connection", None), "is_in_transaction", None)
    return None if asks is None else not asks()  # asyncpg


class SilentCommits:
    """Finds a transaction that has ended without a word: over the driver's own connection, or in SQL that hid it.

    A connection that had a transaction open after one of our statements, and has none before or after another, has
    ended it in between. Whether by a commit is not known.
    """

    def __init__(self) -> None:
        # The connections themselves: the number of one that is gone may be that of another.
        self._open: dict[int, t.Any] = {}
        #: Whether a driver was met that does not tell.
        self.blind = False

    def ended(self, connection: t.Any) -> bool:
        """Whether the transaction of a SQLAlchemy connection has ended since the last look. Told once."""
        if not self._open or connection.invalidated:
            return False
        raw = connection.connection.dbapi_connection
        if id(raw) not in self._open or is_autocommit(raw) or not is_idle(raw):
            return False
        del self._open[id(raw)]
        return True

    def ran(self, connection: t.Any) -> None:
        """A statement has been run."""
        raw = connection.connection.dbapi_connection
        idle = is_idle(raw)
        self.blind = self.blind or idle is None
        # Without one of SQLAlchemy's it looks at the server, and rolls that back by itself (`Dialect.initialize`).
        if idle is False and connection.in_transaction() and not is_autocommit(raw):
            self._open[id(raw)] = raw

    def known(self, connection: t.Any) -> None:
        """It ends, and that was told otherwise."""
        if connection.invalidated:
            self._open.clear()
        elif self._open:
            self._open.pop(id(connection.connection.dbapi_connection), None)


def sqlstate_of(error: BaseException | None) -> str | None:
    """The SQLSTATE of an error, or of that which it comes from, whatever the driver: SQLAlchemy wraps the driver's in
    its own, its adapter for asyncpg once more, and an application may do so, too.
    """
    seen: list[int] = []
    left: list[t.Any] = [error]
    while left:
        one = left.pop(0)
        if one is None or id(one) in seen:
            continue
        seen.append(id(one))
        found = getattr(one, "sqlstate", None) or getattr(one, "pgcode", None) or told(one).get("C")
        if found:
            return str(found)
        left += [getattr(one, name, None) for name in ("orig", "__cause__", "__context__")]
    return None


def told(error: t.Any) -> dict[str, t.Any]:
    """What pg8000 has of the server's error, by the protocol's letters (`C`: SQLSTATE, `M`: message)."""
    first = (getattr(error, "args", None) or (None,))[0]
    return first if isinstance(first, dict) else {}


def transaction_id(connection: t.Any) -> str | None:
    """The number of a SQLAlchemy connection's open transaction; empty if it has written nothing so far, or can keep
    nothing; ``None`` if that cannot be told.
    """
    dialect = connection.dialect
    if dialect.name != "postgresql" or (dialect.server_version_info or (0,)) < (10,):
        return None
    try:
        found = _ask(connection.connection.dbapi_connection, _TRANSACTION)
    except Exception as error:  # noqa: BLE001 (each driver has its own)
        return "" if sqlstate_of(error) == _IN_FAILED_TRANSACTION else None
    return "" if found is None else str(found)


def told_process(raw: t.Any) -> int | None:
    """The server's process, as the connection was told when it was made (BackendKeyData of the protocol), by driver.

    A pooler gives numbers of its own there, for it has to know by them whose statement is to be cancelled. Something
    else in between may give none, which drivers make a zero of: ``None``, as with a driver that does not keep it.
    """
    # psycopg2 (2.8 and later) and psycopg, asyncpg and psycopg below SQLAlchemy's adapter, pg8000.
    driver = getattr(raw, "driver_connection", None) or getattr(raw, "_connection", None)
    for one in (raw, driver):
        found = getattr(getattr(one, "info", None), "backend_pid", None)
        if isinstance(found, int):
            return found or None
        ask = getattr(one, "get_server_pid", None) or getattr(one, "get_backend_pid", None)
        if ask is not None:
            return int(ask()) or None
        key = getattr(one, "_backend_key_data", None)
        if isinstance(key, bytes) and len(key) >= 4:
            return int(struct.unpack("!i", key[:4])[0]) or None
    return None


class PoolerWatch:
    """Whether the application's connections go through a pooler, and whether they share sessions there.

    Nothing is set in a session before that is known: where it goes to somebody else after each transaction, a setting
    would go with it. Something in between that only passes bytes on (a forwarded port, a proxy) is no pooler.
    """

    def __init__(self) -> None:
        self._last: t.Any = None
        #: `transaction` (sessions are shared), `session` (as far as could be seen), `unknown`, or nothing.
        self.mode: str | None = None

    def listen(self) -> None:
        """Attach to every engine of the process, after those that change where a connection goes."""
        event.listen(Engine, "do_connect", self._on_do_connect)

    def _on_do_connect(self, dialect: t.Any, _record: t.Any, cargs: t.Any, cparams: t.Any) -> None:
        self._last = (dialect, list(cargs), dict(cparams))

    def look(self, raw: t.Any) -> str | None:
        """The mode of the pooler that a new connection goes through; nothing if there is none."""
        expected = told_process(raw)
        if expected is None:
            return None
        found = _ask(raw, _PROCESS)
        raw.rollback()
        if found == expected:
            return None
        if self.mode is None:
            self.mode = self._find_mode(raw)
        return self.mode

    def _find_mode(self, raw: t.Any) -> str:
        """A second connection, while the first one is open: if both ever are one process, or one is two, they share.

        It is made without SQLAlchemy's pool, which may be full.
        """
        if self._last is None:
            return "unknown"
        dialect, cargs, cparams = self._last
        try:
            other = dialect.connect(*cargs, **{**cparams, **_PATIENCE.get(dialect.driver, {})})
            limit = threading.Timer(_SECOND_S, _cut, [other])
            limit.start()
            try:
                for _ in range(_ROUNDS):
                    mine = _ask(raw, _PROCESS)
                    raw.rollback()
                    theirs = _ask(other, _PROCESS)
                    again = _ask(raw, _PROCESS)
                    raw.rollback()
                    other.rollback()
                    if theirs == mine or again != mine:
                        return "transaction"
                return "session"
            finally:
                limit.cancel()
                other.close()
        except Exception:  # noqa: BLE001 (each driver's own; a pooler without a session left ends the wait for one)
            return "unknown"


def _cut(raw: t.Any) -> None:
    """End a connection of libpq for whoever waits for an answer on it: libpq itself knows no limit for that."""
    with contextlib.suppress(Exception):
        driver = raw if hasattr(raw, "fileno") else getattr(raw, "_connection", raw)
        with socket.socket(fileno=os.dup(driver.fileno())) as one:
            one.shutdown(socket.SHUT_RDWR)


def _ask(raw: t.Any, query: str) -> t.Any:
    """One value, over the driver's connection itself."""
    cursor = raw.cursor()
    try:
        cursor.execute(query)
        return cursor.fetchone()[0]
    finally:
        cursor.close()
