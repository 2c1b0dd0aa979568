"""The way back to an older revision: which revisions are undone, in which order, and where each of them leads. Pure."""

from __future__ import annotations

import typing as t

from ansible.module_utils.alembic_recovery import revisions, version_tables
from ansible.module_utils.alembic_recovery.errors import RecoveryError
from ansible.module_utils.alembic_recovery.status import Status

BASE = "base"

# What only hinders a migration upwards.
_OF_UPGRADES = ("version_column_too_narrow",)


def choose_steps(seen: Status, target: str, stack: str, only: t.Collection[str] | None = None) -> list[str]:
    """The revisions to undo, the last one that was applied first; none if the target is where the database is.

    :param target: a revision id in full, or ``base``; never a relative one, never a head by name.
    :param stack: the limit to name in commands.
    :param only: these revisions instead of all that are above a target: on several branches there is no one target.
    :raises RecoveryError: the state does not allow it, or the target is none, or not one that can be gone back to; or
        one of `only` is not applied, or is needed by another that stays.
    """
    verdict, known, rows = seen.verdict, seen.code.known, list(seen.schema.rows or ())
    refusals = [
        finding.text
        for finding in verdict.findings
        if finding.severity == "refusal" and finding.name not in _OF_UPGRADES
    ]
    if refusals or verdict.name not in ("AT_HEAD", "BEHIND"):
        raise RecoveryError(
            " ".join(
                ["Nothing was undone.", verdict.summary, *refusals, "Next:", verdict.next_step.format(stack=stack)]
            ),
            verdict=verdict.name,
        )
    if only is None and target != BASE and target not in known:
        raise RecoveryError(
            f"Nothing was undone: the code has no revision {target!r}. To go back, give the id of a revision in full, "
            "or `base`. Heads by name and relative revisions (-1) are not taken: after a bad restore they go astray."
        )
    if version_tables.differ(known, seen.tables):
        raise RecoveryError(
            f"Nothing was undone: the {len(seen.tables)} version tables of the database are at different revisions. "
            "What is undone in one of them is not there in another: bring all of them to head first."
        )
    there = revisions.with_ancestors(known, rows)
    if only is not None:
        return _named_steps(known, rows, there, set(only))
    if target != BASE and target not in there:
        raise RecoveryError(
            f"Nothing was undone: the database is at {', '.join(rows)}, and revision {target} is not among what leads "
            "there. A revision that is not applied can only be gone up to."
        )
    return list(reversed(revisions.in_order(known, undone_by(known, there, target))))


def _named_steps(known: revisions.Map, rows: t.Sequence[str], there: set[str], only: set[str]) -> list[str]:
    absent = sorted(only - there)
    if absent:
        raise RecoveryError(
            f"Nothing was undone: the database is at {', '.join(rows)}, and {', '.join(absent)} is not among what "
            "leads there. What is not applied cannot be undone."
        )
    needed = {parent for revision in there - only for parent in revisions.parents(known, revision)} & only
    if needed:
        raise RecoveryError(
            f"Nothing was undone: {', '.join(sorted(needed))} is needed by revisions that are applied and would stay. "
            "Name these as well."
        )
    return list(reversed(revisions.in_order(known, only)))


def goals(known: revisions.Map, rows: t.Iterable[str], steps: t.Iterable[str]) -> dict[str, str]:
    """For each step what Alembic must be told so that it undoes that revision and no other.

    That is the revision below it, or ``base``; where the revisions branch there, and Alembic would undo the other
    branches as well, ``STEP@BELOW``: only the branch that leads to the step ("Working with Branches" in Alembic's
    documentation; a revision id stands for the branch that it is on).
    """
    there = revisions.with_ancestors(known, rows)
    found: dict[str, str] = {}
    for step in steps:
        below = list(known[step]["down"] or [BASE])
        alone = [goal for goal in below if undone_by(known, there, goal) == {step}]
        found[step] = alone[0] if alone else f"{step}@{below[0]}"
        there.discard(step)
    return found


def undone_by(known: revisions.Map, there: t.AbstractSet[str], target: str) -> set[str]:
    """What `alembic downgrade TARGET` undoes: all that comes after the target, and what depends on any of that."""
    if target == BASE:
        waiting = [revision for revision in there if not known[revision]["down"]]
    else:
        waiting = [revision for revision in there if target in known[revision]["down"]]
    found: set[str] = set()
    while waiting:
        revision = waiting.pop()
        if revision not in found:
            found.add(revision)
            waiting.extend(other for other in there if revision in revisions.parents(known, other))
    return found


def left_after(known: revisions.Map, rows: t.Iterable[str], steps: t.Iterable[str]) -> list[str]:
    """The rows of the version table once the steps have been undone."""
    there = revisions.with_ancestors(known, rows) - set(steps)
    needed = {parent for revision in there for parent in revisions.parents(known, revision)}
    return sorted(there - needed)
