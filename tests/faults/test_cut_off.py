"""Runs of recover.yml that are cut off in every stage, by everything that can be killed: the next one ends well.

`make test` takes each stage and each victim at least once, in chains: what a run that was cut off has left, the next
one brings to an end before it is cut off itself. `make faults` takes every pair by itself (EVERY_PAIR=1).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from replica.application import HEAD
from replica.host import HostReplica
from replica.seed import Size
from tests.replica import behaviour
from tests.support.ansible_run import ROOT, clean_environment
from tests.support.evidence import Seen
from tests.support.host_runs import BreakableRuns, Outcome
from tests.support.modules import run_module
from tests.support.songs import assert_only_the_revisions_have_changed_it
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

#: The stages as the record of a run has them, before whose deed they are written down.
STAGES = ("locked", "backing_up", "rehearsing", "fencing", "cloning", "migrating", "swapping", "starting")
VICTIMS = ("controller", "module", "backend", "server")
#: Each stage and each victim at least once, and every stage of the outage with its most likely victim.
CHOSEN = [
    ("locked", "controller"), ("backing_up", "module"), ("rehearsing", "server"), ("fencing", "controller"),
    ("cloning", "backend"), ("migrating", "backend"), ("swapping", "module"), ("starting", "controller"),
]  # fmt: skip
#: On two replicas at a time: else the others would wait for this file in the end.
CHAINS = [
    pytest.param(CHOSEN[number::2], id=f"{number}", marks=pytest.mark.xdist_group(f"cut-off {number}"))
    for number in range(2)
]
PAIRS = [
    pytest.param(*pair, marks=pytest.mark.xdist_group(f"cut-off {number % 2}"))
    for number, pair in enumerate((stage, victim) for stage in STAGES for victim in VICTIMS)
]
# Seconds that a run may be without a process on the target before it is dead: enough for a busy machine.
GRACE = 30
# A revision that takes its time, so that there is something to be cut off.
SLOW = '    op.execute("select pg_sleep(2)")\n'


class CutOffRuns(BreakableRuns):
    """Runs that are killed; whether they rehearse is a matter of time."""

    rehearse = False

    def begin(self) -> subprocess.Popen[str]:
        """Start recover.yml, confirmed."""
        places = {
            "recovery_directory": str(self.target_state),
            "recovery_controller_directory": str(self.controller_state),
            "recovery_confirm": "aiproxy@demo",
            "recovery_lock_grace": GRACE,
            "recovery_rehearse": self.rehearse,
        }
        command = ["ansible-playbook", "recover.yml", "-i", str(self.replica.inventory_file), "-l", "demo"]
        return subprocess.Popen(
            [*command, "-e", json.dumps(places)],
            cwd=ROOT,
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def record(self, known: set[Path]) -> dict[str, Any]:
        """The record of a run that is none of those that are known."""
        new = set((self.target_state / "demo" / "runs").glob("*/record.json")) - known
        for path in new:
            with contextlib.suppress(ValueError, OSError):
                found: dict[str, Any] = json.loads(path.read_text())
                return {**found, "directory": path.parent}
        return {}

    def options(self) -> dict[str, Any]:
        """The options of run_status, as recover.yml would give them."""
        inventory = yaml.safe_load(self.replica.inventory_file.read_text())
        (host,) = inventory["demo"]["hosts"].values()
        stack = host["recovery_stack"]
        database = {**stack["database"], "password": self.replica.password}
        directory = str(self.target_state / "demo" / "runs")
        return {"database": database, "services": stack["services"], "directory": directory}

    def wait_for_the_keeper(self) -> None:
        """Wait until the lock of the run before is gone, for each run that is refused costs as much as a look does."""
        held = "select pid from pg_stat_activity where application_name ~ '^alembic-recovery:.*:lock$'"
        wait_until(lambda: answers(self) and not self.server(held), "the lock is gone", 300, pause=0.5)

    def recover_when_it_may(self) -> Outcome:
        """Run recover.yml until nobody else is at work."""
        deadline = time.monotonic() + 900
        while True:
            self.wait_for_the_keeper()
            done = self.recover(variables={"recovery_rehearse": False})
            if "Somebody else is at work" not in done.words or time.monotonic() > deadline:
                return done
            time.sleep(3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CutOffRuns]:
    replica = HostReplica(tmp_path_factory.mktemp("cut-off") / "replica")
    try:
        replica.up(data=Size(songs=100, rules=100))
        revision = next((replica.application / "src/alembic/versions").glob(f"{HEAD}_*.py"))
        revision.write_text(revision.read_text().replace("\n\n\ndef downgrade", f"\n{SLOW}\n\ndef downgrade"))
        made = CutOffRuns(replica)
        made.keep()
        yield made
    finally:
        replica.down()


def controllers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """ansible-playbook and its workers, without the modules that they have started."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        main = psutil.Process(process.pid)
        for one in [main, *main.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):  # what the controller has started ends all the time
                if "ansible-playbook" in " ".join(one.cmdline()):
                    found.append(one)
    return found


