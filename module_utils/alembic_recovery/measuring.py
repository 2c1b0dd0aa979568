"""What a revision costs: locks and whom they keep out, growth on the disk, WAL, the slowest statements."""

from __future__ import annotations

import re
import typing as t

from ansible.module_utils.alembic_recovery import migrate, postgres, sql
from ansible.module_utils.alembic_recovery.blockers import MODES
from ansible.module_utils.alembic_recovery.errors import DatabaseError

_SLOWEST = 5
_INSUFFICIENT_PRIVILEGE = "42501"

_SIZE = "select pg_database_size(current_database()) as bytes"
# Where the next record goes, not how far the log has been written: a commit that is asynchronous leaves its records in
# the buffers for a while (PostgreSQL manual, "Backup Control Functions").
_WAL = "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint as bytes"
_RELATIONS = """
select c.oid::bigint as oid from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname !~ '^pg_' and n.nspname <> 'information_schema'"""


def mode(reported: str) -> str:
    """A mode in the words of the manual.

    :param reported: as in pg_locks, for example ``ShareRowExclusiveLock``.
    """
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", reported[: -len("Lock")]).upper()


def blocks_reads(name: str) -> bool:
    """Whether a lock of this mode keeps a SELECT waiting."""
    return name == "ACCESS EXCLUSIVE"


def blocks_writes(name: str) -> bool:
    """Whether a lock of this mode keeps an INSERT, UPDATE or DELETE waiting."""
    return name in MODES[MODES.index("SHARE") :]


def described_locks(reported: t.Iterable[t.Mapping[str, t.Any]], before: t.Container[int]) -> list[dict[str, t.Any]]:
    """The locks of a revision, the strongest and longest first, without those that can keep nobody out.

    :param reported: from the agent.
    :param before: the oids of the relations that were there before the revision; nobody else knows the others yet.
    """
    strongest: dict[str, dict[str, t.Any]] = {}
    for lock in reported:
        if lock["oid"] not in before:
            continue
        name = mode(lock["mode"])
        found = {
            "relation": lock["relation"],
            "mode": name,
            "seconds": lock["seconds"],
            "blocks_reads": blocks_reads(name),
            "blocks_writes": blocks_writes(name),
        }
        strongest[lock["relation"]] = min(found, strongest.get(lock["relation"], found), key=_rank)
    return sorted(strongest.values(), key=_rank)


def _rank(lock: t.Mapping[str, t.Any]) -> tuple[int, float, str]:
    return -MODES.index(lock["mode"]), -lock["seconds"], lock["relation"]


def slowest(statements: t.Iterable[t.Mapping[str, t.Any]]) -> list[dict[str, t.Any]]:
    """The statements that took longest in all, equal ones together: `sql` without literals, `seconds`, `count`."""
    found: dict[str, dict[str, t.Any]] = {}
    for statement in statements:
        text = sql.shown(statement["sql"])
        same = found.setdefault(text, {"sql": text, "seconds": 0.0, "count": 0})
        same["seconds"] = round(same["seconds"] + statement["seconds"], 6)
        same["count"] += statement["count"]
    return sorted(found.values(), key=lambda item: (-item["seconds"], item["sql"]))[:_SLOWEST]


class Meter(migrate.Observer):
    """Measures each revision; the agent must have been asked to watch locks."""

    def __init__(self, database: postgres.Database) -> None:
        self._database = database
        self._before: tuple[int, int | None, set[int]] = (0, None, set())
        self._statements: list[t.Mapping[str, t.Any]] = []

    def before(self, rows: t.Sequence[str]) -> None:  # noqa: ARG002 (the cost does not depend on where it starts)
        """See :meth:`migrate.Observer.before`."""
        relations = {row["oid"] for row in self._database.ask(_RELATIONS)}
        self._before = (*self._sizes(), relations)

    def heard(self, message: t.Mapping[str, t.Any]) -> None:
        """See :meth:`migrate.Observer.heard`."""
        if message["event"] == "starting":
            # What an attempt that failed has taken is no cost of the revision.
            self._statements = []
        elif message["event"] == "statement":
            self._statements.append(message)

    def after(self, message: t.Mapping[str, t.Any], rows: t.Sequence[str]) -> dict[str, t.Any]:  # noqa: ARG002
        """See :meth:`migrate.Observer.after`."""
        size, wal, relations = self._before
        size_now, wal_now = self._sizes()
        return {
            "locks": described_locks(message["locks"], relations),
            "growth_bytes": size_now - size,
            "wal_bytes": None if wal is None or wal_now is None else wal_now - wal,
            "slowest": slowest(self._statements),
            "longest_seconds": max([statement["longest"] for statement in self._statements], default=0.0),
        }

    def _sizes(self) -> tuple[int, int | None]:
        size = int(self._database.ask(_SIZE)[0]["bytes"])
        try:
            return size, int(self._database.ask(_WAL)[0]["bytes"])
        except DatabaseError as error:
            if error.details.get("sqlstate") != _INSUFFICIENT_PRIVILEGE:
                raise
            return size, None
