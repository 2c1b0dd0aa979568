"""Exchanging databases by their names: all of them in one transaction, or none.

The decision is pure; the deed is one transaction in the maintenance database. Tried with `kill -9` in the middle:
nothing is renamed then (PostgreSQL 15).
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible.module_utils.alembic_recovery import fence, postgres, sql
from ansible.module_utils.alembic_recovery.errors import RecoveryError, StackError


@dataclasses.dataclass(frozen=True)
class Wish:
    """What names there are to be.

    `live` is the application's name. What has it now gets the name `keep_as`, if one is given; what is called
    `replacement`, if one is given, gets the application's name. `live_oid` pins what has the name now. `aside`, if one
    is given, is the name that it has meanwhile, open, and under which it is closed at last.
    """

    live: str
    keep_as: str | None
    replacement: str | None
    live_oid: int | None = None
    aside: str | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to do: renames in order (from, to), and the database that is open afterwards, by its name then.

    `closes`: what is kept is open still, for those who know its name, and is closed with the renaming.
    """

    renames: t.Sequence[tuple[str, str]]
    opened: str
    closes: bool = False


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
    if wish.aside:
        return _from_aside(wish, seen)
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


def _from_aside(wish: Wish, seen: t.Mapping[str, t.Mapping[str, t.Any]]) -> Plan:
    """The plan where what has the name at other times was put aside before."""
    assert wish.aside is not None
    assert wish.replacement is not None
    assert wish.keep_as is not None
    for name in (wish.aside, wish.replacement):
        if name not in seen:
            raise StackError(f"There is no database {name}. Nothing was renamed. Look: playbooks/status.yml")
    for name in (wish.live, wish.keep_as):
        if name in seen:
            raise StackError(f"There is a database {name}, beside {wish.aside}. Nothing was renamed.")
    if seen[wish.aside]["oid"] != wish.live_oid:
        raise StackError(
            f"{wish.aside} is not the database that was put aside: its object id is {seen[wish.aside]['oid']}, "
            f"expected {wish.live_oid}. Nothing was renamed. Look: playbooks/status.yml"
        )
    return Plan([(wish.aside, wish.keep_as), (wish.replacement, wish.live)], wish.live, closes=True)


def _fulfilled(wish: Wish, seen: t.Mapping[str, t.Mapping[str, t.Any]]) -> bool:
    if wish.replacement and (wish.replacement in seen or wish.live not in seen):
        return False
    if wish.keep_as is None:
        return True
    kept = seen.get(wish.keep_as)
    return kept is not None and (wish.live_oid is None or kept["oid"] == wish.live_oid)


def carry_out(maintenance: postgres.Database, todo: Plan, before_commit: t.Callable[[str], None]) -> str:
    """Rename and open in one transaction; the id of that transaction (64 bits, as text).

    What is written afterwards has a later one: nobody is in either database meanwhile.

    :param before_commit: is given that id while everything can still be undone; what it raises undoes it.
    :raises RecoveryError: somebody is in one of them, has opened what is kept, or it was refused; nothing was renamed.
    """
    for name, _to in todo.renames:
        # Our own sessions (the verification of the clone) may take a moment to go.
        fence.empty(maintenance, name)
    kept = [new for _old, new in todo.renames if new != todo.opened]
    statements = ["set local lock_timeout = '10s'"]
    statements += [f"alter database {sql.identifier(old)} rename to {sql.identifier(new)}" for old, new in todo.renames]
    statements += [
        f"alter database {sql.identifier(name)} with allow_connections false" for name in kept if todo.closes
    ]
    statements.append(f"alter database {sql.identifier(todo.opened)} with allow_connections true")
    # Renaming waits for whoever opens a database at the same time (the keeper of a run that it takes for dead), so what
    # is read here stays so until the commit.
    names = ", ".join([sql.literal(name) for name in kept] or ["null"])
    asked = (
        "select txid_current()::text as xid, (select string_agg(datname::text, ', ') from pg_database "
        f"where datallowconn and datname in ({names})) as open"
    )

    def check(rows: postgres.Rows) -> None:
        if rows[0]["open"]:
            raise RecoveryError(
                f"The database that was to be kept as {rows[0]['open']} was opened by somebody meanwhile: what clients "
                "have written to it since would be left behind. Nothing was renamed."
            )
        before_commit(str(rows[0]["xid"]))

    return str(maintenance.act(statements, at_once=True, returning=asked, before_commit=check)[0]["xid"])


def completed(facts: t.Mapping[str, t.Any], live_oid: int | None) -> dict[str, t.Any]:
    """What a run that has exchanged the names would have written down next; empty if it has, or has not exchanged them.

    Between the commit and the next line on the disk a run can be killed. What it noted before the commit holds if the
    application's name is on the database that was to get it.

    :param facts: the record of the run.
    :param live_oid: the object id of what has the application's name now.
    """
    noted: dict[str, t.Any] = dict((facts.get("swap") or {}).get("done") or {})
    happened = noted.get("new_oid") == live_oid and noted.get("swap_xid") != facts.get("swap_xid")
    return noted if noted and live_oid is not None and happened else {}
