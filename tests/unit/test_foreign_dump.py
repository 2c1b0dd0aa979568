"""Dumps from elsewhere: what a file is, what it holds, and what speaks against it."""

from __future__ import annotations

import gzip
import hashlib
import io
import tracemalloc
from pathlib import Path

import pytest
from ansible.module_utils.alembic_recovery import foreign_dump, plain_sql
from ansible.module_utils.alembic_recovery.plain_sql import Scanner

BEGIN = """--
-- PostgreSQL database dump
--

\\restrict dAbC123

-- Dumped from database version 16.14
-- Dumped by pg_dump version 16.15 (Debian 16.15-1)

SET statement_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);

"""
END = """
--
-- PostgreSQL database dump complete
--

\\unrestrict dAbC123

"""
SONGS = """COPY public.songs (id, title) FROM stdin;
1\tone \\\\! ls
2\t-- two
3\t\\N
\\.
"""


def scan(text: str | bytes) -> Scanner:
    scanner = Scanner("alembic_version")
    scanner.read(io.BytesIO(text.encode() if isinstance(text, str) else text))
    return scanner


ROWS: list[tuple[str, str, dict[str, int]]] = [
    ("copy", SONGS, {"public.songs": 3}),
    ("copy without rows", "COPY public.songs (id) FROM stdin;\n\\.\n", {"public.songs": 0}),
    ("copy of no columns", "COPY public.none  FROM stdin;\n\n\n\\.\n", {"public.none": 2}),
    (
        "copy with an odd name",
        'COPY "My.schema"."a ""b"" (c)" ("x)", y) FROM stdin;\n1\n\\.\n',
        {'My.schema.a "b" (c)': 1},
    ),
    ("copy twice", SONGS + SONGS, {"public.songs": 6}),
    (
        "copy of an old dump",
        "SET search_path = app, pg_catalog;\nCOPY songs (id) FROM stdin;\n1\n\\.\n",
        {"app.songs": 1},
    ),
    ("a row that ends in a carriage return", "COPY public.t (a) FROM stdin;\na\\r\n\\.\n", {"public.t": 1}),
    (
        "insert",
        "INSERT INTO public.songs VALUES (1, 'a;b');\nINSERT INTO public.songs VALUES (2, 'x');\n",
        {"public.songs": 2},
    ),
    ("insert with columns", "INSERT INTO public.songs (id, t) VALUES (1, f(g(2)));\n", {"public.songs": 1}),
    (
        "insert of several rows",
        "INSERT INTO public.t VALUES\n\t(1, '('),\n\t(2, ')'),\n\t(3, NULL);\n",
        {"public.t": 3},
    ),
    ("insert over lines", "INSERT INTO public.t VALUES (1, 'a\n--\n\\.\n; \\! x\n'';');\n", {"public.t": 1}),
    ("insert of defaults", "INSERT INTO public.t DEFAULT VALUES;\n", {"public.t": 1}),
    ("insert overriding", "INSERT INTO public.t OVERRIDING SYSTEM VALUE VALUES (1), (2);\n", {"public.t": 2}),
    (
        "insert in a function",
        "CREATE FUNCTION f() RETURNS void LANGUAGE sql AS $$\nINSERT INTO t VALUES (1);\n$$;\n",
        {},
    ),
    (
        "insert in a function of SQL",
        "CREATE FUNCTION f() RETURNS void LANGUAGE sql\n    BEGIN ATOMIC\n INSERT INTO public.t VALUES (1);\n"
        " SELECT CASE WHEN true THEN 1 END;\nEND;\n" + SONGS,
        {"public.songs": 3},
    ),
    ("copy in a comment", "/* /* COPY public.t FROM stdin; */\n COPY public.t FROM stdin;\n*/\n", {}),
    ("copy in a text", "SELECT 'COPY public.t FROM stdin;\n';\n", {}),
    ("copy behind a comment", "/* x */ COPY public.t FROM stdin; -- y\n1\n\\.\n", {"public.t": 1}),
]


