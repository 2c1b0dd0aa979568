"""What bad input gets, on the host replica: exit code, words, and proof that nothing was touched."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import tempfile
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from replica.application import BASE, BROKEN, HEAD
from replica.host import HostReplica
from replica.seed import Size
from tests.support.ansible_run import ROOT
from tests.support.evidence import files
from tests.support.host_runs import Everything, HostRuns, Outcome

Change = Callable[[dict[str, Any]], Any]
STATUS = "ansible-playbook playbooks/status.yml -l demo"


class Broken:
    """The replica as on 2025-10-21, and how it looked before anybody tried anything."""

    def __init__(self, replica: HostReplica) -> None:
        self.runs = HostRuns(replica)
        self.place = replica.directory / "records"
        self.before = self.runs.look()
        self._inventory = replica.inventory()

    def inventory(self, change: Change) -> Path:
        """Write an inventory with a change; `change` gets the host's variables.

        Nothing is asked over HTTP: that is a task less in each run.
        """
        inventory = copy.deepcopy(self._inventory)
        host = inventory["demo"]["hosts"]["demo-server"]
        del host["recovery_stack"]["expect"]["http"]
        change(host)
        path = self.place / "inventory.yml"
        path.write_text(yaml.safe_dump(inventory))
        return path

    def run(self, change: Change, *arguments: str, **keywords: Any) -> Outcome:
        """Run recover.yml with a changed inventory, confirmed unless `variables` say something else."""
        keywords.setdefault("variables", {"recovery_confirm": "aiproxy@demo"})
        return self.runs.play(*arguments, inventory=self.inventory(change), **keywords)

    def is_untouched(self, outcome: Outcome, *, code: int = 2) -> None:
        """Require an exit code, no change of anything, and no traceback of Python."""
        assert outcome.code == code, outcome.text
        assert outcome.changed == []
        assert "Traceback (most recent call last)" not in outcome.text
        after = self.runs.look()
        assert after.database == self.before.database
        assert after.processes == self.before.processes
        # A run that was refused after it had its lock leaves its record, and nothing else.
        kept = {path: seen for path, seen in after.files.items() if "/recovery-target" not in path}
        assert kept == self.before.files

    def refuses(self, change: Change, *words: str, **keywords: Any) -> Outcome:
        """Require a refusal with these words in its last message, and nothing touched."""
        outcome = self.run(change, **keywords)
        for part in words:
            assert part in outcome.failure
        self.is_untouched(outcome)
        return outcome


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broken]:
    """One replica for all: nothing here may change it."""
    replica = HostReplica(tmp_path_factory.mktemp("refusals"))
    try:
        yield Broken(replica.up(data=Size(songs=120, rules=120)))
    finally:
        replica.down()


def nothing(_host: dict[str, Any]) -> None:
    """The inventory as it is."""


def with_(*path: str | int, **changes: Any) -> Change:
    """A change of a part of the stack: `path` leads to it."""

    def change(host: dict[str, Any]) -> None:
        part: Any = host["recovery_stack"]
        for step in path:
            part = part[step]
        part.update(changes)

    return change


def several_mistakes(host: dict[str, Any]) -> None:
    """A misspelt key at each level, a missing one, and a value that is none of the choices."""
    stack = host["recovery_stack"]
    stack["database"]["usr"] = "x"
    stack["app"]["work_dir"] = "/x"
    del stack["app"]["runtime"]
    stack["services"][0]["manager"] = "supervisord"
    stack["expect"]["queries"][0]["at_leas"] = 3
    stack["expect"]["http"] = [{"name": "x", "url": "https://songs.example/", "sttus": 200}]


def test_no_limit(broken: Broken) -> None:
    outcome = broken.refuses(
        nothing,
        "No hosts were chosen, so every host of the inventory would be meant. Nothing was touched. Choose them with: "
        "ansible-playbook recover.yml -l prod",
        limit=None,
    )
    assert [task.name for task in outcome.tasks if task.is_module] == []


@pytest.mark.parametrize("playbook", ["status", "backup"])
def test_no_limit_for_the_other_playbooks(broken: Broken, playbook: str) -> None:
    broken.refuses(
        nothing, f"ansible-playbook playbooks/{playbook}.yml -l prod", limit=None, playbook=f"playbooks/{playbook}.yml"
    )


def test_an_unknown_group(broken: Broken) -> None:
    outcome = broken.run(nothing, limit="staging")
    assert "Could not match supplied host pattern" in outcome.text
    assert "staging" in outcome.text
    assert outcome.tasks == []
    broken.is_untouched(outcome, code=1)


class TestNoHost:
    """A run that touches no host never ends with 0."""

    def test_an_empty_inventory(self, broken: Broken) -> None:
        empty = broken.place / "empty.yml"
        empty.write_text("all:\n")
        outcome = broken.runs.play(inventory=empty, limit=None)
        assert "recover.yml ran no task on any host: nothing was looked at, and nothing was done." in outcome.words
        assert "Next: ansible-inventory --graph, then ansible-playbook recover.yml -l prod" in outcome.words
        broken.is_untouched(outcome, code=3)

    def test_a_checkout_that_everyone_may_write_to(self, broken: Broken) -> None:
        """Ansible ignores ansible.cfg there, and with it the inventory."""
        with tempfile.TemporaryDirectory() as place:
            checkout = Path(place) / "checkout"
            ignored = shutil.ignore_patterns(".*", "tests", "replica", "reports", "__pycache__", "*.pyc")
            shutil.copytree(ROOT, checkout, ignore=ignored)
            checkout.chmod(0o777)
            outcome = broken.runs.play(playbook="recover.yml", inventory=Path("/dev/null"), limit=None, cwd=checkout)
        assert "ran no task on any host" in outcome.words
        assert "Ansible ignores ansible.cfg where everyone may write: chmod o-w ." in outcome.words
        broken.is_untouched(outcome, code=3)


class TestDescription:
    """The stack's description: found by name, before anything is looked at."""

    @pytest.mark.parametrize("stack", [None, ["x"]])
    def test_no_stack(self, broken: Broken, stack: Any) -> None:
        broken.refuses(
            lambda host: host.update(recovery_stack=stack) if stack else host.pop("recovery_stack"),
            "demo-server has no stack described, so there is nothing to look at. Nothing was touched. Describe it as "
            "recovery_stack in inventories/group_vars/",
        )

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            pytest.param(
                lambda host: host["recovery_stack"].update(databse=host["recovery_stack"].pop("database")),
                [
                    "missing required arguments: database in recovery_stack.",
                    "recovery_stack.databse is not known; known there are app, database, docker_cli, expect, services.",
                ],
                id="of the stack",
            ),
            pytest.param(
                with_("services", 1, mangaer="supervisor"),
                ["recovery_stack.services.mangaer is not known; known there are compose_project, compose_service,"],
                id="of a service",
            ),
            pytest.param(
                several_mistakes,
                [
                    "missing required arguments: runtime in recovery_stack.app.",
                    "value of manager must be one of: supervisor, systemd, got: supervisord in recovery_stack.services",
                    "Not known are recovery_stack.app.work_dir, recovery_stack.database.usr, recovery_stack.expect",
                    ".http.sttus, recovery_stack.expect.queries.at_leas.",
                ],
                id="several",
            ),
            pytest.param(
                with_("database", name=""),
                ["recovery_stack.database needs a name and a user that are not empty."],
                id="an empty name",
            ),
            pytest.param(
                lambda host: host.update(recovery_stack_name="../x y"),
                ['recovery_stack_name is "../x y"; it may have letters, digits, `_`, `.` and `-`.'],
                id="a name that is a path",
            ),
        ],
    )
    def test_a_wrong_key_or_value(self, broken: Broken, change: Change, said: list[str]) -> None:
        outcome = broken.refuses(
            change,
            "The description of the stack is wrong: ",
            *said,
            "Nothing was touched. Correct it in the inventory; every key is described in roles/guard/README.md",
            "Then: ansible-playbook recover.yml -l demo --check",
        )
        assert [task.name for task in outcome.tasks if task.is_module] == []
        assert "guard_stack" not in outcome.failure


