"""playbooks/rollback.yml and playbooks/old_databases.yml from end to end on the host replica."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import yaml

from replica.application import BROKEN, ENCODED, HEAD
from replica.host import HostReplica
from replica.seed import Size
from tests.replica import behaviour
from tests.support.ansible_run import ROOT, clean_environment
from tests.support.evidence import Seen, Witness, mode
from tests.support.host_runs import Everything, HostRuns, Outcome
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

DATA = Size(songs=100, rules=100)
FIRST = 1000
"""The number of the first of these songs."""
STOP, CLOSE = (
    "leave | Stop the services, the last one first",
    "leave | Close the database, and prove that nobody is left in it",
)
ASIDE = "count | Put the closed database aside"
SAVE = "count | Save the rows that were written since the swap"
SWAP = "swap_back | Exchange the names again, all in one transaction"
RESTART = "Restart the services in order"
SWAP_BACK = [STOP, CLOSE, ASIDE, SAVE, SWAP, RESTART]


class Rollbacks(HostRuns):
    """Runs of the playbook on one replica."""

    def rollback(self, *arguments: str, check: bool = False, **variables: Any) -> Outcome:
        """Run it, confirmed."""
        options = ["--check", "--diff"] if check else []
        return self.play(
            *arguments,
            *options,
            playbook="playbooks/rollback.yml",
            variables={"recovery_confirm": "aiproxy@demo", **variables},
        )

    def server(self, statement: str) -> list[tuple[Any, ...]]:
        """Ask the server, not the application's database."""
        with psycopg.connect(self.replica.postgres.conninfo(), autocommit=True) as connection:
            answer = connection.execute(statement.encode())
            return answer.fetchall() if answer.description else []

    def databases(self) -> dict[str, tuple[int, bool]]:
        """Object ids of the application's databases, and whether they are open."""
        rows = self.server("select datname, oid::int, datallowconn from pg_database where datname ~ '^aiproxy'")
        return {name: (oid, is_open) for name, oid, is_open in rows}

    def latest(self) -> dict[str, Any]:
        """The record of the newest run."""
        records = sorted((self.target_state / "demo" / "runs").glob("*/record.json"), key=lambda p: p.stat().st_mtime)
        found: dict[str, Any] = json.loads(records[-1].read_text())
        return found

    def closed(self, name: str) -> Seen:
        """What is in a database that is closed."""
        self.server(f"alter database {name} allow_connections true")
        try:
            return Witness(self.replica.postgres.conninfo(name)).look()
        finally:
            self.server(f"alter database {name} allow_connections false")

    def add_song(self, title: str) -> None:
        """As a user does it."""
        assert self.replica.client.request("/api/v1/songs", data={"title": title, "lyrics": "la"}).status == 201

    def add_song_by_sql(self) -> None:
        """Where the code is too new for the database."""
        self.witness.execute("insert into lyric_parsing_rules select * from lyric_parsing_rules where false")
        self.witness.execute(f"delete from songs where number = {FIRST}")

    def running(self) -> set[str]:
        """The services that run."""
        lines = self.replica.supervisorctl("status").stdout.splitlines()
        return {line.split()[0] for line in lines if "RUNNING" in line}


def same(seen: Seen, before: Seen) -> None:
    assert seen.catalog == before.catalog
    assert seen.rows == before.rows
    assert seen.content == before.content


@pytest.fixture(scope="class")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rollbacks]:
    """The replica as on 2025-10-21."""
    replica = HostReplica(tmp_path_factory.mktemp("rollback") / "replica")
    try:
        replica.up(data=DATA)
        yield Rollbacks(replica)
    finally:
        replica.down()


@dataclass
class SwappedBack:
    """What the runs came to, in order."""

    runs: Rollbacks
    before: Seen
    oid: int
    migrated: Everything
    refused: Outcome
    rehearsal: Outcome
    after_rehearsal: Everything
    disturbed: Outcome
    after_disturbed: tuple[dict[str, tuple[int, bool]], set[str]]
    done: Outcome
    record: dict[str, Any]
    after: Everything
    databases: dict[str, tuple[int, bool]]
    second: Outcome
    after_second: Everything


