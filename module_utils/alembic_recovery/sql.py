"""SQL text made safely: names and values are quoted here and nowhere else."""

from __future__ import annotations

from ansible.module_utils.alembic_recovery.errors import DatabaseError


def identifier(*names: str) -> str:
    """A quoted, possibly qualified name.

    >>> identifier("public", 'we"ird')
    '"public"."we""ird"'

    :raises DatabaseError: a name is empty or has a NUL byte.
    """
    for name in names:
        if not name or "\0" in name:
            raise DatabaseError(f"{name!r} cannot be the name of anything in PostgreSQL.")
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


def literal(value: str) -> str:
    r"""A quoted text value, right whatever `standard_conforming_strings` is.

    >>> literal("it's"), literal("a\\b")
    ("'it''s'", " E'a\\\\b'")

    :raises DatabaseError: the value has a NUL byte.
    """
    if "\0" in value:
        raise DatabaseError("A text value with a NUL byte cannot be given to PostgreSQL.")
    text = value.replace("'", "''")
    if "\\" in text:
        return " E'" + text.replace("\\", "\\\\") + "'"
    return f"'{text}'"


def as_json(query: str) -> str:
    """A query whose result is one row with one text: the JSON array of the rows of `query`, on one line.

    So both ways of asking (psql and psycopg) read rows alike, whatever their text holds.
    """
    return f"select coalesce(jsonb_agg(to_jsonb(q)), '[]')::text from (\n{query.strip().rstrip(';')}\n) q"
