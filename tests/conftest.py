"""For all tests: where the modules are found, which tests may run side by side, and that tests really ran."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import ansible.module_utils
import pytest

from replica.ports import choose_from

ROOT = Path(__file__).resolve().parent.parent
#: The groups that take more than a minute, longest first: what begins last must not keep the others waiting.
LONGEST = (
    "docker",
    "docker beside",
    "molecule",
    "tests/faults/test_docker_faults.py",
    "recover-failures",
    "tests/playbooks/test_repair.py",
    "tests/playbooks/test_readme.py",
    "cut-off 0",
    "cut-off 1",
    "recover-incident",
    "rollback-swap-back",
    "rollback-restore",
    "ways",
    "rollback-downgrade",
    "versions 16",
    "versions 18",
    "versions distribution",
    "recover-rewritten",
    "rollback-open",
    "tests/faults/test_security.py",
    "tests/faults/test_return_faults.py",
    "tests/faults/test_migration_faults.py",
    "tests/playbooks/test_refusals.py",
    "tests/faults/test_backup_faults.py",
    "tests/replica/test_docker.py",
    "tests/layouts/test_recover_layouts.py",
    "tests/layouts/test_locks.py",
    "tests/verdicts/test_traps.py",
)

# Modules are imported by their own name, as `import alembic_status`; the code below them as Ansible does it,
# `from ansible.module_utils.alembic_recovery.errors import RecoveryError`.
sys.path.insert(0, str(ROOT / "library"))
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))


def pytest_configure() -> None:
    """Give each worker ports of its own."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 10
    choose_from(range(20_000 + number * 1_000, 21_000 + number * 1_000))


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@lru_cache(maxsize=1)
def _docker_answer() -> str:
    """Return the version of the Docker Engine that answers, "" if none does."""
    if not shutil.which("docker"):
        return ""
    answer = subprocess.run(
        ["docker", "version", "--format", "{{.Server.Version}}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return answer.stdout.strip() if answer.returncode == 0 else ""


def _group(item: pytest.Item) -> str:
    """The tests that one worker runs in a row: those of one file, and all that share the Docker replica."""
    return str(next(item.iter_markers("xdist_group")).args[0])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is for `make faults`, keep groups together (`--dist loadgroup`), begin with what takes longest."""
    if not os.environ.get("EVERY_PAIR"):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("thorough")])
        items[:] = [item for item in items if not item.get_closest_marker("thorough")]
    for item in items:
        if not any(item.iter_markers("xdist_group")):
            path = item.nodeid.split("::", 1)[0]
            shared = item.get_closest_marker("docker") and path.startswith("tests/docker/")
            item.add_marker(pytest.mark.xdist_group("docker" if shared else path))
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(_group(item), len(LONGEST)))
    for item in items:
        # pytest-xdist 3.8 tells the group through `_nodeid`, which pytest 9.2 no longer reads: tests of one file ran on
        # both workers, each with fixtures of its own. `_id` is what it reads instead.
        if config.getoption("loadgroup", default=False) and hasattr(item, "_id"):
            item._id = type(item._id).parse(f"{item.nodeid}@{_group(item)}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs Docker where none answers; under `make`, which has made sure that one does, fail."""
    if item.get_closest_marker("docker") and not _docker_answer():
        message = "no Docker Engine answers: run tools/ensure-docker"
        if os.environ.get("RECOVERY_TESTS_STRICT"):
            pytest.fail(message, pytrace=False)
        pytest.skip(message)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A run in which no test passed is not a success, whatever was skipped."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    is_worker = hasattr(session.config, "workerinput")
    if is_worker or reporter is None or exitstatus != 0 or session.config.option.collectonly:
        return
    if not reporter.stats.get("passed"):
        reporter.write_line("No test ran.", red=True)
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
