"""What a plain SQL dump holds, read as psql would read it, in pieces, without executing anything.

Rows are counted, whether they come by COPY or by INSERT, and what psql would take for a command of its own is found:
such a command is outside of texts, names, comments and data only, so those have to be told apart.
"""

from __future__ import annotations

import re
import typing as t

_PIECE = 1 << 16
# Held back of a line that is longer than a piece: no token is longer.
_CARRY = 128
_KEPT = 4096
# A column list of 1600 columns is still held.
_KEPT_OF_COPY = 1 << 18

_TOKEN = re.compile(
    rb"(?<![\w$\x80-\xff])e'|'|\"|--|/\*|(?<![\w$\x80-\xff])\$(?:[a-z_\x80-\xff][\w\x80-\xff]*)?\$|\\|[();]"
    rb"|(?<![\w$\x80-\xff])(?:begin|case|end|values)(?![\w$\x80-\xff])",
    re.IGNORECASE,
)
_COMMENT_ENDS = re.compile(rb"/\*|\*/")
_ESCAPED = re.compile(rb"\\.|''|'", re.DOTALL)
_IDENTIFIER = re.compile(rb"[\w$\x80-\xff]")

_NAME = rb'(?:"(?:[^"]|"")+"|[\w$\x80-\xff]+)'
_TABLE = rb"(" + _NAME + rb"(?:\s*\.\s*" + _NAME + rb")?)"
_COPY = re.compile(
    rb"COPY\s+" + _TABLE + rb'\s*(?:\((?:[^()"]|"(?:[^"]|"")*")*\))?\s*FROM\s+stdin\s*(.*)', re.IGNORECASE | re.DOTALL
)
_ANY_COPY = re.compile(rb"COPY\b.*\bFROM\s+stdin\b", re.IGNORECASE | re.DOTALL)
_COPY_ELSEWHERE = re.compile(rb"COPY\b.*\b(?:FROM|TO)\s+(?:PROGRAM\s+)?(?:E?'|\$)", re.IGNORECASE | re.DOTALL)
_INSERT = re.compile(rb"INSERT\s+INTO\s+(?:ONLY\s+)?" + _TABLE, re.IGNORECASE)
_FUNCTION = re.compile(rb"CREATE\s+(?:OR\s+REPLACE\s+)?(?:FUNCTION|PROCEDURE)\b", re.IGNORECASE)
_CLUSTER = re.compile(
    rb"((?:CREATE|ALTER|DROP)\s+(?:DATABASE|ROLE|USER(?!\s+MAPPING)|GROUP|TABLESPACE)|ALTER\s+SYSTEM)\b", re.IGNORECASE
)
_SETTING = re.compile(
    rb"SET\s+(?:SESSION\s+|LOCAL\s+)?(search_path|standard_conforming_strings|client_encoding)\s*(?:=|TO)\s*(.*)",
    re.IGNORECASE | re.DOTALL,
)
# Lines that programs and servers say beside a dump; a terminal has one stream for both.
_NOISE = re.compile(
    rb"(?:pg_dump|pg_dumpall|pg_restore|psql|docker|ssh|sudo|bash|sh|su|zsh|kubectl)(?:\.exe)?: |"
    rb"(?:WARNING|NOTICE|DETAIL|HINT|ERROR|FATAL|Warning): |Error response from daemon|Error: |"
    rb"the input device is not a TTY|Password:|Defaulted container|command terminated with exit code"
)
_DUMPED_FROM = re.compile(rb"-- Dumped from database version (.+)")
_DUMPED_BY = re.compile(rb"-- Dumped by pg_dump version (.+)")
_COMPLETE = re.compile(rb"-- PostgreSQL database (?:cluster )?dump complete\s*")
_RESTRICT = re.compile(rb"\\(?:un)?restrict [A-Za-z0-9]+\s*")