def write_while_the_services_are_stopped(runs: Rollbacks, over: threading.Event) -> bool:
    """As a client that is none of the services, and is gone again before the database is closed.

    The worker is stopped first, so there is time.

    Args:
        runs: The replica.
        over: Set when the run has ended.

    Returns:
        Whether the run has come that far.
    """
    worker = next(psutil.Process(pid) for pid, (line, _) in runs.processes().items() if "celery" in line)
    wait_until(lambda: over.is_set() or not worker.is_running(), "the worker or the run has ended", seconds=600)
    if over.is_set():
        return False
    runs.witness.execute("insert into users (email, display_name) values ('stranger@songs.example', 'x')")
    return True


def disturb(runs: Rollbacks) -> Outcome:
    """Go back while a stranger writes."""
    over = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write_while_the_services_are_stopped, runs, over)
        try:
            disturbed = runs.rollback(rollback_accept_written=3)
        finally:
            over.set()
    assert writing.result(), f"the worker was never stopped: {disturbed.text}"
    return disturbed


@pytest.fixture(scope="class")
def swapped_back(runs: Rollbacks) -> SwappedBack:
    """Recover, write, be refused, rehearse, be disturbed, go back, go back again."""
    before, oid = runs.witness.look(), runs.databases()["aiproxy"][0]
    recovered = runs.recover(variables={"recovery_rehearse": False})
    assert recovered.code == 0, recovered.text
    runs.add_song("Ein neues Lied")
    runs.add_song("Noch eines")
    runs.witness.execute(f"update songs set title = 'umbenannt' where number = {FIRST}")
    migrated = runs.look()
    refused = runs.rollback()
    rehearsal = runs.rollback(check=True, rollback_accept_written=3)
    after_rehearsal = runs.look()
    disturbed = disturb(runs)
    after_disturbed = (runs.databases(), runs.running())
    runs.witness.execute("delete from users where email = 'stranger@songs.example'")
    done = runs.rollback(rollback_accept_written=3)
    record, after, databases = runs.latest(), runs.look(), runs.databases()
    second = runs.rollback()
    return SwappedBack(
        runs, before, oid, migrated, refused, rehearsal, after_rehearsal, disturbed, after_disturbed, done, record,
        after, databases, second, runs.look(),
    )  # fmt: skip


