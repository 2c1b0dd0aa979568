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

ROOT = Path(__file__).resolve().parent.parent

# Modules are imported by their own name, as `import alembic_status`; the code below them as Ansible does it,
# `from ansible.module_utils.alembic_recovery.errors import RecoveryError`.
sys.path.insert(0, str(ROOT / "library"))
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))


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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep together (`--dist loadgroup`) the tests of one file, and all that use the Docker replica."""
    for item in items:
        if not any(item.iter_markers("xdist_group")):
            group = "docker" if item.get_closest_marker("docker") else item.nodeid.split("::", 1)[0]
            item.add_marker(pytest.mark.xdist_group(group))
        # pytest-xdist 3.8 tells the group through `_nodeid`, which pytest 9.2 no longer reads: tests of one file ran on
        # both workers, each with fixtures of its own. `_id` is what it reads instead.
        if config.getoption("loadgroup", default=False) and hasattr(item, "_id"):
            mark = next(item.iter_markers("xdist_group"))
            item._id = type(item._id).parse(f"{item.nodeid}@{mark.args[0]}")


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