def backend(runs: CutOffRuns) -> list[psutil.Process]:
    """A process of the server that works for the run, rather than the one that only holds its lock."""
    pids = runs.server(
        "select pid from pg_stat_activity where pid <> pg_backend_pid() and application_name like "
        "'alembic-recovery%' order by application_name like '%:lock'"
    )
    with contextlib.suppress(psutil.NoSuchProcess):
        return [psutil.Process(pid) for (pid,) in pids[:1]]
    return []


def kill(runs: CutOffRuns, victim: str, process: subprocess.Popen[str], record: dict[str, Any]) -> None:
    """Kill it as the kernel does; that there was something to be killed is made sure."""
    if victim == "controller":
        wait_until(lambda: kill_all(controllers(process)), "a controller to be killed")
    elif victim == "module":
        # Between two modules there is none.
        wait_until(lambda: kill_all(modules(record)) or process.poll() is not None, "a module to be killed")
    elif victim == "backend":
        wait_until(lambda: kill_all(backend(runs)), "a backend to be killed")
        wait_until(lambda: answers(runs), "PostgreSQL after its crash")
    else:
        runs.replica.postgres.stop("immediate")
        runs.replica.postgres.start()


def modules(record: dict[str, Any]) -> list[psutil.Process]:
    """The processes of the run that have signed in on the target."""
    found = []
    for path in (record["directory"] / "alive").iterdir():
        with contextlib.suppress(psutil.NoSuchProcess, ValueError):
            found.append(psutil.Process(int(path.name)))
    return found


def kill_all(processes: list[psutil.Process]) -> int:
    """Kill them; how many there were still."""
    killed = 0
    for one in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
            killed += 1
    return killed


def answers(runs: CutOffRuns) -> bool:
    import psycopg

    try:
        return bool(runs.server("select 1"))
    except psycopg.OperationalError:
        return False


def cut_off(runs: CutOffRuns, stage: str, victim: str) -> str:
    """Start a run when it may, kill the victim in the stage, and return all that was printed."""
    deadline = time.monotonic() + 900
    while True:
        runs.wait_for_the_keeper()
        said, was_cut_off = _cut_off_or_refused(runs, stage, victim)
        if was_cut_off:
            return said
        words = " ".join(said.split())
        assert time.monotonic() < deadline, said
        if "nothing to do, nothing was changed" in words:
            # The one before has outlived its victim: a server that comes up again is waited for.
            assert runs.witness.versions() == [HEAD]
            runs.reset()
        else:
            assert "Somebody else is at work" in words, said
            time.sleep(3)


def _cut_off_or_refused(runs: CutOffRuns, stage: str, victim: str) -> tuple[str, bool]:
    known = set((runs.target_state / "demo" / "runs").glob("*/record.json"))
    process = runs.begin()
    try:
        seen: dict[str, Any] = {}

        def there() -> bool:
            seen.update(runs.record(known))
            return stage in [entry["stage"] for entry in seen.get("stages", [])] or process.poll() is not None

        wait_until(there, f"the stage {stage}", 900)
        if process.poll() is not None:
            return process.communicate()[0], False
        kill(runs, victim, process, seen)
        return process.communicate(timeout=900)[0], True
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("chain", CHAINS)
def test_rows_35_40_54_cut_off_again_and_again(runs: CutOffRuns, chain: list[tuple[str, str]]) -> None:
    """Each run gets further than the one before, which was killed; the last one is left alone."""
    runs.reset()
    before = runs.witness.look()
    said = []
    for stage, victim in chain:
        runs.rehearse = stage == "rehearsing"
        said.append(cut_off(runs, stage, victim))
    ends_well(runs, before, "\n\n".join(said))


@pytest.mark.thorough
@pytest.mark.parametrize(("stage", "victim"), PAIRS)
def test_rows_35_40_54_cut_off(runs: CutOffRuns, stage: str, victim: str) -> None:
    """A SIGKILL of the controller, of the module on the target, of a backend of PostgreSQL, or of PostgreSQL."""
    runs.reset()
    before = runs.witness.look()
    runs.rehearse = stage == "rehearsing"
    ends_well(runs, before, cut_off(runs, stage, victim))


def ends_well(runs: CutOffRuns, before: Seen, said: str) -> None:
    """The next run recovers it: nothing is lost, nothing is left."""
    done = runs.recover_when_it_may()
    assert done.code == 0, f"{said}\n\n{done.text}"
    after = runs.witness.look()
    assert runs.witness.versions() == [HEAD]
    assert_only_the_revisions_have_changed_it(before, after)
    for check in behaviour.HEALTHY:
        check(runs.replica.client)
    # What is kept is closed: the database from before, or the migrated one, where a run that was cut off after the swap
    # has gone back. Nothing else is left, and the next run has nothing to do.
    databases = runs.server("select datname, datallowconn from pg_database where datname ~ '^aiproxy'")
    assert [name for name, is_open in databases if is_open] == ["aiproxy"], databases
    assert all(re.search("_(old|replaced)_", name) for name, is_open in databases if not is_open), databases
    assert runs.server("select application_name from pg_stat_activity where application_name ~ '^alembic-reco'") == []
    left = run_module("run_status", runs.options())
    assert (left["action"], left["todo"]) == ("nothing", []), left
