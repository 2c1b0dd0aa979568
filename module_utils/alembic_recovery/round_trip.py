"""Whether a revision's downgrade brings back what was there before its upgrade: tried on a copy, and compared.

On the way up the state at each point is written to a file: structure, row counts, a checksum of each column, and no
data. On the way down each point is compared with it. A difference belongs to the first downgrade that shows it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import typing as t

from ansible.module_utils.alembic_recovery import catalog, downgrade, files, migrate, postgres, revisions
from ansible.module_utils.alembic_recovery.errors import AgentError, StackError

LOSSLESS, LOSSY, IMPOSSIBLE = "lossless", "lossy", "impossible"

Point = t.Mapping[str, t.Any]
Points = t.Mapping[str, Point]

_PARTS = ("fingerprint", "structure", "row_counts", "content")
# Of these a downgrade is not to blame: locks, time-outs, no connection, no room, a server that goes down or is damaged.
_OF_THE_SERVER = ("08", "40", "53", "55", "57", "58", "XX")
_OF_THE_DRIVER = (".OperationalError", ".InterfaceError", ".RedirectError", ".AmbiguousStepError", ".SetupError")


@dataclasses.dataclass(frozen=True)
class Difference:
    """How a database differs from what was recorded: columns with other contents, rows that are fewer, the catalog."""

    columns: t.Sequence[tuple[str, str]] = dataclasses.field(default_factory=list)
    rows: t.Mapping[str, int] = dataclasses.field(default_factory=dict)
    catalog: t.Mapping[str, t.Mapping[str, t.Sequence[str]]] = dataclasses.field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.columns or self.rows or self.catalog)

    def as_result(self) -> dict[str, t.Any]:
        """The JSON form for a task's result."""
        return {
            "columns": [{"table": table, "column": column} for table, column in self.columns],
            "rows": dict(self.rows),
            "catalog": {part: {side: list(texts[side]) for side in texts} for part, texts in self.catalog.items()},
        }


def key(rows: t.Iterable[str]) -> str:
    """The name of a point: the rows of the version table there."""
    return ",".join(sorted(rows)) or downgrade.BASE


def difference(recorded: Point, found: Point, version_table: str) -> Difference:
    """How what was found differs from what was recorded; the version table is judged elsewhere.

    :param version_table: as `table` or `schema.table`.
    """

    def ours(table: str) -> bool:
        return version_table not in (table, table.partition(".")[2])

    columns = [
        (table, column)
        for table, sums in sorted(recorded["content"].items())
        for column, checksum in sorted(sums.items())
        if ours(table) and found["content"].get(table, {}).get(column, checksum) != checksum
    ]
    # A table that is there only once is a difference of the catalog.
    rows = {
        table: count - found["row_counts"][table]
        for table, count in sorted(recorded["row_counts"].items())
        if ours(table) and found["row_counts"].get(table, count) != count
    }
    return Difference(columns, rows, catalog.differences(recorded["structure"], found["structure"]))


def newly(now: Difference, above: Difference) -> Difference:
    """What differs at a point and did not yet differ at the point above it."""
    rows = {table: count - above.rows.get(table, 0) for table, count in now.rows.items()}
    changed: dict[str, dict[str, list[str]]] = {}
    for part, texts in now.catalog.items():
        known = above.catalog.get(part, {})
        fresh = {side: [text for text in texts[side] if text not in known.get(side, ())] for side in texts}
        if any(fresh.values()):
            changed[part] = fresh
    return Difference(
        [column for column in now.columns if column not in above.columns],
        {table: count for table, count in rows.items() if count},
        changed,
    )


def judged(revision: str, found: Difference) -> dict[str, t.Any]:
    """The verdict on a downgrade that has been done and compared."""
    if not found:
        reason = "Catalog, row counts and contents are as they were before its upgrade."
        return {"revision": revision, "verdict": LOSSLESS, "reason": reason, **found.as_result()}
    parts = []
    if found.columns:
        parts.append(f"the contents of {_listed(f'{table}.{column}' for table, column in found.columns)}")
    if found.rows:
        parts.append(f"the number of rows of {_listed(found.rows)}")
    if found.catalog:
        parts.append(f"the catalog ({', '.join(found.catalog)})")
    reason = f"Its downgrade does not bring back {', '.join(parts)}."
    return {"revision": revision, "verdict": LOSSY, "reason": reason, **found.as_result()}


def impossible(revision: str, reason: str) -> dict[str, t.Any]:
    """The verdict on a downgrade that cannot be done."""
    return {"revision": revision, "verdict": IMPOSSIBLE, "reason": reason, **Difference().as_result()}


