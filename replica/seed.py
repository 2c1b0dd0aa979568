"""Songs and rules with awkward texts, always the same ones, as a script for psql."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

CHUNK = 500
BULK_ROW_BYTES = 2150  # on disk, indexes included

# A %d is replaced by the row's number. What is here breaks naive tools: quoting, line ends, encodings.
AWKWARD: tuple[str | None, ...] = (
    "Refrain %d",
    "",
    '"',
    "...",
    " - ",
    "It's a \"quoted\" 'thing' ''twice'' %d",
    "back\\slash \\n not a line \\\\ %d \\",
    "two\nlines %d\n",
    "dos\r\nline ends %d\r\n",
    "a\ttab %d\t",
    "lone\rreturn %d",
    base64.b64encode(b"already encoded").decode("ascii"),
    base64.b64encode("schon verschlüsselt".encode()).decode("ascii"),
    "abcd",
    "song",
    "Grüße aus Köln, ÄÖÜ äöü ß %d",
    "emoji 🎵🎸 and 👩‍🎤 %d",
    "100 % of %s and %(name)s and %%d %d",
    "; DROP TABLE songs; -- %d",
    "\\.",
    "$1 \\1 \\g<name> ${name} {name} :name %d",
    "   blanks around   ",
    "日本語の歌詞 %d",
    "e\u0301 and \u00e9 are two spellings \u200b%d",
    "<b>not bold</b> &amp; %d",
    "=",
    "NULL",
    "\\N",
    None,
    "la " * 900 + "%d",
)
STYLES: tuple[str | None, ...] = (
    "synth pop, 120 bpm",
    "Blues in A",
    None,
    "Schlager",
    'rock "unplugged"',
    "",
)
STATUSES = ("ready", "ready", "ready", "draft", "generating", "failed")
FIRST_DAY = datetime.datetime(2025, 1, 1, 8, 0, tzinfo=datetime.UTC)


@dataclass(frozen=True)
class Size:
    """How much data.

    Attributes:
        songs: Songs with awkward texts.
        rules: Rows of lyric_parsing_rules.
        bulk_megabytes: Further songs that bring the database up to about this size; 0 for none.
    """

    songs: int = 10_000
    rules: int = 10_000
    bulk_megabytes: int = 0


def awkward(index: int) -> str | None:
    """The text of a row.

    Args:
        index: The row's number, from 0.

    Returns:
        One of AWKWARD in turn, with the number in it where it has a place for one.
    """
    text = AWKWARD[index % len(AWKWARD)]
    return None if text is None else text.replace(" %d", f" {index}").replace("\u200b%d", f"\u200b{index}")


def script(size: Size) -> Iterator[bytes]:
    """A script for psql that fills a database of version 0f864573b58a.

    Args:
        size: How much.

    Yields:
        The script's parts, in UTF-8.
    """
    yield b"\\set ON_ERROR_STOP on\nSET client_encoding = 'UTF8';\nBEGIN;\n"
    yield from _copy("users", ("email", "display_name", "created_at"), _users())
    columns = ("id", "number", "user_id", "title", "lyrics", "style", "status", "duration_seconds", "details")
    yield from _copy("songs", (*columns, "created_at", "updated_at"), _songs(size.songs))
    fields = ("name", "description", "pattern", "replacement", "active", "position", "created_at")
    yield from _copy("lyric_parsing_rules", fields, _rules(size.rules))
    yield f"SELECT setval('song_number_seq', {1000 + size.songs});\n".encode()
    yield b"COMMIT;\n"
    if size.bulk_megabytes:
        yield _bulk(size.bulk_megabytes)
    yield b"ANALYZE;\n"


def _field(value: object) -> str:
    """A value in COPY's text format."""
    if value is None:
        return "\\N"
    if isinstance(value, bool):
        return "t" if value else "f"
    text = str(value)
    for sign, escaped in (("\\", "\\\\"), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
        text = text.replace(sign, escaped)
    return text


def _copy(table: str, columns: Sequence[str], rows: Iterator[Sequence[object]]) -> Iterator[bytes]:
    """A COPY command with its data."""
    yield f"COPY {table} ({', '.join(columns)}) FROM STDIN;\n".encode()
    lines: list[str] = []
    for row in rows:
        lines.append("\t".join(_field(value) for value in row))
        if len(lines) == CHUNK:
            yield ("\n".join(lines) + "\n").encode()
            lines = []
    if lines:
        yield ("\n".join(lines) + "\n").encode()
    yield b"\\.\n"


def _time(index: int) -> str:
    """When a row was made: every row later than the one before."""
    return (FIRST_DAY + datetime.timedelta(minutes=20 * index)).isoformat()


def _users() -> Iterator[Sequence[object]]:
    """Who makes the songs."""
    names = ("Jörg Müller", "Anne-Sophie d'Arc", 'Max "Bass" Power', "李雷", "O'Neill & Söhne")
    for index, name in enumerate(names):
        yield f"user{index}@songs.example", name, _time(0)


def _songs(count: int) -> Iterator[Sequence[object]]:
    """Songs with awkward titles and lyrics."""
    for index in range(count):
        text = awkward(index)
        title = (text or "").strip()[:200] or f"Untitled {index}"
        details = {"take": index, "note": text} if index % 3 else None
        yield (
            uuid.UUID(hashlib.md5(f"song {index}".encode(), usedforsecurity=False).hexdigest()),
            1000 + index,
            1 + index % 5,
            title,
            awkward(index + 7),
            STYLES[index % len(STYLES)],
            STATUSES[index % len(STATUSES)],
            None if index % 11 == 0 else f"{60 + index % 240}.{index % 100:02d}",
            None if details is None else json.dumps(details, ensure_ascii=False),
            _time(index),
            _time(index + 1),
        )


def _rules(count: int) -> Iterator[Sequence[object]]:
    """Rules with awkward replacements."""
    for index in range(count):
        yield (
            f"Regel {index}",
            None if index % 4 == 0 else awkward(index + 3),
            f"^\\[{index}\\]\\s*(?P<rest>.*)$",
            awkward(index),
            index % 7 != 0,
            index,
            _time(index),
        )


def _bulk(megabytes: int) -> bytes:
    """Songs made by the server itself, each just below the size at which PostgreSQL compresses."""
    rows = megabytes * 1024 * 1024 // BULK_ROW_BYTES
    return f"""
    INSERT INTO songs (user_id, title, lyrics, style, status, duration_seconds, created_at, updated_at)
    SELECT 1 + n % 5, 'Archive ' || n, repeat(body.text, 2), 'archive', 'ready', 60 + n % 240,
           timestamptz '2024-01-01' + n * interval '1 second',
           timestamptz '2024-01-01' + n * interval '1 second'
    FROM generate_series(1, {rows}) AS n
    CROSS JOIN LATERAL (SELECT string_agg(md5(CAST(n * 25 + part AS text)), ' ') AS text
                        FROM generate_series(1, 24) AS part) AS body;
    """.encode()
