"""One attempt at one revision, as the agent tells it: what of it is permanent, whatever becomes of the rest."""

from __future__ import annotations

import re
import typing as t

from ansible.module_utils.alembic_recovery import postgres, sql

_SHOWN = 10
# What changes nothing, and Alembic's own look at its table.
_READS = re.compile(r"\s*(?:(?:show|set|reset|select)\s|(?:commit|end|begin|rollback)\s*;?\s*$)", re.IGNORECASE)


class Attempt:
    """Collects the statements of an attempt, and where it has committed."""

    def __init__(self, revision: str | None = None, *, calls_commit: bool = False) -> None:
        """:param revision: none before the first one has begun.

        :param calls_commit: its source does.
        """
        self.revision = revision
        self._calls_commit = calls_commit
        self._blind = False
        self._statements: list[str] = []
        self._alone: list[str] = []
        # The numbers of transactions, and how many statements had been run when they ended.
        self._commits: list[tuple[str | None, int]] = []
        self._outside = False

    def heard(self, message: t.Mapping[str, t.Any]) -> None:
        """The agent has said something of this revision."""
        if message["event"] == "statement":
            (self._alone if message["alone"] else self._statements).append(message["sql"])
        elif message["event"] in ("commit", "commit_in_sql") and message["xid"] != "":
            # One that has more than a COMMIT is told of before it is run.
            self._commits.append((message["xid"], len(self._statements) + bool(message.get("more"))))
        elif message["event"] == "outside_transaction":
            self._outside = True
        elif message["event"] == "blind":
            self._blind = True

    @property
    def doubtful(self) -> bool:
        """Whether it may have committed over a driver's own connection, and that one does not tell."""
        return self._calls_commit and self._blind

    @property
    def unproved(self) -> list[str] | None:
        """The same where nobody can be asked: nothing, or something that is not known."""
        return [] if self._commits or self._outside else None

    def kept(self, database: postgres.Database) -> list[str] | None:
        """What it has run that is permanent, without literals; ``None`` if nothing of it is.

        It may be empty: something is permanent, and it is not known what. A commit is asked for over a new connection,
        by the number of its transaction: one that was announced, and then failed, has kept nothing.

        :raises DatabaseError: it could not be asked.
        """
        if self.unproved is None:
            return None
        numbers = sorted({int(xid) for xid, _ in self._commits if xid is not None})
        asked = ", ".join(f"({number}::bigint)" for number in numbers)
        query = f"select n::text as xid, txid_status(n) as status from (values {asked}) as v(n)"
        undone = {row["xid"] for row in database.ask(query) if row["status"] == "aborted"} if numbers else set()
        ends = [end for xid, end in self._commits if xid not in undone]
        if not ends and not self._outside:
            return None
        return [sql.shown(text) for text in [*self._statements[: max(ends, default=0)], *self._alone] if changes(text)]


def changes(text: str) -> bool:
    """Whether a statement may have changed something that is worth to be told."""
    return _READS.match(text) is None


def doubt(revision: str) -> str:
    """What to say of a revision of which it is not known whether it has committed."""
    return (
        f"Revision {revision} calls commit, and its driver does not tell whether it has got there: a part of its work "
        "may have stayed. Compare it with the tables before it is run again."
    )


def sentence(revision: str, kept: t.Sequence[str]) -> str:
    """What to say of a revision that failed, and of which something is permanent."""
    more = f"; and {len(kept) - _SHOWN} more" if len(kept) > _SHOWN else ""
    what = f" It had run, and that has stayed: {'; '.join(kept[:_SHOWN])}{more}." if kept else ""
    return (
        f"Revision {revision} had committed before it failed: a part of its work may have stayed.{what} Compare it "
        "with the tables before it is run again."
    )
