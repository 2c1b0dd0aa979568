"""Keeping everybody out of a database: closing it, and proving from outside that nobody is left in it.

A connection limit or a revoked privilege does not keep a superuser out, and the application often is one (the official
image's POSTGRES_USER); `ALLOW_CONNECTIONS false` does. It ends nobody's session, so sessions are ended afterwards.
"""

from __future__ import annotations

import dataclasses
import re
import time
import typing as t

from ansible.module_utils.alembic_recovery import postgres, services, sql
from ansible.module_utils.alembic_recovery.errors import DatabaseError, RecoveryError

# How long a session that was told to end may take.
_LEAVE_S = 20.0
#: How long those who pass are looked at, in seconds: a health check (`pg_isready`, in many a Compose file every ten
#: seconds) is there for some milliseconds.
PASSING_S = 2.0

# A role that is no superuser sees of the sessions of others little more than who and where they are: what is not shown
# is null, so only what is always shown may decide. Autovacuum's workers have no role.
_SESSIONS = """
select a.pid, coalesce(a.usename::text, '') as "user", coalesce(a.application_name, '') as application,
       coalesce(host(a.client_addr), '') as address, coalesce(a.state, '') as state,
       extract(epoch from clock_timestamp() - a.backend_start)::int as seconds
from pg_stat_activity a
where a.datname = {0} and a.pid <> pg_backend_pid() and a.usesysid is not null
order by a.backend_start, a.pid
"""
_ENTRY = """
select d.oid::bigint as oid, d.datname as name, d.datallowconn as open, d.datconnlimit as connection_limit,
       pg_get_userbyid(d.datdba) as owner
from pg_database d where d.datname = any (array[{0}]::text[])
"""


@dataclasses.dataclass(frozen=True)
class Session:
    """Somebody in a database."""

    pid: int
    user: str
    application: str
    address: str
    state: str
    seconds: int | None

    @property
    def client(self) -> tuple[str, str, str]:
        """What another session of the same client has in common with this one."""
        return self.user, self.application, self.address

    def __str__(self) -> str:
        return (
            f"process {self.pid} ({self.user or 'no role'}, {self.application or 'no name'}, from "
            f"{self.address or 'this host'}, {self.state or 'state not shown'}"
            + (")" if self.seconds is None else f", for {self.seconds} s)")
        )


@dataclasses.dataclass(frozen=True)
class Known:
    """Whose sessions may be ended: ours, those from the services' addresses, and those that the stack describes.

    `addresses` is ``None`` where services cannot be told by an address: they speak over a Unix socket, or from the same
    host as everybody else. `clients` has regular expressions for `application_name/user`.
    """

    addresses: t.Collection[str] | None
    clients: t.Sequence[str] = ()


def sessions(maintenance: postgres.Database, name: str) -> list[Session]:
    """Who is in a database, asked from another one.

    :raises DatabaseError: the maintenance database could not be asked.
    """
    keys = [field.name for field in dataclasses.fields(Session)]
    rows = maintenance.ask(_SESSIONS.format(sql.literal(name)))
    return [Session(**{key: row[key] for key in keys}) for row in rows]


def entries(maintenance: postgres.Database, *names: str) -> dict[str, dict[str, t.Any]]:
    """The entries of databases by name: `oid`, `open`, `connection_limit`, `owner`; those that are not there are left
    out.

    :raises DatabaseError: the maintenance database could not be asked.
    """
    rows = maintenance.ask(_ENTRY.format(", ".join(map(sql.literal, names))))
    return {row["name"]: row for row in rows}


def addresses(all_services: t.Sequence[services.Service]) -> list[str] | None:
    """From where the services speak; ``None`` if that cannot be told of one that runs: then everybody may be one.

    :raises RecoveryError: whoever looks after one of them does not answer.
    """
    found: list[str] = []
    for service in all_services:
        theirs = service.addresses()
        if not theirs and service.state().running:
            return None
        found += theirs
    return found


def strangers(seen: t.Iterable[Session], known: Known, *, services_stopped: bool) -> list[Session]:
    """Those whom nobody described.

    :param services_stopped: whoever is there now is none of the services, also where they have no address.
    """
    found = []
    for session in seen:
        ours = session.application.startswith("alembic-recovery")
        described = any(re.fullmatch(p, f"{session.application}/{session.user}") for p in known.clients)
        a_service = not services_stopped if known.addresses is None else session.address in known.addresses
        if not (ours or described or a_service):
            found.append(session)
    return found


def strangers_who_stay(maintenance: postgres.Database, name: str, known: Known) -> list[Session]:
    """Those whom nobody described, and who are there, or there again, after a second.

    A client without a pool has another session at each look: it is told by its role, its name, and where it is.

    :raises DatabaseError: the maintenance database could not be asked.
    """

    def there() -> list[Session]:
        return strangers(sessions(maintenance, name), known, services_stopped=False)

    first = {session.client for session in there()}
    began = time.monotonic()
    again: dict[int, Session] = {}
    while first - {session.client for session in again.values()} and time.monotonic() - began < PASSING_S:
        time.sleep(0.1)
        if time.monotonic() - began > PASSING_S / 2:
            again.update((session.pid, session) for session in there() if session.client in first)
    return list(again.values())


def refusal(found: t.Sequence[Session], name: str) -> RecoveryError:
    """The exception for clients that nobody described."""
    return RecoveryError(
        f"Clients that recovery_stack does not describe are in {name}: {'; '.join(map(str, found))}. They would be cut "
        "off, and what they are writing would be lost. End them yourself; or describe them as recovery_known_clients "
        "(regular expressions for APPLICATION_NAME/ROLE); or have them ended: -e recovery_unknown_clients=end",
        strangers=[dataclasses.asdict(session) for session in found],
    )


def close(maintenance: postgres.Database, name: str) -> None:
    """Let nobody in any more; who is in, stays.

    :raises DatabaseError: it was refused.
    """
    maintenance.act([f"alter database {sql.identifier(name)} with allow_connections false"])


def reopen(maintenance: postgres.Database, name: str) -> None:
    """Let everybody in again.

    :raises DatabaseError: it was refused.
    """
    maintenance.act([f"alter database {sql.identifier(name)} with allow_connections true"])


def empty(maintenance: postgres.Database, name: str) -> None:
    """End all sessions in a database that is closed, and prove that nobody is left.

    :raises RecoveryError: somebody is still there.
    """
    deadline = time.monotonic() + _LEAVE_S
    while True:
        left = sessions(maintenance, name)
        if not left:
            return
        if time.monotonic() > deadline:
            raise RecoveryError(
                f"{name} could not be emptied: {'; '.join(map(str, left))} did not go. Ending sessions of another role "
                "needs pg_signal_backend, those of a superuser need a superuser (recovery_stack.database.admin_user)."
            )
        pids = ", ".join(str(session.pid) for session in left)
        try:
            maintenance.act([], returning=f"select pg_terminate_backend(p) as done from unnest(array[{pids}]) p")
        except DatabaseError as error:
            raise RecoveryError(
                f"{name} could not be emptied: {error.message} Who is in it: {'; '.join(map(str, left))}."
            ) from error
        time.sleep(0.2)


def wait_for_leaving(maintenance: postgres.Database, name: str, known: Known, seconds: float) -> list[Session]:
    """Give those who were told to stop some time to leave by themselves; the strangers who are left then.

    :raises DatabaseError: the maintenance database could not be asked.
    """
    deadline = time.monotonic() + seconds
    while True:
        left = strangers(sessions(maintenance, name), known, services_stopped=True)
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.2)
