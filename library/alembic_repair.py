#!/usr/bin/python
# Copyright: the alembic-recovery authors
# SPDX-License-Identifier: MIT
"""Put a copy of a database right whose version and tables do not agree, so that its revisions can be applied."""

from __future__ import annotations

DOCUMENTATION = r"""
module: alembic_repair
short_description: Put a copy of a database right whose version and tables do not agree
description:
  - For a copy whose state is V(PARTIAL), removes what revisions to come have left, so that they make it anew. Only what
    nobody can miss is removed, that is empty tables, columns without values, indexes and constraints, each by a
    statement of its own, without C(CASCADE).
  - For a copy whose state is V(STAMPED_NOT_APPLIED), sets the version to the revision below those that are not there as
    a whole. They must be the last ones, and the one below must be there.
  - What cannot be told is a reason to refuse, such as a revision that executes SQL of its own, or a table with rows.
  - All statements are one transaction. Before and after it the whole catalog, all rows and all contents are read, and
    nothing else may be different. Then database and code are compared anew.
  - A database that is in use is never changed. Without O(in_use), or in check mode, this module only looks.
version_added: 0.1.0
author: The alembic-recovery authors
extends_documentation_fragment: [stack, stack.application, stack.database]
options:
  partial:
    description: What becomes of a state V(PARTIAL).
    type: str
    choices: [refuse, resume]
    default: refuse
  stamped:
    description: What becomes of a state V(STAMPED_NOT_APPLIED).
    type: str
    choices: [refuse, repair]
    default: refuse
  in_use:
    description: The database that is in use, as RV(database) of a look at it, of which O(database) is a copy. It is
      required to change anything.
    type: dict
  confirmed:
    description: The statements that were confirmed, as RV(statements) of a look. If others would be needed, nothing is
      done.
    type: list
    elements: str
  restored:
    description: Whether the copy was restored from a dump. C(pg_dump) leaves out indexes that are INVALID, so what was
      confirmed of those need not be done there.
    type: bool
    default: false
  journal:
    description: A new file on the target for a journal in JSON lines (C(0600), its directory C(0700)), with each
      statement before it is executed, and what was proved.
    type: path
  limit:
    description: The name to put into the commands that are proposed.
    type: str
    default: prod
  timeout:
    description: Seconds that the application may be silent.
    type: int
    default: 120
attributes:
  check_mode:
    support: full
    description: Returns the plan and the same C(changed). A plan that is not possible is a result, with its
      RV(reasons), and not a failed task.
  diff_mode:
    support: full
    description: The statements, and in check mode the SQL of the revisions that follow, where Alembic can give it.
  idempotent:
    support: full
    description: A copy that has been put right is V(BEHIND), and nothing is done to it.
seealso:
  - module: alembic_status
  - module: alembic_migrate
"""

EXAMPLES = r"""
- name: See what would be removed from a copy
  alembic_repair:
    database: {runtime: docker, container: mac_ki_service-postgres-1, name: aiproxy, user: aiuser}
    application: {runtime: docker, container: mac_ki_service-aiproxysrv-1, workdir: /app}
    partial: resume
  check_mode: true
  register: plan

- name: Remove it from the copy
  alembic_repair:
    database: {runtime: docker, container: mac_ki_service-postgres-1, name: aiproxy_copy, user: aiuser}
    application:
      runtime: docker
      container: mac_ki_service-aiproxysrv-1
      workdir: /app
      redirect: aiproxy_copy
    partial: resume
    in_use: "{{ plan.database }}"
    confirmed: "{{ plan.statements }}"
"""

