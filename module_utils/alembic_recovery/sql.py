"""SQL text made safely: names and values are quoted here and nowhere else."""

from __future__ import annotations

import re

from ansible.module_utils.alembic_recovery.errors import DatabaseError

# Block comments are nested; in here, three deep.
_COMMENT = r"/\*(?:(?!/\*|\*/).{inner})*(?:\*/|\Z)"
for _ in range(3):
    _COMMENT = _COMMENT.replace("{inner}", "|" + _COMMENT)
# Literals are data of the application, and comments may be; a journal is private, a task's result is not. They are
# found in one alternation, for each may hold the beginning of another. The server cuts the text of a statement
# (track_activity_query_size), and with it the end of a literal.
_LITERALS = re.compile(
    r"--[^\n]*|"
    + _COMMENT.replace("{inner}", "")
    + r"""|(?P<name>"(?:[^"]|"")*")|(?<!\w)E'(?:[^'\\]|\\.|'')*(?:'|\Z)|'(?:[^']|'')*(?:'|\Z)"""
    + r"|(?P<tag>\$\w*\$).*?(?:(?P=tag)|\Z)",
    re.DOTALL | re.IGNORECASE,
)
_NUMBERS = re.compile(r"(?<![\w$%:])\.?\d[\w.]*")
_SHOWN = 200


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


def as_copy(query: str) -> str:
    """A statement that gives the rows of `query` one by one, each as the text of a JSON object, on one line."""
    return f"copy (select to_jsonb(q)::text from (\n{query.strip().rstrip(';')}\n) q) to stdout"


def from_copy(line: str) -> str:
    r"""The JSON text of a line of :func:`as_copy`. It never holds a line break or a tab: only backslashes are doubled.

    >>> from_copy(r'{"a": "x\\\\n"}')
    '{"a": "x\\\\n"}'
    """
    return line.replace("\\\\", "\\")


def shown(text: str, *, numbers: bool = True) -> str:
    r"""A statement for people: one line, not too long, and without literals and comments.

    >>> shown("update users\\n  set name = 'O''Hara' where id = :id")
    "update users set name = '…' where id = :id"

    :param numbers: whether numbers are shown: where others wrote the statement, they may be somebody's data.
    """
    text = _LITERALS.sub(_without_data, text)
    if not numbers:
        text = _NUMBERS.sub("…", text)
    return " ".join(text.split())[:_SHOWN]


def _without_data(found: re.Match[str]) -> str:
    if found["name"]:
        return found["name"]
    return " " if found.group().startswith(("--", "/*")) else "'…'"
