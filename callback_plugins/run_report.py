# Copyright: the alembic-recovery authors
# SPDX-License-Identifier: MIT
"""Close a run with a table of its phases, and never let a run that touched nothing pass for a success."""

from __future__ import annotations

DOCUMENTATION = r"""
name: run_report
type: aggregate
short_description: A table of phases at the end of a run, and exit code 3 for a run that touched no host
description:
  - Works for C(recover.yml) and the playbooks in C(playbooks/) beside it, and for no others. Needs no
    setting, so that it is there where Ansible ignores C(ansible.cfg).
  - A run that ran no task on any host ends with exit code 3 instead of 0, and says what to do.
  - What is printed reaches a pipe or a log file line by line, not at the end of the run.
  - A phase is what stands before C( | ) in the name of a task or block of the playbook, else the name under which a
    role is used there. A task without either belongs to the phase before it.
options:
  report:
    description: Print the table.
    type: bool
    default: true
    env:
      - name: ALEMBIC_RECOVERY_REPORT
    ini:
      - section: callback_run_report
        key: report
"""

import io
import os
import stat
import sys
import typing as t
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from ansible import constants as C  # noqa: N812 (its name everywhere in Ansible)
from ansible import context
from ansible.plugins.callback import CallbackBase

ROOT = Path(__file__).resolve().parent.parent
NO_HOST_EXIT_CODE = 3


@dataclass
class Phase:
    """What happened between the first and the last task of a phase; times are UTC."""

    name: str
    started: datetime
    ended: datetime
    outcomes: set[str] = field(default_factory=set)
    hosts: set[str] = field(default_factory=set)
    failures: list[tuple[str, str, str]] = field(default_factory=list)  # host, task, message

    def status(self, failed_hosts: set[str]) -> str:
        """Return one word for the phase; a failure on a host that did not fail in the end was rescued."""
        if self.failures:
            return "FAILED" if any(host in failed_hosts for host, _, _ in self.failures) else "rescued"
        return next((outcome for outcome in ("changed", "ok") if outcome in self.outcomes), "skipped")


def is_ours(playbook: Path) -> bool:
    """Return whether the file is recover.yml or one of the playbooks of this checkout."""
    path = playbook.resolve()
    return path == ROOT / "recover.yml" or path.parent == ROOT / "playbooks"


def phase_name(task: t.Any) -> str:
    """Return the phase of a task, as the outermost name in the playbook says; "" if none does."""
    chain: list[t.Any] = []
    node = task
    while node is not None:
        chain.insert(0, node)
        node = getattr(node, "_parent", None)
    for node in chain:
        name = str(getattr(node, "name", "") or "")
        if getattr(node, "_role", None):
            return str(node._role.get_name())  # noqa: SLF001 (the play's `roles`; there is no other way in)
        if " | " in name:
            return name.split(" | ", 1)[0].strip()
        if getattr(node, "_role_name", None):  # import_role and include_role
            return name or str(node._role_name)  # noqa: SLF001
    return ""


def first_line(result: t.Mapping[str, t.Any]) -> str:
    """Return the first line of a failed task's message; a task with `no_log` arrives without its message."""
    message = str(result.get("censored") or result.get("msg") or "")
    return next((line.strip() for line in message.splitlines() if line.strip()), "no message")