class Scanner:
    """Reads one dump; what it has seen is in the attributes.

    `rows` by `schema.table`, `uncounted` those whose rows the text does not tell, `revisions` the version rows
    (``None``: no such table), `commands` psql's own by the line where they come first, `cluster` statements on more
    than one database, `elsewhere` whether a COPY reads or writes a file or a program, `old_texts` whether backslashes
    are special in ordinary texts, `noise` lines that are no part of a dump, `carriage_returns` whether pg_dump's own
    lines end with CR LF, `header` whether it begins as pg_dump begins, and `complete` whether it ends so.
    """

    def __init__(self, version_table: str) -> None:
        """:param version_table: as `table` or `schema.table`."""
        self.rows: dict[str, int] = {}
        self.uncounted: set[str] = set()
        self.revisions: list[str] | None = None
        self.dumped_from: str | None = None
        self.dumped_by: str | None = None
        self.commands: dict[str, int] = {}
        self.cluster: set[str] = set()
        self.elsewhere = False
        self.old_texts = False
        self.encoding = "UTF8"
        self.noise: list[str] = []
        self.carriage_returns = False
        self.header = False
        self.complete = False
        self.statements = 0
        self.lines = 0
        self._version_table = version_table
        self._schema = "public"
        self._table: str | None = None  # whose data are being read
        self._next_table: str | None = None  # whose data begin with the next line
        self._state: t.Callable[[bytes, int, int], int] = self._in_sql
        self._tag = b""
        self._depth = 0
        self._line_starts = True
        self._carry = b""
        # A text may go on in the next line, and then is of the same kind.
        self._after_escaped = False
        self._begin_statement()

    def read(self, stream: t.IO[bytes]) -> None:
        """Read to the end of a stream."""
        while True:
            piece = stream.readline(_PIECE)
            if not piece:
                break
            if self._table is not None:
                self._data(piece)
            else:
                self._text(piece)
            self._line_starts = piece.endswith(b"\n")
        if self._carry:
            self._consume(self._carry, len(self._carry))
        # What was begun and has no end.
        if self._table is not None or self._next_table is not None or self._state != self._in_sql or self._head.strip():
            self.complete = False

    def _data(self, piece: bytes) -> None:
        if not self._line_starts:
            return
        self.lines += 1
        if piece.startswith(b"\\.") and piece.rstrip(b"\r\n") == b"\\.":
            self._table = None
            return
        assert self._table is not None
        self.rows[self._table] += 1
        if self._is_version(self._table):
            self._add_revision(piece.rstrip(b"\r\n").split(b"\t")[0])

    def _text(self, piece: bytes) -> None:
        whole = piece.endswith(b"\n")
        if self._line_starts:
            self.lines += 1
            if self._state == self._in_sql and not self._head.strip() and self._own_line(piece):
                return
        text, self._carry = self._carry + piece, b""
        limit = len(text)
        if not whole:
            limit = max(limit - _CARRY, 0)
            # A name is not cut: its rest could look like the beginning of something else.
            lowest = max(limit - _CARRY, 0)
            while limit > lowest and _IDENTIFIER.match(text, limit - 1):
                limit -= 1
        self._carry = text[self._consume(text, limit) :]
        if whole and self._next_table is not None:
            self._table, self._next_table = self._next_table, None
            self.rows.setdefault(self._table, 0)

    def _own_line(self, line: bytes) -> bool:
        """Between two statements: what is no SQL, and of what pg_dump writes itself."""
        if line.startswith(b"--"):
            self._comment(line)
            # A comment that is longer than a piece goes on.
            if not line.endswith(b"\n"):
                self._state = self._in_line_comment
            return True
        if _RESTRICT.fullmatch(line):
            return True
        if _NOISE.match(line):
            if len(self.noise) < 5:
                self.noise.append(line.decode("utf-8", "replace").strip()[:120])
            return True
        return not line.strip()

    def _comment(self, line: bytes) -> None:
        self.carriage_returns = self.carriage_returns or line.endswith(b"\r\n")
        text = line.rstrip(b"\r\n")
        self.header = self.header or text.startswith(
            (b"-- PostgreSQL database dump", b"-- PostgreSQL database cluster")
        )
        found = _DUMPED_FROM.fullmatch(text)
        if found and self.dumped_from is None:
            self.dumped_from = found.group(1).decode("ascii", "replace")
        found = _DUMPED_BY.fullmatch(text)
        if found and self.dumped_by is None:
            self.dumped_by = found.group(1).decode("ascii", "replace")
        if _COMPLETE.fullmatch(text):
            self.complete = True

    def _consume(self, text: bytes, limit: int) -> int:
        position = 0
        while position < limit:
            position = self._state(text, position, limit)
        return position

    def _begin_statement(self) -> None:
        self._head = bytearray()
        self._room = _KEPT_OF_COPY
        self._parentheses = self._blocks = 0
        self._values = -1  # groups in parentheses after VALUES; less than 0: no VALUES yet

    def _keep(self, text: bytes) -> None:
        if self._room > 0:
            self._head += text[: self._room]
            self._room -= len(text)
            if len(self._head) > _KEPT and bytes(self._head[:200]).lstrip()[:4].upper() != b"COPY":
                self._room = 0
        if self.complete and text.strip():
            self.complete = False

    # -- each reads on from a position, and returns the next --------------------------------------------------

    def _in_sql(self, text: bytes, position: int, limit: int) -> int:
        found = _TOKEN.search(text, position)
        if found is None or found.start() >= limit:
            gap, end = text[position:limit], limit
            token = b""
        else:
            gap, end, token = text[position : found.start()], found.end(), found.group().lower()
        self._keep(gap)
        if gap.strip():
            self._after_escaped = False
        if token in (b"'", b"e'"):
            self._keep(found.group() if found else b"")
            escaped = token == b"e'" or self._after_escaped or self.old_texts
            self._state = self._in_escaped_text if escaped else self._in_text
        elif token == b'"':
            self._keep(token)
            self._state = self._in_name
        elif token == b"--":
            self._keep(b" ")
            self._state = self._in_line_comment
        elif token == b"/*":
            self._keep(b" ")
            self._depth, self._state = 1, self._in_comment
        elif token:
            self._after_escaped = False
            return self._other_token(text, found.group() if found else b"", end)
        return end

    def _other_token(self, text: bytes, token: bytes, end: int) -> int:
        if token.startswith(b"$"):
            self._keep(token)
            self._tag, self._state = token, self._in_dollars
        elif token == b"\\":
            return self._command(text, end)
        elif token == b";":
            if self._parentheses <= 0 and self._blocks == 0:
                self._end_statement()
            else:
                self._keep(token)
        elif token == b"(":
            self._keep(token)
            if self._values >= 0 and self._parentheses == 0:
                self._values += 1
            self._parentheses += 1
        elif token == b")":
            self._keep(token)
            self._parentheses -= 1
        else:
            self._keep(token)
            self._word(token.lower())
        return end

    def _word(self, word: bytes) -> None:
        if word == b"values":
            if self._values < 0 and self._parentheses == 0:
                self._values = 0
        # The body of a function may be SQL, with semicolons that do not end the statement: as psql counts them.
        elif word == b"begin":
            if self._blocks or _FUNCTION.match(bytes(self._head).lstrip()):
                self._blocks += 1
        elif self._blocks:
            self._blocks += 1 if word == b"case" else -1

    def _command(self, text: bytes, end: int) -> int:
        found = re.match(rb"[A-Za-z_]\w*[+]?|.", text[end:])
        name = (found.group() if found else b"").decode("ascii", "replace")
        self.commands.setdefault(f"\\{name}", self.lines)
        # The rest of the line are its arguments.
        self._state = self._in_line_comment
        return end

    def _in_text(self, text: bytes, position: int, limit: int) -> int:
        found = text.find(b"'", position)
        if found < 0 or found >= limit:
            self._keep(text[position:limit])
            return limit
        end = found + (2 if text[found + 1 : found + 2] == b"'" else 1)
        self._keep(text[position:end])
        if end == found + 1:
            self._state, self._after_escaped = self._in_sql, False
        return end

    def _in_escaped_text(self, text: bytes, position: int, limit: int) -> int:
        found = _ESCAPED.search(text, position)
        if found is None or found.start() >= limit:
            self._keep(text[position:limit])
            return limit
        self._keep(text[position : found.end()])
        if found.group() == b"'":
            self._state, self._after_escaped = self._in_sql, True
        return found.end()

    def _in_name(self, text: bytes, position: int, limit: int) -> int:
        found = text.find(b'"', position)
        end = limit if found < 0 or found >= limit else found + 1
        self._keep(text[position:end])
        if end == found + 1:
            self._state, self._after_escaped = self._in_sql, False
        return end

    def _in_dollars(self, text: bytes, position: int, limit: int) -> int:
        found = text.find(self._tag, position)
        if found < 0 or found >= limit:
            return limit
        self._state = self._in_sql
        self._keep(self._tag)
        return found + len(self._tag)

    def _in_comment(self, text: bytes, position: int, limit: int) -> int:
        found = _COMMENT_ENDS.search(text, position)
        if found is None or found.start() >= limit:
            return limit
        self._depth += 1 if found.group() == b"/*" else -1
        if self._depth == 0:
            self._state = self._in_sql
        return found.end()

    def _in_line_comment(self, text: bytes, position: int, limit: int) -> int:
        found = text.find(b"\n", position)
        if found < 0 or found >= limit:
            return limit
        self._state = self._in_sql
        return found + 1

    # -- whole statements -------------------------------------------------------------------------------------

    def _end_statement(self) -> None:
        head, groups = bytes(self._head).strip(), self._values
        self._begin_statement()
        if not head:
            return
        self.statements += 1
        word = head[:6].upper()
        if word == b"INSERT":
            self._insert(head, groups)
        elif word.startswith(b"COPY"):
            self._copy(head)
        elif word.startswith(b"SET"):
            self._set(head)
        else:
            found = _CLUSTER.match(head)
            if found:
                self.cluster.add(b" ".join(found.group(1).split()).decode().upper())

    def _copy(self, head: bytes) -> None:
        found = _COPY.fullmatch(head)
        if found:
            self._next_table = self._named(found.group(1))
            if self._is_version(self._next_table):
                self.revisions = self.revisions or []
            if found.group(2).strip():
                self.uncounted.add(self._next_table)
        elif _ANY_COPY.match(head):
            self._next_table = "a table that could not be read"
            self.uncounted.add(self._next_table)
        elif _COPY_ELSEWHERE.match(head):
            self.elsewhere = True

    def _insert(self, head: bytes, groups: int) -> None:
        found = _INSERT.match(head)
        if found is None:
            return
        table = self._named(found.group(1))
        # DEFAULT VALUES has none.
        self.rows[table] = self.rows.get(table, 0) + max(groups, 1)
        if groups < 0:
            self.uncounted.add(table)
        if self._is_version(table):
            self.revisions = self.revisions or []
            for value in re.findall(rb"\(\s*'([^']*)'", head):
                self._add_revision(value)

    def _set(self, head: bytes) -> None:
        found = _SETTING.fullmatch(head)
        if found is None:
            return
        name, value = found.group(1).lower(), found.group(2).strip().strip(b"'")
        if name == b"search_path":
            self._schema = _unquoted(value.split(b",")[0]) or "public"
        elif name == b"client_encoding":
            self.encoding = value.decode("ascii", "replace").upper()
        elif value.lower() not in (b"on", b"true", b"1"):
            self.old_texts = True

    def _named(self, name: bytes) -> str:
        parts = [_unquoted(part) for part in re.findall(_NAME, name)]
        return ".".join(parts if len(parts) > 1 else [self._schema, *parts])

    def _is_version(self, table: str) -> bool:
        return self._version_table in (table, table.partition(".")[2])

    def _add_revision(self, value: bytes) -> None:
        self.revisions = self.revisions or []
        if len(self.revisions) < 100:
            self.revisions.append(value.decode("utf-8", "replace"))


def _unquoted(name: bytes) -> str:
    text = name.strip().decode("utf-8", "replace")
    return text[1:-1].replace('""', '"') if text.startswith('"') else text.lower()
