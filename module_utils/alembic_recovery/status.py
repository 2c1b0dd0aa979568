"""The state of one database and its code, read from both, judged by `verdict.py`."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible.module_utils.alembic_recovery import (
    agent_client,
    baseline,
    blemishes,
    catalog,
    declared,
    images,
    postgres,
    revisions,
    sql,
    version_tables,
)
from ansible.module_utils.alembic_recovery.errors import RecoveryError
from ansible.module_utils.alembic_recovery.findings import Finding
from ansible.module_utils.alembic_recovery.runtime import DockerRuntime, Runtime
from ansible.module_utils.alembic_recovery.verdict import Code, Schema, Verdict, Wishes, judge
from ansible.module_utils.alembic_recovery.version_tables import VersionTable

_CORRECT = "Correct that, then: ansible-playbook playbooks/status.yml -l {stack}"
_SERVER_ID = ("name", "oid", "server_started")


@dataclasses.dataclass(frozen=True)
class Status:
    """Everything that was seen of one database and its code, and the verdict on it.

    `declarations` is what the revisions declare, as the agent has collected it. Where one env.py keeps several version
    tables in it, `schema.rows` has the rows of all of them.
    """

    verdict: Verdict
    code: Code
    schema: Schema
    identity: t.Mapping[str, t.Any]
    versions: t.Mapping[str, t.Any]
    tables: t.Sequence[VersionTable]
    images: t.Mapping[str, str]
    declarations: t.Mapping[str, t.Any] | None = None

    @property
    def version_table(self) -> str:
        """The version table as other modules know it: `table` or `schema.table`."""
        return version_tables.shown(self.tables)

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
            "findings": [
                {**dataclasses.asdict(finding), "text": finding.text.replace("{stack}", stack)}
                for finding in verdict.findings
            ],
            "refusals": refusals,
            "current": sorted(self.schema.rows or ()),
            "heads": sorted(self.code.heads),
            "missing": [
                {fact: known[name][fact] for fact in ("revision", "message", "file", "downgrade")}
                for name in verdict.missing
            ],
            "version_table": self.version_table,
            "revision_count": len(known),
            "database": dict(self.identity),
            "missing_relations": list(self.schema.missing_relations),
            "declared": self.schema.declared.as_result(),
            "models": self.schema.models.as_result() if self.schema.models else {},
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
    models: bool = False,
    baselines: str | None = None,
    run_id: str = "by-hand",
) -> Status:
    """Ask the code (one process start) and the database (one new connection), and judge.

    :param application: the option `application` of the modules.
    :param relations: what must be there at head, as `catalog.missing_relations` takes it.
    :param timeout: seconds that the application may be silent.
    :param models: compare the models with the catalog, too, if that is at head.
    :param baselines: where it is recorded what may differ; without, nothing is drift.
    :param run_id: for the names of containers.
    """
    answer, versions, code = _ask_code(runtime, application, timeout, models=models)
    pooler = pooler_finding(answer.get("pooler"))
    databases = _distinct(answer.get("databases") or ())
    identity, schema, tables = _ask_database(open_database, databases, relations, answer.get("declared"))
    if models and answer:
        schema = dataclasses.replace(schema, models=_assessed(answer, schema.rows or (), baselines))
    verdict = _judged(code, schema, tables, wishes)
    if verdict.name == "AHEAD" and isinstance(runtime, DockerRuntime):
        try:
            found = images.having(runtime, answer["places"], schema.rows or (), run_id=run_id)
            code = dataclasses.replace(code, images=found)
        except RecoveryError as error:  # what helps to find the code is no reason not to tell the verdict
            code = dataclasses.replace(code, unsearched=str(error))
        verdict = _judged(code, schema, tables, wishes)
    verdict = dataclasses.replace(
        verdict, findings=[*verdict.findings, *pooler, *_contradictory_sources(databases, identity, tables)]
    )
    return Status(verdict, code, schema, identity, versions, tables, runtime.images, answer.get("declared"))


def _judged(code: Code, schema: Schema, tables: t.Sequence[VersionTable], wishes: Wishes) -> Verdict:
    verdicts = [
        judge(code, dataclasses.replace(schema, rows=table.rows, version_width=table.width), wishes) for table in tables
    ]
    return version_tables.joined(code.known, tables, verdicts)


def _assessed(answer: t.Mapping[str, t.Any], rows: t.Sequence[str], directory: str | None) -> baseline.Models:
    """Models and catalog against what was recorded; a record that cannot be read is no reason to see nothing else."""
    if directory is None:
        return baseline.assess(answer, baseline.Recorded())
    seen = answer["models"][0] if len(answer["models"]) == 1 else {}
    try:
        recorded = baseline.read(directory, rows, seen.get("fingerprint"))
    except RecoveryError as error:
        return baseline.Models("failed", error.message.rstrip("."))
    return baseline.assess(answer, recorded)


def _ask_code(
    runtime: Runtime, application: t.Mapping[str, t.Any], timeout: float, *, models: bool
) -> tuple[dict[str, t.Any], dict[str, t.Any], Code]:
    request = {
        **agent_client.base_request(application),
        "command": "status",
        "models": models,
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
    known = revisions.revision_map(answer["revisions"])
    return answer, versions, Code(answer["heads"], known, declared=application.get("heads") or ())


def _ask_database(
    open_database: t.Callable[[], postgres.Database],
    databases: t.Sequence[t.Mapping[str, t.Any]],
    relations: t.Sequence[str],
    declarations: t.Mapping[str, t.Any] | None,
) -> tuple[dict[str, t.Any], Schema, list[VersionTable]]:
    """What the database says.

    :param databases: the agent's account of each version table; none where the code could not be asked.
    :param declarations: what the revisions declare, as the agent has collected it.
    """
    unread = [_described(one) for one in databases] or [VersionTable("alembic_version", None, "alembic_version")]
    try:
        database = open_database()
        with database.snapshot() as snapshot:
            identity = snapshot.ask(postgres.IDENTITY)[0]
            tables = [_read(snapshot, table) for table in unread]
        with database.snapshot(search_path=catalog.SEARCH_PATH) as snapshot:
            structure = {part: snapshot.ask(query) for part, query in blemishes.NAMES.items()}
            constraints, blemished = blemishes.read(snapshot)
    except RecoveryError as error:
        return {}, Schema(error=error.message), unread
    names = {table.name for table in tables}
    others = [row for row in structure["relations"] if row["kind"] in "rp" and row["name"] not in names]
    schema = Schema(
        rows=version_tables.rows(tables),
        tables=len(others),
        missing_relations=catalog.missing_relations(structure, relations),
        declared=declared.compare(declarations, names_in(declarations, structure, constraints)),
        invalid_indexes={
            catalog.qualified(row): sql.identifier(row["schema"], row["name"])
            for row in structure["indexes"]
            if not row["valid"]
        },
        blemishes=blemished,
        version_width=tables[0].width,
        in_recovery=identity["in_recovery"],
    )
    return identity, schema, tables


def _distinct(databases: t.Sequence[t.Mapping[str, t.Any]]) -> list[t.Mapping[str, t.Any]]:
    """Each version table once: env.py may have configured one several times, for other metadata."""
    found = {(_described(one), str(one["database"]["oid"])): one for one in databases}
    return list(found.values())


def _described(one: t.Mapping[str, t.Any]) -> VersionTable:
    name, named = one["version_table"], one["version_table_schema"]
    return VersionTable(name, named or one["found_in_schema"], f"{named}.{name}" if named else name)


def _read(snapshot: postgres.Snapshot, table: VersionTable) -> VersionTable:
    """A version table with its rows and the width of its column."""
    path, plain = sql.literal(table.path), sql.literal(sql.identifier(table.name))
    place = snapshot.ask(
        f"select to_regclass({path})::oid::bigint as oid, "
        f"(select n.nspname || '.' || c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace "
        f"where c.oid = to_regclass({plain}) and c.oid <> to_regclass({path})) as other, "
        f"to_regclass({plain}) is not distinct from to_regclass({path}) as visible, "
        f"(select a.atttypmod - 4 from pg_attribute a where a.attname = 'version_num' and a.atttypmod > 4 "
        f"and a.attrelid = to_regclass({path})) as width"
    )[0]
    if place["oid"] is None:
        return table
    rows = sorted(row["version_num"] for row in snapshot.ask(f"select version_num from {table.path}"))
    # The application's search path may lead it where the role of the stack would not look.
    known_by_name = place["visible"] or table.shown != table.name
    shown, other = table.shown, None
    if not known_by_name:
        shown, other = f"{table.schema}.{table.name}", place["other"]
    return dataclasses.replace(table, rows=rows, width=place["width"], shown=shown, hides=other)


def pooler_finding(mode: str | None) -> list[Finding]:
    """What to say of a pooler between the application and the server.

    :param mode: as the agent has found it out, see `agent_sessions.PoolerWatch`.
    """
    if mode is None:
        return []
    seen = (
        "The application's connections go through a pooler (PgBouncer, for one): the server's process is another than "
        "the one that the connection was told when it was made."
    )
    cure = (
        "Give the migrations the server's own address: app.environment in recovery_stack, with DATABASE_URL or "
        "whatever the application reads."
    )
    if mode == "session":
        return [
            Finding(
                "pooler",
                "warning",
                f"{seen} A session stays with its connection, as far as could be seen. A clone goes by a name that the "
                f"pooler may not know, and what it keeps open is in the way of the fence. {cure}",
            )
        ]
    how = {
        "transaction": "It hands a session from one connection to the next after each transaction (pool_mode = "
        "transaction): two connections, both open, were the same process."
    }.get(mode, "Whether it hands sessions from one connection to the next could not be found out.")
    return [
        Finding(
            "pooler",
            "refusal",
            f"{seen} {how} There, limits for locks and statements stay behind in sessions of others, and a lock that "
            f"env.py takes on its connection (pg_advisory_lock) is stranded. {cure}",
        )
    ]


def names_in(
    declarations: t.Mapping[str, t.Any] | None, structure: t.Mapping[str, postgres.Rows], constraints: postgres.Rows
) -> declared.Catalog:
    """The names in a catalog (`blemishes.NAMES`, `blemishes.CONSTRAINTS`), as the application's session sees them."""
    return declared.Catalog((declarations or {}).get("search_path") or (), structure, constraints)