class CallbackModule(CallbackBase):
    """The callback plugin."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "run_report"
    CALLBACK_NEEDS_ENABLED = False

    def __init__(self) -> None:
        super().__init__()
        self._playbook = ""  # as typed by the user; empty for a playbook that is not ours
        self._play_name = ""
        self._phases: list[Phase] = []
        self._closed = True  # the next task begins a new phase, whatever its name

    def v2_playbook_on_start(self, playbook: t.Any) -> None:
        """Remember the playbook; from here on, print line by line."""
        path = Path(playbook._file_name)  # noqa: SLF001 (what every callback uses)
        self._playbook = os.path.relpath(path) if is_ours(path) else ""
        self._phases = []
        if self._playbook and isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(line_buffering=True)

    def v2_playbook_on_play_start(self, play: t.Any) -> None:
        """Begin anew: with `serial`, the same phases come again for the next hosts."""
        self._play_name = play.get_name()
        self._closed = True

    def v2_playbook_on_task_start(self, task: t.Any, is_conditional: bool) -> None:  # noqa: ARG002
        """Begin a phase when the task belongs to another one than the task before it."""
        name = phase_name(task)
        if self._closed or name not in ("", self._phases[-1].name):
            now = datetime.now(UTC)
            self._phases.append(Phase(name or self._play_name, now, now))
            self._closed = False

    def v2_playbook_on_handler_task_start(self, task: t.Any) -> None:
        """Treat a handler as any other task."""
        self.v2_playbook_on_task_start(task, is_conditional=False)

    def v2_runner_on_ok(self, result: t.Any) -> None:
        """Note a task that went well."""
        self._note(result, "changed" if result.result.get("changed") else "ok")

    def v2_runner_on_skipped(self, result: t.Any) -> None:
        """Note a task that was skipped."""
        self._note(result, "skipped")

    def v2_runner_on_failed(self, result: t.Any, ignore_errors: bool = False) -> None:
        """Note a task that failed."""
        self._note(result, "ok" if ignore_errors else "failed")

    def v2_runner_on_unreachable(self, result: t.Any) -> None:
        """Note a host that could not be reached."""
        self._note(result, "failed")

    def _note(self, result: t.Any, outcome: str) -> None:
        phase, task, host = self._phases[-1], result.task, result.host.get_name()
        phase.ended = datetime.now(UTC)
        phase.outcomes.add(outcome)
        phase.hosts.add(host)
        if outcome == "failed":
            phase.failures.append((host, str(task.name or task.action), first_line(result.result)))

    def v2_playbook_on_stats(self, stats: t.Any) -> None:
        """Print the table; end a run that did nothing with an exit code of its own."""
        if not self._playbook:
            return
        if not stats.processed:
            self._display.display("\n".join(self._no_host_lines()), color=C.COLOR_ERROR, stderr=True)
            # Any other exception of a callback is only a warning to Ansible; this one gets through.
            raise SystemExit(NO_HOST_EXIT_CODE)
        if self.get_option("report") and self._phases:
            self._display.display("\n".join(self._table(stats)))

    def _no_host_lines(self) -> list[str]:
        asked = context.CLIARGS
        sources = [str(path) for path in asked.get("inventory") or ()]
        there = [s if "," in s or Path(s).exists() else f"{s} (not there)" for s in sources]
        tags = ", ".join(tag for tag in asked.get("tags") or () if tag != "all") or "none"
        limit, settings = asked.get("subset"), C.CONFIG_FILE or "no ansible.cfg"
        lines = [
            f"\n{self._playbook} ran no task on any host: nothing was looked at, and nothing was done.",
            f"Seen: {settings}; inventory: {', '.join(there)}; limit: {limit or 'none'}; tags: {tags}.",
            "Expected: an inventory with the hosts or the group that the limit names.",
            f"Next: ansible-inventory --graph, then ansible-playbook {self._playbook} -l {limit or 'prod'}",
        ]
        if not C.CONFIG_FILE and Path("ansible.cfg").exists() and Path.cwd().stat().st_mode & stat.S_IWOTH:
            lines.insert(2, "Ansible ignores ansible.cfg where everyone may write: chmod o-w .")
        return lines

    def _table(self, stats: t.Any) -> list[str]:
        summaries = {host: stats.summarize(host) for host in stats.processed}
        failed = {host for host, known in summaries.items() if known["failures"] or known["unreachable"]}
        whole = Phase("all", self._phases[0].started, self._phases[-1].ended)
        rows = [["phase", "status", "started", "duration", "hosts"]]
        done = [phase for phase in self._phases if phase.status(failed) != "skipped"]
        for phase in [*done, whole]:
            status = phase.status(failed) if phase is not whole else "FAILED" if failed else "ok"
            started, seconds = f"{phase.started:%H:%M:%S}", (phase.ended - phase.started).total_seconds()
            rows.append([phase.name, status, started, f"{seconds:.1f} s", ", ".join(sorted(phase.hosts))])
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        mode = ", check mode: nothing was changed" if context.CLIARGS.get("check") else ""
        lines = [f"\nRUN REPORT {self._playbook}, {whole.ended:%Y-%m-%d %H:%M:%S} UTC{mode}"]
        for name, status, started, duration, hosts in rows:
            line = f"  {name:<{widths[0]}}  {status:<{widths[1]}}  {started}  {duration:>{widths[3]}}"
            lines.append(f"{line}  {hosts}".rstrip() if len(summaries) > 1 else line)
        for phase in self._phases:
            lines += [f"  {phase.name}, {host}, task '{task}': {text}" for host, task, text in phase.failures]
        return lines
