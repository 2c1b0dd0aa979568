"""Exchanging databases by their names: all of them in one transaction, or none.

The decision is pure; the deed is one transaction in the maintenance database. Tried with `kill -9` in the middle:
nothing is renamed then (PostgreSQL 15).
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible.module_utils.alembic_recovery import fence, postgres, sql
from ansible.module_utils.alembic_recovery.errors import StackError


@dataclasses.dataclass(frozen=True)
class Wish:
    """What names there are to be.

    `live` is the application's name. What has it now gets the name `keep_as`, if one is given; what is called
    `replacement`, if one is given, gets the application's name. `live_oid` pins what has the name now.
    """

    live: str
    keep_as: str | None
    replacement: str | None
    live_oid: int | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to do: renames in order (from, to), and the database that is open afterwards, by its name then."""

    renames: t.Sequence[tuple[str, str]]
    opened: str


def plan(wish: Wish, seen: t.Mapping[str, t.Mapping[str, t.Any]], *, will_be_closed: bool = False) -> Plan:
    """The renames that fulfil a wish; none if it is fulfilled.

    :param seen: the databases that are there, by name, with `oid` and `open`.
    :param will_be_closed: in check mode nobody has closed the application's database yet.
    :raises StackError: what is there is not what the wish speaks of.
    """
    live = seen.get(wish.live)
    opened = wish.live if wish.replacement else str(wish.keep_as)
    if _fulfilled(wish, seen):
        return Plan((), opened)
    if wish.replacement and wish.replacement not in seen:
        raise StackError(f"There is no database {wish.replacement} to be called {wish.live}. Nothing was renamed.")
    if live is not None and wish.live_oid is not None and live["oid"] != wish.live_oid:
        raise StackError(
            f"{wish.live} is not the database that was looked at: its object id is {live['oid']}, expected "
            f"{wish.live_oid}. Somebody else has renamed it. Nothing was renamed. Look: playbooks/status.yml"
        )
    if live is not None and wish.keep_as is None:
        raise StackError(f"{wish.live} is in the way of {wish.replacement}. Nothing was renamed.")
    if live is None and wish.keep_as is not None:
        raise StackError(f"There is no database {wish.live}. Nothing was renamed. Look: playbooks/status.yml")
    if wish.keep_as in seen:
        raise StackError(f"There is a database {wish.keep_as} already. Nothing was renamed.")
    if live is not None and live["open"] and not will_be_closed:
        raise StackError(f"{wish.live} is open: clients would come back in between. Nothing was renamed.")
    renames = [(wish.live, wish.keep_as)] if wish.keep_as else []
    if wish.replacement:
        renames.append((wish.replacement, wish.live))
    return Plan(renames, opened)


def _fulfilled(wish: Wish, seen: t.Mapping[str, t.Mapping[str, t.Any]]) -> bool:
    if wish.replacement and (wish.replacement in seen or wish.live not in seen):
        return False
    if wish.keep_as is None:
        return True
    kept = seen.get(wish.keep_as)
    return kept is not None and (wish.live_oid is None or kept["oid"] == wish.live_oid)


def carry_out(maintenance: postgres.Database, todo: Plan) -> str:
    """Rename and open in one transaction; the id of that transaction (64 bits, as text).

    What is written afterwards has a later one: nobody is in either database meanwhile.

    :raises RecoveryError: somebody is in one of them, or it was refused; nothing was renamed then.
    """
    for name, _to in todo.renames:
        # Our own sessions (the verification of the clone) may take a moment to go.
        fence.empty(maintenance, name)
    statements = ["set local lock_timeout = '10s'"]
    statements += [f"alter database {sql.identifier(old)} rename to {sql.identifier(new)}" for old, new in todo.renames]
    statements.append(f"alter database {sql.identifier(todo.opened)} with allow_connections true")
    rows = maintenance.act(statements, at_once=True, returning="select txid_current()::text as xid")
    return str(rows[0]["xid"])
