"""The revision map of a code base as plain sets: what is applied, what is missing, and in which order it comes."""

from __future__ import annotations

import typing as t

Map = t.Mapping[str, t.Mapping[str, t.Any]]


def revision_map(revisions: t.Iterable[t.Mapping[str, t.Any]]) -> dict[str, t.Mapping[str, t.Any]]:
    """The agent's list of revisions by revision id."""
    return {revision["revision"]: revision for revision in revisions}


def parents(known: Map, revision: str) -> list[str]:
    """What a revision needs to be applied before it: its down revisions and what it depends on."""
    described = known[revision]
    return [*described["down"], *described["depends_on"]]


def with_ancestors(known: Map, revisions: t.Iterable[str]) -> set[str]:
    """The revisions and all that come before them, dependencies included; unknown ids are left out.

    What the version table's rows stand for: Alembic removes the row of a revision as soon as another one that is
    applied depends on it, so only the closure says what is there (trap 8).
    """
    found: set[str] = set()
    waiting = [revision for revision in revisions if revision in known]
    while waiting:
        revision = waiting.pop()
        if revision not in found:
            found.add(revision)
            waiting.extend(parent for parent in parents(known, revision) if parent in known)
    return found


def in_order(known: Map, revisions: t.Iterable[str]) -> list[str]:
    """The revisions so that each comes after what it needs; the same order every time."""
    chosen = set(revisions)
    waits_for = {name: chosen.intersection(parents(known, name)) for name in chosen}
    children: dict[str, list[str]] = {}
    for name, needed in waits_for.items():
        for parent in needed:
            children.setdefault(parent, []).append(name)
    ordered: list[str] = []
    ready = sorted(name for name, needed in waits_for.items() if not needed)
    while ready:
        ordered.extend(ready)
        freed: set[str] = set()
        for name in ready:
            for child in children.get(name, ()):
                waits_for[child].discard(name)
                if not waits_for[child]:
                    freed.add(child)
        ready = sorted(freed)
    # A cycle is left over: Alembic itself would have refused such scripts.
    return [*ordered, *sorted(chosen.difference(ordered))]


def missing(known: Map, rows: t.Iterable[str], targets: t.Iterable[str]) -> list[str]:
    """The revisions from what `rows` stand for up to `targets`, in the order to apply them."""
    return in_order(known, with_ancestors(known, targets) - with_ancestors(known, rows))


def redundant(known: Map, rows: t.Sequence[str]) -> list[str]:
    """Rows that another row stands for already: a version table that no Alembic wrote (fault 23)."""
    return sorted(
        row
        for row in rows
        if any(other != row and row in with_ancestors(known, [other]) for other in rows if other in known)
    )
