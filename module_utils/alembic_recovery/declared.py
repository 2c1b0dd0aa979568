"""What revisions declare, compared with what the catalog has: pure. `agent_declared.py` collects the one.

An object is only judged where nothing else can have made or removed it: what is dropped, renamed, or named by a
statement that removes something, in the same or in a later revision, does not count as missing, and what a revision
that comes before removes does not count as already there. Where a revision could not be followed to its end, and
removes something in a way that cannot be told, nothing that was declared before it is judged.
"""

from __future__ import annotations

import dataclasses
import typing as t

Step = t.Mapping[str, t.Any]
Rows = t.Sequence[t.Mapping[str, t.Any]]

_EVERYTHING = "*"


@dataclasses.dataclass(frozen=True)
class Compared:
    """One revision, and those of the objects it declares that are there and that are not, in words.

    `decisive`: so much is not there that the revision was not applied: a table, a column, or all that it makes.
    """

    revision: str
    there: t.Sequence[str] = ()
    absent: t.Sequence[str] = ()
    decisive: bool = True


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Revisions that are not applied and are partly there; applied ones that are not; why others are not judged."""

    partial: t.Sequence[Compared] = ()
    lost: t.Sequence[Compared] = ()
    unknown: t.Mapping[str, str] = dataclasses.field(default_factory=dict)

    def as_result(self) -> dict[str, t.Any]:
        """The JSON form for a task's result."""
        return {
            "partial": [dataclasses.asdict(item) for item in self.partial],
            "lost": [dataclasses.asdict(item) for item in self.lost],
            "unknown": dict(self.unknown),
        }


class Catalog:
    """The names that are in a database, as a session with a search path sees them."""

    def __init__(self, search_path: t.Sequence[str], structure: t.Mapping[str, Rows], constraints: Rows) -> None:
        """`structure` are the answers to `blemishes.NAMES`, `constraints` those to `blemishes.CONSTRAINTS`."""
        self._path = list(search_path) or ["public"]
        self._relations = {(row["schema"], row["name"]) for row in structure["relations"]}
        self._columns = {(row["schema"], row["relation"], row["name"]) for row in structure["columns"]}
        self._indexes = {(row["schema"], row["name"]): row["valid"] for row in structure["indexes"]}
        self._constraints = {(row["schema"], row["relation"], row["name"]) for row in constraints}

    def has(self, step: Step) -> bool:
        """Whether an object is there under its name."""
        home = self.home(step)
        if step["kind"] == "table":
            return (home, step["name"]) in self._relations
        if step["kind"] == "column":
            return (home, step["table"], step["name"]) in self._columns
        if step["kind"] == "index":
            return (home, step["name"]) in self._indexes
        return (home, step["table"], step["name"]) in self._constraints

    def is_invalid(self, step: Step) -> bool:
        """Whether it is an index that was never finished."""
        return step["kind"] == "index" and self._indexes.get((self.home(step), step["name"])) is False

    def has_table(self, step: Step) -> bool:
        """Whether the table that an object belongs to is there."""
        return (self.home(step), step["table"]) in self._relations

    def columns(self, schema: str, table: str) -> set[str]:
        """The names of a table's columns."""
        return {name for place, relation, name in self._columns if (place, relation) == (schema, table)}

    def home(self, step: Step) -> str:
        """The schema that is meant: the first on the path that has the table, as PostgreSQL looks, else the first."""
        if step["schema"]:
            return str(step["schema"])
        found = [schema for schema in self._path if (schema, step["table"]) in self._relations]
        return found[0] if found else self._path[0]


def compare(declared: t.Mapping[str, t.Any] | None, catalog: Catalog) -> Comparison:
    """What is there too early, and what is not there though it should be.

    :param declared: the agent's answer (`Declarations.collect`); none of it gives an empty comparison.
    """
    if not declared:
        return Comparison()
    unknown = {
        item["revision"]: item["unknown"] for item in [*declared["applied"], *declared["pending"]] if item["unknown"]
    }
    return Comparison(_partial(declared["pending"], catalog), _lost(declared["applied"], catalog), unknown)


class _Touched:
    """What earlier steps have made or removed: what the catalog has now says nothing about it."""

    def __init__(self) -> None:
        self._names: set[tuple[str, str]] = set()
        self._words: set[str] = set()
        self._mentioned: set[str] = set()
        self.out_of_sight = False

    def add(self, step: Step) -> None:
        """Note a step."""
        if step["do"] == "text":
            self._mentioned.update(step["words"])
            self._words.update(step["words"] if step["removes"] else ())
            return
        self._names.add((step["table"], step["name"]))
        if step["kind"] == "table" and step["do"] != "create":
            self._words.add(step["table"])
        if step["kind"] == "column" and step["do"] != "create":
            # PostgreSQL drops indexes and constraints along with a column.
            self._names.add((step["table"], ""))
        if step["do"] == "rename":
            self._names.add((step["to"] if step["kind"] == "table" else step["table"], step["to"]))

    def has(self, step: Step) -> bool:
        """Whether an object may be one of those."""
        if self._words.intersection({_EVERYTHING, step["table"], step["name"]}):
            return True
        depends = step["kind"] in ("index", "constraint") and (step["table"], "") in self._names
        return depends or (step["table"], step["name"]) in self._names

    def may_have_made(self, step: Step) -> bool:
        """Whether an object that is not there now may be made before it is dropped: by a text, or out of sight."""
        return self.out_of_sight or bool(self._mentioned.intersection({step["name"], step["table"]}))


