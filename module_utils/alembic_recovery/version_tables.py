"""Several version tables that one env.py keeps in one database (a schema for each customer): one verdict. Pure."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible.module_utils.alembic_recovery import revisions, sql
from ansible.module_utils.alembic_recovery.findings import Finding
from ansible.module_utils.alembic_recovery.verdict import Verdict


@dataclasses.dataclass(frozen=True)
class VersionTable:
    """Where Alembic keeps what is applied; `rows` is none where the table is not there.

    :param schema: as the application's session finds it; none if it finds no such table.
    :param shown: its name for messages and options, with the schema where the name alone would not do.
    :param hides: another table of this name, which the role of the stack would find instead.
    """

    name: str
    schema: str | None
    shown: str
    rows: t.Sequence[str] | None = None
    width: int | None = None
    hides: str | None = None

    @property
    def path(self) -> str:
        """Its quoted name for SQL."""
        return sql.identifier(self.schema, self.name) if self.schema else sql.identifier(self.name)


def shown(tables: t.Sequence[VersionTable]) -> str:
    """The one name under which other modules know the version tables, whose rows they do not count as content."""
    names = {table.name for table in tables}
    # Without a schema, it means the tables of this name in all of them.
    return tables[0].shown if len(tables) == 1 or len(names) > 1 else names.pop()


def rows(tables: t.Sequence[VersionTable]) -> list[str] | None:
    """All rows that are in any of them; none if none of the tables is there."""
    there = [table.rows for table in tables if table.rows is not None]
    return sorted({row for found in there for row in found}) if there else None


def differ(known: revisions.Map, tables: t.Sequence[VersionTable]) -> bool:
    """Whether they stand for different revisions."""
    return len({frozenset(revisions.with_ancestors(known, table.rows or ())) for table in tables}) > 1


def joined(known: revisions.Map, tables: t.Sequence[VersionTable], verdicts: t.Sequence[Verdict]) -> Verdict:
    """One verdict for all: what cannot be recovered first, then what is behind; a step is missing if one lacks it.

    :param verdicts: one for each of the tables, in their order.
    """
    if len(verdicts) == 1:
        return verdicts[0]
    missing = revisions.in_order(known, {step for verdict in verdicts for step in verdict.missing})
    worst = min(range(len(verdicts)), key=lambda number: _rank(verdicts[number]))
    verdict = verdicts[worst]
    alike = len({(one.name, one.summary) for one in verdicts}) == 1
    names = ", ".join(table.shown for table in tables)
    about = names if alike else tables[worst].shown
    findings: list[Finding] = []
    for one in verdicts:
        findings.extend(finding for finding in one.findings if finding not in findings)
    return dataclasses.replace(
        verdict,
        summary=f"Of {len(tables)} version tables ({names}), {about}: {verdict.summary}",
        missing=missing,
        findings=findings,
    )


def _rank(verdict: Verdict) -> tuple[bool, bool, int]:
    return (verdict.recoverable, not verdict.missing, -len(verdict.missing))