@pytest.mark.parametrize(("text", "rows"), [case[1:] for case in ROWS], ids=[case[0] for case in ROWS])
@pytest.mark.parametrize("piece", [1 << 16, 300], ids=["whole lines", "pieces"])
def test_rows(text: str, rows: dict[str, int], piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_sql, "_PIECE", piece)
    found = scan(BEGIN + text + END)
    assert found.rows == rows
    assert (found.commands, found.uncounted, found.noise, found.complete) == ({}, set(), [], True)
    assert (found.dumped_from, found.dumped_by) == ("16.14", "16.15 (Debian 16.15-1)")


COMMANDS: list[tuple[str, str, list[str]]] = [
    ("none", SONGS, []),
    ("a shell", "\\! rm -rf ~\n", ["\\!"]),
    ("in a line of SQL", "SELECT 1 \\gexec\n;\n", ["\\gexec"]),
    ("after data", SONGS + "\\i /etc/passwd\n", ["\\i"]),
    ("another database", "\\connect other\n", ["\\connect"]),
    ("copy of its own", "\\copy t from program 'x'\n", ["\\copy"]),
    ("a comment is none", "-- \\! ls\n/* \\! ls */ SELECT 1;\n", []),
    ("a text is none", "SELECT '\\! ls', E'\\'\\! ls', \"\\! ls\", $$\\! ls$$, $a$ $$ \\! $a$;\n", []),
    ("after an escaped quote", "SELECT E'a\\'' \\! ls\n;\n", ["\\!"]),
    ("an ordinary text has no escapes", "SELECT 'a\\' \\! ls\n;\n", ["\\!"]),
    ("a text that goes on in the next line", "SELECT E'a'\n'b\\'' \\! ls '\n';\n", ["\\!"]),
    ("a dollar in a name", "SELECT a$b$ \\! ls $b$\n;\n", ["\\!"]),
    ("behind a nested comment", "/* /* */ */ \\! ls\n", ["\\!"]),
    ("behind another tag", "SELECT $a$ $b$ \\? $a$ \\! $b$ $b$\n;\n", ["\\!"]),
    ("restrict with more in its line", "\\restrict x \\! ls\n", ["\\restrict"]),
    ("restrict in a statement", "SELECT 1\n\\unrestrict x\n;\n", ["\\unrestrict"]),
]


@pytest.mark.parametrize(("text", "commands"), [case[1:] for case in COMMANDS], ids=[case[0] for case in COMMANDS])
def test_commands_of_psql(text: str, commands: list[str]) -> None:
    assert list(scan(BEGIN + text + END).commands) == commands


@pytest.mark.parametrize("length", range(65400, 65560, 7))
def test_a_long_line_is_read_in_pieces(length: int) -> None:
    """Whatever stands where a piece ends."""
    text = f"INSERT INTO public.t VALUES ('{'x' * length}'';'), (E'\\'', $q$ ; $q$), (3, \"a\"\"b\");\n\\! ls\n"
    found = scan(BEGIN + text + END)
    assert (found.rows, list(found.commands)) == ({"public.t": 3}, ["\\!"])


