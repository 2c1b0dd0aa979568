"""Who keeps a migration waiting for a lock: seen from outside while it waits, and ended where somebody has said so."""

from __future__ import annotations

import dataclasses
import time
import typing as t

from ansible.module_utils.alembic_recovery import postgres, sql
from ansible.module_utils.alembic_recovery.errors import DatabaseError, StackError

# How long a session that was told to end may take.
_LEAVE_S = 10.0
#: Lock modes as PostgreSQL's manual calls them, the strongest last.
MODES = (
    "ACCESS SHARE", "ROW SHARE", "ROW EXCLUSIVE", "SHARE UPDATE EXCLUSIVE", "SHARE", "SHARE ROW EXCLUSIVE", "EXCLUSIVE",
    "ACCESS EXCLUSIVE",
)  # fmt: skip
# The first of them that each one conflicts with; it conflicts with those after that as well.
_FIRST_CONFLICT = dict(zip(MODES, (7, 6, 4, 3, 2, 2, 1, 0)))

# What is null or "<insufficient privilege>" here is not shown to the role that asks; pid, role and name always are.
_COLUMNS = """a.pid, coalesce(a.usename::text, '') as "user", coalesce(a.application_name, '') as application,
       coalesce(host(a.client_addr), '') as address, coalesce(a.state, '') as state,
       coalesce((extract(epoch from a.backend_start) * 1000000)::bigint::text, '') as started,
       coalesce((extract(epoch from a.xact_start) * 1000000)::bigint::text, '') as transaction,
       coalesce(to_char(a.xact_start at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'), '') as since,
       extract(epoch from clock_timestamp() - a.xact_start)::int as seconds, coalesce(a.query, '') as query"""
_BLOCKING = """
select distinct on (b.pid) {columns}
from pg_stat_activity w cross join lateral unnest(pg_blocking_pids(w.pid)) b(pid)
     join pg_stat_activity a on a.pid = b.pid
where w.application_name = {session} and w.pid <> pg_backend_pid() and a.application_name <> {session}
"""
# pg_blocking_pids gives 0 for a prepared transaction, which no session holds any more.
_PREPARED = """
select p.gid, p.owner::text as owner, to_char(p.prepared at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') as since
from pg_prepared_xacts p
where p.database = {database} and exists (
      select 1 from pg_stat_activity w where w.application_name = {session} and 0 = any (pg_blocking_pids(w.pid)))
order by p.prepared limit 5
"""
# A session whose statement was cancelled is "idle in transaction (aborted)", and soon gone.
_STATES = "select coalesce(state, '') as state from pg_stat_activity where application_name = {session}"
_AT_WORK = {"active", "idle in transaction"}
# Afterwards, when nobody waits any more: who has locks on tables in this database.
_HOLDERS = """
select {columns}
from pg_stat_activity a
where a.datname = {database} and a.pid <> pg_backend_pid() and exists (
      select 1 from pg_locks l where l.pid = a.pid and l.granted and l.locktype = 'relation' and l.relation >= 16384)
order by a.xact_start nulls last, a.pid limit 5
"""
# The server itself ends an autovacuum worker that somebody waits for, but for those of one kind (manual, "The
# Autovacuum Daemon").
_LEAVES_BY_ITSELF = "(a.backend_type = 'autovacuum worker' and a.query not like '%(to prevent wraparound)')"
# Beforehand: who has held, for longer than the migration would wait, what it is going to need. How old a transaction is
# that is not shown to us, nobody knows: it may be over in a moment.
_IN_THE_WAY = f"""
select distinct on (a.pid) {{columns}}
from (values {{needed}}) as n(relation, modes)
     join pg_class c on c.relkind in ('r', 'p', 'm', 'v', 'S') join pg_namespace s on s.oid = c.relnamespace
     join pg_locks l on l.relation = c.oid and l.granted and l.mode = any (n.modes)
          and l.database = (select oid from pg_database where datname = current_database())
     join pg_stat_activity a on a.pid = l.pid
where s.nspname || '.' || c.relname = n.relation and a.pid <> pg_backend_pid()
      and a.xact_start < clock_timestamp() - {{seconds}} * interval '1 second'
      and {_LEAVES_BY_ITSELF} is not true
"""
# The moment of its start tells a session from a later one with the same number. As a number: how a time is written is a
# setting of a session.
_SAME = "pid = {pid} and (extract(epoch from backend_start) * 1000000)::bigint = {started}"
_THERE = f"select 1 as there from pg_stat_activity where {_SAME}"
# One that is kept open may be at somebody else's work by now.
_END = (
    f"select pg_terminate_backend(pid) as told from pg_stat_activity where {_SAME} "
    "and (extract(epoch from xact_start) * 1000000)::bigint is not distinct from {transaction}"
)


@dataclasses.dataclass(frozen=True)
class Blocker:
    """A session that holds a lock; what is not shown to us is empty, or ``None``.

    `started` tells it from a later one of the same number, `transaction` what it did then from what it does later.
    """

    pid: int
    user: str
    application: str
    address: str
    state: str
    started: str
    since: str
    seconds: int | None
    query: str
    transaction: str = ""

    def __str__(self) -> str:
        words = [self.user or "no role", self.application or "no name", self.state or "state not shown"]
        words += [f"for {self.seconds} s, since {self.since}"] if self.seconds is not None else []
        words += [f"from {self.address}"] if self.address else []
        said = f", its statement: {self.query}" if self.query else ""
        return f"{self.pid} ({', '.join(words)}){said}"


