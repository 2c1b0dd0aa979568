"""From evidence to exactly one verdict: pure, without a look at anything but its arguments.

The precedence, first that holds: UNREADABLE, EMPTY, UNVERSIONED, FOREIGN, AHEAD, DIVERGED, MULTIPLE_HEADS,
STAMPED_NOT_APPLIED, PARTIAL, BEHIND, DRIFTED, AT_HEAD. What else was seen is a finding with a severity.

So: what cannot be read is not judged; without a version that the code knows, nothing can be compared; without one
head to go to, nothing is missing; a version that is not true says nothing of what comes next; and a next step that is
there in part would fail half-way. What a revision declares is compared by `declared.py`; what the inventory expects at
head (`expect.relations`) only counts there.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible.module_utils.alembic_recovery import findings, revisions
from ansible.module_utils.alembic_recovery.baseline import Models, in_words
from ansible.module_utils.alembic_recovery.declared import Compared, Comparison
from ansible.module_utils.alembic_recovery.findings import Finding
from ansible.module_utils.alembic_recovery.findings import listed as _listed


@dataclasses.dataclass(frozen=True)
class Code:
    """What the application's code knows: `heads`, the revision map, or why it could not be read.

    :param declared: what the inventory says of its heads: those that are meant to be, as revision ids, branch labels
        (also `label@head`), or `heads` for all.
    :param images: local images that have what the database is ahead by; none: there was nothing to look through.
    :param unsearched: why they could not be looked through; empty: they were, or there are none.
    """

    heads: t.Sequence[str] = ()
    known: t.Mapping[str, t.Mapping[str, t.Any]] = dataclasses.field(default_factory=dict)
    error: str | None = None
    declared: t.Sequence[str] = ()
    images: t.Sequence[str] | None = None
    unsearched: str = ""


@dataclasses.dataclass(frozen=True)
class Schema:
    """What the database says, from a new connection: version rows (none: no version table), or why it is silent.

    `invalid_indexes` has the names by which SQL finds them, by those people read; `blemishes` is of `blemishes.read`.
    """

    rows: t.Sequence[str] | None = None
    tables: int = 0
    missing_relations: t.Sequence[str] = ()
    declared: Comparison = dataclasses.field(default_factory=Comparison)
    invalid_indexes: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    blemishes: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)
    models: Models | None = None
    version_width: int | None = None
    in_recovery: bool = False
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What the inventory expects: `current` before, `head` afterwards; either may be absent."""

    current: str | None = None
    head: str | None = None


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One name, why, what to do next, what will not be done, and the revisions that are missing, in order."""

    name: str
    summary: str
    next_step: str
    will_not: str
    recoverable: bool
    missing: t.Sequence[str] = ()
    findings: t.Sequence[Finding] = ()


_STATUS = "ansible-playbook playbooks/status.yml -l {stack}"
_RECOVER = "ansible-playbook recover.yml -l {stack}"
_RESTORE = (
    "; or restore a backup from before: ansible-playbook playbooks/rollback.yml -l {stack} -e rollback_way=restore"
)


def judge(code: Code, schema: Schema, wishes: Wishes) -> Verdict:
    """The verdict on one database and the code that is to work with it.

    Commands in the answer have the place holder ``{stack}`` for the limit of the run.
    """
    verdict = _judge(code, schema)
    found = [*_findings(code, schema, verdict.missing), *_contradictions(code, schema, wishes, verdict)]
    return dataclasses.replace(verdict, findings=found)


def _judge(code: Code, schema: Schema) -> Verdict:
    if schema.error or code.error:
        return _unreadable(code, schema)
    rows, known = schema.rows, code.known
    if not rows:
        return _without_version(schema)
    unknown = [row for row in rows if row not in known]
    if len(unknown) == len(rows):
        return _unknown_only(code, rows)
    if unknown:
        return Verdict(
            "DIVERGED",
            f"The database is at {_listed(rows)}; the code does not know {_listed(unknown)}.",
            "Deploy the code that has both, then: " + _STATUS,
            "Nothing is stamped, and no revision is removed from the version table.",
            False,
        )
    surplus = revisions.redundant(known, rows)
    if surplus:
        return Verdict(
            "DIVERGED",
            f"The version table has {len(rows)} rows ({_listed(rows)}), and {_listed(surplus)} already is part of the "
            "others: no Alembic wrote that. A restore into a database that was not empty does.",
            "Find out which of the rows is true, from a backup or from the tables, before anything is migrated.",
            "No relative downgrade: from here it would go back more than one revision and drop tables.",
            False,
        )
    return _known_rows(code, schema, rows)


def _known_rows(code: Code, schema: Schema, rows: t.Sequence[str]) -> Verdict:
    known = code.known
    targets = [head for head in code.heads if not _covered(code, head)]
    undeclared = [head for head in targets if head not in _declared(code)]
    if len(targets) > 1 and undeclared:
        which = "that nobody declared" if len(undeclared) == len(targets) else "and nobody declared"
        return Verdict(
            "MULTIPLE_HEADS",
            f"The code has {len(targets)} heads {which}: {_listed(undeclared)}.",
            "Merge them in the code (alembic merge) and deploy that, or name all of them in app.heads of "
            "recovery_stack if they are meant, then: " + _STATUS,
            "Heads are never merged here, and none of them is chosen.",
            False,
        )
    pending = revisions.missing(known, rows, targets)
    beyond = revisions.with_ancestors(known, rows) - revisions.with_ancestors(known, targets)
    if beyond:
        return Verdict(
            "DIVERGED",
            f"The database is at {_listed(rows)}, the code's head is {_listed(targets)}, and neither leads to the "
            "other.",
            "Deploy code whose head includes both branches, then: " + _STATUS,
            "Nothing is stamped and nothing is merged.",
            False,
        )
    lost = [item for item in schema.declared.lost if item.decisive]
    absent = [] if pending else list(schema.missing_relations)
    if lost or absent:
        return _stamped(rows, lost, absent)
    if schema.declared.partial:
        return _partial(rows, schema.declared.partial, pending)
    if pending:
        steps = "1 revision is" if len(pending) == 1 else f"{len(pending)} revisions are"
        return Verdict(
            "BEHIND",
            f"The database is at {_listed(rows)}, the code expects {_listed(targets)}: {steps} missing.",
            _RECOVER,
            "No revision is skipped, and nothing is stamped.",
            True,
            missing=pending,
        )
    if schema.models and schema.models.drift:
        return _drifted(rows, schema.models)
    return Verdict(
        "AT_HEAD",
        f"The database is at {_listed(rows)}, as the code expects.",
        "Nothing to migrate. Does the application answer? ansible-playbook playbooks/verify.yml -l {stack}",
        "Nothing is changed.",
        True,
    )


def _drifted(rows: t.Sequence[str], models: Models) -> Verdict:
    return Verdict(
        "DRIFTED",
        f"The database is at {_listed(rows)}, as the code expects. What was recorded as right at {models.recorded_at} "
        f"has changed: {findings.some(in_words(models.drift))}.",
        "There is nothing to migrate. Find out who did it, and put it right by hand, first on a copy; or, if it is "
        "meant to be so, record it: " + findings.BASELINE,
        "Nothing is made or removed to match the models, and the baseline is not changed by a look.",
        False,
    )


def _stamped(rows: t.Sequence[str], lost: t.Sequence[Compared], absent: t.Sequence[str]) -> Verdict:
    what = [_object_by_object(item) for item in lost]
    if absent:
        what.append(f"The inventory expects {_listed(absent)}: not there.")
    return Verdict(
        "STAMPED_NOT_APPLIED",
        f"The version says {_listed(rows)}, and the tables say otherwise. {' '.join(what)}",
        "Find out when the version was written without the revision (alembic stamp, a restore in part). Then set the "
        "version of a clone back to where the tables are, and apply the revisions to it: "
        f"{_RECOVER} -e recovery_stamped=repair (with --check, it only says what it would do, or why not){_RESTORE}",
        "The missing objects are not created from guesses, and the database itself is not stamped.",
        False,
    )


def _partial(rows: t.Sequence[str], partial: t.Sequence[Compared], pending: t.Sequence[str]) -> Verdict:
    return Verdict(
        "PARTIAL",
        f"The database is at {_listed(rows)}, and has a part of what comes after that. "
        + " ".join(_object_by_object(item) for item in partial),
        "Find out who made it: a revision that failed after a commit or an autocommit block, create_all() at the "
        "application's start, or a person. Then remove what nobody can miss of it from a clone, for the revisions to "
        f"make it anew: {_RECOVER} -e recovery_partial=resume (with --check, it only says what it would do, or why "
        f"not){_RESTORE}",
        "Nothing is removed from the database itself, no revision is started on top of it, and nothing is stamped.",
        False,
        missing=pending,
    )


def _object_by_object(item: Compared) -> str:
    there, absent = (_listed(names) for names in (item.there, item.absent))
    return f"Revision {item.revision}: there: {there}; not there: {absent}."


def _unreadable(code: Code, schema: Schema) -> Verdict:
    causes = [cause for cause in (schema.error, code.error) if cause]
    return Verdict(
        "UNREADABLE",
        " ".join(causes),
        "Remove the cause, then: " + _STATUS,
        "Nothing is done on a database or a code that could not be read.",
        False,
    )


def _without_version(schema: Schema) -> Verdict:
    if schema.tables == 0:
        return Verdict(
            "EMPTY",
            "The database has no tables.",
            "Is it the right database? Correct recovery_stack.database.name, or build a new one with the "
            "application's own first deployment.",
            "A database is not built from nothing here.",
            False,
        )
    what = "no version table" if schema.rows is None else "an empty version table"
    return Verdict(
        "UNVERSIONED",
        f"The database has {schema.tables} tables and {what}.",
        "Compare the tables with the revisions, or look into the last backup: which revision do they match?",
        "Nothing is stamped: a guess would skip revisions or run them twice.",
        False,
    )


def _unknown_only(code: Code, rows: t.Sequence[str]) -> Verdict:
    if not code.known:
        return Verdict(
            "FOREIGN",
            f"The database is at {_listed(rows)}, and the code has no revisions at all.",
            "Do app.workdir and app.alembic_config in recovery_stack point to the application's migrations? "
            "Then: " + _STATUS,
            "Nothing is stamped.",
            False,
        )
    return Verdict(
        "AHEAD",
        f"The database is at {_listed(rows)}, which the code does not know: it is newer than the code, or belongs to "
        "other code.",
        f"Deploy the code that has {_listed(rows)} (was an image rolled back?). {_where_else(code)} Then: " + _STATUS,
        "The version is not set back: the tables would stay as they are.",
        False,
    )


def _where_else(code: Code) -> str:
    """Which image has the revisions that the code does not know."""
    if code.unsearched:
        return f"The local images could not be looked through for it: {code.unsearched}"
    if code.images is None:
        return "Where an application runs without containers, there are no images to look for it in."
    if not code.images:
        return "No local image has it in the same place: pull the image that was deployed before."
    others = f" (so have {_listed(code.images[1:])})" if code.images[1:] else ""
    return f"Local image {code.images[0]} has it{others}: deploy that one."


def _findings(code: Code, schema: Schema, pending: t.Sequence[str]) -> list[Finding]:
    found: list[Finding] = []
    for revision in pending:
        described = code.known[revision]
        if described["commits"]:
            found.append(
                Finding(
                    "commits_itself",
                    "warning",
                    f"Revision {revision} calls commit() itself: `alembic upgrade` would report success and leave the "
                    "version where it is. Here its transaction is watched and healed.",
                )
            )
        if described["autocommit_block"]:
            found.append(
                Finding(
                    "autocommit_block",
                    "warning",
                    f"Revision {revision} uses an autocommit block: what it does there stays, even if it fails later.",
                )
            )
        if schema.version_width is not None and len(revision) > schema.version_width:
            found.append(
                Finding(
                    "version_column_too_narrow",
                    "refusal",
                    f"Revision id {revision} has {len(revision)} characters, the version column holds "
                    f"{schema.version_width}: it would fail after its changes. Widen the column first.",
                )
            )
    found.extend(findings.of_catalog(schema.invalid_indexes, schema.blemishes))
    found.extend(_removed(schema))
    found.extend(findings.of_models(schema.models))
    if schema.in_recovery:
        found.append(
            Finding("standby", "refusal", "This server is a standby: nothing can be migrated here. Name the primary.")
        )
    return found


def _removed(schema: Schema) -> list[Finding]:
    """What applied revisions have made and is not there, where that does not say that they were not applied."""
    return [
        Finding("missing_object", "warning", f"{_object_by_object(item)} Somebody seems to have removed it.")
        for item in schema.declared.lost
        if not item.decisive
    ]


def _contradictions(code: Code, schema: Schema, wishes: Wishes, verdict: Verdict) -> list[Finding]:
    """Where the inventory's plan and what is there differ. At head, the expected start no longer matters."""
    found: list[Finding] = []
    rows = list(schema.rows or ())
    if wishes.head and code.known and wishes.head not in code.heads:
        text = f"The plan expects head {wishes.head}; the code's head is {_listed(code.heads)}."
        if wishes.head not in code.known:
            text += f" The code has no revision {wishes.head}: is the right image deployed?"
        found.append(Finding("unexpected_head", "refusal", text + " Correct expect.head, or deploy the right code."))
    unmet = [word for word in code.declared if code.known and not any(_means(code, word, head) for head in code.heads)]
    if unmet:
        found.append(
            Finding(
                "declared_head_missing",
                "refusal",
                f"app.heads declares {_listed(unmet)}; the code's heads are {_listed(code.heads)}, and none of them is "
                "meant by that. Correct app.heads in recovery_stack, or deploy the right code.",
            )
        )
    if wishes.current and verdict.name not in ("AT_HEAD", "DRIFTED") and rows and rows != [wishes.current]:
        found.append(_unexpected_current(code, rows, wishes.current, verdict))
    return found