class TestLook:
    """Found by looking, before anybody is asked to confirm."""

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            pytest.param(
                with_("database", name="aiproxx"),
                [
                    "UNREADABLE: No connection to database aiproxx as aiuser",
                    'database "aiproxx" does not exist.',
                    "Correct recovery_stack.database.name",
                ],
                id="wrong database",
            ),
            pytest.param(
                with_("database", user="aiusr"),
                ["UNREADABLE: No connection to database aiproxy as aiusr", "Is recovery_stack.database.user right?"],
                id="wrong user",
            ),
            pytest.param(
                with_("database", password="not the password"),
                ["UNREADABLE: ", "password authentication failed", "Set recovery_stack.database.password"],
                id="wrong password",
            ),
            pytest.param(
                with_("expect", head="0123456789ab"),
                [
                    f"The plan expects head 0123456789ab; the code's head is {HEAD}.",
                    "The code has no revision 0123456789ab: is the right image deployed? Correct expect.head",
                    "Next: Correct that, then: ",
                ],
                id="a head that does not exist",
            ),
            pytest.param(
                with_("expect", current="0123456789ab"),
                [
                    f"The plan expects the database at 0123456789ab; it is at {BROKEN}.",
                    "correct expect.current, or remove it.",
                    "Next: Correct that, then: ",
                ],
                id="a current that does not exist",
            ),
            pytest.param(
                with_("app", alembic_config="deploy/alembic.ini"),
                [
                    "UNREADABLE: There is no deploy/alembic.ini in ",
                    "Correct app.workdir or app.alembic_config in recovery_stack.",
                ],
                id="no alembic.ini",
            ),
            pytest.param(
                with_("app", workdir="/none/app"),
                ["The working directory /none/app is not there. Correct app.workdir in recovery_stack."],
                id="no workdir",
            ),
            pytest.param(
                with_("services", 0, unit="web"),
                ["supervisord has no program web. Correct services[].unit in recovery_stack"],
                id="no such unit",
            ),
        ],
    )
    def test_what_is_not_there(self, broken: Broken, change: Change, words: list[str]) -> None:
        outcome = broken.refuses(change, *words, "Nothing was touched.")
        assert outcome.failure.endswith(STATUS)
        assert "Ask for the name of the database and the stack" not in "".join(task.name for task in outcome.tasks)
        assert "not the password" not in outcome.text

    def test_python_without_alembic(self, broken: Broken, tmp_path: Path) -> None:
        venv.create(tmp_path / "bare", with_pip=False)
        python = str(tmp_path / "bare" / "bin" / "python")
        broken.refuses(
            with_("app", python=python),
            f"UNREADABLE: {python} in this host has no Alembic or SQLAlchemy (No module named 'alembic').",
            "Set app.python in recovery_stack to the application's own interpreter.",
            "Nothing was touched.",
        )

    def test_postgresql_is_stopped(self, broken: Broken) -> None:
        replica = broken.runs.replica
        replica.postgres.stop()
        try:
            outcome = broken.run(nothing)
        finally:
            replica.postgres.start()
        assert "UNREADABLE: No connection to database aiproxy as aiuser in this host:" in outcome.failure
        assert "Is the server running, and are the names in recovery_stack.database right?" in outcome.failure
        assert "Nothing was touched." in outcome.failure
        assert outcome.failure.endswith(STATUS)
        broken.is_untouched(outcome)

    def test_an_unreachable_host(self, broken: Broken) -> None:
        outcome = broken.run(
            lambda host: host.update(ansible_connection="ssh", ansible_host="127.0.0.1", ansible_port=1)
        )
        assert outcome.recap()["unreachable"] == 1
        assert "Connection refused" in outcome.failure
        broken.is_untouched(outcome, code=4)


