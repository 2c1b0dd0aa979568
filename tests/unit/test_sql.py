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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("select  1\n  from t", "select 1 from t", id="one line"),
        pytest.param("insert into t values ('a', 'O''Hara')", "insert into t values ('…', '…')", id="literals"),
        pytest.param("select E'it\\'s' || 'x'", "select '…' || '…'", id="with backslashes"),
        pytest.param("do $$ begin 'x' end $$", "do '…'", id="a body"),
        pytest.param("do $a$ $$ $a$ language sql", "do '…' language sql", id="a body with a tag"),
        pytest.param("select 'cut off by the ser", "select '…'", id="a literal without its end"),
        pytest.param("do $$ cut off by", "do '…'", id="a body without its end"),
        pytest.param("select E'cut \\' off by", "select '…'", id="with backslashes and without its end"),
        pytest.param(
            "select * from t -- don't cache\n where email = 'bob@x.org'",
            "select * from t where email = '…'",
            id="an apostrophe in a comment",
        ),
        pytest.param("select /* it's */ 'bob'", "select '…'", id="in a block comment"),
        pytest.param("select /* a /* b */ it's */ 'bob'", "select '…'", id="in a nested one"),
        pytest.param("select 1 /* of bob@x.org, cut", "select 1", id="a comment without its end"),
        pytest.param("select '-- no', 'comment' /* */ -- yes", "select '…', '…'", id="none in a literal"),
        pytest.param("""select "it's" from t where a = 'bob'""", """select "it's" from t where a = '…'""", id="names"),
        pytest.param("""select "a""'b" || 'bob'""", """select "a""'b" || '…'""", id="a quote in a name"),
        pytest.param("select E'a -- \\\\' || 'bob'", "select '…' || '…'", id="a dash in a literal"),
        pytest.param("x" * 300, "x" * 200, id="not too long"),
        pytest.param("update t set a = %(a)s", "update t set a = %(a)s", id="parameters stay"),
    ],
)
def test_shown(text: str, shown: str) -> None:
    assert sql.shown(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("select 1 from t5 where id = 4711", "select … from t5 where id = …", id="numbers, not names"),
        pytest.param("update t set a = 1.5e3, b = .5", "update t set a = …, b = …", id="with points"),
        pytest.param("select $1, %(p2)s, :p3", "select $1, %(p2)s, :p3", id="parameters stay"),
    ],
)
def test_shown_without_numbers(text: str, shown: str) -> None:
    assert sql.shown(text, numbers=False) == shown
