"""The state of one database and its code, read from both, judged by `verdict.py`."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible.module_utils.alembic_recovery import agent_client, catalog, postgres, revisions, sql
from ansible.module_utils.alembic_recovery.errors import RecoveryError
from ansible.module_utils.alembic_recovery.runtime import Runtime
from ansible.module_utils.alembic_recovery.verdict import Code, Finding, Schema, Verdict, Wishes, judge

_CORRECT = "Correct that, then: ansible-playbook playbooks/status.yml -l {stack}"
_SERVER_ID = ("name", "oid", "server_started")


@dataclasses.dataclass(frozen=True)
class Status:
    """Everything that was seen of one database and its code, and the verdict on it."""

    verdict: Verdict
    code: Code
    schema: Schema
    identity: t.Mapping[str, t.Any]
    versions: t.Mapping[str, t.Any]
    version_table: str
    images: t.Mapping[str, str]

    def as_result(self, stack: str) -> dict[str, t.Any]:
        """The JSON form for a task's result.

        :param stack: the limit to name in commands.
        """
        verdict, known = self.verdict, self.code.known
        refusals = [finding.text for finding in verdict.findings if finding.severity == "refusal"]
        # A recovery would only refuse again.
        next_step = _CORRECT if refusals and verdict.recoverable else verdict.next_step
        return {
            "verdict": verdict.name,
            "summary": verdict.summary,
            "next_step": next_step.format(stack=stack),
            "will_not": verdict.will_not,
            "recoverable": verdict.recoverable,
            "findings": [dataclasses.asdict(finding) for finding in verdict.findings],
            "refusals": refusals,
            "current": sorted(self.schema.rows or ()),
            "heads": sorted(self.code.heads),
            "missing": [
                {"revision": name, "message": known[name]["message"], "file": known[name]["file"]}
                for name in verdict.missing
            ],
            "version_table": self.version_table,
            "revision_count": len(known),
            "database": dict(self.identity),
            "missing_relations": list(self.schema.missing_relations),
            "application": dict(self.versions),
            "images": dict(self.images),
        }


def look(
    runtime: Runtime,
    open_database: t.Callable[[], postgres.Database],
    application: t.Mapping[str, t.Any],
    wishes: Wishes,
    relations: t.Sequence[str],
    *,
    timeout: float,
) -> Status:
    """Ask the code (one process start) and the database (one new connection), and judge.

    :param application: `python`, `alembic_config`, `alembic_section`.
    :param relations: what must be there at head, as `catalog.missing_relations` takes it.
    :param timeout: seconds that the application may be silent.
    """
    answer, versions, code = _ask_code(runtime, application, timeout)
    databases = answer.get("databases") or [{}]
    table = databases[0].get("version_table") or "alembic_version"
    schema_name = databases[0].get("version_table_schema")
    identity, schema = _ask_database(open_database, table, schema_name, relations)
    verdict = judge(code, schema, wishes)
    verdict = dataclasses.replace(
        verdict, findings=[*verdict.findings, *_contradictory_sources(databases, identity, schema)]
    )
    name = f"{schema_name}.{table}" if schema_name else table
    return Status(verdict, code, schema, identity, versions, name, runtime.images)


def _ask_code(
    runtime: Runtime, application: t.Mapping[str, t.Any], timeout: float
) -> tuple[dict[str, t.Any], dict[str, t.Any], Code]:
    request = {
        "command": "status",
        "config": application["alembic_config"],
        "section": application["alembic_section"],
        "settings": {"default_transaction_read_only": "on", "application_name": "alembic-recovery:status"},
    }
    versions: dict[str, t.Any] = {}
    try:
        messages = agent_client.ask(runtime, application["python"], request, timeout=timeout)
    except RecoveryError as error:
        return {}, versions, Code(error=error.message)
    answer: dict[str, t.Any] = {}
    for message in messages:
        if message["event"] == "hello":
            versions = {key: message[key] for key in ("python", "alembic", "sqlalchemy", "workdir")}
        elif message["event"] == "status":
            answer = message
    if not answer.get("databases"):
        return {}, versions, Code(error="The application's env.py ran no migrations at all: nothing was asked of it.")
    return answer, versions, Code(heads=answer["heads"], known=revisions.revision_map(answer["revisions"]))


def _ask_database(
    open_database: t.Callable[[], postgres.Database], table: str, schema_name: str | None, relations: t.Sequence[str]
) -> tuple[dict[str, t.Any], Schema]:
    try:
        database = open_database()
        with database.snapshot() as snapshot:
            identity = snapshot.ask(postgres.IDENTITY)[0]
            place = snapshot.ask(
                f"select to_regclass({sql.literal(_path(schema_name, table))})::oid::bigint as oid, "
                f"(select a.atttypmod - 4 from pg_attribute a where a.attname = 'version_num' and a.atttypmod > 4 "
                f"and a.attrelid = to_regclass({sql.literal(_path(schema_name, table))})) as width"
            )[0]
            rows = None
            if place["oid"] is not None:
                answer = snapshot.ask(f"select version_num from {_path(schema_name, table)}")
                rows = sorted(row["version_num"] for row in answer)
        with database.snapshot(search_path=catalog.SEARCH_PATH) as snapshot:
            structure = {part: snapshot.ask(catalog.STRUCTURE[part]) for part in ("relations", "columns", "indexes")}
    except RecoveryError as error:
        return {}, Schema(error=error.message)
    tables = [row for row in structure["relations"] if row["kind"] in "rp" and row["name"] != table]
    return identity, Schema(
        rows=rows,
        tables=len(tables),
        missing_relations=catalog.missing_relations(structure, relations),
        invalid_indexes=catalog.invalid_indexes(structure),
        version_width=place["width"],
        in_recovery=identity["in_recovery"],
    )


def _contradictory_sources(
    databases: t.Sequence[t.Mapping[str, t.Any]], identity: t.Mapping[str, t.Any], schema: Schema
) -> list[Finding]:
    """Where the application migrates something else than the database that the stack describes."""
    seen = databases[0].get("database")
    if not seen or not identity:
        return []
    if any(str(seen[key]) != str(identity[key]) for key in _SERVER_ID):
        return [
            Finding(
                "other_database",
                "refusal",
                f"The application's migrations go to database {seen['name']} (oid {seen['oid']}, server started "
                f"{seen['server_started']}), the stack describes {identity['name']} (oid {identity['oid']}, server "
                f"started {identity['server_started']}). Correct recovery_stack.database, or the application's "
                "database URL.",
            )
        ]
    if sorted(databases[0]["rows"]) != sorted(schema.rows or ()):
        return [
            Finding(
                "other_version_table",
                "refusal",
                f"The application reads {databases[0]['rows']} from its version table, a connection of "
                f"{identity['user']} reads {list(schema.rows or ())}: their search paths differ. Use the application's "
                "role in recovery_stack.database.user.",
            )
        ]
    return []


def _path(schema_name: str | None, table: str) -> str:
    return sql.identifier(schema_name, table) if schema_name else sql.identifier(table)
