"""Other ways through recover.yml on the host replica: in place, online, strangers, two at once, a run that is dead."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from replica.application import BROKEN, ENCODED, HEAD, USER
from replica.host import HostReplica
from replica.seed import Size
from tests.replica import behaviour
from tests.support.ansible_run import ROOT, clean_environment
from tests.support.host_runs import BreakableRuns, Outcome, kept
from tests.support.songs import assert_only_the_revisions_have_changed_it
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.xdist_group("ways"), pytest.mark.slow]

ROUNDS = 10 if os.environ.get("EVERY_PAIR") else 1


class Ways(BreakableRuns):
    """Runs beside clients that are none of the services."""

    def client(self, name: str) -> psycopg.Connection[Any]:
        """A client that is none of the services."""
        return psycopg.connect(
            host=str(self.replica.postgres.socket_dir),
            dbname="aiproxy",
            user=USER,
            password=self.replica.password,
            application_name=name,
        )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    with kept(tmp_path_factory.mktemp("ways"), Ways) as runs:
        yield runs


@pytest.fixture
def runs(made: Ways) -> Ways:
    """The replica as on 2025-10-21."""
    made.reset()
    return made


def is_recovered(runs: Ways, before: Any) -> None:
    assert runs.witness.versions() == [HEAD]
    assert_only_the_revisions_have_changed_it(before, runs.witness.look())
    for check in behaviour.HEALTHY:
        check(runs.replica.client)


def quickly(runs: Ways, **variables: Any) -> Outcome:
    """Recover without a rehearsal."""
    return runs.recover(variables={"recovery_rehearse": False, **variables})


def test_in_place_behind_the_fence(runs: Ways) -> None:
    before, oid = runs.witness.look(), runs.server("select oid from pg_database where datname = 'aiproxy'")

    done = quickly(runs, recovery_migrate="in_place")

    assert done.code == 0, done.text
    assert "It is migrated in place: recovery_migrate says so. Going back means restoring the backup" in done.words
    is_recovered(runs, before)
    assert runs.databases() == [("aiproxy", True)]
    assert runs.server("select oid from pg_database where datname = 'aiproxy'") == oid


def test_in_place_where_a_clone_is_impossible_and_the_reason_is_in_the_plan(runs: Ways) -> None:
    runs.server("alter database aiproxy set log_statement = 'ddl'")

    planned = runs.play("--check")

    assert planned.code == 0, planned.text
    assert "aiuser may not give a copy these settings of aiproxy: log_statement" in planned.words
    assert "put it aside under another name" in planned.words


def test_in_place_a_revision_that_fails_leaves_those_before_it_and_says_so(runs: Ways) -> None:
    revision = next((runs.replica.application / "src/alembic/versions").glob(f"{HEAD}_*.py"))
    good = revision.read_text()
    revision.write_text(good.replace("def downgrade", '    op.execute("select 1/0")\n\n\ndef downgrade'))
    try:
        failed = quickly(runs, recovery_migrate="in_place")
        ways = runs.play("--check", playbook="playbooks/rollback.yml")
    finally:
        revision.write_text(good)

    assert failed.code == 2, failed.text
    assert "division by zero" in failed.failure
    assert "It was migrated in place: revisions that were applied before the failure have stayed." in failed.failure
    assert "as it was before" not in failed.failure
    assert runs.witness.versions() == [ENCODED]
    assert runs.databases() == [("aiproxy", True)]
    # The way back is behind this run, not behind an older one.
    record = max((runs.target_state / "demo" / "runs").glob("*/record.json"), key=lambda path: path.stat().st_mtime)
    assert record.parent.name in ways.words, ways.text


def test_rows_that_clients_delete_after_the_backup_are_no_loss(runs: Ways) -> None:
    """What is compared is what was migrated, not what the backup has."""
    before = runs.witness.look()

    backups = runs.target_state / "demo" / "backups"
    earlier = set(backups.glob("*.manifest.json"))

    def delete() -> None:
        wait_until(lambda: set(backups.glob("*.manifest.json")) - earlier, "the backup", 200)
        runs.witness.execute(
            "delete from users where email = 'gone'", "delete from songs where number = (select min(number) from songs)"
        )

    runs.witness.execute("insert into users (email, display_name) values ('gone', 'soon')")
    thread = threading.Thread(target=delete)
    thread.start()
    done = runs.recover(variables={"recovery_rehearse": False})
    thread.join()

    assert done.code == 0, done.text
    after = runs.witness.look()
    assert (after.rows["users"], after.rows["songs"]) == (before.rows["users"], before.rows["songs"] - 1)
    assert runs.witness.versions() == [HEAD]


def test_online_without_a_fence_says_what_that_costs(runs: Ways) -> None:
    before = runs.witness.look()
    started = runs.processes()

    done = quickly(runs, recovery_fence=False)

    assert done.code == 0, done.text
    assert "while clients are in the database (recovery_fence is false)" in done.words
    assert "Nobody is kept out" in done.words
    assert not [task for task in done.changed if "Stop the services" in task]
    is_recovered(runs, before)
    assert runs.databases() == [("aiproxy", True)]
    assert runs.processes().keys() != started.keys(), "the services were not restarted"


def test_row_36_acceptance_4_online_somebody_keeps_songs_and_it_ends_as_it_was_with_the_name(runs: Ways) -> None:
    """The rehearsal has shown that a later revision needs the table: not even the first one is begun."""
    before, started = runs.witness.look(), runs.processes()
    with runs.client("nightly report") as report:
        report.execute("select count(*) from songs where title <> 'somebody''s'")
        stopped = runs.recover(variables={"recovery_fence": False, "migrate_lock_attempts": 2})
        assert report.execute("select 1").fetchone() == (1,)
        pid = report.info.backend_pid

    assert stopped.code == 2, stopped.text
    assert f"{pid} (aiuser, nightly report, idle in transaction, for " in stopped.failure
    assert "its statement: select count(*) from songs where title <> '…'" in stopped.failure
    assert "-e recovery_terminate_blockers=terminate" in stopped.failure
    assert "No revision was begun: locks that they took in the rehearsal (" in stopped.failure
    assert "Nothing was migrated: the database is as it was. No service was stopped." in stopped.failure
    after = runs.witness.look()
    assert (after.catalog, after.rows, after.content) == (before.catalog, before.rows, before.content)
    assert runs.witness.versions() == [BROKEN]
    assert started.items() <= runs.processes().items(), "a service was restarted"
    assert runs.databases() == [("aiproxy", True)]


def test_a_role_that_may_not_rename_is_refused_before_anything_is_touched(runs: Ways) -> None:
    before = runs.look()
    runs.server("alter role aiuser nocreatedb")
    try:
        refused = runs.recover()
    finally:
        runs.server("alter role aiuser createdb")

    assert refused.code == 2
    assert "aiuser may not make or rename databases" in refused.failure
    assert "-e recovery_fence=false" in refused.failure
    assert runs.look().processes == before.processes
    assert runs.witness.versions() == [BROKEN]


def test_row_46_a_client_that_nobody_described_stops_the_run_and_the_application_goes_on(runs: Ways) -> None:
    before = runs.witness.look()
    with runs.client("a report") as connection:
        refused = quickly(runs)

        assert refused.code == 2
        assert "a report" in refused.failure
        assert "-e recovery_unknown_clients=end" in refused.failure
        assert "Taken back: the database is open again as it was before" in refused.failure
        assert connection.execute("select 1").fetchone() == (1,)
    after = runs.witness.look()
    assert (after.catalog, after.rows, after.content) == (before.catalog, before.rows, before.content)
    assert runs.databases() == [("aiproxy", True)]
    assert runs.running() >= {"api", "worker"}

    with runs.client("a report"):
        done = quickly(runs, recovery_known_clients=["a report/aiuser"])
    assert done.code == 0, done.text
    is_recovered(runs, before)


def test_row_42_an_outage_that_is_longer_than_the_budget_stops_before_the_fence(runs: Ways) -> None:
    """And rehearse.yml in check mode, beside which this is what it would find."""
    before = runs.look()
    checked = runs.play("--check", playbook="playbooks/rehearse.yml")
    assert (checked.code, checked.changed) == (0, ["Make a backup and read it through"]), checked.text
    assert runs.look() == before

    stopped = runs.recover(variables={"recovery_outage_budget": 1})

    assert stopped.code == 2, stopped.text
    assert "s is to be expected, acceptable are 1 s. The application was not stopped." in stopped.failure
    assert "-e recovery_outage_budget=" in stopped.failure
    after = runs.look()
    assert after.processes == before.processes
    assert runs.databases() == [("aiproxy", True)]
    assert (after.database.catalog, after.database.rows, after.database.content) == (
        before.database.catalog, before.database.rows, before.database.content,
    )  # fmt: skip


@pytest.mark.parametrize("number", range(ROUNDS))
def test_row_31_acceptance_4_of_two_runs_in_the_same_second_one_works_and_one_refuses(runs: Ways, number: int) -> None:
    before = runs.witness.look()
    places = {
        "recovery_directory": str(runs.target_state),
        "recovery_controller_directory": str(runs.controller_state),
        "recovery_confirm": "aiproxy@demo",
        "recovery_rehearse": False,
    }
    command = ["ansible-playbook", "recover.yml", "-i", str(runs.replica.inventory_file), "-l", "demo"]
    pair = [
        subprocess.Popen(
            [*command, "-e", json.dumps(places)], cwd=ROOT, env=clean_environment(), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for _one in range(2)
    ]  # fmt: skip
    said = [one.communicate(timeout=300)[0] for one in pair]

    assert sorted(one.returncode for one in pair) == [0, 2], "\n\n".join(said)
    refused = " ".join(next(text for one, text in zip(pair, said, strict=True) if one.returncode).split())
    assert "Somebody else is at work on" in refused
    assert "started by" in refused
    assert "in the stage" in refused
    is_recovered(runs, before)


@pytest.mark.thorough
def test_two_hosts_are_recovered_one_after_the_other(runs: Ways, tmp_path: Path) -> None:
    """While another host keeps a task waiting, nothing of the run is alive on the first one: its keeper would act."""
    before = runs.witness.look()
    other = HostReplica(tmp_path / "other")
    try:
        other.up(data=Size(songs=100, rules=100))
        second = Ways(other)
        before_there = second.witness.look()
        first_host, second_host = (one.inventory()["demo"]["hosts"]["demo-server"] for one in (runs.replica, other))
        hosts = {"first": first_host, "second": {**second_host, "recovery_stack_name": "other"}}
        inventory = tmp_path / "inventory.yml"
        inventory.write_text(yaml.safe_dump({"demo": {"hosts": hosts}}))

        confirmed = ["aiproxy@demo", "aiproxy@other"]
        done = runs.recover(inventory=inventory, variables={"recovery_confirm": confirmed, "recovery_lock_grace": 20})

        assert done.code == 0, done.text
        is_recovered(runs, before)
        is_recovered(second, before_there)
        assert done.run.out.count("PLAY [Recover the database]") == 2
        logs = [path.read_text() for path in runs.target_state.glob("*/runs/*/keeper.log")]
        assert len(logs) >= 2
        assert not [log for log in logs if "is dead" in log]
    finally:
        other.down()
