"""The gate, in whole runs: what is asked, what goes on, what refuses, and with which words."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ansible_run import ROOT, Run, clean_environment, run_playbook
from tests.support.terminal import Terminal

PLAYBOOK = """
- name: Gate
  hosts: localhost
  gather_facts: false
  connection: local
  tasks:
    - name: Ask
      confirm:
        expected: "{{ expected | default('aiproxy@prod') }}"
        given: "{{ recovery_confirm | default('') }}"
        plan: [back up aiproxy, "upgrade 0f864573b58a -> d4641a241b98"]
        seconds: "{{ seconds | default(60) }}"
      register: gate
    - name: Show
      ansible.builtin.debug:
        msg: "went on, confirmed={{ gate.confirmed }} by={{ gate.confirmed_by }} changed={{ gate.changed }}"
"""
ADVICE = "run the same command again with: -e recovery_confirm=aiproxy@prod"
QUESTION = "type aiproxy@prod and press Enter"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with the gate and nothing else."""
    for folder in ("action_plugins", "library"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "gate.yml").write_text(PLAYBOOK)
    return tmp_path


def gate(project: Path, *arguments: str, **environment: str) -> Run:
    """Run the gate without a terminal."""
    return run_playbook("gate.yml", *arguments, cwd=project, environment=environment)


@pytest.fixture
def terminal(project: Path, request: pytest.FixtureRequest) -> Iterator[Terminal]:
    """Run the gate at a terminal, up to the question."""
    arguments, environment = getattr(request, "param", ([], {}))
    argv = ["ansible-playbook", "gate.yml", *arguments]
    with Terminal(argv, project, clean_environment(**environment)) as opened:
        yield opened


@pytest.mark.parametrize(
    "given",
    [
        pytest.param("recovery_confirm=aiproxy@prod", id="string"),
        pytest.param("recovery_confirm=other@staging,aiproxy@prod", id="one-of-several"),
        pytest.param('{"recovery_confirm": ["other@staging", "aiproxy@prod"]}', id="list"),
    ],
)
def test_the_right_words_in_the_variable_go_on(project: Path, given: str) -> None:
    done = gate(project, "-e", given)

    assert done.code == 0, done.text
    assert "went on, confirmed=True by=variable changed=False" in done.out
    assert "Plan for aiproxy@prod:\n  back up aiproxy\n  upgrade 0f864573b58a -> d4641a241b98\n" in done.out


@pytest.mark.parametrize("given", ["aiproxy@staging", "aiproxy", "AIPROXY@PROD", "yes", "aiproxy@prod2"])
def test_s20_other_words_in_the_variable_refuse(project: Path, given: str) -> None:
    done = gate(project, "-e", f"recovery_confirm={given}")

    assert done.code == 2
    assert "went on" not in done.text
    assert (
        f"recovery_confirm is '{given}', and this plan is for 'aiproxy@prod'. Nothing has been touched. "
        "If that is what you want: -e recovery_confirm=aiproxy@prod"
    ) in done.text


def test_without_a_terminal_and_without_the_variable_it_refuses(project: Path) -> None:
    done = gate(project)

    assert done.code == 2
    assert "went on" not in done.text
    assert "there is no terminal to ask at. Nothing has been touched." in done.text
    assert ADVICE in done.text
    assert "Plan for aiproxy@prod:" in done.out


def test_words_on_a_pipe_are_no_confirmation(project: Path) -> None:
    done = run_playbook("gate.yml", cwd=project, stdin="aiproxy@prod\n")

    assert done.code == 2
    assert "there is no terminal to ask at" in done.text


def test_check_mode_shows_the_plan_and_asks_nobody(project: Path) -> None:
    done = gate(project, "--check")

    assert done.code == 0, done.text
    assert "went on, confirmed=False by=check mode changed=False" in done.out
    assert "  upgrade 0f864573b58a -> d4641a241b98\n" in done.out


def test_empty_expected_words_refuse(project: Path) -> None:
    done = gate(project, "-e", "expected=''", "-e", "recovery_confirm=''")

    assert done.code == 2
    assert "`expected` is empty" in done.text


def test_an_output_for_machines_stays_clean(project: Path) -> None:
    done = gate(project, "-e", "recovery_confirm=aiproxy@prod", ANSIBLE_STDOUT_CALLBACK="oneline")

    assert done.code == 0, done.text
    assert "Plan for" not in done.out
    assert "Plan for" in done.err


def test_the_right_words_typed_go_on(terminal: Terminal) -> None:
    terminal.wait_for_question(QUESTION)
    assert "  back up aiproxy\n" in terminal.text

    terminal.type("aiproxy@prod\n")

    assert terminal.wait() == 0, terminal.text
    assert "went on, confirmed=True by=terminal changed=False" in terminal.text


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        pytest.param("yes\n", "'yes' was typed, 'aiproxy@prod' was expected.", id="yes"),
        pytest.param("\n", "'' was typed, 'aiproxy@prod' was expected.", id="only-enter"),
        pytest.param("aiproxy@staging\n", "'aiproxy@staging' was typed,", id="another-stack"),
        pytest.param("aiproxy@pro\x03", "Interrupted at the question.", id="ctrl-c"),
    ],
)
def test_anything_else_typed_refuses(terminal: Terminal, typed: str, message: str) -> None:
    terminal.wait_for_question(QUESTION)

    terminal.type(typed)

    assert terminal.wait() == 2, terminal.text
    assert message in terminal.text
    assert "Nothing has been touched." in terminal.text
    assert ADVICE in terminal.text.replace("\n", " ")
    assert "went on" not in terminal.text


@pytest.mark.parametrize("terminal", [(["-e", "seconds=8"], {})], indirect=True)
def test_no_answer_in_time_refuses_although_the_words_stand_there(terminal: Terminal) -> None:
    terminal.wait_for_question(QUESTION)

    terminal.type("aiproxy@prod")  # without Enter

    assert terminal.wait() == 2, terminal.text
    assert "No answer within 8 seconds." in terminal.text
    assert "went on" not in terminal.text


@pytest.mark.parametrize(
    ("terminal", "reason"),
    [
        pytest.param(([], {"CI": "true"}), "CI is set", id="ci"),
        pytest.param(([], {"RUNNER_OMIT_EVENTS": "False"}), "RUNNER_OMIT_EVENTS is set", id="ansible-runner"),
        pytest.param((["-e", "awx_job_id=7"], {}), "awx_job_id is set", id="awx"),
    ],
    indirect=["terminal"],
)
def test_where_nobody_sits_nobody_is_asked(terminal: Terminal, reason: str) -> None:
    assert terminal.wait() == 2, terminal.text
    assert reason in terminal.text.replace("\n", " ")
    assert QUESTION not in terminal.text


def test_without_its_action_plugin_the_module_refuses(tmp_path: Path) -> None:
    (tmp_path / "library").symlink_to(ROOT / "library")
    (tmp_path / "gate.yml").write_text(
        PLAYBOOK.replace("localhost", "localhost\n  vars:\n    ansible_python_interpreter: " + sys.executable)
    )

    done = run_playbook("gate.yml", "-e", "recovery_confirm=aiproxy@prod", cwd=tmp_path)

    assert done.code == 2
    assert "The action plugin 'confirm' was not found" in done.text