class Watch:
    """Looks who blocks the sessions of one name. What was seen last is kept, for afterwards nobody is blocked."""

    def __init__(self, beside: postgres.Database, database: str, session: str) -> None:
        """:param beside: where to ask, not the migrated database: there, a question of ours would be in the way itself.

        :param database: the database that is migrated.
        :param session: the `application_name` of the sessions that may be waiting.
        """
        self._beside = beside
        self._values = {"columns": _COLUMNS, "session": sql.literal(session), "database": sql.literal(database)}
        self.seen: list[Blocker] = []
        #: Prepared transactions, in words.
        self.prepared: list[str] = []

    def forget(self) -> None:
        """Another attempt begins."""
        self.seen, self.prepared = [], []

    def look(self) -> None:
        """Look now; what was seen is forgotten if the work goes on. An error is no reason to end a migration."""
        try:
            queries = {"sessions": _BLOCKING, "prepared": _PREPARED, "states": _STATES}
            found = self._beside.ask_all({name: query.format(**self._values) for name, query in queries.items()})
        except DatabaseError:
            return
        blocked = bool(found["sessions"] or found["prepared"])
        if not blocked and not _AT_WORK & {row["state"] for row in found["states"]}:
            return
        self.seen = [_described(row) for row in found["sessions"]]
        self.prepared = [
            f"the prepared transaction {row['gid']!r} of {row['owner']}, since {row['since']}"
            for row in found["prepared"]
        ]

    def look_ahead(self, database: postgres.Database, needed: t.Sequence[t.Mapping[str, t.Any]], seconds: int) -> None:
        """Look who has held, for so many seconds, a lock that conflicts with those that will be needed.

        :param database: the database that is to be migrated.
        :param needed: `relation` and `mode` of each, as `measuring.described_locks` has them.
        :raises DatabaseError: it could not be asked.
        """
        values = []
        for lock in needed:
            modes = ", ".join(map(sql.literal, conflicting(lock["mode"])))
            values.append(f"({sql.literal(str(lock.get('relation')))}, array[{modes}])")
        words = {"columns": _COLUMNS, "needed": ", ".join(values), "seconds": seconds}
        self.seen = [_described(row) for row in database.ask(_IN_THE_WAY.format(**words))] if values else []

    def holders(self) -> list[Blocker]:
        """Who has locks on tables now: a list of those who may have been it.

        :raises DatabaseError: it could not be asked.
        """
        return [_described(row) for row in self._beside.ask(_HOLDERS.format(**self._values))]

    def sentence(self) -> str:
        """Who holds the lock, for a person who has to decide whether they may be ended."""
        blocking = [*map(str, self.seen), *self.prepared]
        if blocking:
            who = f"Whom it waited for, by process id: {'; '.join(blocking)}"
        else:
            try:
                holders = "; ".join(map(str, self.holders()))
            except DatabaseError as error:
                return f"Another session held a lock that it needs. Who that is could not be asked: {error.message}"
            if not holders:
                return "Another session held a lock that it needs, and holds it no more: run it again."
            who = (
                "Another session holds a lock that it needs. Those with locks on tables now, by process id: " + holders
            )
        return (
            f"{who}. Let it end, or end it with: select pg_terminate_backend(PID); a prepared transaction with: "
            "rollback prepared. To have those ended who are in the way: -e recovery_terminate_blockers=terminate."
        )

    def end(self, found: t.Sequence[Blocker]) -> tuple[list[str], list[str]]:
        """End sessions, and prove that they are gone; those that are, and sentences about those that are not."""
        ended, left = [], []
        for blocker in found:
            problem = self._end(blocker)
            if problem is None:
                ended.append(str(blocker))
            else:
                left.append(f"{blocker.pid} was not ended: {problem}.")
        return ended, left

    def _end(self, blocker: Blocker) -> str | None:
        who = self._beside.login.user
        if not blocker.started:
            return f"when it started is not shown to {who}, so it cannot be told from another (grant pg_read_all_stats)"
        words = {"pid": blocker.pid, "started": blocker.started, "transaction": blocker.transaction or "null"}
        try:
            told = self._beside.act([], returning=_END.format(**words))
            if not told and self._beside.ask(_THERE.format(**words)):
                return "it is in another transaction by now"
            deadline = time.monotonic() + _LEAVE_S
            while self._beside.ask(_THERE.format(**words)):
                if time.monotonic() > deadline:
                    return f"it was told to, and is still there after {_LEAVE_S:g} s"
                time.sleep(0.1)
        except DatabaseError as error:
            return f"{error.message.rstrip('.')} (as {who}; sessions of others need pg_signal_backend)"
        return None


def conflicting(mode: str | None) -> list[str]:
    """The modes that a lock of one mode does not go with, as pg_locks writes them (manual, "Table-Level Locks").

    :param mode: as the manual writes it.
    :raises StackError: there is no such mode.
    """
    first = _FIRST_CONFLICT.get(mode or "")
    if first is None:
        raise StackError(f"There is no lock mode {mode!r}; there are {', '.join(MODES)}.")
    found = [other for other in MODES[first:] if (mode, other) != ("SHARE", "SHARE")]
    return [other.title().replace(" ", "") + "Lock" for other in found]


def _described(row: t.Mapping[str, t.Any]) -> Blocker:
    values = {field.name: row[field.name] for field in dataclasses.fields(Blocker)}
    hidden = values["query"].startswith("<")
    return Blocker(**{**values, "query": "" if hidden else sql.shown(values["query"], numbers=False)})
