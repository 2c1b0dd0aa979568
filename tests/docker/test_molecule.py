"""The Molecule scenarios: recover.yml on the replica in containers, over ssh, with testinfra as the judge."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.ansible_run import ROOT, clean_environment


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.xdist_group("molecule")
def test_every_scenario_goes_to_its_end_and_its_tests_run() -> None:
    environment = clean_environment(REPLICA_PREFIX=f"tests_molecule_{os.getpid()}")
    # What this pytest was told is not meant for those that Molecule starts.
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "molecule"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20000:]
    assert "passed, tests ran in 2 of 2 verify steps" in done.stdout