RETURN = r"""
verdict:
  description: The state that was found.
  returned: always
  type: str
  sample: PARTIAL
possible:
  description: Whether it can be put right, or need not be.
  returned: always
  type: bool
  sample: true
reasons:
  description: Why it is not, one sentence each.
  returned: always
  type: list
  elements: str
  sample: ["Table song_sketches is not removed: it has rows."]
statements:
  description: What is executed on the copy, in order.
  returned: always
  type: list
  elements: str
  sample: ['ALTER TABLE "public"."songs" DROP COLUMN "sketch_id"']
words:
  description: The same in words.
  returned: always
  type: list
  elements: str
  sample: ["remove column songs.sketch_id (no values)"]
revisions:
  description: The revisions that are to be applied afterwards, in order.
  returned: always
  type: list
  elements: str
  sample: [d4641a241b98]
database:
  description: Which database of which server was read.
  returned: always
  type: dict
  sample: {name: aiproxy, oid: 16384, system_identifier: "7410987613213532659"}
removed:
  description: What is no more in the catalog, and which columns the removed tables may have; for M(pg_catalog), which
    tells whether the revisions have made it anew.
  returned: when something was changed
  type: dict
  sample:
    structure: {columns: [{schema: public, relation: songs, name: sketch_id, type: uuid}]}
    columns: {}
seconds:
  description: How long it took.
  returned: always
  type: float
  sample: 0.412
"""

import contextlib
import datetime
import json
import os
import time
import typing as t

from ansible.module_utils.alembic_recovery import (
    arguments,
    catalog,
    files,
    migrate,
    record,
    repair,
    repair_evidence,
    repair_proof,
    status,
)
from ansible.module_utils.alembic_recovery.errors import RecoveryError, StackError
from ansible.module_utils.alembic_recovery.verdict import Wishes
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS: dict[str, t.Any] = {
    **arguments.COMMON,
    "application": arguments.APPLICATION,
    "database": arguments.DATABASE,
    "partial": {"type": "str", "choices": ["refuse", "resume"], "default": "refuse"},
    "stamped": {"type": "str", "choices": ["refuse", "repair"], "default": "refuse"},
    "in_use": {"type": "dict"},
    "confirmed": {"type": "list", "elements": "str"},
    "restored": {"type": "bool", "default": False},
    "journal": {"type": "path"},
    "limit": {"type": "str", "default": "prod"},
    "timeout": {"type": "int", "default": 120},
}
_SERVER_AND_DATABASE = ("system_identifier", "oid")


