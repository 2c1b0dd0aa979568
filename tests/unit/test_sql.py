"""Quoting: names and values become SQL text in one place only."""

from __future__ import annotations

import pytest
from ansible.module_utils.alembic_recovery import sql
from ansible.module_utils.alembic_recovery.errors import DatabaseError
from ansible.module_utils.alembic_recovery.postgres import Login


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        pytest.param(("songs",), '"songs"', id="plain"),
        pytest.param(("public", "songs"), '"public"."songs"', id="qualified"),
        pytest.param(('we"ird; drop table x',), '"we""ird; drop table x"', id="hostile"),
        pytest.param(("Großbuchstaben",), '"Großbuchstaben"', id="umlaut"),
    ],
)
def test_identifier(names: tuple[str, ...], expected: str) -> None:
    assert sql.identifier(*names) == expected


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_identifier_refuses(name: str) -> None:
    with pytest.raises(DatabaseError):
        sql.identifier(name)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param("songs", "'songs'", id="plain"),
        pytest.param("it's", "'it''s'", id="quote"),
        pytest.param("a\\", " E'a\\\\'", id="backslash"),
        pytest.param("\\'; drop", " E'\\\\''; drop'", id="backslash and quote"),
    ],
)
def test_literal(value: str, expected: str) -> None:
    assert sql.literal(value) == expected


def test_login_options_hold_no_password_and_no_second_connection_string() -> None:
    login = Login("it's=x \\", "-u", host="/run/pg", port=5433, password="s3cret")
    assert login.options() == [
        "--dbname=dbname='it\\'s=x \\\\'",
        "--username=-u",
        "--host=/run/pg",
        "--port=5433",
    ]
    assert login.secrets() == {"PGPASSWORD": "s3cret"}
