"""A backup that is one: dump and manifest of the same moment, read through, hashed, and only then given its name."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import socket
import time
import typing as t

from ansible.module_utils.alembic_recovery import catalog, files, postgres, process, sql, workbench
from ansible.module_utils.alembic_recovery.errors import CommandError, DatabaseError, RecoveryError, StackError

# Measured on 2 GB: zstd level 1 is smaller than gzip level 6 for a tenth of the time; gzip level 1 where pg_dump has no
# zstd (before 16, or built without it). One that is built without says so at once, so trying is the way to know.
_COMPRESSIONS = ("zstd:1", "gzip:1")
_MANIFEST_FORMAT = 1
# A custom-format dump with compression is smaller than the database; the margin is for data that cannot be compressed.
_SPACE_FACTOR = 1.1
_SPACE_RESERVE = 64 << 20
_TIMED_OUT = "57014"


class Names(t.NamedTuple):
    """The files of one backup."""

    dump: str
    manifest: str
    globals: str


def names(directory: str, database: str, run_id: str) -> Names:
    """The paths of a run's backup. The manifest is written last: without it, there is no backup."""
    stem = os.path.join(directory, f"{re.sub('[^A-Za-z0-9_.-]', '_', database)}_{run_id}")
    return Names(f"{stem}.dump", f"{stem}.manifest.json", f"{stem}.globals.sql")


def needed_bytes(size: int) -> int:
    """The space that must be free before a dump of a database of `size` bytes is started."""
    return int(size * _SPACE_FACTOR) + _SPACE_RESERVE


def check_space(directory: str, size: int) -> None:
    """:raises StackError: there is too little space for a dump of a database of `size` bytes."""
    free, needed = files.free_bytes(directory), needed_bytes(size)
    if free < needed:
        raise StackError(
            f"No room for a backup in {directory}: {files.shown_size(free)} are free, {files.shown_size(needed)} are "
            f"needed (1.1 times the database's {files.shown_size(size)}, and a reserve). Make room, or set "
            "recovery_directory to another file system."
        )


def read_manifest(path: str) -> dict[str, t.Any]:
    """The manifest of a backup.

    :raises StackError: it cannot be read, or is none.
    """
    try:
        with open(path, encoding="utf-8") as file:
            manifest = json.load(file)
    except (OSError, ValueError) as error:
        raise StackError(f"{path} cannot be read as the manifest of a backup: {error}.") from error
    try:
        parts = [manifest["file"], *([] if manifest["globals"] is None else [manifest["globals"]])]
        whole = manifest["format"] == _MANIFEST_FORMAT and isinstance(manifest["database"]["name"], str)
        # A name with a directory in it would lead elsewhere.
        whole = whole and all(os.path.basename(part["name"]) == part["name"] for part in parts)
        whole = whole and all(part["size_bytes"] >= 0 and part["sha256"] for part in parts)
        datetime.datetime.fromisoformat(manifest["created_at"])
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise StackError(f"{path} is not the manifest of a backup (format {_MANIFEST_FORMAT}).")
    return t.cast("dict[str, t.Any]", manifest)


def intact(manifest_path: str, *, hashes: bool) -> dict[str, t.Any]:
    """The manifest of a backup whose files are there as it says.

    :param hashes: compare the SHA-256, too, not only the size.
    :raises StackError: a file is missing, or is another one.
    """
    manifest = read_manifest(manifest_path)
    for part in (manifest["file"], manifest["globals"]):
        if part is None:
            continue
        path = os.path.join(os.path.dirname(manifest_path), part["name"])
        size = os.path.getsize(path) if os.path.isfile(path) else None
        if size != part["size_bytes"]:
            raise StackError(f"{path}: {size} bytes are there, the manifest says {part['size_bytes']}.")
        if hashes and files.sha256(path) != part["sha256"]:
            raise StackError(f"{path} is not what was written: its SHA-256 differs from the manifest's.")
    return manifest


def revisions(
    asked: postgres.Snapshot | postgres.Database, structure: t.Mapping[str, postgres.Rows], version_table: str
) -> list[str] | None:
    """The rows of Alembic's version table; ``None``: there is no such table.

    :param version_table: as `table` or `schema.table`.
    :raises DatabaseError: it cannot be read.
    """
    found = [
        row
        for row in structure["relations"]
        if version_table in (row["name"], catalog.qualified(row)) and row["kind"] == "r"
    ]
    if not found:
        return None
    table = sql.identifier(found[0]["schema"], found[0]["name"])
    return sorted(row["version_num"] for row in asked.ask(f"select version_num from {table}"))


