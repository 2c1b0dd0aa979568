"""The evidence for a way back, gathered from records, server, code and backups; the choice is `going_back.py`'s."""

from __future__ import annotations

import datetime
import os
import typing as t

from ansible.module_utils.alembic_recovery import (
    arguments,
    catalog,
    downgrade,
    dump,
    fence,
    naming,
    neighbours,
    record,
    restore,
    revisions,
    status,
    swap,
    written,
)
from ansible.module_utils.alembic_recovery.errors import RecoveryError, StackError
from ansible.module_utils.alembic_recovery.going_back import Downgrade, Evidence, Kept, Live, Restore, Written
from ansible.module_utils.alembic_recovery.verdict import Wishes

Facts = t.Mapping[str, t.Any]
Entries = t.Mapping[str, t.Mapping[str, t.Any]]

_NAMES = "select datname as name from pg_database"


def stages(facts: Facts) -> set[str]:
    """The stages that a run has come to."""
    return {str(entry["stage"]) for entry in facts["stages"]}


def online(facts: Facts) -> bool:
    """Whether a run has migrated while clients were in the database: it has backed up and restarted, and not fenced."""
    return "fencing" not in stages(facts) and {"backed_up", "starting"} <= stages(facts)


def choose_run(runs: t.Sequence[Facts], database: str, named: str | None) -> Facts | None:
    """The run to go back behind: the one that was named, else the newest that has changed something and is no rollback.

    :param runs: the records of the stack's runs, the newest first.
    :raises StackError: there is no run of that name.
    """
    ours = [run for run in runs if run["database"] == database]
    if named:
        found = [run for run in ours if run["run_id"] == named]
        if not found:
            known = ", ".join(str(run["run_id"]) for run in ours[:5]) or "none"
            raise StackError(f"There is no run {named} on {database}. The newest are: {known}.")
        return found[0]
    forward = [run for run in ours if run.get("behind") in (None, run["run_id"])]
    changed = [
        run
        for run in forward
        if "swapped" in stages(run)
        or run["stage"] in record.FENCED
        or online(run)
        # Put back under its name, with what was applied until then.
        or (run.get("in_place") and "migrating" in stages(run))
    ]
    # A run that was taken back, or that has failed before it stopped anything, is only gone back behind if there is no
    # other.
    touched = [run for run in forward if stages(run) & record.FENCED]
    return next(iter([*changed, *touched]), None)


def carried(facts: Facts | None, live: t.Mapping[str, t.Any] | None, later: t.Sequence[Facts]) -> str:
    """Which database has the application's name: `old`, `new`, `other` or `missing`, by its object id.

    :param later: the rollbacks behind this run that have been done: what they brought back is proved to be the old one.
    """
    if live is None:
        return "missing"
    if facts is None:
        return "other"
    if live["oid"] in [facts.get("live_oid"), *(run.get("new_oid") for run in later)]:
        return "old"
    return "new" if live["oid"] == facts.get("new_oid") else "other"


def find_kept(facts: Facts | None, name: str, databases: Entries) -> Kept | None:
    """The old database under another name: by its object id, whatever it is called now, else by the recorded name."""
    if facts is None:
        return None
    kinds = {other: naming.kind_of(name, other) for other in databases}
    ours = [other for other, kind in kinds.items() if kind in naming.KEPT or kind == "aside"]
    found = [other for other in ours if databases[other]["oid"] == facts.get("live_oid")]
    found += [other for other in (facts.get("aside"), facts.get("old")) if other in ours]
    if not found:
        return None
    entry = databases[found[0]]
    return Kept(
        found[0],
        oid_as_recorded=entry["oid"] == facts.get("live_oid"),
        aside=kinds[found[0]] == "aside",
        open=bool(entry["open"]),
    )