def _unexpected_current(code: Code, rows: t.Sequence[str], expected: str, verdict: Verdict) -> Finding:
    """A start that the plan does not expect. On the plan's own way it is where an earlier run has stopped."""
    if verdict.name == "BEHIND" and expected in revisions.with_ancestors(code.known, rows):
        return Finding(
            "further_than_expected",
            "warning",
            f"The plan expects the database at {expected}; it is at {_listed(rows)}, on the way from there to the "
            "head. An earlier run came so far, or somebody else did.",
        )
    return Finding(
        "unexpected_current",
        "refusal",
        f"The plan expects the database at {expected}; it is at {_listed(rows)}. Look at what has happened since the "
        "plan was made; then correct expect.current, or remove it.",
    )


def _declared(code: Code) -> set[str]:
    """The heads that the inventory declares."""
    return {head for head in code.heads for word in code.declared if _means(code, word, head)}


def _means(code: Code, word: str, head: str) -> bool:
    """Whether a declaration means this head."""
    label = word[: -len("@head")] if word.endswith("@head") else word
    return word in ("heads", head) or label in code.known[head]["branch_labels"]


def _covered(code: Code, head: str) -> bool:
    """Whether another head depends on this one: such a head is no target of its own."""
    return any(other != head and head in revisions.with_ancestors(code.known, [other]) for other in code.heads)