class Early(t.NamedTuple):
    """A step of a revision that is not applied. `state`: there, invalid, absent, or gone (what it is to drop)."""

    revision: str
    step: Step
    state: str


def early(pending: t.Sequence[t.Mapping[str, t.Any]], catalog: Catalog) -> dict[str, list[Early]]:
    """By revision, in order, the steps of those that have left something in the catalog; the others are not in it."""
    touched = _Touched()
    found: dict[str, list[Early]] = {}
    for revision in pending:
        name, mine = revision["revision"], []
        for step in revision["steps"]:
            if step["do"] in ("create", "drop") and not touched.has(step):
                state = _state(step, catalog, touched)
                if state is not None:
                    mine.append(Early(name, step, state))
            touched.add(step)
        touched.out_of_sight = touched.out_of_sight or revision["unknown"] is not None
        if any(item.state != "absent" for item in mine):
            found[name] = mine
    return found


def _partial(pending: t.Sequence[t.Mapping[str, t.Any]], catalog: Catalog) -> list[Compared]:
    return [
        Compared(
            name,
            [_early_words(item) for item in mine if item.state != "absent"],
            [words(item.step) for item in mine if item.state == "absent"],
        )
        for name, mine in early(pending, catalog).items()
    ]


def _early_words(item: Early) -> str:
    forms = {"invalid": "{} (INVALID: it was never finished)", "gone": "the removal of {}"}
    return forms.get(item.state, "{}").format(words(item.step))


def _state(step: Step, catalog: Catalog, touched: _Touched) -> str | None:
    """What is to be said of a step; nothing where that cannot be told, or where it does not matter."""
    if step["do"] == "drop":
        return "gone" if _is_gone(step, catalog, touched) else None
    if catalog.is_invalid(step):
        return "invalid"
    if not catalog.has(step):
        return "absent"
    # IF NOT EXISTS: the revision itself expects that it may be there.
    return None if step["guarded"] else "there"


def _is_gone(step: Step, catalog: Catalog, touched: _Touched) -> bool:
    """Whether a table or a column that a revision is to drop is not there (any more)."""
    if step["guarded"] or catalog.has(step) or touched.may_have_made(step):
        return False
    return step["kind"] == "table" or (step["kind"] == "column" and catalog.has_table(step))


def standing(applied: t.Sequence[t.Mapping[str, t.Any]], catalog: Catalog) -> dict[str, tuple[list[Step], list[Step]]]:
    """By applied revision, in order: those of the objects it made, and no later one removed, that are there and not."""
    made: list[tuple[str, dict[str, t.Any]]] = []
    for revision in applied:
        for step in revision["steps"]:
            if step["do"] == "create":
                made.append((revision["revision"], dict(step)))
            elif step["do"] == "text":
                if step["removes"]:
                    made = [item for item in made if not _named(item[1], step["words"])]
            elif step["do"] == "drop":
                made = [item for item in made if not _goes_with(item[1], step)]
            else:
                made = _renamed(made, step)
    found: dict[str, tuple[list[Step], list[Step]]] = {}
    for revision in applied:
        mine = [step for name, step in made if name == revision["revision"]]
        found[revision["revision"]] = (
            [step for step in mine if catalog.has(step)],
            [step for step in mine if not catalog.has(step)],
        )
    return found


def is_decisive(there: t.Sequence[Step], absent: t.Sequence[Step]) -> bool:
    """Whether so much of a revision is not there that it was not applied: a table, a column, or all that it makes."""
    return bool(absent) and (not there or any(step["kind"] in ("table", "column") for step in absent))


def _lost(applied: t.Sequence[t.Mapping[str, t.Any]], catalog: Catalog) -> list[Compared]:
    found: list[Compared] = []
    for revision, (there, absent) in standing(applied, catalog).items():
        if absent:
            shown = [words(step) for step in there]
            lacking = [words(step) for step in absent]
            found.append(Compared(revision, shown, lacking, is_decisive(there, absent)))
    return found


def _named(step: Step, words: t.Collection[str]) -> bool:
    return bool({_EVERYTHING, step["table"], step["name"]}.intersection(words))


def _goes_with(step: Step, drop: Step) -> bool:
    """Whether an object is gone, or may be, once another is dropped."""
    if step["table"] == drop["table"]:
        if drop["kind"] == "table":
            return True
        if drop["kind"] == "column" and step["kind"] in ("index", "constraint"):
            return True
    # An index and the constraint it serves have one name; Alembic need not be told whose index it is.
    same_place = step["table"] == drop["table"] or (step["kind"] == "index" and drop["kind"] == "index")
    return bool(same_place and step["name"] == drop["name"])


def _renamed(made: list[tuple[str, dict[str, t.Any]]], step: Step) -> list[tuple[str, dict[str, t.Any]]]:
    for _revision, item in made:
        if item["table"] != step["table"]:
            continue
        if step["kind"] == "table":
            item["table"] = step["to"]
            if item["kind"] == "table":
                item["name"] = step["to"]
        elif item["kind"] == "column" and item["name"] == step["name"]:
            item["name"] = step["to"]
    return made


def words(step: Step) -> str:
    """An object as people name it."""
    if step["kind"] == "table":
        return f"table {step['name']}"
    if step["kind"] == "column":
        return f"column {step['table']}.{step['name']}"
    return f"{step['kind']} {step['name']} on {step['table']}"