def rehearsed(facts: Facts | None, steps: t.Sequence[str]) -> tuple[bool | None, list[str], list[str]]:
    """What the run's rehearsal has found out about the way down: lossless (``None``: nothing), losses, impossible."""
    undone = {str(item["revision"]): item for item in ((facts or {}).get("rehearsal") or {}).get("undone") or []}
    if not steps or any(step not in undone for step in steps):
        impossible = [item for step, item in undone.items() if step in steps and item["verdict"] == "impossible"]
        return None, [], [f"{item['revision']}: {item['reason']}" for item in impossible]
    found = [undone[step] for step in steps]
    loss = [f"{item['revision']}: {item['reason']}" for item in found if item["verdict"] == "lossy"]
    impossible = [item for item in found if item["verdict"] == "impossible"]
    lossless = all(item["verdict"] == "lossless" for item in found)
    return lossless, loss, [f"{item['revision']}: {item['reason']}" for item in impossible]


class Before(t.NamedTuple):
    """A backup that says what was before: the path of its manifest, and the manifest; both empty if there is none."""

    path: str = ""
    manifest: Facts = {}


class Gathering:
    """Looks at everything; changes nothing."""

    def __init__(self, places: arguments.Places, params: t.Mapping[str, t.Any]) -> None:
        """:param params: the module's parameters.

        :raises RecoveryError: the server could not be asked, or there is no run of that name.
        """
        self._places = places
        self._params = params
        self._name = str(params["database"]["name"])
        self._maintenance = places.maintenance()
        # Our own run has a record, too, as soon as it has the lock; it is only meant where it is named, in a rescue.
        not_meant = params["run_id"] if params["behind"] != params["run_id"] else ""
        found = [run.facts for run in record.runs(params["directory"]) if run.facts["run_id"] != not_meant]
        self.databases = fence.entries(self._maintenance, *(row["name"] for row in self._maintenance.ask(_NAMES)))
        self.live = self.databases.get(self._name)
        # A run that was killed right after its swap has not written down that it was done.
        oid = self.live["oid"] if self.live else None
        runs: list[Facts] = [{**facts, **swap.completed(facts, oid)} for facts in found]
        self.run = choose_run(runs, self._name, params["behind"])
        mine = str(self.run["run_id"]) if self.run else ""
        later = [run for run in runs if run.get("behind") == mine != run["run_id"] and run.get("swap_xid")]
        self.is_ = carried(self.run, self.live, later)
        self.kept = find_kept(self.run, self._name, self.databases)
        #: Why something is not known, one sentence each.
        self.notes: list[str] = []
        self._own = self._own_backup()
        self._restorable = Before()
        self.manifest = self._own.manifest
        self.code = self._ask_code()
        self.code_after = self._ask_code_after()

    @property
    def is_open(self) -> bool:
        """Whether the database that has the application's name can be asked."""
        return bool(self.live and self.live["open"])

    @property
    def in_place(self) -> bool:
        """Whether the run has worked on the application's own database."""
        return bool(self.run and (self.run.get("in_place") or online(self.run)))

    def evidence(self) -> Evidence:
        """All that the choice is made from."""
        live = self._compared()
        return Evidence(
            live=live,
            in_place=self.in_place,
            kept=self.kept,
            written=self._written(),
            downgrade=self._downgrade(),
            restore=self._foreign() if self._params["foreign_backup"] else self._restore(),
        )

    # -- the database ----------------------------------------------------------------------------------------------

    def _compared(self) -> Live:
        aside = self.kept if self.kept and self.kept.aside and self.live is None else None
        where = aside.name if aside and aside.open else self._name if self.is_open else None
        if where is None or not self.manifest:
            return Live(self.is_, self.is_open)
        content = self.in_place and "content" in self.manifest
        try:
            database = self._places.database(where)
            seen = catalog.read_all(database, counts=False, content=content)
            rows = dump.revisions(database, seen["structure"], self.manifest["version_table"])
        except RecoveryError as error:
            self.notes.append(f"{where} could not be compared: {error.message}")
            return Live(self.is_, self.is_open)
        version = rows == self.manifest["revisions"]
        same = bool(seen["fingerprint"] == self.manifest["fingerprint"])
        return Live(
            self.is_,
            self.is_open,
            version_as_before=version,
            catalog_as_before=same,
            content_as_before=seen["content"] == self.manifest["content"] if content else None,
            partial=self.in_place and version and not same,
        )

    def _written(self) -> Written | None:
        since = (self.run or {}).get("swap_xid")
        if self.run is None or self.is_ != "new" or not self.is_open or not since:
            return None
        before = self.run.get("row_counts") or None
        try:
            with self._places.database().snapshot(search_path=catalog.SEARCH_PATH) as snapshot:
                low, ambiguous = written.begin(snapshot, str(since))
                tables = written.count(snapshot, low, before, self.code.version_table)
        except RecoveryError as error:
            self.notes.append(f"What was written since the swap could not be counted: {error.message}")
            return None
        if ambiguous:
            self.notes.append("The server's transaction numbers have gone round: old rows may be counted as new ones.")
        found = [table for table in tables if table.written or table.net]
        rows = sum(table.written for table in found)
        return Written(
            rows,
            sum(max(-(table.net or 0), 0) for table in found),
            [written.sentence(table) for table in found],
            self._params["accept_written"],
            self.export_path() if rows else None,
        )

    def export_path(self) -> str:
        """Where the rows that were written since the swap are saved."""
        directory, run_id = self._params["backup_directory"], self._params["run_id"]
        stem = dump.names(directory, self._name, run_id).dump
        return f"{os.path.splitext(stem)[0]}.written.jsonl"

    # -- the code --------------------------------------------------------------------------------------------------

    def _ask_code(self) -> status.Status:
        return self._asked(self._places, self._params["application"])

    def _ask_code_after(self) -> status.Status:
        different = self._params["code_after"]
        if not different:
            return self.code
        application = {**self._params["application"], **different}
        return self._asked(arguments.Places({**self._params, "application": application}), application)

    def _asked(self, places: arguments.Places, application: t.Mapping[str, t.Any]) -> status.Status:
        timeout = float(self._params["timeout"])
        return status.look(places.application(), places.database, application, Wishes(), [], timeout=timeout)

    def code_is_at(self, target: t.Sequence[str] | None) -> bool:
        """Whether the code that will run afterwards has exactly these version rows as its heads."""
        return bool(target) and sorted(self.code_after.code.heads) == sorted(target or ())

    def _downgrade(self) -> Downgrade | None:
        targets = list(self.manifest.get("revisions") or [])
        if len(targets) != 1 or self._params["foreign_backup"]:
            return None
        (target,) = targets
        code, after = self.code.code, self.code_after.code
        rows = list(self.code.schema.rows or ())
        known = all(row in code.known for row in rows)
        there = bool(rows) and known and target in revisions.with_ancestors(code.known, rows)
        steps: list[str] = []
        impossible: list[str] = []
        if there and rows != [target]:
            try:
                steps = downgrade.choose_steps(self.code, target, "{stack}")
            except RecoveryError as error:
                impossible.append(error.message)
        impossible += [
            f"{step}: its downgrade raises an error in any case."
            for step in steps
            if code.known[step]["downgrade"] == "raises"
        ]
        lossless, loss, failed = rehearsed(self.run, steps)
        return Downgrade(
            target,
            code_knows_target=None if after.error else target in after.known,
            code_knows_more=None if after.error else sorted(after.heads) != [target],
            code_has_revisions=None if code.error else there,
            impossible=[*impossible, *failed],
            lossless=lossless,
            loss=loss,
            accepted_loss=self._params["accept_loss"] or None,
            written=self._written_into_what_goes(),
        )

    def _written_into_what_goes(self) -> list[str] | None:
        """What clients have put since the swap into tables and columns that were not there before it.

        Where there was no swap, all that is in them: then it cannot be told from what the revisions have put there.
        """
        since = str((self.run or {}).get("swap_xid") or "")
        if not self.is_open or "structure" not in self.manifest:
            return None
        try:
            with self._places.database().snapshot(search_path=catalog.SEARCH_PATH) as snapshot:
                low = written.begin(snapshot, since)[0] if since and self.is_ == "new" else None
                return written.into_added(snapshot, low, self.manifest["structure"]["columns"], self.code.version_table)
        except RecoveryError as error:
            self.notes.append(f"What was written since into what a downgrade removes is not known: {error.message}")
            return None

    # -- the backups -----------------------------------------------------------------------------------------------

    def _own_backup(self) -> Before:
        if self.run is None:
            return Before()
        noted = [path for path in self.run.get("backup") or [] if str(path).endswith(".manifest.json")]
        names = dump.names(self._params["backup_directory"], self._name, str(self.run["run_id"]))
        path = next((path for path in [*noted, names.manifest] if os.path.exists(path)), "")
        manifest = self._read(path) if path else None
        return Before(path, manifest) if manifest else Before()

    def _read(self, path: str) -> Facts | None:
        try:
            manifest = dump.read_manifest(path)
        except StackError as error:
            self.notes.append(error.message)
            return None
        whole = all(key in manifest for key in ("revisions", "fingerprint", "version_table"))
        return manifest if whole else None

    def before(self, way: str | None) -> Before:
        """What there will be when a way has been gone: the backup that is compared with, or restored."""
        if self._params["foreign_backup"]:
            return Before()
        return self._restorable if way == "restore" else self._own

    def _backups(self) -> list[tuple[str, Facts]]:
        """The manifests of backups of this database: the one that was accepted by name, that of the run, the newest."""
        directory, found = self._params["backup_directory"], []
        for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else []:
            path = os.path.join(directory, name)
            manifest = self._read(path) if name.endswith(".manifest.json") else None
            if manifest is not None and manifest["database"]["name"] == self._name:
                found.append((path, manifest))
        found.sort(key=lambda item: str(item[1]["created_at"]), reverse=True)
        wanted = self._params["accept_restore"]
        if wanted:
            return [item for item in found if item[1]["run_id"] == wanted]
        return sorted(found, key=lambda item: item[0] != self._own.path)

    def _restore(self) -> Restore | None:
        who = neighbours.server(self._maintenance)
        refused: list[str] = []
        for path, manifest in self._backups():
            try:
                restore.check(restore.read(path), who, self._name, other_database=False, other_cluster=False)
            except StackError as error:
                refused.append(f"Backup {manifest['run_id']}: {error.message}")
                continue
            self._restorable = Before(path, manifest)
            created_at = str(manifest["created_at"])
            return Restore(str(manifest["run_id"]), created_at, accepted=self._params["accept_restore"])
        accepted = self._params["accept_restore"]
        if accepted and not refused:
            refused = [f"There is no backup {accepted} of {self._name} in {self._params['backup_directory']}."]
        return Restore("", "", refused) if refused else None

    def _foreign(self) -> Restore:
        path = str(self._params["foreign_backup"])
        name = os.path.basename(path.rstrip("/"))
        if not os.path.isabs(path) or not os.path.exists(path):
            return Restore(name, "", [f"{path} is not there. Give the whole path of the file on the target."])
        at = datetime.datetime.fromtimestamp(os.path.getmtime(path), datetime.timezone.utc).isoformat()
        return Restore(name, at, accepted=self._params["accept_restore"], foreign=True)


def as_result(found: Written | None) -> dict[str, t.Any] | None:
    """What was written since, for a task's result."""
    if found is None:
        return None
    return {
        "rows": found.rows,
        "fewer": found.fewer,
        "total": found.rows + found.fewer,
        "sentences": list(found.sentences),
        "export": found.exported_to or "",
    }
