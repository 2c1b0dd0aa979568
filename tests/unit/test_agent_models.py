"""The comparison with the models: what decides it besides the catalog, and what PostgreSQL keeps for partitions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from ansible.module_utils.alembic_recovery import agent_models
from sqlalchemy.dialects import postgresql

Change = Callable[[sa.Table], None]


def models(change: Change | None = None) -> sa.MetaData:
    """Two tables with something of each kind, made anew each time."""
    metadata = sa.MetaData()
    sa.Table("albums", metadata, sa.Column("id", sa.Integer, primary_key=True))
    songs = sa.Table(
        "songs",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True, comment="its number"),
        sa.Column("title", sa.Text, server_default="none", index=True),
        sa.Column("length", sa.Integer, sa.Computed("id * 2")),
        sa.Column("album_id", sa.Integer, sa.ForeignKey("albums.id", name="fk", ondelete="CASCADE")),
        comment="what is sung",
    )
    if change:
        change(songs)
    return metadata


def fingerprint(directory: Path, metadata: sa.MetaData, server: tuple[int, ...] = (16, 4)) -> str:
    dialect: Any = postgresql.dialect()  # type: ignore[no-untyped-call]
    dialect.server_version_info = server
    return agent_models._fingerprint(metadata, dialect, str(directory))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with an env.py."""
    (tmp_path / "env.py").write_text("")
    return tmp_path


def test_the_same_models_have_the_same_fingerprint(directory: Path) -> None:
    assert fingerprint(directory, models()) == fingerprint(directory, models())
    assert fingerprint(directory, models()) == fingerprint(directory, models(), server=(16, 9))


def _delete(rule: str | None) -> Change:
    def change(songs: sa.Table) -> None:
        (key,) = songs.foreign_key_constraints
        key.ondelete = rule

    return change


CHANGES: dict[str, Change] = {
    "a column": lambda songs: songs.append_column(sa.Column("more", sa.Text)),
    "the comment of a column": lambda songs: setattr(songs.c.id, "comment", "another"),
    "the comment of the table": lambda songs: setattr(songs, "comment", None),
    "a rule of a foreign key": _delete(None),
    "an expression": lambda songs: sa.Index("ix", sa.func.lower(songs.c.title)) and None,
    "what is computed": lambda songs: setattr(songs.c.length.computed, "sqltext", sa.text("id * 3")),
    "a default": lambda songs: setattr(songs.c.title, "server_default", sa.DefaultClause("one")),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_other_models_have_another(directory: Path, change: Change) -> None:
    assert fingerprint(directory, models(change)) != fingerprint(directory, models())


def test_another_major_version_of_the_server_too(directory: Path) -> None:
    assert fingerprint(directory, models()) != fingerprint(directory, models(), server=(18, 0))


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        pytest.param("parts_2025", True, id="of a partition"),
        pytest.param("albums", False, id="of a table"),
    ],
)
def test_the_foreign_key_that_is_kept_for_each_partition_is_no_difference(difference: str, expected: bool) -> None:
    metadata = sa.MetaData()
    sa.Table(difference, metadata, sa.Column("id", sa.Integer, primary_key=True))
    songs = sa.Table("songs", metadata, sa.Column("part", sa.Integer, sa.ForeignKey(f"{difference}.id", name="fk")))
    (key,) = songs.foreign_key_constraints
    assert agent_models._is_of_partitions(("remove_fk", key), {"parts_2025"}) is expected
    assert agent_models._is_of_partitions(("add_fk", key), {"parts_2025"}) is False
    assert agent_models._is_of_partitions([("modify_type",)], {"parts_2025"}) is False
