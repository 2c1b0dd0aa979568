"""What would put a copy right whose version and tables do not agree, or why that is not done. Pure.

PARTIAL: what revisions to come have left is removed from the copy, where nobody can miss it, and they make it anew.
STAMPED_NOT_APPLIED: the version of the copy is set to the revision below those that are not there as a whole, and they
are applied. What cannot be told is a reason against it. `repair_proof.py` compares what was removed with what has come.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible.module_utils.alembic_recovery import declared, revisions, sql

Declared = t.Mapping[str, t.Any]


class Object(t.NamedTuple):
    """Something in the catalog, with the schema it is in; `table` is the one it belongs to (itself, of a table)."""

    kind: str
    schema: str
    table: str
    name: str

    @property
    def path(self) -> str:
        """`schema.table`, or of what belongs to it, `schema.table.name`."""
        parts = [self.schema, self.table] if self.kind == "table" else [self.schema, self.table, self.name]
        return ".".join(parts)


@dataclasses.dataclass(frozen=True)
class State:
    """What a look has found: the verdict's name, the code, the version rows, and what the revisions declare.

    :param version_table: its quoted name for SQL; empty where there are several.
    :param missing: the revisions that are to be applied, as the verdict has them.
    """

    verdict: str
    known: revisions.Map
    heads: t.Sequence[str]
    rows: t.Sequence[str]
    version_table: str
    missing: t.Sequence[str]
    declarations: Declared | None
    catalog: declared.Catalog


@dataclasses.dataclass(frozen=True)
class Plan:
    """The statements for the copy, the same in words, and what is applied afterwards; or reasons why nothing is done.

    :param removed: tables and columns whose contents go: `schema.table`, `schema.table.column`.
    :param columns: which columns each of the removed tables may have when it is made anew.
    :param version: what the version row is set to, if it is.
    """

    statements: t.Sequence[str] = ()
    words: t.Sequence[str] = ()
    revisions: t.Sequence[str] = ()
    reasons: t.Sequence[str] = ()
    removed: t.Sequence[str] = ()
    columns: t.Mapping[str, t.Sequence[str]] = dataclasses.field(default_factory=dict)
    version: str | None = None


#: The verdicts that can be repaired, with the word of the operator that it takes.
WORDS: t.Mapping[str, str] = {"PARTIAL": "resume", "STAMPED_NOT_APPLIED": "repair"}


def objects(state: State) -> list[Object]:
    """What is there too early, in the order in which the revisions make it."""
    if state.verdict != "PARTIAL" or not state.declarations:
        return []
    return [
        _object(item.step, state.catalog)
        for mine in declared.early(state.declarations["pending"], state.catalog).values()
        for item in mine
        if item.state in ("there", "invalid")
    ]


def choose(state: State, word: str, kept: t.Mapping[Object, str], refusals: t.Sequence[str]) -> Plan:
    """What is to be done on a copy in this state.

    :param word: what the operator has said for this verdict.
    :param kept: the objects that must not be removed, each with the reason (`repair_evidence.kept`).
    :param refusals: findings with which no recovery goes on.
    """
    if state.verdict in ("BEHIND", "AT_HEAD"):
        return Plan(revisions=list(state.missing), reasons=list(refusals))
    if state.verdict not in WORDS:
        return Plan(reasons=[f"A database that is {state.verdict} is not repaired."])
    if word != WORDS[state.verdict]:
        return Plan(reasons=[f"{state.verdict} is repaired only where the operator says so."])
    plan = _resume(state, kept) if state.verdict == "PARTIAL" else _set_back(state)
    reasons = [*plan.reasons, *refusals]
    # Half a plan could be taken for one.
    return Plan(reasons=reasons) if reasons else plan


def departs(confirmed: t.Sequence[str], statements: t.Sequence[str], *, restored: bool) -> bool:
    """Whether what would be done is something else than what was confirmed.

    :param restored: the copy comes from a dump: pg_dump leaves out INVALID indexes, which need no removal then.
    """
    left_out = [one for one in confirmed if restored and one.startswith("DROP INDEX ") and one not in statements]
    return [one for one in confirmed if one not in left_out] != list(statements)


def _resume(state: State, kept: t.Mapping[Object, str]) -> Plan:
    pending = (state.declarations or {}).get("pending") or ()
    facts = {revision["revision"]: revision for revision in pending}
    found = declared.early(pending, state.catalog)
    reasons: list[str] = []
    chosen: list[declared.Early] = []
    for name, mine in found.items():
        reasons += _unclear(facts[name])
        gone = [declared.words(item.step) for item in mine if item.state == "gone"]
        if gone:
            reasons.append(f"Revision {name} is to remove what is gone already, and would fail: {', '.join(gone)}.")
        chosen += [item for item in mine if item.state in ("there", "invalid")]
    for item in chosen:
        why = kept.get(_object(item.step, state.catalog))
        if why:
            reasons.append(f"{_upper(declared.words(item.step))} is not removed: {why}.")
    reasons += _changed_later(chosen, pending)
    # Last made, first removed: what depends on something comes after it.
    chosen.reverse()
    things = [_object(item.step, state.catalog) for item in chosen]
    return Plan(
        statements=[_removal(thing) for thing in things],
        words=[f"remove {declared.words(item.step)}{_why(item)}" for item in chosen],
        revisions=list(state.missing),
        reasons=reasons,
        removed=sorted(thing.path for thing in things if thing.kind in ("table", "column")),
        columns={thing.path: _columns(thing, pending, state.catalog) for thing in things if thing.kind == "table"},
    )


def _unclear(revision: Declared) -> list[str]:
    """Why a revision must not be run (once more): it does what may have been done, and must not be done twice."""
    found: list[str] = []
    name = revision["revision"]
    if revision["unknown"]:
        found.append(
            f"Revision {name} cannot be followed to its end ({revision['unknown']}): whether the rest of it has been "
            "done already cannot be told."
        )
    # Rows that it adds to a table of its own come and go with the table; not to one that may have been there before.
    own = [
        [step["schema"], step["name"]]
        for step in revision["steps"]
        if step["do"] == "create" and step["kind"] == "table" and not step["guarded"]
    ]
    twice = [other["what"] for other in revision.get("others") or () if other["into"] not in own]
    twice += [f"RENAME of {step['kind']} {step['name']}" for step in revision["steps"] if step["do"] == "rename"]
    if twice:
        found.append(
            f"Revision {name} also does what must not be done twice, and may have been done already: "
            f"{', '.join(dict.fromkeys(twice))}."
        )
    return found


def _changed_later(chosen: t.Sequence[declared.Early], pending: t.Sequence[Declared]) -> list[str]:
    """Where a later step takes an object away again: whether it comes back as it was could not be seen."""
    found = []
    steps = [(revision["revision"], step) for revision in pending for step in revision["steps"]]
    for item in chosen:
        after = steps[steps.index((item.revision, item.step)) + 1 :]
        for name, step in after:
            table = step.get("kind") == "table" and step["table"] == item.step["table"]
            same = step.get("kind") == item.step["kind"] and step.get("name") == item.step["name"]
            if step["do"] in ("drop", "rename") and (table or (same and step["table"] == item.step["table"])):
                found.append(
                    f"{_upper(declared.words(item.step))} is removed or renamed again by revision {name}: whether it "
                    "comes back as it was could not be seen."
                )
                break
    return found


def _columns(table: Object, pending: t.Sequence[Declared], catalog: declared.Catalog) -> list[str]:
    """The columns that a table has, and those that revisions to come declare."""
    added = {
        step["name"]
        for revision in pending
        for step in revision["steps"]
        if step["do"] == "create" and step["kind"] == "column" and step["table"] == table.name
    }
    return sorted(added | catalog.columns(table.schema, table.name))


def _removal(thing: Object) -> str:
    """The statement, without CASCADE: what somebody else depends on is not removed."""
    if thing.kind == "table":
        return f"DROP TABLE {sql.identifier(thing.schema, thing.name)}"
    if thing.kind == "index":
        return f"DROP INDEX {sql.identifier(thing.schema, thing.name)}"
    table = sql.identifier(thing.schema, thing.table)
    return f"ALTER TABLE {table} DROP {thing.kind.upper()} {sql.identifier(thing.name)}"


def _why(item: declared.Early) -> str:
    if item.state == "invalid":
        return " (INVALID)"
    return {"table": " (no rows)", "column": " (no values)"}.get(item.step["kind"], "")


def _set_back(state: State) -> Plan:
    if len(state.rows) != 1 or not state.version_table or not state.declarations:
        return Plan(reasons=["There is more than one version row, or more than one version table."])
    applied = state.declarations["applied"]
    facts = {revision["revision"]: revision for revision in applied}
    standing = declared.standing(applied, state.catalog)
    absent, last, reasons = _absent_at_the_end(state, facts, standing)
    holes = [name for name, parts in standing.items() if name not in absent and declared.is_decisive(*parts)]
    if holes and not reasons:
        reasons.append(f"Revision {last} is there, and earlier ones are not as a whole: {', '.join(holes)}.")
    if not reasons and not absent:
        reasons.append(f"The last revision, {last}, is there, and no revision declares what is missing.")
    if reasons:
        return Plan(reasons=reasons)
    top = state.rows[0]
    new, old = sql.literal(last), sql.literal(top)
    lacking = [declared.words(step) for name in reversed(absent) for step in standing[name][1]]
    return Plan(
        statements=[f"UPDATE {state.version_table} SET version_num = {new} WHERE version_num = {old}"],
        words=[f"set the version from {top} back to {last}: none of this is there: {', '.join(lacking)}"],
        revisions=revisions.missing(state.known, [last], state.heads),
        version=last,
    )


def _absent_at_the_end(
    state: State, facts: t.Mapping[str, Declared], standing: t.Mapping[str, t.Any]
) -> tuple[list[str], str, list[str]]:
    """From the last applied revision down: those that are absent as a whole, the first that is there; objections."""
    absent: list[str] = []
    at = state.rows[0]
    while True:
        if at not in standing:
            return absent, at, [f"What is there was compared down to revision {at}, and none of it is."]
        there, lacking = standing[at]
        unfinished = [step for step in there if state.catalog.is_invalid(step)]
        if there and (lacking or unfinished):
            shown = [", ".join(map(declared.words, part)) or "nothing" for part in (there, [*lacking, *unfinished])]
            return (
                absent,
                at,
                [f"Revision {at} is there in part: there: {shown[0]}; not there, or INVALID: {shown[1]}."],
            )
        if there:
            return absent, at, []
        unclear = _unclear(facts[at])
        if lacking:
            absent.append(at)
        # What makes nothing that could be looked for may be applied once more, if that comes to the same.
        elif unclear or facts[at]["steps"]:
            unclear = [f"Whether revision {at} was applied cannot be told: nothing that it makes can be looked for."]
        parents = revisions.parents(state.known, at)
        if unclear:
            return absent, at, unclear
        if len(parents) != 1:
            return absent, at, [f"Revision {at} has {len(parents)} revisions before it: there is no one to go back to."]
        at = parents[0]


def _object(step: declared.Step, catalog: declared.Catalog) -> Object:
    return Object(step["kind"], catalog.home(step), step["table"], step["name"])


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
