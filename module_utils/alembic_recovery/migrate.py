"""The way to a target revision: one revision at a time, each proved over a new connection before the next.

The plan is a pure function of what `status.py` saw; the deed is a dialogue with the agent.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import time
import typing as t

from ansible.module_utils.alembic_recovery import agent_client, postgres, revisions, sql
from ansible.module_utils.alembic_recovery.errors import AgentError, RecoveryError
from ansible.module_utils.alembic_recovery.runtime import Runtime
from ansible.module_utils.alembic_recovery.status import Status

# How long the sessions of an application that was killed may take to leave the server before its state is read. With
# client_connection_check_interval the server ends them within a second or two; without, when their statement ends.
_LEAVE_TIMEOUT_S = 30.0

_LOCK_NOT_AVAILABLE = "55P03"
# What pg_stat_activity shows of other roles' sessions is little, but names and process ids are always there.
_LOCK_HOLDERS = """
select a.pid, a.usename::text as "user", a.application_name as application, a.state,
       extract(epoch from clock_timestamp() - a.xact_start)::int as seconds
from pg_stat_activity a
where a.datname = current_database() and a.pid <> pg_backend_pid() and exists (
      select 1 from pg_locks l join pg_class c on c.oid = l.relation join pg_namespace n on n.oid = c.relnamespace
      where l.pid = a.pid and l.granted and n.nspname !~ '^pg_')