@pytest.mark.xdist_group("rollback-swap-back")
class TestSwapBack:
    """After new songs were written."""

    def test_the_number_is_reported_and_without_it_nothing_is_touched(self, swapped_back: SwappedBack) -> None:
        refused = swapped_back.refused
        assert refused.code == 2
        assert "songs: 3 rows written since, 2 more than then. Going back loses these 3 changes." in refused.failure
        assert refused.failure.endswith("-e rollback_way=swap_back -e rollback_accept_written=3")
        assert "Nothing was touched" in refused.failure
        assert refused.changed == []

    def test_check_mode_shows_the_choice_and_leaves_no_trace(self, swapped_back: SwappedBack) -> None:
        rehearsal = swapped_back.rehearsal
        assert rehearsal.code == 0, rehearsal.text
        assert "- swap_back (proved): The old database is kept as aiproxy_old_" in rehearsal.words
        assert "Choice: swap_back" in rehearsal.words
        assert "What is lost: songs: 3 rows written since" in rehearsal.words
        assert "count once more what was written since the swap, and save the 3 rows in" in rehearsal.words
        assert "This was a rehearsal (check mode): nothing was changed." in rehearsal.words
        assert swapped_back.after_rehearsal == swapped_back.migrated

    def test_what_a_stranger_writes_in_the_last_moment_is_not_lost(self, swapped_back: SwappedBack) -> None:
        disturbed, (databases, running) = swapped_back.disturbed, swapped_back.after_disturbed
        assert disturbed.code == 2, disturbed.text
        assert "4 changes would be lost now, 3 were when the plan was made" in disturbed.words
        assert "users: 1 row written since, 1 more than then." in disturbed.words
        assert "-e rollback_accept_written=4" in disturbed.words
        assert "The database is the one that it was until now. Started: api, worker." in disturbed.words
        assert "aiproxy" in databases
        assert [name for name, (_oid, is_open) in databases.items() if is_open] == ["aiproxy"]
        assert len(databases) == 2
        assert running >= {"api", "worker"}

    def test_acceptance_1_it_is_as_before(self, swapped_back: SwappedBack) -> None:
        done = swapped_back.done
        assert done.code == 0, done.text
        assert done.changed == SWAP_BACK
        same(swapped_back.after.database, swapped_back.before)
        assert swapped_back.databases["aiproxy"] == (swapped_back.oid, True)

    def test_the_rows_are_saved_and_private(self, swapped_back: SwappedBack) -> None:
        (path,) = (swapped_back.runs.target_state / "demo" / "backups").glob("*.written.jsonl")
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert {row["row"]["title"] for row in rows} == {"Ein neues Lied", "Noch eines", "umbenannt"}
        assert {row["table"] for row in rows} == {"public.songs"}
        assert mode(path) == 0o600
        assert f"Saved: 3 rows in {path}" in "".join(swapped_back.done.words) or str(path) in "".join(
            swapped_back.done.run.out.split()
        )

    def test_the_services_run_and_it_says_that_their_code_is_newer(self, swapped_back: SwappedBack) -> None:
        assert swapped_back.runs.running() >= {"api", "worker"}
        assert f"Deploy the one whose head is {BROKEN}" in swapped_back.done.words

    def test_what_was_in_use_is_kept_closed(self, swapped_back: SwappedBack) -> None:
        (kept,) = (name for name in swapped_back.databases if "_replaced_" in name)
        assert swapped_back.databases[kept][1] is False
        assert len(swapped_back.databases) == 2
        same(swapped_back.runs.closed(kept), swapped_back.migrated.database)
        assert f"Kept: {kept}" in swapped_back.done.words

    def test_a_second_run_has_nothing_to_do(self, swapped_back: SwappedBack) -> None:
        second = swapped_back.second
        assert second.code == 0, second.text
        assert (second.changed, second.recap()["changed"]) == ([], 0)
        assert "nothing: It is the old database, it is open, and it is what it was before the run." in second.words
        assert swapped_back.after_second == swapped_back.after

    def test_the_rollback_can_be_gone_back_behind_and_old_databases_are_dropped_by_name(
        self, swapped_back: SwappedBack
    ) -> None:
        runs = swapped_back.runs
        forward = runs.rollback(rollback_behind=swapped_back.record["run_id"])
        assert forward.code == 0, forward.text
        same(runs.witness.look(), swapped_back.migrated.database)
        for check in behaviour.HEALTHY:
            check(runs.replica.client)

        before = runs.databases()
        (kept,) = (name for name, (_oid, is_open) in before.items() if not is_open)
        listed = runs.play(playbook="playbooks/old_databases.yml", variables={"recovery_keep_old_days": -1})
        assert (listed.code, listed.changed) == (0, []), listed.text
        assert f"{kept}: what the application used" in listed.words
        assert "DUE" in listed.words
        for name, confirmed in (("aiproxy", "aiproxy"), (f"{kept}x", f"{kept}x"), (kept, "aiproxy@demo")):
            refused = self.drop(runs, name, confirmed)
            assert refused.code != 0
            assert runs.databases() == before
        planned = self.drop(runs, kept, kept, "--check")
        assert (planned.code, planned.changed) == (0, ["Drop it"]), planned.text
        assert runs.databases() == before
        dropped = self.drop(runs, kept, kept)
        assert (dropped.code, dropped.changed) == (0, ["Drop it"]), dropped.text
        assert set(runs.databases()) == set(before) - {kept}

    @staticmethod
    def drop(runs: Rollbacks, name: str, confirmed: str, *arguments: str) -> Outcome:
        variables = {"recovery_drop": name, "recovery_confirm": confirmed}
        return runs.play(*arguments, playbook="playbooks/old_databases.yml", variables=variables)


