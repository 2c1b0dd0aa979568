"""The scripts in tools/: what they say when something is missing, and that they cannot report an empty success."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.ansible_run import ROOT

COREUTILS = ("sh", "sed", "cat", "dirname", "rm", "mkdir", "id", "env", "timeout", "date")


def script(name: str) -> ModuleType:
    """A script of tools/ as a module."""
    loader = SourceFileLoader(f"tools_{name}", str(ROOT / "tools" / name))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A checkout with the scripts and requirements, and `bin` with a few commands that is the only PATH."""
    for folder in ("tools", "requirements"):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True)
    (tmp_path / "bin").mkdir()
    for name in COREUTILS:
        found = shutil.which(name)
        assert found is not None
        (tmp_path / "bin" / name).symlink_to(found)
    return tmp_path


def command(place: Path, name: str, *lines: str) -> None:
    """Put a command into the PATH of a place."""
    path = place / "bin" / name
    path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n", encoding="utf-8")
    path.chmod(0o755)


def call(place: Path, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv,
        cwd=place,
        env={"PATH": str(place / "bin"), "HOME": str(place), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# -- tools/venv -----------------------------------------------------------------------------------------------


def test_a_missing_python_is_said(place: Path) -> None:
    done = call(place, "tools/venv", "run")

    assert done.returncode == 1
    assert done.stderr == "tools/venv: python3 is missing: apt-get install python3 python3-venv\n"


def test_a_python_that_is_too_old_is_said(place: Path) -> None:
    command(place, "python3", 'case "$1" in -V) echo Python 3.10.12 ;; *) exit 1 ;; esac')

    done = call(place, "tools/venv", "run")

    assert done.returncode == 1
    assert "Python 3.11, 3.12 or 3.13 is needed; python3 is Python 3.10.12" in done.stderr


def test_a_missing_venv_is_said(place: Path) -> None:
    # Debian's python3 without python3-venv has everything but ensurepip.
    command(place, "python3", f'case "$2" in *ensurepip*) exit 1 ;; *) exec {sys.executable} "$@" ;; esac')

    done = call(place, "tools/venv", "demo")

    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert done.returncode == 1
    assert "python3-venv is missing (needed to make .venv): apt-get install python3-venv" in done.stderr
    assert f"apt-get install python{version}-venv" in done.stderr
    assert not (place / ".venv").exists()


@pytest.mark.parametrize(
    ("python", "message"),
    [
        pytest.param("/nowhere/python", "PYTHON=/nowhere/python is not there", id="not-there"),
        pytest.param("old", "Python 3.11, 3.12 or 3.13 is needed", id="too-old"),
    ],
)
def test_a_python_named_by_the_user_is_checked(place: Path, python: str, message: str) -> None:
    command(place, "old", "exit 1")

    done = call(place, "tools/venv", "run", PYTHON=python)

    assert done.returncode == 1
    assert message in done.stderr


def test_an_unknown_set_is_refused(place: Path) -> None:
    done = call(place, "tools/venv", "everything")

    assert done.returncode == 2
    assert "there is no requirements/everything.txt" in done.stderr


# -- tools/ensure-docker --------------------------------------------------------------------------------------


def test_an_engine_that_answers_is_used_and_the_exit_code_passed_on(place: Path) -> None:
    command(place, "docker", "echo 20.10.24")

    done = call(place, "tools/ensure-docker", "sh", "-c", "echo in between; exit 7")

    assert done.returncode == 7
    assert done.stdout == "ensure-docker: Docker Engine 20.10.24 answers\nin between\n"
    assert not (place / ".cache").exists()


def test_an_engine_named_by_the_user_is_not_replaced(place: Path) -> None:
    # A client alone, as it is there without an engine.
    command(place, "docker", "echo 'Cannot connect' >&2", "exit 1")

    done = call(place, "tools/ensure-docker", "sh", "-c", "echo in between", DOCKER_HOST="tcp://127.0.0.1:1")

    assert done.returncode == 1
    assert "DOCKER_HOST=tcp://127.0.0.1:1 does not answer" in done.stderr
    assert "in between" not in done.stdout


def test_stopping_what_was_not_started_does_nothing(place: Path) -> None:
    assert call(place, "tools/ensure-docker", "--stop").returncode == 0


def test_a_process_that_is_no_engine_is_not_stopped(place: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        (place / ".cache").mkdir()
        (place / ".cache" / "dockerd.pid").write_text(f"{other.pid}\n")

        done = call(place, "tools/ensure-docker", "--stop")

        assert done.returncode == 0
        assert other.poll() is None
        other.kill()


# -- tools/ensure-package -------------------------------------------------------------------------------------


def test_what_is_missing_and_cannot_be_installed_is_named(place: Path) -> None:
    done = call(place, "tools/ensure-package", "sshd")

    assert done.returncode == 1
    assert done.stdout == ""
    assert re.search(r"^ensure-package: openssh-server: not installed, and ", done.stderr)


def test_a_program_that_nobody_knows_is_refused(place: Path) -> None:
    done = call(place, "tools/ensure-package", "mysql")

    assert done.returncode == 1
    assert "there is no mysql here: use sshd, pgbouncer or postgresql" in done.stderr


# -- tools/test -----------------------------------------------------------------------------------------------


@pytest.fixture
def stages(place: Path) -> Path:
    """A checkout with three stages, the second of which fails."""
    (place / "Makefile").write_text("one three:\n\t@echo did $@\ntwo:\n\t@exit 3\n", encoding="utf-8")
    return place


def run_stages(stages: Path, *names: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{stages / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return call(stages, sys.executable, "tools/test", *names, **{"PATH": path, **environment})


def test_all_stages_run_and_the_table_says_which_failed(stages: Path) -> None:
    done = run_stages(stages, "one", "two", "three")

    assert done.returncode == 1
    assert "did three" in done.stdout
    table = [line.split()[:2] for line in done.stdout.split("make test\n")[1].splitlines()]
    assert table == [["one", "passed"], ["two", "FAILED"], ["three", "passed"], ["all", "FAILED:"]]


def test_the_first_failure_can_end_it(stages: Path) -> None:
    done = run_stages(stages, "one", "two", "three", FAIL_FAST="1")

    assert done.returncode == 1
    assert "did three" not in done.stdout
    assert "not run" in done.stdout


def test_good_stages_end_with_0(stages: Path) -> None:
    done = run_stages(stages, "one", "three")

    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].split()[:2] == ["all", "passed"]


def test_no_stage_is_no_success(stages: Path) -> None:
    assert run_stages(stages).returncode == 2


# -- tools/molecule -------------------------------------------------------------------------------------------


@pytest.fixture
def scenario(place: Path) -> Path:
    """A checkout with one scenario that has two verify steps."""
    (place / "molecule" / "default").mkdir(parents=True)
    (place / "molecule" / "default" / "molecule.yml").write_text(
        "scenario:\n  test_sequence: [create, verify tests/one, converge, verify tests/two, destroy]\n",
        encoding="utf-8",
    )
    return place


@pytest.mark.parametrize(
    ("lines", "code", "closing"),
    [
        pytest.param(
            [r"printf '\033[32m\033[1m3 passed\033[0m in 1 s\n'", "echo 12 passed"],
            0,
            "passed, tests ran in 2 of 2 verify steps",
            id="all-tested",
        ),
        pytest.param(
            ["echo 3 passed", "echo 'Skipping, no tests found.'"],
            1,
            "FAILED (exit 0), tests ran in 1 of 2 verify steps",
            id="one-step-without-tests",
        ),
        pytest.param(["echo 0 passed, 3 skipped"], 1, "FAILED (exit 0), tests ran in 0 of 2", id="only-skipped"),
        pytest.param(["echo 1 passed", "echo 1 passed", "exit 4"], 1, "FAILED (exit 4)", id="failed"),
    ],
)
def test_a_scenario_is_good_only_if_its_tests_ran(scenario: Path, lines: list[str], code: int, closing: str) -> None:
    command(scenario, "molecule", *lines)

    done = call(scenario, sys.executable, "tools/molecule")

    assert done.returncode == code, done.stdout + done.stderr
    assert closing in done.stdout.splitlines()[-1]


def test_no_scenario_is_no_success(place: Path) -> None:
    done = call(place, sys.executable, "tools/molecule")

    assert done.returncode == 1
    assert "there is no scenario" in done.stderr


# -- tools/lock -----------------------------------------------------------------------------------------------


def test_a_version_that_differs_between_pythons_gets_a_marker() -> None:
    text = script("lock").render(
        {
            "3.11": {"ansible-core": "2.19.14", "psycopg": "3.3.9", "backport": "1.0"},
            "3.12": {"ansible-core": "2.21.5", "psycopg": "3.3.9"},
            "3.13": {"ansible-core": "2.21.5", "psycopg": "3.3.9"},
        }
    )

    assert text.splitlines()[1:] == [
        'ansible-core==2.19.14; python_version == "3.11"',
        'ansible-core==2.21.5; python_version == "3.12" or python_version == "3.13"',
        "backport==1.0",
        "psycopg==3.3.9",
    ]


# -- Makefile -------------------------------------------------------------------------------------------------


def would_do(target: str) -> str:
    """What make would do, without doing it."""
    command = ["make", "--dry-run", "--no-print-directory", target]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_every_folder_of_tests_is_in_make_test() -> None:
    stages = next(line for line in would_do("test").splitlines() if "tools/test" in line).partition("tools/test ")[2]
    done = "\n".join(would_do(stage) for stage in stages.split())
    for folder in {path.parent for path in ROOT.glob("tests/*/test_*.py")}:
        assert re.search(rf"\stests/{folder.name}\s", f"{done}\n"), f"no stage runs {folder}"


def test_make_faults_takes_every_pair_and_make_test_does_not() -> None:
    assert "EVERY_PAIR" not in would_do("pairwise")
    assert "EVERY_PAIR=1 tools/ensure-docker" in would_do("faults")
    assert " tests/faults " in would_do("faults")
