#!/usr/bin/python
# Copyright: the alembic-recovery authors
# SPDX-License-Identifier: MIT
"""Bring a PostgreSQL database to an Alembic revision, up or down, one proved revision at a time."""

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
  - Downwards, revisions are undone in the same way, from the last one that was applied, each of them alone, also where
    the chain branches below it.
  - In Docker, it runs in a one-off container made from the application container's image and configuration, whether
    that
    container is running or not. It can be ended by its name, C(alembic-recovery-RUN-migrate), without a trace.
version_added: 0.1.0
author: The alembic-recovery authors
extends_documentation_fragment: [stack, stack.application, stack.database]
options:
  target:
    description:
      - V(head), or the id of a revision in full. Relative revisions are refused.
      - With O(direction=down), the id of a revision in full that the database has, or V(base); V(head) is refused.
    type: str
    default: head
  revisions:
    description:
      - With O(direction=down), ids of revisions in full. These are undone instead of all that are above O(target).
        Where revisions are on several branches, there is no one target below all of them.
      - One that is not applied, or that an applied one needs which is not among them, is refused.
    type: list
    elements: str
  direction:
    description: Whether missing revisions are applied (V(up)), or applied ones are undone (V(down)).
    type: str
    choices: [up, down]
    default: up
  measure:
    description:
      - Also report for each revision its locks, the growth of the database, the WAL that was written meanwhile in the
        whole server, and its slowest statements.
      - The migration's own session is asked for its locks after each statement that differs from those before it.
    type: bool
    default: false
  contents:
    description:
      - A file on the target (C(0600), its directory C(0700)) with what is there before the first revision and after
        each. It holds the catalog, row counts, and a checksum of each column, and no data.
      - With O(direction=up) it is written, and must not be there yet. Every table is read for each revision.
      - With O(direction=down) it is read, and the run is a trial, meant for a copy of the database. What is there after
        each revision is compared with what was there before its upgrade. A revision that cannot be undone ends the
        trial, and is not a failure of the task. Without this option it is one.
    type: path
  compare_with:
    description:
      - The name of another database of the same server, a copy that was made before the migration upwards. With
        O(direction=down) and O(contents), the rows that the way back did not bring back are named by primary key.
      - It is only read. Where it is not what O(contents) has recorded at O(target), nothing is undone.
    type: str
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
  lock_attempts:
    description:
      - How often a revision is tried that could not get a lock (SQLSTATE 55P03), if nothing of it was committed, which
        is proved over a new connection. Between attempts nobody queues; the pauses grow from 1 s to 30 s, and vary.
      - A revision of which something is permanent (it has called C(commit()), or was in an autocommit block) is not
        tried again. What it had run up to then is named.
    type: int
    default: 5
  lock_patience:
    description: Seconds for all attempts at one revision; no pause is begun that would end later.
    type: int
    default: 120
  terminate_blockers:
    description:
      - Whether sessions that keep the migration waiting for a lock are ended before the next attempt (V(terminate)), or
        only named (V(none)). They are named by C(pg_blocking_pids) while it waits.
      - A session that is ended loses what it has not committed, and its client gets an error. Ended are only those that
        were seen to be in the way, each told from a later one of the same number by when it started. That needs
        the role C(admin_user) of O(database) to be a superuser, or a member of C(pg_signal_backend) and
        C(pg_read_all_stats), or of the role whose session it is.
    type: str
    choices: [none, terminate]
    default: none
  statement_timeout:
    description:
      - Seconds that one statement may take; 0 is no limit, whatever is set for the role or the database.
      - V(-1) is ten times O(rehearsed_seconds), at least 60, and O(lock_timeout) besides. Without O(rehearsed_seconds)
        there is no limit then.
    type: int
    default: 0
  rehearsed_seconds:
    description: How long the slowest statement took in a rehearsal (RV(applied)'s C(longest_seconds) with O(measure)).
    type: float
  rehearsed_locks:
    description:
      - The locks that the revisions took in a rehearsal (C(relation) and C(mode), as in RV(applied)). No revision is
        begun while a transaction older than O(lock_timeout) holds one that conflicts with them; this is looked at, and
        waited for, as for a lock.
    type: list
    elements: dict
    default: []
  heal:
    description:
      - Whether to commit the version update where a revision, or C(env.py), has left it in a transaction that nobody
        commits. If not, such a revision fails, for it is not what a new connection reads.
    type: bool
    default: true
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
    description:
      - Returns the plan and the same C(changed); nothing is executed but reads.
      - Of a trial, it cannot know which downgrade fails when it is run; what the source shows is taken into account.
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

- name: Try on a copy whether the revisions can be undone without a loss
  alembic_migrate:
    database: {runtime: docker, container: mac_ki_service-postgres-1, name: aiproxy_copy, user: aiuser}
    application:
      runtime: docker
      container: mac_ki_service-aiproxysrv-1
      workdir: /app
      redirect: aiproxy_copy
    direction: down
    target: 0f864573b58a
    contents: /var/lib/alembic-recovery/prod/runs/20251021T031500Z-7f3a/contents.json
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
  description: The revisions that were to be applied, or with O(direction=down) to be undone, in order.
  returned: always
  type: list
  elements: str
  sample: [234ea0f4b6c3, d4641a241b98]
applied:
  description:
    - For each revision that was applied and proved, its duration in seconds, how often it committed, and what was
      healed
      (V(revision_ended_transaction), V(external_transaction)), and after how many attempts.
    - With O(measure), also C(locks) (for each relation that was there before, the strongest mode, for how many seconds
      it was held at most, and whether it keeps readers or writers waiting), C(growth_bytes), C(wal_bytes) (null where
      the role may not read it), C(slowest), at most five statements without literals, equal ones together, and
      C(longest_seconds), how long any single one took.
  returned: with O(direction=up)
  type: list
  elements: dict
  sample:
    - revision: 234ea0f4b6c3
      message: base64_encode
      seconds: 1.2
      commits: 2
      healed: [revision_ended_transaction]
      locks:
        - {relation: public.songs, mode: ACCESS EXCLUSIVE, seconds: 0.8, blocks_reads: true, blocks_writes: true}
      growth_bytes: 8192
      wal_bytes: 52344
      slowest: [{sql: "UPDATE lyric_parsing_rules SET …", seconds: 0.7, count: 112}]
undone:
  description:
    - The same for each revision that was undone and proved.
    - In a trial (O(contents)), also its C(verdict), V(lossless), V(lossy) or V(impossible), with the C(reason), and
      what differs now that did not differ before. C(columns) have other contents, C(rows) are how many fewer,
      C(catalog) is what was C(added) and C(removed). An impossible one is the last, and has no durations.
  returned: with O(direction=down)
  type: list
  elements: dict
  sample:
    - revision: 234ea0f4b6c3
      message: base64_encode
      seconds: 1.1
      commits: 2
      healed: [revision_ended_transaction]
      verdict: lossy
      reason: Its downgrade does not bring back the contents of public.lyric_parsing_rules.replacement.
      columns: [{table: public.lyric_parsing_rules, column: replacement}]
      rows: {}
      catalog: {}
lossy_rows:
  description:
    - Of each table that a downgrade did not bring back, the C(count) of the rows that differ from those in
      O(compare_with), in the columns that were lost, or are in one of both databases only.
    - C(keys) are the primary keys of at most 20 of them, in the order of their texts. Where the rows cannot be told (no
      primary key, a table that is not in both databases), C(count) is null and there is a C(reason).
  returned: with O(compare_with), when something was undone and the target was reached
  type: dict
  sample: {public.lyric_parsing_rules: {count: 2, keys: [{id: "17"}, {id: "3"}], reason: null}}
plan:
  description: For each step its SQL, or the reason why Alembic's offline mode has none.
  returned: in check mode and in diff mode
  type: dict
  sample: {d4641a241b98: {sql: "BEGIN; CREATE TABLE song_sketches …", reason: null}}
limits:
  description: What bounds the migration's own session, in seconds, and where the limit for statements comes from.
  returned: always
  type: dict
  sample:
    lock_timeout: 5
    lock_attempts: 5
    lock_patience: 120
    statement_timeout: 65
    statement_timeout_reason: "from the rehearsal: its slowest statement took 0.8 s; 10 times as long, at least 60 s, …"
lock_retries:
  description:
    - Each attempt at a revision that could not get a lock. C(blockers) are those it waited for, C(ended) those that
      were ended, and C(left) why others were not (with O(terminate_blockers=terminate)), C(pause) the seconds until the
      next attempt, null if it was the last.
    - It is in the result of a task that fails, too.
  returned: when revisions were run
  type: list
  elements: dict
  sample:
    - revision: d4641a241b98
      attempt: 1
      blockers: ["812 (reporting, nightly report, idle in transaction, for 812 s, since 2025-10-21T03:02:11Z), …"]
      ended: []
      left: []
      pause: 1.1
finished_at:
  description: When the last revision was proved, on the target's clock, in UTC.
  returned: when something was applied
  type: str
  sample: "2025-10-21T03:15:42.120000+00:00"
"""

import contextlib
import os
import typing as t

from ansible.module_utils.alembic_recovery import (
    arguments,
    blockers,
    downgrade,
    files,
    lossy_rows,
    measuring,
    migrate,
    patience,
    record,
    round_trip,
    status,
)
from ansible.module_utils.alembic_recovery.errors import AgentError, RecoveryError, StackError
from ansible.module_utils.alembic_recovery.verdict import Wishes
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS: dict[str, t.Any] = {
    **arguments.COMMON,
    "application": arguments.APPLICATION,
    "database": arguments.DATABASE,
    "target": {"type": "str", "default": "head"},
    "revisions": {"type": "list", "elements": "str"},
    "direction": {"type": "str", "choices": ["up", "down"], "default": "up"},
    "measure": {"type": "bool", "default": False},
    "contents": {"type": "path"},
    "compare_with": {"type": "str"},
    "journal": {"type": "path"},
    "lock_timeout": {"type": "int", "default": 5},
    "lock_attempts": {"type": "int", "default": 5},
    "lock_patience": {"type": "int", "default": 120},
    "terminate_blockers": {"type": "str", "choices": ["none", "terminate"], "default": "none"},
    "statement_timeout": {"type": "int", "default": 0},
    "rehearsed_seconds": {"type": "float"},
    "rehearsed_locks": {"type": "list", "elements": "dict", "default": []},
    "heal": {"type": "bool", "default": True},
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


def prediction(seen: status.Status, steps: t.Sequence[str], *, down: bool) -> list[str]:
    """The rows of the version table once the steps are taken."""
    rows, known = seen.schema.rows or (), seen.code.known
    if down:
        return downgrade.left_after(known, rows, steps)
    return downgrade.left_after(known, [*rows, *steps], [])


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


def limits(params: t.Mapping[str, t.Any]) -> patience.Limits:
    """The bounds of the migration's own session.

    :raises RecoveryError: one of them makes no sense.
    """
    lock, rehearsed = params["lock_timeout"], params["rehearsed_seconds"]
    found = patience.Limits(
        lock,
        patience.statement_limit(params["statement_timeout"], rehearsed, lock),
        params["timeout"],
        patience.Patience(params["lock_attempts"], params["lock_patience"]),
    )
    found.refuse_impossible()
    for needed in params["rehearsed_locks"]:
        blockers.conflicting(needed.get("mode"))
    return found


class Task:
    """The state that was found, and the way from there to the target."""

    def __init__(self, params: t.Mapping[str, t.Any]) -> None:
        self.params = params
        self.limits = limits(params)
        self.places = arguments.Places(params)
        self.runtime = self.places.application()
        self.down = params["direction"] == "down"
        self.points = round_trip.read(params["contents"]) if self.down and params["contents"] else None
        if params["compare_with"] and self.points is None:
            raise StackError("compare_with is for trials of the way back: give direction: down, and contents.")
        if params["revisions"] is not None and not self.down:
            raise StackError("revisions is for the way back: give direction: down. Upwards, give a target.")
        timeout = float(min(params["timeout"], 600))
        self.seen = status.look(
            self.runtime, self.places.database, params["application"], Wishes(), [], timeout=timeout
        )
        self.rows = sorted(self.seen.schema.rows or ())
        #: All that lead to the target, and those of them that can be taken.
        self.steps = self.choose_steps()
        self.doable, self.impossible = self.steps, None
        known = self.seen.code.known
        self.goals = downgrade.goals(known, self.rows, self.steps) if self.down else None
        if self.points is not None and self.steps:
            self.doable, self.impossible = round_trip.doable(
                known, self.rows, self.steps, self.points, self.seen.version_table
            )
        self.original = self.find_original()

    def choose_steps(self) -> list[str]:
        """The revisions to apply or to undo, in order."""
        target, limit = self.params["target"], self.params["limit"]
        if self.down:
            return downgrade.choose_steps(self.seen, target, limit, self.params["revisions"])
        return migrate.choose_steps(self.seen, target, limit)

    def find_original(self) -> lossy_rows.Original | None:
        """What the copy was at the target, where a trial that gets there is to be compared with it row by row."""
        name = self.params["compare_with"]
        if not name or self.points is None or not self.steps or self.impossible:
            return None
        original = lossy_rows.Original(self.places.database(name), self.places.database())
        end = round_trip.key(prediction(self.seen, self.steps, down=True))
        original.refuse_another(self.points[end])
        return original

    def plan(self) -> dict[str, t.Any]:
        """The SQL of the steps, and what `--diff` shows."""
        application = self.params["application"]
        plan = migrate.offline_sql(self.runtime, application, self.doable, goals=self.goals, timeout=600.0)
        after = prediction(self.seen, self.doable, down=self.down)
        return {"plan": plan, "diff": make_diff(self.rows, after, plan)}

    def act(self) -> dict[str, t.Any]:
        """Take the steps that can be taken."""
        params, word = self.params, "undone" if self.down else "applied"
        try:
            with open_journal(params["journal"]) as journal, self.observers() as observers:
                outcome = migrate.Migration(
                    self.runtime,
                    self.places.database(),
                    params["application"],
                    self.seen,
                    run_id=params["run_id"],
                    limits=self.limits,
                    journal=journal,
                    heal=params["heal"],
                    measure=params["measure"],
                    observers=observers,
                    beside=self.places.maintenance(),
                    terminate=params["terminate_blockers"] == "terminate",
                    needed=params["rehearsed_locks"],
                ).run(self.doable, goals=self.goals)
        except AgentError as error:
            verdict = round_trip.from_failure(error) if self.points is not None else None
            if verdict is None or "current" not in error.details:
                raise
            self.impossible = verdict
            return {word: error.details[word], "after": error.details["current"]}
        result: dict[str, t.Any] = {
            word: list(outcome.done),
            "after": outcome.current,
            "finished_at": outcome.finished_at,
            "lock_retries": list(outcome.retries),
        }
        if self.original is not None:
            result["lossy_rows"] = self.original.losses(lossy_rows.tables(outcome.done))
        return result

    @contextlib.contextmanager
    def observers(self) -> t.Iterator[list[migrate.Observer]]:
        """Who looks at each revision besides; what measures is first, and so sees none of the others' reads."""
        database = self.places.database()
        found: list[migrate.Observer] = [measuring.Meter(database)] if self.params["measure"] else []
        with contextlib.ExitStack() as stack:
            if self.points is not None:
                found.append(round_trip.Comparison(database, self.points, self.seen.version_table))
            elif self.params["contents"]:
                found.append(stack.enter_context(round_trip.recording(self.params["contents"], database)))
            yield found


def execute(module: AnsibleModule) -> dict[str, t.Any]:
    """Look, plan, and unless in check mode act; the task's result."""
    task = Task(module.params)
    word, directory = "undone" if task.down else "applied", module.params["run_directory"]
    after = prediction(task.seen, task.doable, down=task.down)
    result: dict[str, t.Any] = {"before": task.rows, "steps": task.steps, word: [], "after": after}
    result["limits"] = task.limits.as_result()
    # AnsibleModule has no public name for whether a diff is wanted.
    if task.doable and (module.check_mode or module._diff):  # noqa: SLF001
        result.update(task.plan())
    if task.doable and not module.check_mode:
        record.require_lock(directory)
        record.within_fence(directory, "migrating", revisions=task.steps)
        result.update(task.act())
        record.within_fence(directory, "migrated")
    if task.impossible and not module.check_mode:
        known = task.seen.code.known[task.impossible["revision"]]
        result[word].append({"message": known["message"], **task.impossible})
    if task.points is not None and not module.check_mode:
        found = [{key: item[key] for key in ("revision", "verdict", "reason")} for item in result[word]]
        record.add(directory, rehearsal={"undone": found})
    return {"changed": bool(task.doable) if module.check_mode else result["after"] != task.rows, **result}


def main() -> None:
    """Run the module: options in, result or one clear failure out."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    arguments.choose_secrets(module)
    try:
        with record.presence(module.params["run_directory"]):
            result = execute(module)
    except RecoveryError as error:
        module.fail_json(msg=error.message, **error.details)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
