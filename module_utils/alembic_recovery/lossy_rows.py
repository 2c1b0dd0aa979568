"""Which rows a trial of the way back has lost: the copy that was tried on, compared with one that was left alone.

What is compared are checksums of single rows, streamed from both in the order of the primary key, so that no table is
ever in memory.
"""

from __future__ import annotations

import json
import typing as t

from ansible.module_utils.alembic_recovery import catalog, postgres, round_trip, sql
from ansible.module_utils.alembic_recovery.errors import StackError

#: How many keys are named of each table.
NAMED = 20

Key = t.Tuple[str, ...]
Row = t.Tuple[Key, str]
Lossy = t.Dict[str, t.Set[str]]

_KEYS = """
select n.nspname as schema, c.relname as name, array_agg(a.attname::text order by k.place) as key
from pg_index i join pg_class c on c.oid = i.indrelid join pg_namespace n on n.oid = c.relnamespace
     cross join lateral unnest(i.indkey::int2[]) with ordinality k(attnum, place)
     join pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum
where i.indisprimary and k.place <= i.indnkeyatts and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
group by 1, 2"""


def tables(undone: t.Iterable[t.Mapping[str, t.Any]]) -> Lossy:
    """The columns of each table that some downgrade did not bring back; none where only rows are more or fewer.

    :param undone: the verdicts of a trial, as `round_trip.judged` gives them.
    """
    found: Lossy = {}
    for step in undone:
        for column in step["columns"]:
            found.setdefault(column["table"], set()).add(column["column"])
        for table in step["rows"]:
            found.setdefault(table, set())
    return found


def differing(one: t.Iterable[Row], other: t.Iterable[Row]) -> t.Iterator[Key]:
    """The keys of rows that only one has, or whose contents differ; both are in the order of their keys.

    Both are read to the end.
    """
    left, right = iter(one), iter(other)
    a, b = next(left, None), next(right, None)
    while a is not None or b is not None:
        if b is None or (a is not None and a[0] < b[0]):
            assert a is not None
            yield a[0]
            a = next(left, None)
        elif a is None or b[0] < a[0]:
            yield b[0]
            b = next(right, None)
        else:
            if a[1] != b[1]:
                yield a[0]
            a, b = next(left, None), next(right, None)


def rows_query(schema: str, table: str, key: t.Sequence[str], columns: t.Iterable[str]) -> str:
    """A query for the rows of a table in the order of their keys: `key`, and a checksum of the columns as `content`.

    Those of tables that inherit from it are theirs.
    """
    texts = [f"{sql.identifier(name)}::text" for name in key]
    # As UTF-8 in every database, for that is the order in which Python compares texts.
    order = ", ".join(f"convert_to({text}, 'UTF8')" for text in texts)
    content = ", ".join(f"{sql.identifier(name)}::text" for name in sorted(columns))
    return (
        f"select array[{', '.join(texts)}] as key, "
        f'hashtextextended(row({content})::text collate "C", 0)::text as content '
        f"from only {sql.identifier(schema, table)} order by {order}"
    )


class Original:
    """A database that is what the copy was before it was migrated upwards, and is only read."""

    def __init__(self, original: postgres.Database, tried: postgres.Database) -> None:
        """:param tried: the copy on which the trial takes place."""
        if original.login.database == tried.login.database:
            raise StackError(
                f"compare_with is {original.login.database}, the database that is migrated itself. Give another copy "
                "of it, made before it was migrated upwards."
            )
        self._original = original
        self._tried = tried

    def refuse_another(self, recorded: round_trip.Point) -> None:
        """Make sure that it is what was recorded where the way back is to end.

        :raises StackError: it is something else, and all comparisons with it would be wrong.
        :raises DatabaseError: it could not be read.
        """
        # Its version must be the same, too: no table is left out.
        differs = round_trip.difference(recorded, round_trip.look(self._original), "")
        if differs:
            words = round_trip.judged("", differs)["reason"].partition("bring back ")[2]
            raise StackError(
                f"compare_with is {self._original.login.database}, which is not what the file of contents has "
                f"recorded where the way back ends: it differs in {words} Give a copy that was made before the "
                "migration upwards and was not changed since."
            )

    def losses(self, lossy: Lossy) -> dict[str, dict[str, t.Any]]:
        """For each table `count` and `keys` of the rows that differ, or the `reason` why they cannot be told.

        :raises DatabaseError: a table could not be read.
        """
        if not lossy:
            return {}
        path = catalog.SEARCH_PATH
        with self._original.snapshot(search_path=path) as one, self._tried.snapshot(search_path=path) as other:
            sides = (one, other)
            for snapshot in sides:
                catalog.write_alike(snapshot)
            keys = [_keys(snapshot) for snapshot in sides]
            columns = [_columns(snapshot) for snapshot in sides]
            found: dict[str, dict[str, t.Any]] = {}
            for table in sorted(lossy):
                here, there = (side.get(table) for side in columns)
                key = keys[0].get(table)
                if here is None or there is None:
                    found[table] = _untold("It is not in both databases.")
                elif key is None or keys[1].get(table) != key:
                    found[table] = _untold("It has no primary key, or not the same one in both databases.")
                else:
                    schema, name = key[0]
                    query = rows_query(schema, name, key[1], lossy[table] & here & there)
                    found[table] = _counted(key[1], differing(_rows(one, query), _rows(other, query)))
            return found


def _rows(snapshot: postgres.Snapshot, query: str) -> t.Iterator[Row]:
    for line in snapshot.lines(query):
        row = json.loads(line)
        yield tuple(row["key"]), row["content"]


def _keys(snapshot: postgres.Snapshot) -> dict[str, tuple[tuple[str, str], list[str]]]:
    """Of each table with a primary key its two names, and the columns of the key."""
    return {catalog.qualified(row): ((row["schema"], row["name"]), row["key"]) for row in snapshot.ask(_KEYS)}


def _columns(snapshot: postgres.Snapshot) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in snapshot.ask(catalog.STRUCTURE["columns"]):
        found.setdefault(f"{row['schema']}.{row['relation']}", set()).add(row["name"])
    return found


def _counted(names: t.Sequence[str], keys: t.Iterable[Key]) -> dict[str, t.Any]:
    count, named = 0, []
    for key in keys:
        count += 1
        if count <= NAMED:
            named.append(dict(zip(names, key)))
    return {"count": count, "keys": named, "reason": None}


def _untold(reason: str) -> dict[str, t.Any]:
    return {"count": None, "keys": [], "reason": reason}
