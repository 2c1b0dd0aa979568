"""recover.yml from end to end on the host replica: the incident, in both variants, and runs that fail in the middle."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from replica.application import BROKEN, ENCODED, HEAD, USER, State
from replica.host import HostReplica
from replica.seed import Size
from tests.replica import behaviour
from tests.support.evidence import Seen, Witness, files, mode
from tests.support.host_runs import Everything, HostRuns, Outcome
from tests.support.songs import assert_only_the_revisions_have_changed_it, encoded, replacements

DATA = Size(songs=200, rules=200)
BACK_UP, COPY = "Make a backup and read it through", "Copy the backup off the server"
STOP, CLOSE = "Stop the services, the last one first", "Close the database, and prove that nobody is left in it"
CLONE, SWAP = "clone | Make a byte-level copy of the closed database", "Exchange the names, all in one transaction"
MIGRATE, RESTART = "Apply the missing revisions, one by one", "Restart the services in order"
SETTLE = "settle | Open the database, drop what nobody uses, start the services"
ASIDE = "count | Put the closed database aside"
LEAVE, CLOSE_AGAIN = (
    "leave | Stop the services, the last one first",
    "leave | Close the database, and prove that nobody is left in it",
)
SWAP_BACK = "swap_back | Exchange the names again, all in one transaction"
WHOLE_WAY = [BACK_UP, COPY, STOP, CLOSE, CLONE, MIGRATE, SWAP, RESTART]
RECORD = "Record in what models and catalog may differ"


def is_healthy(runs: HostRuns) -> None:
    """What users and the worker do works, over HTTPS with the CA checked."""
    for check in behaviour.HEALTHY:
        check(runs.replica.client)


@dataclass
class Incident:
    """The replica as on 2025-10-21, and what the runs came to, in order."""

    runs: HostRuns
    before: Everything
    rules: dict[int, str | None]
    rehearsal: Outcome
    after_rehearsal: Everything
    recovery: Outcome
    recovered: Everything
    second: Outcome
    after_second: Everything


@pytest.fixture(scope="class")
def incident(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Incident]:
    """Break, rehearse, recover, run again."""
    replica = HostReplica(tmp_path_factory.mktemp("untouched"))
    try:
        replica.up(data=DATA)
        behaviour.is_broken(replica.client)
        runs = HostRuns(replica)
        before, rules = runs.look(), replacements(runs.witness)
        rehearsal = runs.play("--check", "--diff")
        after_rehearsal = runs.look()
        recovery = runs.recover()
        recovered = runs.look()
        second = runs.play()
        yield Incident(runs, before, rules, rehearsal, after_rehearsal, recovery, recovered, second, runs.look())
    finally:
        replica.down()


@pytest.mark.timeout(1800)
@pytest.mark.xdist_group("recover-incident")
class TestIncident:
    """The variant with untouched rows: check mode, the recovery, a second run."""

    def test_acceptance_4_check_mode_goes_the_whole_way_and_leaves_no_trace(self, incident: Incident) -> None:
        assert incident.rehearsal.code == 0, incident.rehearsal.text
        assert incident.rehearsal.changed == [step for step in WHOLE_WAY if step not in (COPY, SWAP)]
        assert incident.rehearsal.recap()["changed"] == 6
        assert incident.after_rehearsal == incident.before

    def test_check_mode_shows_verdict_plan_and_sql(self, incident: Incident) -> None:
        words = incident.rehearsal.words
        assert f"BEHIND: The database is at {BROKEN}, the code expects {HEAD}: 2 revisions are missing." in words
        assert "Plan for aiproxy@demo:" in words
        assert "2. rehearse: restore that backup, migrate the copy, verify it, and throw it away" in words
        assert "3. stop the services (api, worker, the last one first), close aiproxy" in words
        assert f"4. clone it, apply to the clone, one by one: {ENCODED}, {HEAD}" in words
        assert "7. start, in this order: api, worker: THE OUTAGE ENDS" in words
        assert f"Revision {ENCODED} calls commit() itself" in words
        assert "ALTER TABLE songs ADD COLUMN sketch_id UUID" in words
        assert f"-{BROKEN}\n+{HEAD}\n" in incident.rehearsal.run.out
        assert "This was a rehearsal (check mode): nothing was changed." in words

    def test_acceptance_2_recover_brings_it_to_head(self, incident: Incident) -> None:
        assert incident.recovery.code == 0, incident.recovery.text
        assert incident.recovery.changed == [*WHOLE_WAY, RECORD]
        witness = incident.runs.witness
        assert witness.versions() == [HEAD]
        assert witness.has("song_sketches")
        assert witness.has("songs.sketch_id")
        is_healthy(incident.runs)

    def test_it_says_what_was_done(self, incident: Incident) -> None:
        words = incident.recovery.words
        assert f"Recovered: The database is at {HEAD}, as the code expects." in words
        assert f"Applied: {ENCODED}, {HEAD}" in words
        assert "Restarted: api, worker" in words
        assert "RUN REPORT recover.yml" in words
        for path in incident.runs.backups(incident.runs.controller_state):
            assert str(path) in "".join(incident.recovery.run.out.split())

    def test_the_rehearsal_proves_the_backup_and_names_what_going_back_would_lose(self, incident: Incident) -> None:
        words = incident.recovery.words
        assert "The backup restores: files, structure, row_counts, content, sequences, revisions" in words
        assert "public.songs cannot be read or written for about" in words
        assert f"Undoing {HEAD} is lossless." in words
        assert f"Undoing {ENCODED} is lossy. Its downgrade does not bring back the contents of" in words
        assert "public.lyric_parsing_rules.replacement" in words
        left = "select datname from pg_database where datname ~ '_(scratch|before|new|restored)_'"
        assert incident.runs.witness.query(left) == []

    def test_acceptance_3_all_other_data_is_identical(self, incident: Incident) -> None:
        assert_only_the_revisions_have_changed_it(incident.before.database, incident.recovered.database)

    def test_acceptance_3_replacements_are_what_the_revisions_rule_makes_of_them(self, incident: Incident) -> None:
        expected = {rule: encoded(text) for rule, text in incident.rules.items()}
        assert replacements(incident.runs.witness) == expected
        assert expected != incident.rules

    def test_the_database_from_before_is_kept_closed_and_is_what_it_was(self, incident: Incident) -> None:
        postgres = incident.runs.replica.postgres
        rows = incident.runs.witness.query("select datname, datallowconn from pg_database where datname ~ '^aiproxy'")
        (old,) = (name for name, is_open in rows if not is_open)
        assert sorted(rows) == [("aiproxy", True), (old, False)]
        assert f"Kept: {old}, the database from before, closed." in incident.recovery.words
        incident.runs.witness.execute(f"alter database {old} allow_connections true")
        try:
            seen, before = Witness(postgres.conninfo(old)).look(), incident.before.database
        finally:
            incident.runs.witness.execute(f"alter database {old} allow_connections false")
        assert (seen.catalog, seen.rows, seen.content, seen.sequences) == (
            before.catalog, before.rows, before.content, before.sequences,
        )  # fmt: skip

    def test_the_services_were_restarted_in_order_and_are_new(self, incident: Incident) -> None:
        before, after = incident.before.processes, incident.recovered.processes
        assert before.items().isdisjoint(after.items())
        api = min(at for line, at in after.values() if "gunicorn" in line)
        worker = min(at for line, at in after.values() if "celery" in line)
        assert api < worker

    def test_the_backup_is_on_both_sides_and_private(self, incident: Incident) -> None:
        runs = incident.runs
        target, controller = runs.backups(runs.target_state), runs.backups(runs.controller_state)
        assert {path.suffix for path in target} == {".dump", ".sql", ".json"}
        assert [path.name for path in target] == [path.name for path in controller]
        for one, other in zip(target, controller, strict=True):
            assert one.read_bytes() == other.read_bytes()
            assert mode(one) == mode(other) == 0o600
        for side in (runs.target_state, runs.controller_state):
            assert mode(side / "demo" / "backups") == 0o700
        manifest = json.loads(next(path for path in controller if path.suffix == ".json").read_text())
        dump = next(path for path in controller if path.suffix == ".dump")
        assert manifest["file"]["sha256"] == hashlib.sha256(dump.read_bytes()).hexdigest()
        assert manifest["revisions"] == [BROKEN]

    def test_the_backup_is_the_database_as_it_was(self, incident: Incident) -> None:
        """Restored, it is equal in every table and column."""
        postgres = incident.runs.replica.postgres
        dump = next(path for path in incident.runs.backups(incident.runs.controller_state) if path.suffix == ".dump")
        postgres.create_database("restored", USER)
        try:
            command = [postgres.bin_dir / "pg_restore", "--exit-on-error", "-d", postgres.conninfo("restored"), dump]
            subprocess.run(command, check=True, capture_output=True, timeout=120)
            seen, before = Witness(postgres.conninfo("restored")).look(), incident.before.database
        finally:
            postgres.drop_database("restored")
        assert (seen.catalog, seen.rows, seen.content, seen.sequences) == (
            before.catalog, before.rows, before.content, before.sequences,
        )  # fmt: skip

    def test_the_journal_is_private_and_proves_each_revision(self, incident: Incident) -> None:
        (run,) = (incident.runs.target_state / "demo" / "runs").iterdir()
        assert mode(run) == 0o700
        journal = run / "journal.jsonl"
        assert mode(journal) == 0o600
        events = [json.loads(line) for line in journal.read_text().splitlines()]
        assert [item["revision"] for item in events if item["event"] == "proved"] == [ENCODED, HEAD]
        assert incident.runs.replica.password not in journal.read_text()

    def test_nothing_else_was_left(self, incident: Incident) -> None:
        """Of files, what the recovery keeps and nothing more; no session of ours stays in the database."""
        place = str(incident.runs.replica.directory)
        new = {path for path in incident.recovered.files if path not in incident.before.files}
        roots = {Path(path).relative_to(place).parts[0] for path in new}
        assert roots == {"recovery-target", "recovery-controller"}
        assert not [path for path in new if path.endswith(".partial")]
        assert incident.before.files.items() - {place: incident.before.files[place]}.items() <= (
            incident.recovered.files.items()
        )
        ours = "select application_name from pg_stat_activity where application_name like 'alembic-recovery%'"
        assert incident.runs.witness.query(ours) == []

    def test_acceptance_4_a_second_run_changes_nothing(self, incident: Incident) -> None:
        """Without a confirmation: there is nothing to confirm."""
        assert incident.second.code == 0, incident.second.text
        assert incident.second.changed == []
        assert incident.second.recap()["changed"] == 0
        assert "nothing to do, nothing was changed" in incident.second.words
        assert incident.after_second == incident.recovered
        assert len([task for task in incident.second.done if task.is_module]) <= 5

    def test_the_number_of_tasks_is_within_its_budget(self, incident: Incident) -> None:
        """The diagnosis after at most 5 that work on a target; the rest is what each proof costs."""
        working = [task for task in incident.recovery.done if task.is_module]
        logic = [task for task in incident.recovery.done if not task.is_module]
        assert len(working) <= 40
        assert len(logic) <= 56
        verdict = [task.name for task in incident.recovery.done].index("Show the verdict")
        assert len([task for task in incident.recovery.done[:verdict] if task.is_module]) <= 5

    @pytest.mark.parametrize("playbook", ["playbooks/status.yml", "playbooks/verify.yml"])
    def test_looking_playbooks_change_nothing(self, incident: Incident, playbook: str) -> None:
        before = incident.runs.look()
        seen = incident.runs.play(playbook=playbook)
        assert seen.code == 0, seen.text
        assert (seen.changed, seen.recap()["changed"]) == ([], 0)
        assert incident.runs.look() == before

    def test_backup_playbook_makes_one_and_no_more(self, incident: Incident) -> None:
        before = incident.runs.look()
        rehearsal = incident.runs.play("--check", playbook="playbooks/backup.yml")
        assert (rehearsal.code, rehearsal.changed) == (0, [BACK_UP]), rehearsal.text
        assert incident.runs.look() == before
        seen = incident.runs.play(playbook="playbooks/backup.yml")
        assert (seen.code, seen.changed) == (0, [BACK_UP, COPY]), seen.text
        after = incident.runs.look()
        assert (after.database, after.processes) == (before.database, before.processes)
        dumps = [path for path in incident.runs.backups(incident.runs.controller_state) if path.suffix == ".dump"]
        assert len(dumps) == 2
        assert str(dumps[-1]) in "".join(seen.run.out.split())

    def test_drift_is_reported_refused_and_accepted_by_a_playbook(self, incident: Incident) -> None:
        """The recovery has recorded what it proved; what somebody does by hand is drift, until it is recorded."""
        runs = incident.runs
        baselines = runs.target_state / "demo" / "baselines"
        before = files(baselines)
        runs.witness.execute("drop index ix_songs_user_id")
        refused = runs.play()
        assert (refused.code, refused.changed) == (2, [])
        assert "Verdict: DRIFTED" in refused.words
        assert refused.failure.startswith("DRIFTED: ")
        assert "has changed: not there: index ix_songs_user_id on songs (user_id)." in refused.failure
        assert "ansible-playbook playbooks/baseline.yml -l demo" in refused.failure

        foreseen = runs.play("--check", "--diff", playbook="playbooks/baseline.yml")
        assert (foreseen.code, foreseen.changed) == (0, [RECORD]), foreseen.text
        assert "+not there: index ix_songs_user_id on songs (user_id)" in foreseen.run.out
        assert "Would be recorded: 1 difference between" in foreseen.words
        assert files(baselines) == before
        accepted = runs.play(playbook="playbooks/baseline.yml")
        assert (accepted.code, accepted.changed) == (0, [RECORD]), accepted.text
        again = runs.play(playbook="playbooks/baseline.yml")
        assert (again.code, again.changed) == (0, []), again.text
        assert "Verdict: AT_HEAD" in again.words
        assert "Recorded already: 1 difference between" in again.words


@pytest.mark.xdist_group("recover-rewritten")
class TestRewritten:
    """The variant whose worker has migrated at its start, with the API stopped."""

    @pytest.mark.thorough
    def test_acceptance_2_and_5(self, tmp_path: Path) -> None:
        """Plain Alembic exits 0 and moves nothing; recover.yml then does, though the API is not running."""
        replica = HostReplica(tmp_path / "replica")
        try:
            replica.up(variant=State.REWRITTEN, data=DATA)
            runs = HostRuns(replica)
            before, rules = runs.look(), replacements(runs.witness)
            plain = replica.alembic("upgrade", "head")
            assert plain.returncode == 0
            assert f"Running upgrade {ENCODED} -> {HEAD}" in plain.stderr
            left = runs.witness.look()
            assert (left.catalog, left.rows, left.content) == (
                before.database.catalog, before.database.rows, before.database.content,
            )  # fmt: skip
            assert runs.witness.versions() == [BROKEN]
            assert {rule: encoded(text) for rule, text in rules.items()} == rules
            replica.supervisorctl("stop", "api")

            done = runs.recover(variables={"recovery_rehearse": False})

            assert done.code == 0, done.text
            assert done.changed == [*WHOLE_WAY, RECORD]
            assert "api (supervisor unit api) is not running." in done.words
            assert runs.witness.versions() == [HEAD]
            after = runs.witness.look()
            assert_only_the_revisions_have_changed_it(before.database, after)
            assert replacements(runs.witness) == rules, "encoded twice"
            is_healthy(runs)
            assert "Running upgrade" not in replica.log("worker").read_text().rpartition("Will assume")[2]
        finally:
            replica.down()


@pytest.mark.xdist_group("recover-failures")
@pytest.mark.timeout(1800)
class TestFailuresInTheMiddle:
    """An API that refuses to start on the old schema, a revision that raises, a worker that does not come up."""

    def test_each_says_where_it_is_and_works_once_the_cause_is_removed(self, tmp_path: Path) -> None:
        replica = HostReplica(tmp_path / "replica")
        try:
            self.go_through(HostRuns(replica.up(strict_start=True, data=DATA)))
        finally:
            replica.down()

    def go_through(self, runs: HostRuns) -> None:
        """Runs that fail, each with its cause removed afterwards, and one that does not."""
        before = runs.witness.look()
        self.a_revision_raises(runs, before)
        self.a_worker_does_not_come_up(runs, before)

    def a_revision_raises(self, runs: HostRuns, before: Seen) -> None:
        """Found by the rehearsal; without one, in the outage, and taken back."""
        replica, witness = runs.replica, runs.witness
        revision = next((replica.application / "src/alembic/versions").glob(f"{HEAD}_*.py"))
        good = revision.read_text()
        revision.write_text(good.replace("def downgrade", '    op.execute("select 1/0")\n\n\ndef downgrade'))

        found = runs.recover()

        # The rehearsal finds it: the application has not noticed anything.
        assert found.code == 2, found.text
        assert found.changed == [BACK_UP, COPY]
        assert "division by zero" in found.failure
        assert "Nothing was migrated: the database is as it was. No service was stopped." in found.failure

        failed = runs.recover(variables={"recovery_rehearse": False})

        assert failed.code == 2, failed.text
        assert failed.changed == [BACK_UP, COPY, STOP, CLOSE, CLONE, SETTLE]
        after = witness.look()
        assert (after.catalog, after.rows, after.content) == (before.catalog, before.rows, before.content)
        assert list(witness.query("select datname from pg_database where datname ~ '^aiproxy'")) == [("aiproxy",)]
        assert failed.failure.startswith(f"{MIGRATE} failed: The application's Alembic in this host failed:")
        assert "division by zero" in failed.failure
        assert "Taken back: the database is open again as it was before, and nothing is left of the clone." in (
            failed.failure
        )
        assert f"Now: BEHIND, The database is at {BROKEN}, the code expects {HEAD}" in failed.failure
        dumps = [path for path in runs.backups(runs.controller_state) if path.suffix == ".dump"]
        assert f"The backup from before is in {dumps[-1]}" in failed.failure
        assert "run the same command again" in failed.failure
        assert failed.failure.endswith("ansible-playbook playbooks/status.yml -l demo")
        assert self.worker_of(runs), "the worker was not started again"

        revision.write_text(good)

    def a_worker_does_not_come_up(self, runs: HostRuns, before: Seen) -> None:
        """After the swap; the next runs say so until its cause is removed."""
        replica, witness = runs.replica, runs.witness
        start = replica.application / "bin" / "worker"
        works = start.read_text()
        start.write_text("#!/bin/sh\necho 'RuntimeError: no broker today'\nexit 1\n")

        self.it_goes_back(runs, before)

        failed = runs.recover(variables={"recovery_failed_after_swap": "stay", "recovery_rehearse": False})

        assert failed.code == 2, failed.text
        # Whether there is anything to stop depends on the moment: the supervisor may have given up both by then.
        assert [step for step in failed.changed if step != STOP] == [
            *(step for step in WHOLE_WAY[:-1] if step != STOP), SETTLE,
        ]  # fmt: skip
        assert witness.versions() == [HEAD]
        assert failed.failure.startswith(f"{RESTART} failed: worker (supervisor unit worker) was restarted and ")
        assert "Now: AT_HEAD" in failed.failure
        assert "the one from before is kept, closed" in failed.failure
        assert "ansible-playbook playbooks/rollback.yml -l demo" in failed.failure
        assert replica.client.request("/api/v1/songs").status == 200, "the API came first"

        failed = runs.recover()

        assert failed.code == 2, failed.text
        assert failed.changed == [SETTLE]
        assert "The database was not touched" in failed.failure

        replica.supervisorctl("stop", "worker")  # or it would come up by itself
        start.write_text(works)

        done = runs.recover()

        assert done.code == 0, done.text
        assert done.changed == [RESTART]
        assert_only_the_revisions_have_changed_it(before, witness.look())
        is_healthy(runs)

    @staticmethod
    def it_goes_back(runs: HostRuns, before: Seen) -> None:
        """The worker does not come up after the swap; nobody has written since."""
        failed = runs.recover(variables={"recovery_rehearse": False})

        assert failed.code == 2, failed.text
        assert failed.changed == [*WHOLE_WAY[:-1], LEAVE, CLOSE_AGAIN, ASIDE, SWAP_BACK, SETTLE]
        after = runs.witness.look()
        assert (after.catalog, after.rows, after.content) == (before.catalog, before.rows, before.content)
        assert runs.witness.versions() == [BROKEN]
        assert failed.failure.startswith(f"{RESTART} failed: worker (supervisor unit worker) was restarted and ")
        assert "RuntimeError: no broker today" in failed.failure
        assert "Gone back: nothing was written since the swap, so the database from before is in use again" in (
            failed.failure
        )
        assert "worker did not start" in failed.failure
        assert f"Now: BEHIND, The database is at {BROKEN}" in failed.failure

    @staticmethod
    def worker_of(runs: HostRuns) -> set[int]:
        return {pid for pid, (line, _) in runs.processes().items() if "celery" in line}
