"""From evidence to exactly one verdict: pure, without a look at anything but its arguments.

The precedence, first that holds: UNREADABLE, EMPTY, UNVERSIONED, FOREIGN, AHEAD, DIVERGED, MULTIPLE_HEADS, BEHIND,
STAMPED_NOT_APPLIED, AT_HEAD. What else was seen is a finding with a severity.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible.module_utils.alembic_recovery import revisions

Severity = str  # "info", "warning", or "refusal": a recovery must not go on with it


@dataclasses.dataclass(frozen=True)
class Code:
    """What the application's code knows: `heads`, the revision map, or why it could not be read."""

    heads: t.Sequence[str] = ()
    known: t.Mapping[str, t.Mapping[str, t.Any]] = dataclasses.field(default_factory=dict)
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class Schema:
    """What the database says, from a new connection: version rows (none: no version table), or why it is silent."""

    rows: t.Sequence[str] | None = None
    tables: int = 0
    missing_relations: t.Sequence[str] = ()
    invalid_indexes: t.Sequence[str] = ()
    version_width: int | None = None
    in_recovery: bool = False
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What the inventory expects: `current` before, `head` afterwards; either may be absent."""

    current: str | None = None
    head: str | None = None


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something else that was seen."""

    name: str
    severity: Severity
    text: str


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


def judge(code: Code, schema: Schema, wishes: Wishes) -> Verdict:
    """The verdict on one database and the code that is to work with it.

    Commands in the answer have the place holder ``{stack}`` for the limit of the run.
    """
    verdict = _judge(code, schema)
    findings = [*_findings(code, schema, verdict.missing), *_contradictions(code, schema, wishes, verdict)]
    return dataclasses.replace(verdict, findings=findings)


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
    if len(targets) > 1:
        return Verdict(
            "MULTIPLE_HEADS",
            f"The code has {len(targets)} heads that nobody declared: {_listed(targets)}.",
            "Merge them in the code (alembic merge), deploy that, then: " + _STATUS,
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
    if schema.missing_relations:
        return Verdict(
            "STAMPED_NOT_APPLIED",
            f"The version says {_listed(rows)}, which is the code's head, but the database has no "
            f"{_listed(schema.missing_relations)}.",
            "Find the last revision whose tables are there; restore a backup, or repair the schema by hand.",
            "The missing objects are not created from guesses, and nothing is stamped.",
            False,
        )
    return Verdict(
        "AT_HEAD",
        f"The database is at {_listed(rows)}, as the code expects.",
        "Nothing to migrate. Does the application answer? ansible-playbook playbooks/verify.yml -l {stack}",
        "Nothing is changed.",
        True,
    )


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
        f"Deploy the code that has {_listed(rows)} (was an image rolled back?), then: " + _STATUS,
        "The version is not set back: the tables would stay as they are.",
        False,
    )


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
    if schema.invalid_indexes:
        found.append(
            Finding(
                "invalid_index",
                "warning",
                f"Invalid indexes, left by a CREATE INDEX CONCURRENTLY that failed: {_listed(schema.invalid_indexes)}.",
            )
        )
    if schema.in_recovery:
        found.append(
            Finding("standby", "refusal", "This server is a standby: nothing can be migrated here. Name the primary.")
        )
    return found


def _contradictions(code: Code, schema: Schema, wishes: Wishes, verdict: Verdict) -> list[Finding]:
    """Where the inventory's plan and what is there differ. At head, the expected start no longer matters."""
    found: list[Finding] = []
    rows = list(schema.rows or ())
    if wishes.head and code.known and wishes.head not in code.heads:
        text = f"The plan expects head {wishes.head}; the code's head is {_listed(code.heads)}."
        if wishes.head not in code.known:
            text += f" The code has no revision {wishes.head}: is the right image deployed?"
        found.append(Finding("unexpected_head", "refusal", text + " Correct expect.head, or deploy the right code."))
    if wishes.current and verdict.name != "AT_HEAD" and rows and rows != [wishes.current]:
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


def _covered(code: Code, head: str) -> bool:
    """Whether another head depends on this one: such a head is no target of its own."""
    return any(other != head and head in revisions.with_ancestors(code.known, [other]) for other in code.heads)


def _listed(names: t.Iterable[str]) -> str:
    return ", ".join(names) or "nothing"
