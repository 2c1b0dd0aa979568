"""The report callback, in whole runs of small projects that hold nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent

import pytest

from tests.support.ansible_run import ROOT, clean_environment, run_playbook

SECRET = "marker-of-a-password"

RECOVER = f"""
- name: Recover
  hosts: prod
  gather_facts: false
  tasks:
    - name: guard | Look at the limit
      ansible.builtin.debug:
        msg: fine
    - name: Look once
      ansible.builtin.include_role:
        name: look
    - name: Say something between
      ansible.builtin.debug:
        msg: this belongs to the phase before it
    - name: migrate | Migrate and tidy up
      when: broken is defined
      block:
        - name: Take a step
          ansible.builtin.fail:
            msg: |
              The step failed.
              A second line.
      rescue:
        - name: Tidy up
          ansible.builtin.debug:
            msg: tidied
    - name: verify | Compare
      ansible.builtin.fail:
        msg: "{SECRET}"
      no_log: true
      when: wrong is defined
    - name: Look again
      ansible.builtin.import_role:
        name: look
"""

ROLE = """
- name: Ask
  ansible.builtin.command:
    argv: ["true"]
  changed_when: touched is defined
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose only plugin is the report, with one host in `prod` and nothing in `empty`."""
    (tmp_path / "callback_plugins").mkdir()
    shutil.copy(ROOT / "callback_plugins" / "run_report.py", tmp_path / "callback_plugins")
    (tmp_path / "roles" / "look" / "tasks").mkdir(parents=True)
    (tmp_path / "roles" / "look" / "tasks" / "main.yml").write_text(ROLE)
    (tmp_path / "recover.yml").write_text(RECOVER)
    (tmp_path / "hosts.yml").write_text(
        dedent(
            f"""
            prod: {{hosts: {{here: {{}}}}}}
            empty: {{hosts: {{}}}}
            all: {{vars: {{ansible_connection: local, ansible_python_interpreter: {sys.executable}}}}}
            """
        )
    )
    return tmp_path


def rows(text: str) -> list[list[str]]:
    """Return [phase, status] for each line of the table."""
    table = text.split("RUN REPORT", 1)[1].splitlines()[2:]
    found = [re.match(r"  (.+?) +(\S+) +\d\d:\d\d:\d\d +\d+\.\d s", line) for line in table]
    return [[match[1], match[2]] for match in found if match]


def test_a_good_run_ends_with_its_phases(project: Path) -> None:
    done = run_playbook("recover.yml", "-i", "hosts.yml", "-l", "prod", "-e", "touched=1", cwd=project)

    assert done.code == 0, done.text
    assert rows(done.out) == [
        ["guard", "ok"],
        ["Look once", "changed"],
        ["Look again", "changed"],
        ["all", "ok"],
    ]
    assert re.search(r"RUN REPORT recover\.yml, \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC\n", done.out)
    assert "WARNING" not in done.err


def test_check_mode_is_named(project: Path) -> None:
    done = run_playbook("recover.yml", "-i", "hosts.yml", "-l", "prod", "--check", cwd=project)

    assert done.code == 0, done.text
    assert "UTC, check mode: nothing was changed" in done.out


def test_a_rescued_phase_is_shown_with_the_task_and_its_first_line(project: Path) -> None:
    done = run_playbook("recover.yml", "-i", "hosts.yml", "-e", "broken=1", cwd=project)

    assert done.code == 0, done.text
    assert ["migrate", "rescued"] in rows(done.out)
    assert rows(done.out)[-1] == ["all", "ok"]
    report = done.out.split("RUN REPORT", 1)[1]
    assert "  migrate, here, task 'Take a step': The step failed.\n" in report
    assert "A second line" not in report


def test_a_failed_phase_does_not_show_what_no_log_hides(project: Path) -> None:
    done = run_playbook("recover.yml", "-i", "hosts.yml", "-e", "wrong=1", "-vvv", cwd=project)

    assert done.code == 2
    assert rows(done.out)[-2:] == [["verify", "FAILED"], ["all", "FAILED"]]
    assert "verify, here, task 'verify | Compare':" in done.out
    # Ansible itself prints the message on standard error; the report must not add to that.
    assert SECRET not in done.out.split("RUN REPORT", 1)[1]


def test_an_unreachable_host_is_a_failed_phase(project: Path) -> None:
    (project / "hosts.yml").write_text("prod: {hosts: {away: {ansible_host: 127.0.0.1, ansible_port: 1}}}\n")
    recover = "[{hosts: prod, gather_facts: false, tasks: [{name: look | Ping, ansible.builtin.ping: }]}]\n"
    (project / "recover.yml").write_text(recover)

    done = run_playbook("recover.yml", "-i", "hosts.yml", cwd=project)

    assert done.code == 4
    assert rows(done.out) == [["look", "FAILED"], ["all", "FAILED"]]
    assert "Connection refused" in done.out.split("RUN REPORT", 1)[1]


@pytest.mark.parametrize(
    ("arguments", "seen"),
    [
        pytest.param(["-i", "hosts.yml", "-e", "x=1", "-t", "nothing"], "tags: nothing", id="no-such-tag"),
        pytest.param(["-i", "localhost,"], "inventory: localhost,", id="group-not-in-the-inventory"),
        pytest.param(["-i", "nowhere.yml"], "nowhere.yml (not there)", id="no-inventory"),
    ],
)
def test_a_run_that_touched_no_host_ends_with_3(project: Path, arguments: list[str], seen: str) -> None:
    done = run_playbook("recover.yml", *arguments, cwd=project)

    assert done.code == 3, done.text
    assert "recover.yml ran no task on any host: nothing was looked at, and nothing was done." in done.err
    assert seen in done.err
    assert "Next: ansible-inventory --graph, then ansible-playbook recover.yml -l prod" in done.err
    assert "RUN REPORT" not in done.out


def test_a_group_without_hosts_ends_with_3(project: Path) -> None:
    (project / "recover.yml").write_text(RECOVER.replace("hosts: prod", "hosts: empty"))

    assert run_playbook("recover.yml", "-i", "hosts.yml", cwd=project).code == 3


def test_a_directory_that_everyone_may_write_to_is_named_as_the_cause(project: Path) -> None:
    (project / "ansible.cfg").write_text("[defaults]\ninventory = hosts.yml\n")
    assert run_playbook("recover.yml", "-l", "prod", cwd=project).code == 0
    project.chmod(0o777)

    done = run_playbook("recover.yml", "-l", "prod", cwd=project)

    assert done.code == 3, done.text
    assert "Ansible ignores ansible.cfg where everyone may write: chmod o-w ." in done.err


def test_other_playbooks_are_left_alone(project: Path) -> None:
    (project / "other.yml").write_text(RECOVER)
    (project / "nobody.yml").write_text(RECOVER.replace("hosts: prod", "hosts: empty"))

    done = run_playbook("other.yml", "-i", "hosts.yml", cwd=project)

    assert done.code == 0
    assert "RUN REPORT" not in done.text
    assert run_playbook("nobody.yml", "-i", "hosts.yml", cwd=project).code == 0


def test_playbooks_in_their_folder_have_the_report_through_ansible_cfg(project: Path) -> None:
    (project / "ansible.cfg").write_text(
        "[defaults]\ninventory = hosts.yml\ncallback_plugins = callback_plugins\nroles_path = roles\n"
    )
    (project / "playbooks").mkdir()
    (project / "playbooks" / "status.yml").write_text(RECOVER)

    done = run_playbook("playbooks/status.yml", "-l", "prod", cwd=project)

    assert done.code == 0, done.text
    assert done.out.count("RUN REPORT playbooks/status.yml") == 1


def test_the_table_can_be_switched_off_and_the_exit_code_cannot(project: Path) -> None:
    off = {"ALEMBIC_RECOVERY_REPORT": "false"}

    done = run_playbook("recover.yml", "-i", "hosts.yml", cwd=project, environment=off)

    assert done.code == 0
    assert "RUN REPORT" not in done.text
    assert run_playbook("recover.yml", cwd=project, environment=off).code == 3


def test_what_is_printed_reaches_a_pipe_at_once(project: Path) -> None:
    # Ansible flushes its output whenever a task starts; what comes during a task, as here the result of the first
    # item, would wait for the next one.
    (project / "recover.yml").write_text(
        "[{name: Wait, hosts: prod, gather_facts: false, tasks: "
        f"[{{name: look | Wait, ansible.builtin.wait_for: {{path: '{project}/{{{{ item }}}}', timeout: 180}}, "
        "loop: [recover.yml, seen]}]}]\n"
    )
    argv = ["ansible-playbook", "recover.yml", "-i", "hosts.yml"]
    # PYTHONUNBUFFERED would hide the fault; clean_environment() takes it away.
    with subprocess.Popen(argv, cwd=project, env=clean_environment(), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        seen = b""
        deadline = time.monotonic() + 120
        while b"(item=recover.yml)" not in seen and time.monotonic() < deadline:
            seen += process.stdout.read() or b""
            time.sleep(0.1)
        (project / "seen").touch()
        process.wait(timeout=120)
    assert b"(item=recover.yml)" in seen
