"""What else was seen, beside the verdict: of the catalog, of the models, of revisions. Pure."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible.module_utils.alembic_recovery import sql
from ansible.module_utils.alembic_recovery.baseline import Models, in_words

Severity = str  # "info", "warning", or "refusal": a recovery must not go on with it
_SHOWN = 20

#: What records that all is right as it is now, with the place holder for the limit of the run.
BASELINE = "ansible-playbook playbooks/baseline.yml -l {stack}"


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something else that was seen."""

    name: str
    severity: Severity
    text: str


def listed(names: t.Iterable[str]) -> str:
    """Names in a sentence."""
    return ", ".join(names) or "nothing"


def some(names: t.Sequence[str]) -> str:
    """Longer descriptions in a sentence, and how many there are besides."""
    more = f"; and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return "; ".join(names[:_SHOWN]) + more


def of_models(models: Models | None) -> list[Finding]:
    """What models and catalog have not in common where nobody has said what is right, and revisions that were edited.

    :param models: none where nobody asked for it.
    """
    if models is None:
        return []
    found = [
        Finding(
            "edited_revision",
            "warning",
            f"Revision {name} is applied, and its file now does something else than it did when it was recorded "
            f"({recorded_at}): `alembic upgrade` does nothing about that. Put what was added into a new revision; if "
            f"it is the same for the database, record it: {BASELINE}",
        )
        for name, recorded_at in sorted(models.edited.items())
    ]
    if models.state == "no_models":
        found.append(
            Finding("no_models", "info", f"Drift is not looked for: {models.reason}, so there is nothing to compare.")
        )
    elif models.state == "failed":
        found.append(
            Finding("models_not_compared", "warning", f"Models and catalog were not compared: {models.reason}.")
        )
    elif models.differences and models.recorded_at is None:
        found.append(
            Finding(
                "no_baseline",
                "info",
                f"Models and catalog differ ({len(models.differences)}), and for this revision and code nobody has "
                f"recorded whether that is right: {some(in_words(models.differences))}. If it is: {BASELINE}",
            )
        )
    if models.gone:
        found.append(
            Finding(
                "gone_since_baseline",
                "warning",
                f"Since {models.recorded_at}, when it was recorded, somebody has removed what the models do not have: "
                f"{listed(item['object'] for item in models.gone)}. If that is right: {BASELINE}",
            )
        )
    return found


def of_catalog(invalid_indexes: t.Mapping[str, str], blemishes: t.Mapping[str, t.Any]) -> list[Finding]:
    """What is wrong in the catalog, with the statement that puts it right."""
    found: list[Finding] = []
    if invalid_indexes:
        statements = " ".join(f"REINDEX INDEX CONCURRENTLY {name};" for name in invalid_indexes.values())
        text = "Invalid indexes, left by a CREATE INDEX CONCURRENTLY that failed"
        found.append(
            Finding(
                "invalid_index",
                "warning",
                f"{text}: {listed(invalid_indexes)}. What rebuilds them, once what made them fail (duplicate "
                f"rows?) is gone: {statements}",
            )
        )
    found.extend(
        Finding(
            "constraint_not_valid",
            "warning",
            f"Constraint {row['name']} was never checked on the rows that were there before it. What checks them: "
            f"ALTER TABLE {row['table']} VALIDATE CONSTRAINT {row['name']};",
        )
        for row in blemishes.get("unchecked_constraints", ())
    )
    found.extend(
        Finding(
            "sequence_behind",
            "warning",
            f"Sequence {row['sequence']} is at {row['last_value'] or 'its start'}, {row['table']}.{row['column']} at "
            f"{row['highest']}: an INSERT will fail on a duplicate key. What sets it: SELECT "
            f"setval({sql.literal(row['sequence'])}, {row['highest']});",
        )
        for row in blemishes.get("sequences_behind", ())
    )
    if "not_read" in blemishes:
        found.append(
            Finding(
                "sequences_not_read",
                "info",
                f"Sequences were not compared with columns: {blemishes['not_read']}",
            )
        )
    return found
