"""The way to a target revision, up or down: one revision at a time, each proved over a new connection before the next.

The plan is a pure function of what `status.py` saw; the deed is a dialogue with the agent.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import time
import typing as t

from ansible.module_utils.alembic_recovery import (
    agent_client,
    blockers,
    postgres,
    revisions,
    sql,
    version_tables,
)
from ansible.module_utils.alembic_recovery.attempt import Attempt, doubt
from ansible.module_utils.alembic_recovery.attempt import sentence as attempt_sentence
from ansible.module_utils.alembic_recovery.errors import AgentError, DatabaseError, RecoveryError
from ansible.module_utils.alembic_recovery.lock_waits import LockWaits
from ansible.module_utils.alembic_recovery.patience import Limits
from ansible.module_utils.alembic_recovery.runtime import Runtime
from ansible.module_utils.alembic_recovery.status import Status
from ansible.module_utils.alembic_recovery.version_tables import VersionTable

# How long the sessions of an application that was killed may take to leave the server before its state is read. With
# client_connection_check_interval the server ends them within a second or two; without, when their statement ends.
_LEAVE_TIMEOUT_S = 30.0

_LOCK_NOT_AVAILABLE = "55P03"
_STATEMENT_CANCELLED = "57014"
# While the agent is silent, it is looked who keeps it waiting: after this part of what it waits for a lock, and again,
# so often; then more seldom, and without an end: it may come to wait after a long statement. Each look is a new
# connection.
_LOOK_AFTER = 0.3
_LOOKS = 10
_THEN_AFTER = 0.5


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What was done (one dictionary for each revision), the rows afterwards, and when it ended (UTC, ISO 8601).

    `retries` has what each attempt came to that found a lock taken.
    """

    done: t.Sequence[dict[str, t.Any]]
    current: t.Sequence[str]
    finished_at: str
    retries: t.Sequence[dict[str, t.Any]] = ()


class Observer:
    """Somebody who looks at each revision of a migration; this one sees nothing."""

    def before(self, rows: t.Sequence[str]) -> None:
        """A revision is about to begin at these rows of the version table. Called once for each."""

    def heard(self, message: t.Mapping[str, t.Any]) -> None:
        """The agent has said something."""

    def after(self, message: t.Mapping[str, t.Any], rows: t.Sequence[str]) -> dict[str, t.Any]:  # noqa: ARG002
        """It has ended at these rows, and that is proved. What is returned gets into its description.

        :param message: the agent's own account of it.
        """
        return {}


def choose_steps(seen: Status, target: str, stack: str) -> list[str]:
    """The revisions to apply, in order; none if the target is there already.

    :param target: ``head``, ``heads``, or a revision id in full; never a relative one.
    :param stack: the limit to name in commands.
    :raises RecoveryError: the state does not allow it, or there is no such revision.
    """
    verdict, code = seen.verdict, seen.code
    refusals = [finding.text for finding in verdict.findings if finding.severity == "refusal"]
    if refusals or not verdict.recoverable:
        raise RecoveryError(
            " ".join(
                ["Nothing was migrated.", verdict.summary, *refusals, "Next:", verdict.next_step.format(stack=stack)]
            ),
            verdict=verdict.name,
        )
    if target in ("head", "heads"):
        return list(verdict.missing)
    if target not in code.known:
        raise RecoveryError(
            f"The code has no revision {target!r}; its heads are {', '.join(code.heads)}. Give a revision id in full, "
            "or `head`. Relative revisions (+1, -1) are not taken: after a bad restore they go astray."
        )
    lacking = {step for table in seen.tables for step in revisions.missing(code.known, table.rows or (), [target])}
    return revisions.in_order(code.known, lacking)