def doable(
    known: revisions.Map, rows: t.Sequence[str], steps: t.Sequence[str], points: Points, version_table: str
) -> tuple[list[str], dict[str, t.Any] | None]:
    """The steps up to the first one that is impossible as its source shows, and the verdict on that one, if any.

    :raises StackError: the file does not know a point of the way.
    """
    for number in range(len(steps) + 1):
        _point(points, downgrade.left_after(known, rows, steps[:number]))
    for number, step in enumerate(steps):
        kind = known[step]["downgrade"]
        if kind == "raises":
            return list(steps[:number]), impossible(step, "Its downgrade raises an error in any case.")
        above = _point(points, downgrade.left_after(known, rows, steps[:number]))
        below = _point(points, downgrade.left_after(known, rows, steps[: number + 1]))
        made = any(
            (
                difference(above, below, version_table),
                # What the upgrade has added is a difference of the catalog, and only seen from this side as content.
                difference(below, above, version_table),
            )
        )
        if kind == "empty" and made:
            return list(steps[:number]), impossible(step, "Its downgrade does nothing, and its upgrade did something.")
    return list(steps), None


def from_failure(error: AgentError) -> dict[str, t.Any] | None:
    """The verdict on the downgrade that has failed; nothing where something else is to blame."""
    revision, kind = error.details.get("failed_revision"), error.details.get("kind")
    state = error.details.get("sqlstate")
    if revision is None or kind in (None, "silence", "ended", "not_started"):
        return None
    if (state or "").startswith(_OF_THE_SERVER) or (state is None and kind.endswith(_OF_THE_DRIVER)):
        return None
    return impossible(revision, error.details.get("reason") or error.message)


def read(path: str) -> Points:
    """The points of a file that :class:`Recorder` has written.

    :raises StackError: there is none, or it is none.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return t.cast(Points, json.load(file)["points"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StackError(
            f"{path} is no file with contents from a migration upwards ({type(error).__name__}: {error}). "
            "Migrate a copy upwards with the same `contents` first."
        ) from error


class Recorder(migrate.Observer):
    """Keeps what is there before the first revision and after each."""

    def __init__(self, database: postgres.Database) -> None:
        self._database = database
        self.points: dict[str, Point] = {}

    def before(self, rows: t.Sequence[str]) -> None:
        """See :meth:`migrate.Observer.before`."""
        if key(rows) not in self.points:
            self.points[key(rows)] = look(self._database)

    def after(self, message: t.Mapping[str, t.Any], rows: t.Sequence[str]) -> dict[str, t.Any]:  # noqa: ARG002
        """See :meth:`migrate.Observer.after`."""
        self.points[key(rows)] = look(self._database)
        return {}


class Comparison(migrate.Observer):
    """Compares each point of the way down with what was recorded of it."""

    def __init__(self, database: postgres.Database, points: Points, version_table: str) -> None:
        self._database = database
        self._points = points
        self._version_table = version_table
        self._above: Difference | None = None

    def before(self, rows: t.Sequence[str]) -> None:
        """See :meth:`migrate.Observer.before`."""
        if self._above is None:
            self._above = self._compare(rows)

    def after(self, message: t.Mapping[str, t.Any], rows: t.Sequence[str]) -> dict[str, t.Any]:
        """See :meth:`migrate.Observer.after`."""
        now, above = self._compare(rows), self._above or Difference()
        self._above = now
        return judged(message["revision"], newly(now, above))

    def _compare(self, rows: t.Sequence[str]) -> Difference:
        return difference(_point(self._points, rows), look(self._database), self._version_table)


@contextlib.contextmanager
def recording(path: str, database: postgres.Database) -> t.Iterator[Recorder]:
    """A recorder, whose points are in a new private file when it ends, however it ends.

    :raises StackError: the file is there already, or cannot be made.
    """
    files.private_directory(os.path.dirname(path))
    recorder = Recorder(database)
    with files.open_private(path) as file:
        try:
            yield recorder
        finally:
            json.dump({"points": recorder.points}, file)
            file.write("\n")


def look(database: postgres.Database) -> Point:
    """The state of a database as far as it can be compared.

    :raises DatabaseError: something could not be read.
    """
    found = catalog.read_all(database, counts=True, content=True)
    return {part: found[part] for part in _PARTS}


def _point(points: Points, rows: t.Sequence[str]) -> Point:
    if key(rows) not in points:
        raise StackError(
            f"The file of contents knows nothing of the database at {key(rows)}; it has: {', '.join(points)}. "
            "It must be from the migration upwards that is to be undone."
        )
    return points[key(rows)]


def _listed(names: t.Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - 8} more" if len(every) > 8 else ""
    return ", ".join(every[:8]) + more