def _contradictory_sources(
    databases: t.Sequence[t.Mapping[str, t.Any]], identity: t.Mapping[str, t.Any], tables: t.Sequence[VersionTable]
) -> list[Finding]:
    """Where the application migrates something else than the database that the stack describes."""
    if not databases or not identity:
        return []
    places = {tuple(str(one["database"][key]) for key in _SERVER_ID): one["database"]["name"] for one in databases}
    if len(places) > 1:
        return [
            Finding(
                "several_databases",
                "refusal",
                f"The application's env.py migrates {len(places)} databases at a time "
                f"({', '.join(sorted(places.values()))}), and a stack is one database: their migrations cannot be "
                "proved and taken back together. Describe a stack for each, and let its env.py migrate that one "
                "alone (app.x_arguments, app.alembic_section, app.environment).",
            )
        ]
    seen = databases[0]["database"]
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
    unlike = [
        Finding(
            "other_version_table",
            "refusal",
            f"The application reads {one['rows']} from its version table, a connection of {identity['user']} reads "
            f"{list(table.rows or ())} from {table.shown}: somebody is migrating, or they see different tables. Look "
            "again; if it stays so, use the application's role in recovery_stack.database.user.",
        )
        for one, table in zip(databases, tables)
        if sorted(one["rows"]) != sorted(table.rows or ())
    ]
    return unlike + [
        Finding(
            "version_table_by_search_path",
            "warning",
            f"The application keeps its version in {table.shown}, where its own search path leads. By the same name, a "
            f"connection of {identity['user']} would find {table.hides}: their search paths differ.",
        )
        for table in tables
        if table.hides
    ]