@pytest.mark.xdist_group("rollback-downgrade")
class TestDowngrade:
    """With the code of the old revision to run afterwards."""

    def test_acceptance_1_version_catalog_and_content_are_as_before(self, runs: Rollbacks) -> None:
        # Rows that look as if they were encoded before would be lost.
        runs.witness.execute("update lyric_parsing_rules set replacement = 'ä ' || id::text")
        before = runs.witness.look()
        recovered = runs.recover(variables={"recovery_rehearse": False})
        assert recovered.code == 0, recovered.text
        record = runs.target_state / "demo" / "runs" / runs.latest()["run_id"] / "record.json"
        older = runs.replica.directory / "application-before"
        shutil.copytree(runs.replica.application, older)
        for revision in (ENCODED, HEAD):
            next((older / "src/alembic/versions").glob(f"{revision}_*.py")).unlink()
        after = {"rollback_code_after": {"workdir": str(older)}, "rollback_way": "downgrade"}

        running = runs.rollback(rollback_way="downgrade")
        unrehearsed = runs.rollback(**after)
        self.note(record, "lossy")
        lossy = runs.rollback(**after)
        self.note(record, "lossless")
        planned = runs.rollback(check=True, **after)
        # The old code is deployed already; the newer one, beside it, has the revisions.
        inventory = yaml.safe_load(runs.replica.inventory_file.read_text())
        inventory["demo"]["hosts"]["demo-server"]["recovery_stack"]["app"]["workdir"] = str(older)
        deployed = runs.replica.directory / "deployed.yml"
        deployed.write_text(yaml.safe_dump(inventory))
        down = {"rollback_code_down": {"workdir": str(runs.replica.application)}, "rollback_way": "downgrade"}
        from_deployed = runs.play(
            "--check",
            playbook="playbooks/rollback.yml",
            inventory=deployed,
            variables={"recovery_confirm": "aiproxy@demo", **down},
        )
        migrated = runs.witness.look()
        done = runs.rollback(**after)

        assert from_deployed.code == 0, from_deployed.text
        assert "Choice: downgrade" in from_deployed.words
        assert "Deploy the one whose head" not in from_deployed.words
        assert running.code == unrehearsed.code == lossy.code == 2
        assert f"The code that will run afterwards knows more than {BROKEN}" in running.failure
        assert "Rehearse it first" in unrehearsed.failure
        assert "rollback_accept_loss" in lossy.failure
        assert planned.code == 0, planned.text
        assert migrated.rows["songs"] == before.rows["songs"]
        assert done.code == 0, done.text
        same(runs.witness.look(), before)
        assert runs.witness.versions() == [BROKEN]

    @staticmethod
    def note(record: Path, verdict: str) -> None:
        """What a rehearsal would have found."""
        facts = json.loads(record.read_text())
        facts["rehearsal"] = {
            "undone": [{"revision": r, "verdict": verdict, "reason": "Said by the test."} for r in (HEAD, ENCODED)]
        }
        record.write_text(json.dumps(facts))


@pytest.mark.xdist_group("rollback-restore")
class TestRestore:
    """From the backup of the run, and from a dump from elsewhere."""

    def test_acceptance_1_content_is_equal_to_the_manifest(self, runs: Rollbacks) -> None:
        before = runs.witness.look()
        recovered = runs.recover(variables={"recovery_rehearse": False})
        assert recovered.code == 0, recovered.text
        behind = runs.latest()["run_id"]
        runs.add_song("Ein neues Lied")
        migrated = runs.look()

        refused = runs.rollback(rollback_way="restore")
        planned = runs.rollback(check=True, rollback_way="restore", rollback_accept_restore=behind)
        untouched = runs.look()
        done = runs.rollback(rollback_way="restore", rollback_accept_restore=behind)

        assert refused.code == 2
        assert f"-e rollback_way=restore -e rollback_accept_restore={behind}" in refused.failure
        assert planned.code == 0, planned.text
        assert untouched == migrated
        assert done.code == 0, done.text
        seen = runs.witness.look()
        assert sorted(seen.catalog) == sorted(before.catalog)
        assert (seen.rows, seen.content) == (before.rows, before.content)
        assert "Saved: 1 rows" in done.words

    def test_a_damaged_backup_is_refused_before_anything_is_touched(self, runs: Rollbacks) -> None:
        dumps = sorted((runs.target_state / "demo" / "backups").glob("*.dump"))
        (dump,) = dumps
        good = dump.read_bytes()
        dump.write_bytes(good[:-100] + bytes([good[-100] ^ 1]) + good[-99:])
        before = runs.look()
        try:
            refused = runs.rollback(rollback_way="restore", rollback_accept_restore=runs_of(dump))
            assert refused.code == 2
            assert "SHA-256" in refused.failure
            assert runs.look() == before
        finally:
            dump.write_bytes(good)

    @pytest.mark.thorough
    def test_a_dump_from_elsewhere(self, runs: Rollbacks) -> None:
        before = runs.witness.look()
        postgres = runs.replica.postgres
        foreign = runs.replica.directory / "from-elsewhere.sql"
        command = [postgres.bin_dir / "pg_dump", "--no-owner", "--no-privileges", "-f", foreign]
        subprocess.run([*command, "-d", postgres.conninfo("aiproxy")], check=True, capture_output=True, timeout=120)
        runs.add_song_by_sql()
        word = {"rollback_backup": str(foreign), "rollback_way": "restore"}

        unnamed = runs.rollback(**word)
        refused = runs.rollback(**word, rollback_accept_restore=foreign.name)
        done = runs.rollback(**word, rollback_accept_restore=foreign.name, rollback_plain_sql="execute")

        assert (unnamed.code, refused.code) == (2, 2)
        assert f"rollback_accept_restore={foreign.name}" in unnamed.failure
        assert "plain" in refused.failure.lower()
        assert done.code == 0, done.text
        assert (runs.witness.look().rows, runs.witness.look().content) == (before.rows, before.content)
        assert runs.running() >= {"api", "worker"}


