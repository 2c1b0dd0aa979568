# Copyright: the alembic-recovery authors
# SPDX-License-Identifier: MIT
"""For tools/measure: one JSON line for each task that ran on a host."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: task_log
type: aggregate
short_description: One JSON line for each task that ran
description:
  - Writes C(action), C(host) and C(outcome) of each task that was not skipped. Used by C(tools/measure) to count tasks.
options:
  path:
    description: The file to append to. Without it, nothing is written.
    type: path
    env:
      - name: ALEMBIC_RECOVERY_TASK_LOG
"""


class CallbackModule(CallbackBase):
    """The callback plugin."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "task_log"
    CALLBACK_NEEDS_ENABLED = True

    def v2_runner_on_ok(self, result: t.Any) -> None:
        """Note a task that went well."""
        self._note(result, "changed" if result.result.get("changed") else "ok")

    def v2_runner_on_failed(self, result: t.Any, ignore_errors: bool = False) -> None:  # noqa: ARG002
        """Note a task that failed."""
        self._note(result, "failed")

    def _note(self, result: t.Any, outcome: str) -> None:
        path = self.get_option("path")
        if path:
            entry = {"action": str(result.task.action), "host": result.host.get_name(), "outcome": outcome}
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