def test_memory_is_constant(tmp_path: Path) -> None:
    path = tmp_path / "x.sql"
    with path.open("w") as file:
        file.write(BEGIN + "COPY public.t (a) FROM stdin;\n")
        for _ in range(30):
            file.write("y" * 1_000_000 + "\n" + "1\n" * 50_000)
        file.write("\\.\nINSERT INTO public.u VALUES ('" + "z" * 30_000_000 + "');\n" + END)
    tracemalloc.start()
    found = foreign_dump.describe(str(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.rows == {"public.t": 30 * 50_001, "public.u": 1}
    assert found.problems == []
    assert peak < 8_000_000


VERSION = "COPY public.alembic_version (version_num) FROM stdin;\n0f864573b58a\n\\.\n"


@pytest.mark.parametrize(
    ("text", "revisions"),
    [
        pytest.param(SONGS, None, id="no version table"),
        pytest.param(VERSION, ["0f864573b58a"], id="copy"),
        pytest.param("COPY public.alembic_version (version_num) FROM stdin;\n\\.\n", [], id="no row"),
        pytest.param("INSERT INTO public.alembic_version VALUES ('b');\n" * 2, ["b", "b"], id="insert"),
        pytest.param("INSERT INTO public.alembic_version VALUES\n\t('b'),\n\t('a');\n", ["b", "a"], id="insert of two"),
    ],
)
def test_version_rows(text: str, revisions: list[str] | None) -> None:
    assert scan(BEGIN + text + END).revisions == revisions


def described(path: Path, content: str | bytes) -> foreign_dump.Description:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return foreign_dump.describe(str(path))


GOOD = BEGIN + SONGS + VERSION + END
# It cannot be compressed, so there are line feeds in its compressed form.
NOISE = b"".join(hashlib.sha256(bytes([number])).digest() for number in range(250))
ARCHIVE = b"PGDMP\x01\x0f\x00\x04\x08\x01\x01" + b"SET client_encoding = 'UTF8';\n" * 20

FILES: list[tuple[str, str | bytes, str, str]] = [
    ("plain", GOOD, "plain", ""),
    ("plain, gzip", gzip.compress(GOOD.encode()), "plain", ""),
    (
        "plain of pg_dump before restrict",
        GOOD.replace("\\restrict dAbC123\n", "").replace("\\unrestrict dAbC123\n", ""),
        "plain",
        "",
    ),
    ("custom", ARCHIVE, "custom", ""),
    ("nothing", "", "empty", "is empty"),
    ("nothing, gzip", gzip.compress(b""), "empty", "has nothing in it"),
    ("carriage returns", GOOD.replace("\n", "\r\n"), "plain", "written through a terminal"),
    (
        "carriage returns, gzip",
        gzip.compress(GOOD.replace("\n", "\r\n").encode()),
        "plain",
        "written through a terminal",
    ),
    (
        "gzip through a terminal",
        gzip.compress(NOISE).replace(b"\n", b"\r\n"),
        "unknown",
        "written through a terminal",
    ),
    ("custom through a terminal", ARCHIVE.replace(b"\n", b"\r\n"), "custom", "written through a terminal"),
    ("messages, then custom", b"WARNING:  collation mismatch\r\n" + ARCHIVE, "custom", "messages before the archive"),
    (
        "messages, then plain",
        "WARNING:  database has a collation version mismatch\n" + GOOD,
        "plain",
        "messages of a program",
    ),
    (
        "messages within",
        BEGIN + "pg_dump: dumping contents of table songs\n" + SONGS + END,
        "plain",
        "messages of a program",
    ),
    (
        "only a message",
        'pg_dump: error: connection to server failed: FATAL:  database "x" does not exist\n',
        "text",
        "the message of a program",
    ),
    (
        "only Docker's message",
        "Error response from daemon: No such container: postgres\n",
        "text",
        "the message of a program",
    ),
    ("cut off in data", GOOD[: GOOD.index("2\t")], "plain", "does not end as pg_dump ends"),
    ("cut off between tables", BEGIN + SONGS, "plain", "does not end as pg_dump ends"),
    ("cut off in a statement", BEGIN + SONGS + "CREATE TABLE", "plain", "does not end as pg_dump ends"),
    ("cut off in its end", GOOD[: GOOD.index("complete")], "plain", "does not end as pg_dump ends"),
    ("gzip cut off", gzip.compress(GOOD.encode())[:-30], "unknown", "ends too early"),
    (
        "gzip with a byte changed",
        bytes([*gzip.compress(b"x" * 99)[:-6], 1, 2, 3, 4, 5, 6]),
        "unknown",
        "cannot be decompressed",
    ),
    ("something after its end", GOOD + "DROP TABLE songs;\n", "plain", "does not end as pg_dump ends"),
    (
        "the end in a text",
        BEGIN + "SELECT '\n-- PostgreSQL database dump complete\n';\n",
        "plain",
        "does not end as pg_dump ends",
    ),
    ("UTF-16", GOOD.encode("utf-16"), "plain", "the mark of UTF-16"),
    ("UTF-16 archive", "PGDMP\x01".encode("utf-16"), "plain", "An archive is lost by that"),
    ("UTF-8 with a mark", "\ufeff" + GOOD, "plain", "the mark of UTF-8"),
    ("SQL by hand", "CREATE TABLE x (a int);\n", "plain", "does not begin as pg_dump begins"),
    ("a web page", "<html>404</html>\n", "plain", "does not begin as pg_dump begins"),
    ("a shell command in it", BEGIN + "\\! ls\n" + END, "plain", "commands for psql itself (\\! in line 15)"),
    (
        "another database",
        BEGIN + "CREATE DATABASE x;\n\\connect x\n" + END,
        "plain",
        "goes to another database by itself",
    ),
    ("create database", BEGIN + "CREATE DATABASE x;\n" + END, "plain", "more than one new database (CREATE DATABASE)"),
    (
        "pg_dumpall",
        BEGIN + "ALTER ROLE postgres WITH SUPERUSER;\n" + END,
        "plain",
        "more than one new database (ALTER ROLE)",
    ),
    ("user mapping is none", BEGIN + "CREATE USER MAPPING FOR x SERVER y;\n" + END, "plain", ""),
    ("a program of the server", BEGIN + "COPY t FROM PROGRAM 'curl x';\n" + END, "plain", "a program of the server"),
    ("old texts", BEGIN + "SET standard_conforming_strings = off;\n" + END, "plain", "standard_conforming_strings off"),
    ("an ambiguous encoding", BEGIN + "SET client_encoding = 'SJIS';\n" + END, "plain", "client_encoding SJIS"),
    ("bzip2", b"BZh91AY", "unknown", "Decompress it: bunzip2"),
    ("gzip in gzip", gzip.compress(gzip.compress(GOOD.encode())), "unknown", "compressed twice"),
    ("zstd without zstd", b"\x28\xb5\x2f\xfd\x00\x00", "unknown", "there is no zstd here"),
    ("a program", b"\x7fELF\x02\x00", "unknown", "nothing that pg_dump writes"),
    (
        "a part of a directory",
        b"PGDMP\x01\x0f\x00\x04\x08\x05\x01 ",
        "custom",
        "a part of a dump in directory or tar format",
    ),
]


@pytest.mark.parametrize(("content", "kind", "problem"), [case[1:] for case in FILES], ids=[case[0] for case in FILES])
def test_a_file(tmp_path: Path, content: str | bytes, kind: str, problem: str) -> None:
    # The name says nothing.
    found = described(tmp_path / "backup.dump", content)
    assert found.kind == kind
    if problem:
        assert problem in " ".join(found.problems)
    else:
        assert found.problems == []


def test_what_a_good_file_says(tmp_path: Path) -> None:
    found = described(tmp_path / "x", gzip.compress(GOOD.encode()))
    assert (found.kind, found.compression, found.encoding) == ("plain", "gzip", "UTF8")
    assert (found.rows, found.revisions) == ({"public.songs": 3, "public.alembic_version": 1}, ["0f864573b58a"])
    assert (found.dumped_from, found.dumped_by) == ("16.14", "16.15 (Debian 16.15-1)")


def test_what_cannot_be_read(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in foreign_dump.describe(str(tmp_path / "none")).problems[0]
    assert "without toc.dat" in foreign_dump.describe(str(tmp_path)).problems[0]
    (tmp_path / "toc.dat").write_bytes(b"x")
    assert "is damaged" in foreign_dump.describe(str(tmp_path)).problems[0]


def test_each_problem_says_what_to_do(tmp_path: Path) -> None:
    for name, content, _kind, _problem in FILES:
        for problem in described(tmp_path / "x", content).problems:
            assert problem.startswith(str(tmp_path / "x")), name
            assert problem.rstrip().endswith((".", "?", "unzstd", "bunzip2")), name