class Task:
    """One copy, what was found, and what is to be done to it."""

    def __init__(self, params: t.Mapping[str, t.Any]) -> None:
        self.params = params
        self.places = arguments.Places(params)
        self.runtime = self.places.application()
        self.seen = self.look()
        self.plan = self.choose()

    def look(self) -> status.Status:
        """Compare database and code, over new connections."""
        params = self.params
        return status.look(
            self.runtime, self.places.database, params["application"], Wishes(), [], timeout=params["timeout"]
        )

    def choose(self) -> repair.Plan:
        """The plan, from what was seen and from what the objects in question hold."""
        verdict = self.seen.verdict
        refusals = [finding.text for finding in verdict.findings if finding.severity == "refusal"]
        if verdict.name == "UNREADABLE":
            return repair.Plan(reasons=[verdict.summary])
        state, kept = repair_evidence.look(self.places.database(), self.seen)
        word = {"PARTIAL": "partial", "STAMPED_NOT_APPLIED": "stamped"}.get(state.verdict, "partial")
        return repair.choose(state, self.params[word], kept, refusals)

    def result(self) -> dict[str, t.Any]:
        """What was found, for the task's result."""
        plan = self.plan
        return {
            "verdict": self.seen.verdict.name,
            "possible": not plan.reasons,
            "reasons": list(plan.reasons),
            "statements": list(plan.statements),
            "words": list(plan.words),
            "revisions": list(plan.revisions),
            "database": dict(self.seen.identity),
        }

    def diff(self, *, with_revisions: bool) -> list[dict[str, str]]:
        """The statements; and the SQL of what is applied afterwards."""
        texts = ["-- repair\n" + "".join(f"{statement};\n" for statement in self.plan.statements)]
        if with_revisions and self.plan.revisions:
            application = self.params["application"]
            plan = migrate.offline_sql(self.runtime, application, self.plan.revisions, timeout=600.0)
            texts += [
                f"-- revision {step}\n{found['sql'] or '-- no SQL without running it: ' + str(found['reason'])}\n"
                for step, found in plan.items()
            ]
        return [{"prepared": text} for text in texts]

    def refuse(self) -> None:
        """:raises StackError: it cannot be put right, is no copy, or is not what was confirmed."""
        params, plan = self.params, self.plan
        again = f"Nothing was changed. Next: ansible-playbook playbooks/status.yml -l {params['limit']}"
        if plan.reasons:
            raise StackError(
                f"{self.seen.verdict.name} is not repaired. {' '.join(plan.reasons)} {again}", **self.result()
            )
        if not plan.statements:
            return
        in_use = params["in_use"] or {}
        if not all(in_use.get(key) for key in _SERVER_AND_DATABASE):
            raise StackError(f"A repair needs to know which database is in use (in_use), to leave it alone. {again}")
        if all(str(in_use[key]) == str(self.seen.identity.get(key)) for key in _SERVER_AND_DATABASE):
            raise StackError(
                f"{self.seen.identity['name']} is the database that is in use: only a copy of it is repaired. {again}"
            )
        confirmed = params["confirmed"]
        if confirmed is not None and repair.departs(confirmed, plan.statements, restored=params["restored"]):
            raise StackError(
                f"What would be done is no longer what was confirmed. Confirmed: {'; '.join(confirmed)}. "
                f"Now: {'; '.join(plan.statements)}. {again}"
            )

    def act(self) -> dict[str, t.Any]:
        """Execute the statements, and prove what they did."""
        database, plan, table = self.places.database(), self.plan, self.seen.tables[0]
        before = catalog.read_all(database, counts=True, content=True)
        with journal(self.params["journal"]) as note:
            note("repairing", verdict=self.seen.verdict.name, statements=list(plan.statements))
            database.act(plan.statements, at_once=True)
            after = catalog.read_all(database, counts=True, content=True)
            wrong = repair_proof.problems(before, after, plan, f"{table.schema}.{table.name}")
            now = self.look().verdict
            if now.name != "BEHIND" or list(now.missing) != list(plan.revisions):
                wrong.append(f"It is {now.name} now: {now.summary}")
            note("proved" if not wrong else "failed", problems=wrong)
        if wrong:
            raise RecoveryError(f"The copy is not what it should be after its repair. {' '.join(wrong)}")
        structure = repair_proof.taken(before["structure"], after["structure"])
        return {"removed": {"structure": structure, "columns": {key: list(plan.columns[key]) for key in plan.columns}}}


@contextlib.contextmanager
def journal(path: str | None) -> t.Iterator[t.Callable[..., None]]:
    """A function that writes an entry at once; it does nothing where no journal is wanted."""
    if path is None:
        yield lambda *_event, **_facts: None
        return
    files.private_directory(os.path.dirname(path))
    with files.open_private(path) as file:

        def note(event: str, **facts: t.Any) -> None:
            now = datetime.datetime.now(datetime.timezone.utc).isoformat()
            file.write(json.dumps({"at": now, "event": event, **facts}) + "\n")
            file.flush()

        yield note


def execute(module: AnsibleModule) -> dict[str, t.Any]:
    """Look, and unless in check mode repair; the task's result."""
    started = time.monotonic()
    task = Task(module.params)
    result = {"changed": bool(task.plan.statements), **task.result()}
    # AnsibleModule has no public name for whether a diff is wanted.
    if task.plan.statements and module._diff:  # noqa: SLF001
        result["diff"] = task.diff(with_revisions=module.check_mode)
    if not module.check_mode:
        task.refuse()
        if task.plan.statements:
            result.update(task.act())
            record.add(module.params["run_directory"], repaired=list(task.plan.statements))
    return {**result, "seconds": round(time.monotonic() - started, 3)}


def main() -> None:
    """Run the module: options in, result or one clear failure out."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    arguments.choose_secrets(module)
    try:
        with record.presence(module.params["run_directory"]):
            result = execute(module)
            arguments.refuse_masked(module, [result["statements"], result["revisions"]])
    except RecoveryError as error:
        module.fail_json(msg=error.message, **error.details)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