order by a.xact_start nulls last, a.pid limit 5"""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds for the migration's own session; seconds, 0 is no bound. `silence` bounds the wait for a sign of life."""

    lock: int
    statement: int
    silence: int


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What was applied (one dictionary for each revision), the rows afterwards, and when it ended (UTC, ISO 8601)."""

    applied: t.Sequence[dict[str, t.Any]]
    current: t.Sequence[str]
    finished_at: str


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
    return revisions.missing(code.known, seen.schema.rows or (), [target])


def offline_sql(
    runtime: Runtime, application: t.Mapping[str, t.Any], steps: t.Sequence[str], *, timeout: float
) -> dict[str, dict[str, t.Any]]:
    """For each step its SQL as Alembic's offline mode gives it (`sql`), or why it has none (`reason`).

    :raises AgentError: the application could not be asked.
    """
    request = {
        **_base_request(application),
        "command": "plan",
        "steps": list(steps),
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
    ) -> None:
        self._runtime = runtime
        self._database = database
        self._application = application
        self._seen = seen
        self._limits = limits
        self._journal = journal
        self._session_name = f"alembic-recovery:{run_id}:migrate"[:63]
        self._rows = sorted(seen.schema.rows or ())
        self._committing: set[str] = set()

    def run(self, steps: t.Sequence[str]) -> Outcome:
        """Apply the steps in order, each in a transaction of its own.

        :raises AgentError: a revision failed, or could not be proved; the message says where the database is now.
        """
        applied: list[dict[str, t.Any]] = []
        request = {
            **_base_request(self._application),
            "command": "upgrade",
            "steps": list(steps),
            "settings": self._settings(),
            "heal": True,
        }
        try:
            with agent_client.dialogue(
                self._runtime,
                self._application["python"],
                request,
                act=True,
                purpose="migrate",
                on_message=self._note,
            ) as talk:
                for message in talk.messages(self._limits.silence):
                    if message["event"] == "applied":
                        self._prove(message["revision"])
                        applied.append(self._described(message))
                        talk.go()
        except RecoveryError as error:
            raise self._explained(error, steps, applied) from error
        return Outcome(applied, self._rows, datetime.datetime.now(datetime.timezone.utc).isoformat())

    def _settings(self) -> dict[str, str]:
        settings = {
            "application_name": self._session_name,
            "lock_timeout": f"{self._limits.lock}s",
            "statement_timeout": f"{self._limits.statement}s",
        }
        if self._seen.identity.get("server_version_num", 0) >= 140000:
            # Lets the server notice within a second that this process was killed, and free its locks.
            settings["client_connection_check_interval"] = "1s"
        return settings

    def _prove(self, revision: str) -> None:
        """From a new connection: the version table stands for all that was there, and this revision."""
        rows = self._read_rows()
        known = self._seen.code.known
        expected = revisions.with_ancestors(known, self._rows) | {revision}
        if revisions.with_ancestors(known, rows) != expected:
            raise AgentError(
                f"Alembic reported revision {revision} as applied, but a new connection reads "
                f"{', '.join(rows) or 'no row'} from {self._seen.version_table}: it was rolled back.",
                kind="not_proved",
            )
        self._rows = rows
        self._note({"event": "proved", "revision": revision, "rows": rows})

    def _read_rows(self) -> list[str]:
        table = sql.identifier(*self._seen.version_table.split("."))
        return sorted(row["version_num"] for row in self._database.ask(f"select version_num from {table}"))

    def _described(self, message: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
        described = self._seen.code.known[message["revision"]]
        return {
            "revision": message["revision"],
            "message": described["message"],
            "seconds": message["seconds"],
            "commits": message["commits"],
            "healed": message["healed"],
        }

    def _explained(
        self, error: RecoveryError, steps: t.Sequence[str], applied: t.Sequence[t.Mapping[str, t.Any]]
    ) -> AgentError:
        """The error, with what a new connection says of where the database is now."""
        done = [item["revision"] for item in applied]
        left = [step for step in steps if step not in done]
        said = [error.message if error.message.endswith((".", "!", "?")) else f"{error.message}."]
        try:
            self._wait_until_gone()
            rows = self._read_rows()
            there = revisions.with_ancestors(self._seen.code.known, rows)
            left = [step for step in left if step not in there]
            if error.details.get("sqlstate") == _LOCK_NOT_AVAILABLE:
                said.append(self._blockers())
            where = f"The database is at {', '.join(rows) or 'no revision'} (read over a new connection)"
        except RecoveryError as unread:
            where = f"Where the database is now could not be read ({unread.message})"
        said.append(
            f"{where}; applied and proved in this run: {', '.join(done) or 'nothing'}; not applied: "
            f"{', '.join(left) or 'nothing'}."
        )
        if left and left[0] in self._committing:
            said.append(
                f"Revision {left[0]} had committed before it failed: a part of its work may have stayed. Compare it "
                "with the tables before it is run again."
            )
        return AgentError(" ".join(said), **{**error.details, "applied": list(applied), "not_applied": left})

    def _blockers(self) -> str:
        """Who holds locks on tables, for a person who has to decide whether they may be ended."""
        seen = [
            f"{row['pid']} ({row['user']}, {row['application'] or 'no name'}, {row['state'] or 'state not shown'}"
            + ("" if row["seconds"] is None else f", for {row['seconds']} s")
            + ")"
            for row in self._database.ask(_LOCK_HOLDERS)
        ]
        if not seen:
            return "Another session held a lock that it needs, and holds it no more: run it again."
        return (
            f"Another session holds a lock that it needs. Those with locks on tables now, by process id: "
            f"{', '.join(seen)}. Let it end, or end it with: select pg_terminate_backend(PID)."
        )

    def _wait_until_gone(self) -> None:
        """Until no session of this migration is left: only then what is read is what will stay."""
        deadline = time.monotonic() + _LEAVE_TIMEOUT_S
        query = f"select pid from pg_stat_activity where application_name = {sql.literal(self._session_name)}"
        while self._database.ask(query):
            if time.monotonic() > deadline:
                raise RecoveryError(f"sessions named {self._session_name} are still at work in it")
            time.sleep(0.3)

    def _note(self, message: t.Mapping[str, t.Any]) -> None:
        """Keep a message at once: a run that is killed leaves its journal."""
        if message["event"] == "commit":
            self._committing.add(message["revision"])
        if self._journal is not None:
            now = datetime.datetime.now(datetime.timezone.utc).isoformat()
            self._journal.write(json.dumps({"at": now, **message}) + "\n")
            self._journal.flush()


def _base_request(application: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    return {"config": application["alembic_config"], "section": application["alembic_section"]}
