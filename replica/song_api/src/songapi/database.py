"""The connection to the database, and the question whether it fits the models."""

from __future__ import annotations

import os

import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from songapi.models import Base


class SchemaMismatchError(RuntimeError):
    """The database lacks tables or columns that the models have."""


def make_engine() -> sa.Engine:
    """An engine for DATABASE_URL.

    Returns:
        An engine that tests a pooled connection before it hands it out, because the database may have been
        restarted in the meantime.
    """
    return sa.create_engine(os.environ["DATABASE_URL"], pool_pre_ping=True, pool_size=4)


def make_sessions() -> sessionmaker[Session]:
    """A factory of sessions on an engine of its own."""
    return sessionmaker(make_engine(), expire_on_commit=False)


def missing_relations(engine: sa.Engine) -> list[str]:
    """What the models have and the database has not.

    Args:
        engine: Where to look.

    Returns:
        Names such as ``song_sketches`` or ``songs.sketch_id``, in the order of the models.
    """
    inspector = sa.inspect(engine)
    present = set(inspector.get_table_names())
    missing: list[str] = []
    for table in Base.metadata.sorted_tables:
        if table.name not in present:
            missing.append(table.name)
            continue
        columns = {column["name"] for column in inspector.get_columns(table.name)}
        missing += [f"{table.name}.{column.name}" for column in table.columns if column.name not in columns]
    return missing


def require_schema(engine: sa.Engine) -> None:
    """Stop here unless the database has all that the models need.

    Args:
        engine: Where to look.

    Raises:
        SchemaMismatchError: Something is missing.
    """
    missing = missing_relations(engine)
    if missing:
        raise SchemaMismatchError(
            f"the database lacks {', '.join(missing)}, which this version of the code needs; run the migrations"
        )