class TestConfirm:
    @pytest.mark.parametrize(
        ("variables", "words"),
        [
            ({"recovery_confirm": "aiproxy@prod"}, "recovery_confirm is 'aiproxy@prod', and this plan is for"),
            ({}, "The plan is not confirmed, and there is no terminal to ask at."),
        ],
    )
    def test_not_confirmed(self, broken: Broken, variables: dict[str, str], words: str) -> None:
        outcome = broken.refuses(nothing, words, "Nothing has been touched.", variables=variables)
        assert "-e recovery_confirm=aiproxy@demo" in outcome.failure
        assert "Plan for aiproxy@demo:" in outcome.words


class TestAfterTheConfirmation:
    """Found only by trying, and still before anything is changed."""

    @pytest.mark.parametrize(
        ("query", "words"),
        [
            (
                {"name": "x", "sql": "selct 1", "equals": "before"},
                "x: PostgreSQL refused a question: syntax error",
            ),
            pytest.param(
                {"name": "songs", "sql": "select 1", "equals": 1},
                "Two of expect.queries have the same name; give each its own.",
                marks=pytest.mark.thorough,
            ),
        ],
    )
    def test_a_query_that_cannot_be_asked(self, broken: Broken, query: dict[str, Any], words: str) -> None:
        broken.refuses(
            lambda host: host["recovery_stack"]["expect"]["queries"].append(query),
            words,
            "Nothing was migrated: the database is as it was. No service was stopped.",
        )

    def test_not_enough_room_for_the_backup(self, broken: Broken) -> None:
        if os.geteuid() != 0:
            pytest.skip("a small file system can only be mounted by root; CI is root")
        with tempfile.TemporaryDirectory() as place:
            mounted = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "size=32m,mode=0700", "none", place],
                capture_output=True,
                text=True,
                check=False,
            )
            if mounted.returncode != 0:
                pytest.skip(f"this container may not mount a file system: {mounted.stderr.strip()}")
            try:
                outcome = broken.run(
                    nothing,
                    variables={"recovery_confirm": "aiproxy@demo", "recovery_directory": f"{place}/state"},
                )
                assert f"No room for a backup in {place}/state/demo/backups: 32.0 MiB are free" in outcome.failure
                assert "Make room, or set recovery_directory to another file system." in outcome.failure
                assert "Nothing was migrated: the database is as it was." in outcome.failure
                made = {Path(path).relative_to(place).parts[:3] for path in files(Path(place)) if path != place}
                assert made <= {("state",), ("state", "demo"), ("state", "demo", "runs")}, "a backup was begun there"
                broken.is_untouched(outcome)
            finally:
                subprocess.run(["umount", place], check=True)

    def test_a_place_for_backups_that_is_open_to_others(self, broken: Broken, tmp_path: Path) -> None:
        backups = tmp_path / "state" / "demo" / "backups"
        backups.mkdir(parents=True)
        backups.chmod(0o755)
        broken.refuses(
            nothing,
            f"{backups}",
            "is open to others (mode 0755)",
            f"chmod 0700 {backups}",
            variables={"recovery_confirm": "aiproxy@demo", "recovery_directory": str(tmp_path / "state")},
        )
        assert list(backups.iterdir()) == []

    def test_a_place_for_the_copies_that_is_open_to_others(self, broken: Broken, tmp_path: Path) -> None:
        """Said before the dump: the run leaves no backup on the target that nobody has a copy of."""
        copies = tmp_path / "controller" / "demo" / "backups"
        copies.mkdir(parents=True)
        copies.chmod(0o755)
        state = tmp_path / "state"
        broken.refuses(
            nothing,
            f"{copies} on the controller is open to others (mode 0755)",
            f"chmod 0700 {copies}",
            variables={
                "recovery_confirm": "aiproxy@demo",
                "recovery_controller_directory": str(tmp_path / "controller"),
                "recovery_directory": str(state),
            },
        )
        assert list(copies.iterdir()) == []
        assert not list(state.glob("*/backups")), "a dump was made that could not be copied"


def test_everything_is_really_compared(broken: Broken) -> None:
    """The proof of the others: one row, one process, one file more would have been seen."""
    runs, before = broken.runs, broken.before
    assert before.database.rows["songs"] == 120
    assert runs.witness.versions() == [BROKEN] != [BASE]
    assert len(before.processes) >= 3
    assert any(path.endswith("alembic.ini") for path in before.files)
    runs.witness.execute("create table one_more ()", "drop table one_more")
    assert isinstance(runs.look(), Everything)
    assert runs.look().database != before.database
