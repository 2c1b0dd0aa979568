"""A dump that somebody else has made, recognised by its content and never by its name, with all that speaks against it.

Read in pieces, whatever its size. What a plain dump holds, :mod:`plain_sql` tells; an archive's rows are told by
`pg_restore`, which turns it into the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import io
import os
import re
import typing as t
import zlib

from ansible.module_utils.alembic_recovery import files, plain_sql

_PIECE = 1 << 20
_HEAD = 1 << 16
_ARCHIVE = b"PGDMP"
# The table of contents of a directory says that it is one of a tar.
_ARCHIVE_FORMATS = {"custom": (1,), "tar": (3,), "directory": (3, 5)}
_COMPRESSIONS = ((b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"))
_OTHER_COMPRESSIONS = (
    (b"BZh", "bzip2", "bunzip2"),
    (b"\xfd7zXZ\x00", "xz", "unxz"),
    (b"\x04\x22\x4d\x18", "lz4", "unlz4"),
    (b"PK\x03\x04", "zip", "unzip"),
    (b"\x37\x7a\xbc\xaf\x27\x1c", "7z", "7z x"),
)
_MARKS = ((b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"), (b"\xef\xbb\xbf", "UTF-8"))
# Of these, a letter's second byte can be a backslash or a quote for everybody who does not know the encoding.
_AMBIGUOUS = frozenset({"SJIS", "SHIFT_JIS_2004", "SHIFTJIS", "BIG5", "GBK", "UHC", "GB18030", "JOHAB"})
_AGAIN = (
    "Make it again without a terminal: pg_dump --format=custom --file=FILE, in a container by docker exec without -t "
    "and -i, and copy it in binary mode."
)

#: What can be read of a compressed file: opens it for reading, or raises DumpError.
Opener = t.Callable[[str], t.ContextManager[t.IO[bytes]]]


class DumpError(Exception):
    """A file cannot be read as what it seems to be; the message is a sentence."""


@dataclasses.dataclass
class Description:
    """What a file is.

    `kind` is ``custom``, ``directory``, ``tar``, ``plain``, ``text`` (messages only), ``empty`` or ``unknown``;
    `compression` is empty, ``gzip`` or ``zstd``. `rows` by `schema.table` and `revisions` (``None``: no version table)
    are what the file says; of an archive they are not known before pg_restore has read it. `problems` are sentences,
    each with the reason and what to do: with one of them, the file must not be restored.
    """

    kind: str = "unknown"
    compression: str = ""
    dumped_by: str | None = None
    dumped_from: str | None = None
    archive_version: str | None = None
    rows: dict[str, int] = dataclasses.field(default_factory=dict)
    uncounted: list[str] = dataclasses.field(default_factory=list)
    revisions: list[str] | None = None
    encoding: str | None = None
    problems: list[str] = dataclasses.field(default_factory=list)


def describe(path: str, version_table: str = "alembic_version", *, unzstd: Opener | None = None) -> Description:
    """What is in a file, or in the directory of a directory-format dump.

    :param version_table: as `table` or `schema.table`.
    :param unzstd: reads a file that zstd has compressed; without it, such a file is a problem.
    """
    found = Description()
    try:
        if os.path.isdir(path):
            _directory(path, found)
        else:
            _file(path, version_table, found, unzstd)
    except OSError as error:
        found.problems.append(f"{path} cannot be read: {error.strerror or error}. May the login user read it?")
    except DumpError as error:
        found.problems.append(str(error))
    return found


@contextlib.contextmanager
def opened(path: str, compression: str, unzstd: Opener | None = None) -> t.Iterator[t.IO[bytes]]:
    """The file as it is without its compression.

    :raises DumpError: it cannot be decompressed, from here on or while it is read.
    """
    if compression == "zstd":
        if unzstd is None:
            raise DumpError(f"{path} is compressed with zstd, and there is no zstd here. Decompress it first: unzstd")
        with unzstd(path) as stream:
            yield stream
        return
    with open(path, "rb") as raw:
        if compression != "gzip":
            yield raw
            return
        try:
            # What it is wrapped in makes reading by lines fast.
            yield t.cast("t.IO[bytes]", io.BufferedReader(t.cast("t.Any", gzip.GzipFile(fileobj=raw)), _PIECE))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            if carriage_returns(path):
                raise DumpError(f"{path} was {_mangled()}") from error
            why = "it ends too early" if isinstance(error, EOFError) else str(error)
            raise DumpError(
                f"{path} cannot be decompressed: {why}. It was cut off or damaged. Copy it again, and compare its "
                "SHA-256 with the original's."
            ) from error


def carriage_returns(path: str) -> bool:
    """Whether each line feed of a file comes after a carriage return. In a binary file that is no accident."""
    bare, pairs, last = 0, 0, b""
    with open(path, "rb") as file:
        while not bare:
            piece = file.read(_PIECE)
            if not piece:
                break
            text = last + piece
            pairs += text.count(b"\r\n")
            bare += text.count(b"\n") - text.count(b"\r\n")
            # A pair may be cut in two.
            last = b"\r" if text.endswith(b"\r") else b""
    return pairs > 0 and bare == 0


def _mangled() -> str:
    return (
        "written through a terminal or copied in text mode: each of its line feeds has got a carriage return before "
        f"it. An archive is lost by that, and texts and functions of a plain dump are changed by it. {_AGAIN}"
    )


def _file(path: str, version_table: str, found: Description, unzstd: Opener | None) -> None:
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    for magic, name in _COMPRESSIONS:
        if head.startswith(magic):
            found.compression = name
            with opened(path, name, unzstd) as stream:
                _stream(path, stream, version_table, found)
            return
    with open(path, "rb") as stream:
        _stream(path, stream, version_table, found)


def _stream(path: str, stream: t.IO[bytes], version_table: str, found: Description) -> None:
    """Describe what comes out of a file, decompressed."""
    head = stream.read(_HEAD)
    if not head:
        found.kind = "empty"
        what = "has nothing in it" if found.compression else "is empty"
        found.problems.append(
            f"{path} {what}: the dump that should have filled it failed, and nobody looked. Use another backup."
        )
    elif _by_mark(path, head, found) or _by_other_compression(path, head, found):
        return
    elif head.startswith(_ARCHIVE):
        found.kind = "custom"
        _archive(path, head, found)
        if found.compression:
            _to_the_end(stream)
    elif head.startswith(b"toc.dat\0") and head[257:262] == b"ustar":
        found.kind = "tar"
        _archive(path, head[512:], found)
        # pg_restore never ends on one that was cut off.
        if not found.compression and not found.problems and not _tar_is_whole(path):
            found.problems.append(
                f"{path} has not the end that a tar has: it was cut off, or damaged. Copy it again, and compare its "
                "SHA-256 with the original's."
            )
        if found.compression:
            _to_the_end(stream)
    elif _ARCHIVE in head and _is_text(head[: head.index(_ARCHIVE)]):
        found.kind = "custom"
        said = head[: head.index(_ARCHIVE)].decode("utf-8", "replace").split("\n")[0].strip()[:120]
        found.problems.append(
            f"{path} has messages before the archive begins ({said!r}): both streams of pg_dump went into it. {_AGAIN}"
        )
    elif not _is_text(head):
        found.problems.append(
            f"{path} is nothing that pg_dump writes. Is it the right file, or is it encrypted, or compressed in a way "
            "that is not known here?"
        )
    else:
        _plain(path, t.cast("t.IO[bytes]", io.BufferedReader(_Rest(head, stream), _PIECE)), version_table, found)


class _Rest(io.RawIOBase):
    """A stream from its beginning again: what was read of it already, and the rest."""

    def __init__(self, head: bytes, stream: t.IO[bytes]) -> None:
        super().__init__()
        self._head = head
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: t.Any) -> int:
        if self._head:
            piece, self._head = self._head[: len(buffer)], self._head[len(buffer) :]
        else:
            piece = self._stream.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)


def _to_the_end(stream: t.IO[bytes]) -> None:
    while stream.read(_PIECE):
        pass


def _by_mark(path: str, head: bytes, found: Description) -> bool:
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            found.kind = "plain"
            lost = " An archive is lost by that." if b"P\0G\0D\0M\0P" in head or _ARCHIVE in head[:16] else ""
            found.problems.append(
                f"{path} begins with the mark of {encoding}: PowerShell's > has rewritten what pg_dump wrote, its line "
                f"ends, too.{lost} {_AGAIN}"
            )
            return True
    return False


def _by_other_compression(path: str, head: bytes, found: Description) -> bool:
    for magic, name, program in _OTHER_COMPRESSIONS:
        if head.startswith(magic):
            found.problems.append(f"{path} is compressed with {name}, which is not read here. Decompress it: {program}")
            return True
    if any(head.startswith(magic) for magic, _name in _COMPRESSIONS):
        found.problems.append(f"{path} is compressed twice. Decompress it once.")
        return True
    return False


def _is_text(head: bytes) -> bool:
    return b"\0" not in head


def _archive(path: str, head: bytes, found: Description) -> None:
    """What the header of an archive says; whether the rest can be read, only pg_restore knows."""
    if len(head) < 11 or not head.startswith(_ARCHIVE):
        found.problems.append(f"{path} is cut off in its header. Copy it again, and compare its SHA-256.")
        return
    found.archive_version = f"{head[5]}.{head[6]}"
    if head[10] not in _ARCHIVE_FORMATS[found.kind]:
        found.problems.append(
            f"{path} is a part of a dump in directory or tar format, or damaged. Give the directory, or the whole file."
        )
        return
    contents = os.path.join(path, "toc.dat") if found.kind == "directory" else path
    if not found.compression and carriage_returns(contents):
        # The table of contents is never compressed, and has statements with line ends: an archive without a line feed
        # of its own is none.
        found.problems.append(f"{path} was {_mangled()}")


def _tar_is_whole(path: str) -> bool:
    """Whether the files in a tar follow each other up to the blocks of zeros at its end."""
    position, size = 0, os.path.getsize(path)
    with open(path, "rb") as file:
        while position < size:
            file.seek(position)
            header = file.read(512)
            if header == bytes(512):
                return True
            try:
                # Eight gigabytes and more are written as a number, less as octal digits.
                large = header[124] & 0x80
                length = int.from_bytes(header[125:136], "big") if large else int(header[124:136].strip(b"\0 "), 8)
            except (ValueError, IndexError):
                return False
            position += 512 + (length + 511) // 512 * 512
    return False


def _directory(path: str, found: Description) -> None:
    contents = os.path.join(path, "toc.dat")
    if not os.path.isfile(contents):
        found.problems.append(
            f"{path} is a directory without toc.dat, and so none that pg_dump --format=directory has made. Give the "
            "file, or the directory that has toc.dat in it."
        )
        return
    found.kind = "directory"
    with open(contents, "rb") as file:
        head = file.read(_HEAD)
    if not head.startswith(_ARCHIVE):
        found.problems.append(f"{contents} is not what pg_dump writes: it is damaged. Copy the whole directory again.")
        return
    _archive(path, head, found)


def _plain(path: str, stream: t.IO[bytes], version_table: str, found: Description) -> None:
    scanner = plain_sql.Scanner(version_table)
    scanner.read(stream)
    found.kind = "plain"
    take(scanner, found)
    if scanner.noise and not scanner.header:
        found.kind = "text"
        found.problems.append(
            f"{path} holds the message of a program instead of a dump ({scanner.noise[0]!r}): the dump failed, and its "
            "error went into the file. Use another backup."
        )
        return
    found.problems += _problems(path, scanner)


def take(scanner: plain_sql.Scanner, found: Description) -> None:
    """Put into a description what was read of the dump, or of what pg_restore has made of it."""
    found.dumped_by, found.dumped_from = scanner.dumped_by, scanner.dumped_from
    found.rows, found.uncounted = scanner.rows, sorted(scanner.uncounted)
    found.revisions = sorted(scanner.revisions) if scanner.revisions is not None else None
    found.encoding = scanner.encoding


def _problems(path: str, scanner: plain_sql.Scanner) -> list[str]:
    problems = []
    if scanner.carriage_returns:
        problems.append(f"{path} was {_mangled()}")
    if scanner.noise:
        problems.append(
            f"{path} has messages of a program among the statements ({scanner.noise[0]!r}): both streams of pg_dump "
            f"went into it. psql would take them for SQL. {_AGAIN}"
        )
    if not scanner.header:
        problems.append(
            f"{path} does not begin as pg_dump begins: whether it is whole, and what it would do, cannot be told. Use "
            "a dump that pg_dump has made."
        )
    elif not scanner.complete:
        problems.append(
            f"{path} does not end as pg_dump ends: it was cut off, and yet would be restored without an error. Copy it "
            "again, and compare its SHA-256 with the original's."
        )
    if scanner.commands:
        problems.append(_commands(path, scanner))
    if scanner.cluster:
        problems.append(
            f"{path} would change more than one new database ({', '.join(sorted(scanner.cluster))}): it was made with "
            "pg_dump --create or pg_dumpall. Make it again with pg_dump and without --create."
        )
    if scanner.elsewhere:
        problems.append(f"{path} has a COPY from or to a file or a program of the server: pg_dump writes none.")
    if scanner.old_texts or scanner.encoding in _AMBIGUOUS:
        why = f"client_encoding {scanner.encoding}" if not scanner.old_texts else "standard_conforming_strings off"
        problems.append(
            f"{path} is written with {why}: what is text and what is a command in it cannot be told for certain. Make "
            "it again with pg_dump --format=custom, or with --encoding=UTF8."
        )
    return problems


def _commands(path: str, scanner: plain_sql.Scanner) -> str:
    commands = sorted(scanner.commands.items(), key=lambda item: item[1])
    named = ", ".join(f"{name} in line {line}" for name, line in commands)
    if set(scanner.commands) <= {"\\connect", "\\c"}:
        return (
            f"{path} goes to another database by itself ({named}): it was made with pg_dump --create or pg_dumpall. "
            "Make it again with pg_dump and without --create."
        )
    return (
        f"{path} has commands for psql itself ({named}), which can start programs with the rights of whoever restores "
        "it. pg_dump writes none: somebody has changed the file, or a text in it was mangled. Use another backup."
    )


def sha256(path: str) -> str:
    """The SHA-256 of a file; of a directory, that of its files' names and sums, in the order of the names."""
    if not os.path.isdir(path):
        return files.sha256(path)
    digest = hashlib.sha256()
    for name in sorted(os.listdir(path)):
        if os.path.isfile(os.path.join(path, name)):
            digest.update(f"{files.sha256(os.path.join(path, name))}  {name}\n".encode())
    return digest.hexdigest()


def major(version: str | None) -> int | None:
    """The major version of PostgreSQL in a text.

    >>> major("16.14 (Debian 16.14-1)"), major("17devel"), major("9.6.24"), major(None)
    (16, 17, 9, None)
    """
    found = re.match(r"\d+", version or "")
    return int(found.group()) if found else None