class Backup:
    """One backup of one database, from the first question to the manifest."""

    def __init__(
        self,
        bench: workbench.Workbench,
        database: postgres.Database,
        names_: Names,
        *,
        run_id: str,
        version_table: str,
        images: t.Mapping[str, str],
        timeout: float,
        lock_timeout: int,
        content: bool = True,
    ) -> None:
        """:param timeout: seconds for the dump, and as many for reading it through.

        :param content: make a checksum of each column of each table, too.

        :param lock_timeout: seconds to wait for a table that somebody has locked.
        """
        self._bench = bench
        self._database = database
        self._names = names_
        self._run_id = run_id
        self._version_table = version_table
        self._images = images
        self._timeout = timeout
        self._lock_timeout = lock_timeout
        self._content = content
        self._warnings: list[str] = []

    def make(self) -> dict[str, t.Any]:
        """Make it; the manifest. On any failure nothing is left but what was there.

        :raises RecoveryError: it could not be made, or could not be proved.
        """
        partial = f"{self._names.dump}.partial"
        created = [partial, self._names.dump, self._names.globals, f"{self._names.manifest}.partial"]
        for path in (*self._names, partial):
            if os.path.lexists(path):
                raise StackError(f"{path} is there already; nothing is overwritten. Choose another run id.")
        try:
            return self._make(partial)
        except BaseException as error:
            for path in created:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            if isinstance(error, OSError):
                raise StackError(f"The backup could not be written: {error}. Nothing was changed.") from error
            raise

    def _make(self, partial: str) -> dict[str, t.Any]:
        started = time.monotonic()
        created_at = datetime.datetime.now(datetime.timezone.utc).isoformat()
        tables = self._database.ask(catalog.LOCKABLE)
        seen, compression = self._dump(partial, tables)
        self._read_through(partial, sum(row["dumped"] for row in tables))
        files.settle(partial, self._names.dump)
        manifest = {
            "format": _MANIFEST_FORMAT,
            "run_id": self._run_id,
            "created_at": created_at,
            "host": socket.gethostname(),
            **seen,
            "file": {**_described(self._names.dump), "format": "custom", "compression": compression},
            "globals": self._globals(),
            "proved": "read through",
            "tools": {"pg_dump": self._version("pg_dump"), "pg_restore": self._version("pg_restore")},
            "images": dict(self._images),
            "warnings": self._warnings,
            "seconds": round(time.monotonic() - started, 3),
        }
        with files.open_private(f"{self._names.manifest}.partial") as file:
            json.dump(manifest, file, indent=1, sort_keys=True)
        files.settle(f"{self._names.manifest}.partial", self._names.manifest)
        return manifest

    def _dump(self, partial: str, tables: postgres.Rows) -> tuple[dict[str, t.Any], str]:
        """Dump, and describe what is dumped, in one snapshot: equal even while others write."""
        names_ = [sql.identifier(row["schema"], row["name"]) for row in tables]
        with self._database.snapshot(search_path=catalog.SEARCH_PATH, lock_timeout=self._lock_timeout) as snapshot:
            # Before the snapshot: a table that somebody is just rewriting (ALTER TABLE) or truncating looks empty to a
            # snapshot from before. The dump would be whole, and the counts would agree: nothing could tell later.
            if names_:
                snapshot.tell(f"lock table only {', only '.join(names_)} in access share mode")
            name = snapshot.export()
            # After the snapshot, before pg_dump: sequences are of no snapshot, and what is dumped is not behind this.
            sequences = {catalog.qualified(row): row["last_value"] for row in snapshot.ask(catalog.SEQUENCE_VALUES)}
            seen: dict[str, t.Any] = {}
            for compression in _COMPRESSIONS:
                # Made before pg_dump opens it: it would be readable for everybody, whatever its umask is in there.
                files.open_private(partial).close()
                with self._bench.start("pg_dump", *self._options(partial, name, compression)) as conversation:
                    seen = seen or {**self._describe(snapshot), "sequence_values": sequences}
                    ended = _ended(conversation)
                    if self._content and not ended and "content" not in seen:
                        # All is read for this: not for a pg_dump that has refused its options already.
                        seen["content"] = self._checksums(snapshot, seen["structure"])
                    done = ended or workbench.finish(conversation, self._timeout)
                if done.rc == 0:
                    if "content" not in seen:
                        seen["content"] = self._checksums(snapshot, seen["structure"]) if self._content else None
                    self._warnings += _lines(done.stderr)
                    return seen, compression
                os.unlink(partial)
                if "does not support compression" not in done.stderr and "invalid value" not in done.stderr:
                    break
        said = " ".join(done.stderr.split())[-1500:]
        hint = "Nothing was changed. The database's own log says more."
        if "invalid page" in said or "could not read block" in said:
            hint = postgres.damage(self._database.damaged_relation(said))
        elif "server version mismatch" in said:
            hint = (
                "Nothing was changed. Set bin_dir in recovery_stack.database to the directory of PostgreSQL's programs "
                "of the server's version."
            )
        said = said or ("killed" if done.rc < 0 or done.rc > 128 else "it said nothing")
        raise DatabaseError(f"pg_dump ended with exit code {done.rc}: {said}. {hint}", rc=done.rc)

    def _options(self, partial: str, snapshot: str, compression: str) -> list[str]:
        method, level = compression.split(":")
        # pg_dump before 16 knows gzip's levels only, without its name.
        compress = compression if method != "gzip" else level
        return [
            "--format=custom", f"--compress={compress}", f"--file={self._bench.inside(partial)}",
            f"--snapshot={snapshot}", f"--lock-wait-timeout={self._lock_timeout}s",
        ]  # fmt: skip

    def _describe(self, snapshot: postgres.Snapshot) -> dict[str, t.Any]:
        structure = catalog.read_structure(snapshot)
        identity = snapshot.ask(postgres.IDENTITY)[0]
        identity.pop("server_started")
        return {
            "database": {**identity, "properties": snapshot.ask(catalog.DATABASE_PROPERTIES)[0]},
            "version_table": self._version_table,
            "revisions": revisions(snapshot, structure, self._version_table),
            "fingerprint": catalog.fingerprint(structure),
            "row_counts": catalog.read_counts(snapshot),
            "large_objects": snapshot.ask(catalog.LARGE_OBJECTS)[0]["count"],
            "structure": structure,
        }

    def _checksums(
        self, snapshot: postgres.Snapshot, structure: t.Mapping[str, postgres.Rows]
    ) -> dict[str, dict[str, str]] | None:
        """Last of what is asked: it takes longest, and the backup is one without it."""
        try:
            return catalog.read_content(snapshot, structure["columns"])
        except RecoveryError as error:
            if error.details.get("sqlstate") != _TIMED_OUT and not error.details.get("timed_out"):
                raise
            self._warnings.append("No checksums of the content: a table took longer than a question may.")
            return None

    def _read_through(self, partial: str, tables: int) -> None:
        """Decode it to its end, and count the tables in it.

        `pg_restore --list` accepts a dump that is cut in half, decoding does not. Decoding accepts one whose header has
        been damaged in such a way that it seems to be empty (a terminal does that), counting does not.
        """
        path, problem = self._bench.inside(partial), ""
        done = self._bench.run("pg_restore", "--file=/dev/null", path, timeout=self._timeout, connect=False)
        if done.rc == 0:
            done = self._bench.run("pg_restore", "--list", path, timeout=self._timeout, connect=False)
            found = len(re.findall(r"^\d+; \d+ \d+ TABLE DATA ", done.stdout, re.MULTILINE))
            if found < tables:
                problem = f"it holds the rows of {found} tables, the database has {tables}"
        if done.rc != 0 or problem:
            raise DatabaseError(
                f"The dump cannot be read through: {problem or ' '.join(done.stderr.split())[-1000:]}. It was removed; "
                "nothing was changed.",
                rc=done.rc,
            )

    def _globals(self) -> dict[str, t.Any] | None:
        """Roles and their memberships, without their passwords; nothing where the role may not read them."""
        path = self._names.globals
        files.open_private(path).close()
        done = self._bench.run(
            "pg_dumpall", "--globals-only", "--no-role-passwords", f"--file={self._bench.inside(path)}", timeout=300.0
        )
        if done.rc != 0:
            os.unlink(path)
            self._warnings.append(f"Roles were not saved: {' '.join(done.stderr.split())[-300:]}")
            return None
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        return _described(path)

    def _version(self, program: str) -> str:
        done = self._bench.run(program, "--version", timeout=30.0, connect=False)
        return done.stdout.strip() if done.rc == 0 else process.failure(done).message


def _described(path: str) -> dict[str, t.Any]:
    return {"name": os.path.basename(path), "size_bytes": os.path.getsize(path), "sha256": files.sha256(path)}


def _ended(conversation: process.Conversation) -> process.Completed | None:
    """How a program that says nothing on its standard output has ended, if it has."""
    try:
        conversation.close_stdin()
        if conversation.read_line(0.01) is not None:
            return None
    except CommandError:
        return None
    return process.Completed(conversation.argv, conversation.wait(), "", conversation.said, 0.0)


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()][:50]