def offline_sql(
    runtime: Runtime,
    application: t.Mapping[str, t.Any],
    steps: t.Sequence[str],
    *,
    goals: t.Mapping[str, str] | None = None,
    timeout: float,
) -> dict[str, dict[str, t.Any]]:
    """For each step its SQL as Alembic's offline mode gives it (`sql`), or why it has none (`reason`).

    :param goals: for steps down, see `downgrade.goals`.
    :raises AgentError: the application could not be asked.
    """
    request = {
        **agent_client.base_request(application),
        "command": "plan",
        "steps": list(steps),
        "goals": dict(goals or {}),
        # A revision may open a connection of its own, even in offline mode: it must not write.
        "settings": {"default_transaction_read_only": "on", "application_name": "alembic-recovery:plan"},
    }
    messages = agent_client.ask(runtime, application["python"], request, timeout=timeout)
    return {
        message["revision"]: {"sql": message["sql"], "reason": message["reason"]}
        for message in messages
        if message["event"] == "plan"
    }


class Migration:
    """The deed: a dialogue with one agent process, with a journal of what it says."""

    def __init__(
        self,
        runtime: Runtime,
        database: postgres.Database,
        application: t.Mapping[str, t.Any],
        seen: Status,
        *,
        run_id: str,
        limits: Limits,
        journal: t.TextIO | None,
        heal: bool = True,
        measure: bool = False,
        observers: t.Sequence[Observer] = (),
        beside: postgres.Database | None = None,
        terminate: bool = False,
        needed: t.Sequence[t.Mapping[str, t.Any]] = (),
    ) -> None:
        """:param measure: the agent watches locks (for an observer that reports them).

        :param beside: another database of the server, from which it is looked who keeps the migration waiting.
        :param terminate: whoever that is, is ended.
        :param needed: the locks that a rehearsal has seen, see `measuring.described_locks`.
        """
        self._runtime = runtime
        self._database = database
        self._application = application
        self._seen = seen
        self._limits = limits
        self._journal = journal
        self._heal = heal
        self._measure = measure
        self._observers = observers
        self._session_name = f"alembic-recovery:{run_id}:migrate"[:63]
        self._rows = sorted(seen.schema.rows or ())
        self._tables = list(seen.tables)
        self._attempt = Attempt()
        self._watch = blockers.Watch(beside or database, seen.identity.get("name", ""), self._session_name)
        self._waits = LockWaits(self._watch, limits.patience, self._note, terminate=terminate)
        self._needed = needed
        self._started: str | None = None
        self._down = False

    def run(self, steps: t.Sequence[str], *, goals: t.Mapping[str, str] | None = None) -> Outcome:
        """Take the steps in order, each in a transaction of its own.

        :param goals: the steps are revisions to undo, see `downgrade.goals`; without, they are to be applied.
        :raises AgentError: a revision failed, or could not be proved; the message says where the database is now.
        """
        done: list[dict[str, t.Any]] = []
        self._down = goals is not None
        request = {
            **agent_client.base_request(self._application),
            "command": "downgrade" if self._down else "upgrade",
            "steps": list(steps),
            "goals": dict(goals or {}),
            "settings": self._settings(),
            "heal": self._heal,
            "measure": self._measure,
        }
        if steps:
            self._wait_for_others(steps)
        self._look_before()
        self._waits.begin()
        while True:
            try:
                self._talk({**request, "steps": list(steps[len(done) :])}, done, len(steps))
                break
            except RecoveryError as error:
                explained, pause = self._explained(error, steps, done)
                if pause is None:
                    raise explained from error
                time.sleep(pause)
        return Outcome(done, self._rows, datetime.datetime.now(datetime.timezone.utc).isoformat(), self._waits.retries)

    def _wait_for_others(self, steps: t.Sequence[str]) -> None:
        """Nothing is begun while somebody keeps a lock that one of the revisions will need.

        The first of several would be applied, and stay, before another one finds that out.

        Without a bound for the wait, any transaction would be too old, and the revisions wait for it anyway.

        :raises AgentError: somebody keeps it for too long.
        """
        if not self._limits.lock:
            return
        self._waits.begin()
        while True:
            self._watch.look_ahead(self._database, self._needed, self._limits.lock)
            if not self._watch.seen:
                return
            pause, said = self._waits.failed(steps[0], clean=True)
            if pause is None:
                relations = ", ".join(sorted({lock["relation"] for lock in self._needed}))
                facts = {f"not_{self._word}": list(steps), self._word: [], "lock_retries": self._waits.retries}
                facts["blockers"] = [dataclasses.asdict(blocker) for blocker in self._watch.seen]
                raise AgentError(
                    f"No revision was begun: locks that they took in the rehearsal ({relations}) are held by others. "
                    f"{' '.join(said)} The database is at {', '.join(self._rows) or 'no revision'}.",
                    sqlstate=_LOCK_NOT_AVAILABLE,
                    **facts,
                )
            time.sleep(pause)

    def _talk(self, request: dict[str, t.Any], done: list[dict[str, t.Any]], steps: int) -> None:
        """One process of the agent, which takes the steps that are left, until it ends or one fails."""
        lock = self._limits.lock
        meanwhile = agent_client.Meanwhile(self._watch.look, lock * _LOOK_AFTER, _LOOKS, lock * _THEN_AFTER)
        with agent_client.dialogue(
            self._runtime,
            self._application["python"],
            request,
            act=True,
            purpose="migrate",
            on_message=self._note,
        ) as talk:
            for message in talk.messages(self._limits.silence, meanwhile if lock else None):
                if message["event"] in ("applied", "undone"):
                    self._prove(message["revision"])
                    done.append({**self._described(message), "attempts": self._waits.attempts})
                    self._waits.begin()
                    if len(done) < steps:
                        self._look_before()
                    talk.go()

    def _look_before(self) -> None:
        # The other way round than afterwards: who comes first sees nothing of what the others do.
        for observer in reversed(self._observers):
            observer.before(self._rows)

    def _settings(self) -> dict[str, str]:
        settings = {
            "application_name": self._session_name,
            "lock_timeout": f"{self._limits.lock}s",
            "statement_timeout": f"{self._limits.statement.seconds}s",
        }
        if self._seen.identity.get("server_version_num", 0) >= 140000:
            # Lets the server notice within a second that this process was killed, and free its locks.
            settings["client_connection_check_interval"] = "1s"
        return settings

    def _prove(self, revision: str) -> None:
        """From a new connection: each version table stands for all that was there, with or without this revision."""
        known = self._seen.code.known
        found = self._read_tables()
        for before, after in zip(self._tables, found):
            there = revisions.with_ancestors(known, before.rows or ())
            expected = there - {revision} if self._down else there | {revision}
            if revisions.with_ancestors(known, after.rows or ()) != expected:
                raise AgentError(
                    f"Alembic reported revision {revision} as {self._word}, but a new connection reads "
                    f"{', '.join(after.rows or ()) or 'no row'} from {after.shown}: it was rolled back.",
                    kind="not_proved",
                )
        self._tables = found
        self._rows = version_tables.rows(found) or []
        self._note({"event": "proved", "revision": revision, "rows": self._rows})

    def _read_tables(self) -> list[VersionTable]:
        queries = {table.path: f"select version_num from {table.path}" for table in self._tables}
        answers = self._database.ask_all(queries)
        return [
            dataclasses.replace(table, rows=sorted(row["version_num"] for row in answers[table.path]))
            for table in self._tables
        ]

    def _described(self, message: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
        # What goes wrong from here on is no fault of the revision.
        self._started = None
        described = self._seen.code.known[message["revision"]]
        found = {
            "revision": message["revision"],
            "message": described["message"],
            "seconds": message["seconds"],
            "commits": message["commits"],
            "healed": message["healed"],
        }
        for observer in self._observers:
            found.update(observer.after(message, self._rows))
        return found

    def _is_done(self, step: str, tables: t.Sequence[VersionTable]) -> bool:
        known = self._seen.code.known
        return all((step in revisions.with_ancestors(known, table.rows or ())) != self._down for table in tables)

    @property
    def _word(self) -> str:
        return "undone" if self._down else "applied"

    def _explained(
        self, error: RecoveryError, steps: t.Sequence[str], done: t.Sequence[t.Mapping[str, t.Any]]
    ) -> tuple[AgentError, float | None]:
        """The error, with what a new connection says of where the database is now; seconds until another attempt."""
        names = [item["revision"] for item in done]
        left = [step for step in steps if step not in names]
        facts: dict[str, t.Any] = {"failed_revision": self._started, "reason": error.message}
        said = [error.message if error.message.endswith((".", "!", "?")) else f"{error.message}."]
        kept, pause = self._attempt.unproved, None
        try:
            self._wait_until_gone()
            found = self._read_tables()
            rows = version_tables.rows(found) or []
            left = [step for step in left if not self._is_done(step, found)]
            facts["current"] = rows
            kept = self._attempt.kept(self._database)
            if error.details.get("sqlstate") == _LOCK_NOT_AVAILABLE and len(done) < len(steps):
                clean = (
                    kept is None
                    and not self._attempt.doubtful
                    and [table.rows for table in found] == [table.rows for table in self._tables]
                )
                pause, blocked = self._waits.failed(steps[len(done)], clean=clean)
                said += blocked
                facts["blockers"] = [dataclasses.asdict(blocker) for blocker in self._watch.seen]
            elif error.details.get("sqlstate") == _STATEMENT_CANCELLED and self._limits.statement.seconds:
                limit = self._limits.statement
                said.append(
                    f"A statement may take {limit.seconds} s ({limit.reason}); for more: -e migrate_statement_timeout="
                    f"{2 * limit.seconds}."
                )
            where = f"The database is at {', '.join(rows) or 'no revision'} (read over a new connection)"
        except RecoveryError as unread:
            where = f"Where the database is now could not be read ({unread.message})"
        said.append(
            f"{where}; {self._word} and proved in this run: {', '.join(names) or 'nothing'}; not {self._word}: "
            f"{', '.join(left) or 'nothing'}."
        )
        if left and left[0] == self._attempt.revision and kept is not None:
            said.append(attempt_sentence(left[0], kept))
            facts["kept"] = kept
        elif left and left[0] == self._attempt.revision and self._attempt.doubtful:
            said.append(doubt(left[0]))
        facts.update({self._word: list(done), f"not_{self._word}": left, "lock_retries": self._waits.retries})
        return AgentError(" ".join(said), **{**error.details, **facts}), pause

    def _wait_until_gone(self) -> None:
        """Until no session of this migration is left: only then what is read is what will stay."""
        deadline = time.monotonic() + _LEAVE_TIMEOUT_S
        query = f"select pid from pg_stat_activity where application_name = {sql.literal(self._session_name)}"
        while self._is_busy(query, deadline):
            if time.monotonic() > deadline:
                raise RecoveryError(f"sessions named {self._session_name} are still at work in it")
            time.sleep(0.3)

    def _is_busy(self, query: str, deadline: float) -> bool:
        """Whether the sessions are there; a server that starts again after a crash is busy, too."""
        try:
            return bool(self._database.ask(query))
        except DatabaseError as error:
            if error.details.get("sqlstate") or time.monotonic() > deadline:
                raise
            return True

    def _note(self, message: t.Mapping[str, t.Any]) -> None:
        """Keep a message at once: a run that is killed leaves its journal."""
        if message["event"] == "starting":
            self._started = message["revision"]
            commits = bool(self._seen.code.known.get(self._started, {}).get("commits"))
            self._attempt = Attempt(self._started, calls_commit=commits)
            self._watch.forget()
        self._attempt.heard(message)
        for observer in self._observers:
            observer.heard(message)
        if self._journal is not None:
            now = datetime.datetime.now(datetime.timezone.utc).isoformat()
            self._journal.write(json.dumps({"at": now, **message}) + "\n")
            self._journal.flush()
