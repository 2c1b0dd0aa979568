#!/usr/bin/python
# Copyright: the alembic-recovery authors
# SPDX-License-Identifier: MIT
"""Bring a PostgreSQL database to an Alembic revision, one proved revision at a time."""

from __future__ import annotations

DOCUMENTATION = r"""
module: alembic_migrate
short_description: Bring a database to an Alembic revision, one proved revision at a time
description:
  - Runs the missing revisions with the application's own Alembic and unmodified C(env.py), in the application's own
    Python, each in a transaction of its own. Before the next one starts, a new connection must read the new version.
  - A revision that ends Alembic's transaction (by calling C(commit()), say) makes C(alembic upgrade) exit 0 and lose
    the
    version update and all later changes. Here the transaction is watched, and the version update is committed.
  - In Docker, it runs in a one-off container made from the application container's image and configuration, whether
    that
    container is running or not. It can be ended by its name, C(alembic-recovery-RUN-migrate), without a trace.
version_added: 0.1.0
author: The alembic-recovery authors
extends_documentation_fragment: [stack, stack.application, stack.database]
options:
  target:
    description: V(head), or the id of a revision in full. Relative revisions are refused.
    type: str
    default: head
  journal:
    description:
      - A new file on the target for a journal in JSON lines (C(0600), its directory C(0700)), with each statement,
        its
        number of executions and duration, each commit inside of a revision, and each proof, written as it happens.
      - Statements may hold literals of the application's data; their parameters are never written.
    type: path
  lock_timeout:
    description: Seconds that the migration waits for a lock; everybody else queues behind it as long. 0 is no limit.
    type: int
    default: 5
  statement_timeout:
    description: Seconds that one statement may take; 0 is no limit, whatever is set for the role or the database.
    type: int
    default: 0
  limit:
    description: The name to put into the commands that are proposed.
    type: str
    default: prod
  timeout:
    description: Seconds that the application may be silent (a revision runs no statement at all).
    type: int
    default: 7200
attributes:
  check_mode:
    support: full
    description: Returns the plan and the same C(changed); nothing is executed but reads.
  diff_mode:
    support: full
    description: The revisions before and after, and the SQL where Alembic's offline mode can give it.
  idempotent:
    support: full
    description: Nothing is done where the target has been reached.
seealso:
  - module: alembic_status
"""

EXAMPLES = r"""
- name: Apply the missing revisions
  alembic_migrate:
    database: {runtime: docker, container: mac_ki_service-postgres-1, name: aiproxy, user: aiuser}
    application: {runtime: docker, container: mac_ki_service-aiproxysrv-1, workdir: /app}
    target: d4641a241b98
    run_id: 20251021T031500Z-7f3a
"""

RETURN = r"""
before:
  description: The rows of the version table before.
  returned: always
  type: list
  elements: str
  sample: [0f864573b58a]
after:
  description: The rows of the version table afterwards, read over a new connection; in check mode, as they would be.
  returned: always
  type: list
  elements: str
  sample: [d4641a241b98]
steps:
  description: The revisions that were to be applied, in order.
  returned: always
  type: list
  elements: str
  sample: [234ea0f4b6c3, d4641a241b98]
applied:
  description:
    - For each revision that was applied and proved, its duration in seconds, how often it committed, and what was
      healed
      (V(revision_ended_transaction), V(external_transaction)).
  returned: always
  type: list
  elements: dict
  sample:
    - {revision: 234ea0f4b6c3, message: base64_encode, seconds: 1.2, commits: 2, healed: [revision_ended_transaction]}
plan:
  description: For each step its SQL, or the reason why Alembic's offline mode has none.
  returned: in check mode and in diff mode
  type: dict
  sample: {d4641a241b98: {sql: "BEGIN; CREATE TABLE song_sketches …", reason: null}}
finished_at:
  description: When the last revision was proved, on the target's clock, in UTC.
  returned: when something was applied
  type: str
  sample: "2025-10-21T03:15:42.120000+00:00"
"""

import contextlib
import os
import typing as t

from ansible.module_utils.alembic_recovery import arguments, files, migrate, status
from ansible.module_utils.alembic_recovery.errors import RecoveryError
from ansible.module_utils.alembic_recovery.verdict import Wishes
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS: dict[str, t.Any] = {
    **arguments.COMMON,
    "application": arguments.APPLICATION,
    "database": arguments.DATABASE,
    "target": {"type": "str", "default": "head"},
    "journal": {"type": "path"},
    "lock_timeout": {"type": "int", "default": 5},
    "statement_timeout": {"type": "int", "default": 0},
    "limit": {"type": "str", "default": "prod"},
    "timeout": {"type": "int", "default": 7200},
}


@contextlib.contextmanager
def open_journal(path: str | None) -> t.Iterator[t.TextIO | None]:
    """The journal's file, or nothing where none is wanted."""
    if path is None:
        yield None
        return
    files.private_directory(os.path.dirname(path))
    with files.open_private(path) as journal:
        yield journal


def prediction(seen: status.Status, steps: t.Sequence[str]) -> list[str]:
    """The rows of the version table once the steps are applied."""
    rows = {*(seen.schema.rows or ()), *steps}
    followed = {parent for step in steps for parent in seen.code.known[step]["down"]}
    return sorted(rows - followed)


def make_diff(before: t.Sequence[str], after: t.Sequence[str], plan: t.Mapping[str, t.Any]) -> list[dict[str, str]]:
    """What `--diff` shows: the version rows, then the SQL of each step."""
    versions = {
        "before_header": "version (now)",
        "after_header": "version (afterwards)",
        "before": "".join(f"{row}\n" for row in before),
        "after": "".join(f"{row}\n" for row in after),
    }
    texts = [
        {"prepared": f"-- revision {step}\n{found['sql'] or '-- no SQL without running it: ' + str(found['reason'])}\n"}
        for step, found in plan.items()
    ]
    return [versions, *texts]


def execute(module: AnsibleModule) -> dict[str, t.Any]:
    """Look, plan, and unless in check mode act; the task's result."""
    params = module.params
    places = arguments.Places(params)
    runtime, application = places.application(), params["application"]
    seen = status.look(runtime, places.database, application, Wishes(), [], timeout=float(min(params["timeout"], 600)))
    steps = migrate.choose_steps(seen, params["target"], params["limit"])
    before = sorted(seen.schema.rows or ())
    result: dict[str, t.Any] = {"before": before, "steps": steps, "applied": [], "after": prediction(seen, steps)}
    # AnsibleModule has no public name for whether a diff is wanted.
    if steps and (module.check_mode or module._diff):  # noqa: SLF001
        result["plan"] = migrate.offline_sql(runtime, application, steps, timeout=600.0)
        result["diff"] = make_diff(before, result["after"], result["plan"])
    if steps and not module.check_mode:
        limits = migrate.Limits(params["lock_timeout"], params["statement_timeout"], params["timeout"])
        with open_journal(params["journal"]) as journal:
            outcome = migrate.Migration(
                runtime,
                places.database(),
                application,
                seen,
                run_id=params["run_id"],
                limits=limits,
                journal=journal,
            ).run(steps)
        result.update(applied=outcome.applied, after=outcome.current, finished_at=outcome.finished_at)
    return {"changed": bool(steps), **result}


def main() -> None:
    """Run the module: options in, result or one clear failure out."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    arguments.choose_secrets(module)
    try:
        result = execute(module)
    except RecoveryError as error:
        module.fail_json(msg=error.message, **error.details)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