def runs_of(dump: Path) -> str:
    """The name of the run that has made a backup."""
    return dump.stem.partition("_")[2]


@pytest.mark.xdist_group("rollback-open")
class TestOpen:
    """After a run that was cut off inside the fence."""

    def test_row_54_the_database_is_opened_and_the_services_are_started(self, runs: Rollbacks) -> None:
        before, databases = runs.witness.look(), runs.databases()
        revision = next((runs.replica.application / "src/alembic/versions").glob(f"{HEAD}_*.py"))
        slow = '\n    op.execute("select pg_sleep(600)")\n\n\ndef downgrade'
        revision.write_text(revision.read_text().replace("\n\n\ndef downgrade", slow))
        places = {
            "recovery_directory": str(runs.target_state),
            "recovery_controller_directory": str(runs.controller_state),
            "recovery_confirm": "aiproxy@demo",
            "recovery_rehearse": False,
            "recovery_lock_grace": 600,
        }
        command = ["ansible-playbook", "recover.yml", "-i", str(runs.replica.inventory_file), "-l", "demo"]
        controller = subprocess.Popen(
            [*command, "-e", json.dumps(places)], cwd=ROOT, env=clean_environment(), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            wait_until(lambda: list(runs.target_state.glob("demo/runs/*/record.json")), "the run has a record", 300)
            wait_until(lambda: runs.latest()["stage"] == "migrating", "it migrates", 300)
        finally:
            os.killpg(controller.pid, signal.SIGKILL)
            controller.wait(30)
        cut_off = runs.latest()["run_id"]
        assert runs.databases()["aiproxy"][1] is False

        waiting = runs.rollback()
        planned = runs.rollback(check=True, recovery_end_run=cut_off)
        assert runs.databases()["aiproxy"][1] is False
        done = runs.rollback(recovery_end_run=cut_off)

        assert waiting.code == 2
        assert f"-e recovery_end_run={cut_off}" in waiting.failure
        assert planned.code == 0, planned.text
        assert done.code == 0, done.text
        same(runs.witness.look(), before)
        assert runs.databases() == databases
        assert runs.running() >= {"api", "worker"}
        assert "nothing: It is the old database" in done.words

    def test_a_database_that_was_closed_after_the_run_is_opened(self, runs: Rollbacks) -> None:
        runs.server("alter database aiproxy allow_connections false")
        planned = runs.rollback(check=True)
        assert (planned.code, runs.databases()["aiproxy"][1]) == (0, False), planned.text
        done = runs.rollback()
        assert done.code == 0, done.text
        assert runs.databases()["aiproxy"][1] is True
        assert re.search(r"Gone back: open\. aiproxy is at " + BROKEN, done.words)
