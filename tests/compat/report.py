"""docs/compatibility.md: what a run of `make compat` has seen."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.compat.versions import ALEMBIC, DRIVERS, POSTGRESQL, SQLALCHEMY, Combination

#: Keeps something for the page: its kind, and what it is.
Record = Callable[[str, Any], None]

_HEAD = """# Compatibility

Written by `make compat` on {day}. Do not edit: run it again. It takes some minutes and the package index.

## Versions

For each combination of an Alembic, a SQLAlchemy, a driver and a PostgreSQL, with a small application: {verdicts}. Then
a recovery where something is done on the connection before `context.configure()`, a lock that is held by somebody else,
what a revision left half-way, and the way back, each compared with what is in the database. {count} combinations
({whole} would be the product); in `make test`, all pairs of two versions are.

| | versions |
|---|---|
{axes}

{impossible}

| Alembic | SQLAlchemy | {drivers} |
|---|---|{columns}|
{cells}

A cell has the versions of PostgreSQL that it was seen with.

## Applications

Real applications, as their authors publish them, each in an environment of its own. Of each, the status was read in an
empty database, at three older revisions and at head, and compared with what Alembic says in that environment. Then the
incident: a database at an older revision with rows in it, and the newer code. It was recovered with `alembic_migrate`,
and compared with a copy of the same database that the application's own command had upgraded: catalog, rows,
contents of every column, and sequences are the same.

| application | versions | revisions | read at | recovered | keys of `app` that it needs |
|---|---|---|---|---|---|
{applications}

What is not supported: several databases in one run of `env.py`. A stack is one database, so they are refused
(`several_databases`). Layouts that no application of this table has are tried in `tests/layouts`.

## A long chain

{figures}
"""
_VERDICTS = (
    "every verdict (EMPTY, BEHIND, FOREIGN, MULTIPLE_HEADS, UNREADABLE, PARTIAL, AT_HEAD, DRIFTED, AHEAD, DIVERGED, "
    "STAMPED_NOT_APPLIED, UNVERSIONED)"
)


@dataclass(frozen=True)
class Outcome:
    """What was seen of one application."""

    name: str
    versions: dict[str, str]
    revisions: int
    read_at: tuple[str, ...]
    recovered: str
    keys: tuple[str, ...]

    def row(self) -> str:
        """Return its row of the table."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        keys = ", ".join(f"`{key}`" for key in self.keys)
        read_at = ", ".join(self.read_at)
        return f"| {self.name} | {versions} | {self.revisions} | {read_at} | {self.recovered} | {keys} |"


def write(path: Path, records: Iterable[tuple[str, Any]]) -> None:
    """Write the page from what was recorded: kind, and what it is."""
    kinds: dict[str, list[Any]] = {"combination": [], "impossible": [], "application": [], "figure": []}
    for kind, what in records:
        kinds[kind].append(what)
    seen = {Combination(**one) for one in kinds["combination"]}
    axes = {
        "Alembic": ALEMBIC,
        "SQLAlchemy": SQLALCHEMY,
        "driver": [requirement.replace("==", " ") for requirement in DRIVERS.values()],
        "PostgreSQL": POSTGRESQL,
    }
    path.write_text(
        _HEAD.format(
            day=datetime.datetime.now(datetime.UTC).date().isoformat(),
            verdicts=_VERDICTS,
            count=len(seen),
            whole=len(ALEMBIC) * len(SQLALCHEMY) * len(DRIVERS) * len(POSTGRESQL),
            axes="\n".join(f"| {name} | {', '.join(versions)} |" for name, versions in axes.items()),
            impossible="\n".join(f"What cannot be: {reason}." for reason in kinds["impossible"]),
            drivers=" | ".join(DRIVERS),
            columns="|".join("---" for _ in DRIVERS),
            cells="\n".join(_cells(seen)),
            applications="\n".join(Outcome(**one).row() for one in kinds["application"]),
            figures="\n\n".join(kinds["figure"]),
        ),
        encoding="utf-8",
    )


def _cells(seen: set[Combination]) -> Iterable[str]:
    for alembic in ALEMBIC:
        for sqlalchemy in SQLALCHEMY:
            cells = [
                ", ".join(one for one in POSTGRESQL if Combination(alembic, sqlalchemy, driver, one) in seen) or "none"
                for driver in DRIVERS
            ]
            yield f"| {alembic} | {sqlalchemy} | {' | '.join(cells)} |"
