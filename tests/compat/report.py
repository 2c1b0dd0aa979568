"""docs/compatibility.md: what a run of `make compat` has seen."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_HEAD = """# Compatibility

Written by `make compat` on {day}. Do not edit: run it again. It takes some minutes and the package index.

Real applications, as their authors publish them, each in an environment of its own. Of each, the status was read in an
empty database, at three older revisions and at head, and compared with what Alembic says in that environment. Then the
incident: a database at an older revision with rows in it, and the newer code. It was recovered with `alembic_migrate`,
and compared with a copy of the same database that the application's own command had upgraded: catalog, rows,
contents of every column, and sequences are the same.

| application | versions | revisions | read at | recovered | keys of `app` that it needs |
|---|---|---|---|---|---|
"""
_TAIL = """
{figures}

What is not supported: several databases in one run of `env.py`. A stack is one database, so they are refused
(`several_databases`). Layouts that no application of this table has are tried in `tests/layouts`.
"""


@dataclass(frozen=True)
class Outcome:
    """What was seen of one application."""

    name: str
    versions: dict[str, str]
    revisions: int
    read_at: tuple[str, ...]
    recovered: str
    keys: tuple[str, ...]


def write(path: Path, outcomes: Iterable[Outcome], figures: Iterable[str]) -> None:
    """Write the page."""
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    lines = [
        f"| {one.name} | {', '.join(f'{name} {version}' for name, version in one.versions.items())} | {one.revisions} "
        f"| {', '.join(one.read_at)} | {one.recovered} | {', '.join(f'`{key}`' for key in one.keys)} |\n"
        for one in outcomes
    ]
    path.write_text(
        _HEAD.format(day=day) + "".join(lines) + _TAIL.format(figures="\n\n".join(figures)), encoding="utf-8"
    )
