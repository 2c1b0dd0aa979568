# Copyright: the alembic-recovery authors
# SPDX-License-Identifier: MIT
"""The gate before anything is changed. Its options and return values are documented in library/confirm.py."""

from __future__ import annotations

import os
import time
import typing as t

from ansible import constants as C  # noqa: N812 (its name everywhere in Ansible)
from ansible.errors import AnsiblePromptInterrupt, AnsiblePromptNoninteractive
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

ARGUMENT_SPEC: dict[str, dict[str, t.Any]] = {
    "expected": {"type": "str", "required": True},
    "given": {"type": "raw"},
    "plan": {"type": "list", "elements": "str", "default": []},
    "seconds": {"type": "int", "default": 600},
}
NOTHING_TOUCHED = "Nothing has been touched."


def as_words(given: t.Any) -> list[str]:
    """Return what the variable holds as a list: it may be a list, or a string with commas, or not set."""
    if given is None:
        return []
    parts = given if isinstance(given, list | tuple) else str(given).split(",")
    return [word for word in (str(part).strip() for part in parts) if word]


def nobody_to_ask(task_vars: t.Mapping[str, t.Any], environment: t.Mapping[str, str]) -> str:
    """Return why no question must be asked although there may be a terminal, "" if one may.

    AWX and ansible-runner give Ansible a terminal at which nobody sits: a question there waits for ever.
    """
    if environment.get("CI", "").lower() not in ("", "0", "false"):
        return "the environment variable CI is set"
    for name in ("awx_job_id", "tower_job_id"):
        if task_vars.get(name):
            return f"the run is a job of AWX ({name} is set)"
    for name in sorted(environment):
        if name.startswith(("AWX_", "TOWER_", "RUNNER_")):
            return f"the run belongs to AWX or ansible-runner (the environment variable {name} is set)"
    return ""


class ActionModule(ActionBase):
    """The action plugin; it runs on the controller and contacts no host."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: t.Any = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Show the plan and return `confirmed`; a refusal is a failed task, an interruption too."""
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(argument_spec=ARGUMENT_SPEC)
        expected = arguments["expected"].strip()
        result.update(changed=False, confirmed=False, confirmed_by="", expected=expected, plan=arguments["plan"])
        if not expected:
            return refuse(result, "The task does not say which words confirm the plan: `expected` is empty.")
        show([f"Plan for {expected}:", *(f"  {line}" for line in arguments["plan"])])

        given = as_words(arguments["given"])
        if self._task.check_mode:
            return {**result, "confirmed_by": "check mode", "msg": "Check mode: nobody is asked."}
        if expected in given:
            return {**result, "confirmed": True, "confirmed_by": "variable", "msg": f"{expected}: confirmed"}
        if given:
            return refuse(
                result,
                f"recovery_confirm is '{', '.join(given)}', and this plan is for '{expected}'.",
                f"If that is what you want: -e recovery_confirm={expected}",
            )
        reason = nobody_to_ask(task_vars or {}, os.environ)
        if reason:
            return refuse(result, f"The plan is not confirmed, and nobody can be asked: {reason}.", add(expected))
        return self._ask(result, expected, arguments["seconds"])

    def _ask(self, result: dict[str, t.Any], expected: str, seconds: int) -> dict[str, t.Any]:
        question = f"To go on, type {expected} and press Enter (within {seconds} s; Ctrl-C refuses): "
        started = time.monotonic()
        try:
            # From a worker this is asked by Ansible's main process, the only one that has the terminal.
            typed = Display().prompt_until(question, seconds=seconds).decode("utf-8", "replace").strip()
        except AnsiblePromptNoninteractive:
            return refuse(result, "The plan is not confirmed, and there is no terminal to ask at.", add(expected))
        except AnsiblePromptInterrupt:
            return refuse(result, "Interrupted at the question.", add(expected))
        # After the time is over, what was typed so far is returned, with or without Enter.
        if time.monotonic() - started >= seconds:
            return refuse(result, f"No answer within {seconds} seconds.", add(expected))
        if typed != expected:
            return refuse(result, f"'{typed[:80]}' was typed, '{expected}' was expected.", add(expected))
        return {**result, "confirmed": True, "confirmed_by": "terminal", "msg": f"{expected}: confirmed"}


def add(expected: str) -> str:
    """Return what to add to the command so that it needs no question."""
    return f"To confirm the plan above, run the same command again with: -e recovery_confirm={expected}"


def refuse(result: dict[str, t.Any], reason: str, advice: str = "") -> dict[str, t.Any]:
    """Return the result of a task that refused."""
    return {**result, "failed": True, "msg": " ".join(filter(None, (reason, NOTHING_TOUCHED, advice)))}


def show(lines: list[str]) -> None:
    """Print lines at once, whatever the verbosity; beside the output, if that is for machines."""
    Display().display("\n".join(lines), stderr=C.DEFAULT_STDOUT_CALLBACK != "default")
