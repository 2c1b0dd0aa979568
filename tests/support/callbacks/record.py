"""Write down what each task of a run came to: a JSON line each, into the file that ALEMBIC_RECOVERY_RECORD names."""

from __future__ import annotations

import json
import os
import typing as t

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: record
type: notification
short_description: A JSON line for each result of a task
description: [For tests only.]
"""


class CallbackModule(CallbackBase):
    """The callback plugin."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "record"
    CALLBACK_NEEDS_ENABLED = False

    def _write(self, result: t.Any, outcome: str) -> None:
        path = os.environ.get("ALEMBIC_RECOVERY_RECORD")
        if not path:
            return
        line = {
            "task": result.task.name,
            "action": result.task.action,
            "outcome": outcome,
            "changed": bool(result.result.get("changed")),
            "msg": str(result.result.get("msg", "")),
        }
        with open(path, "a", encoding="utf-8") as file:  # noqa: PTH123
            file.write(json.dumps(line) + "\n")

    def v2_runner_on_ok(self, result: t.Any) -> None:
        """Note a task that went well."""
        self._write(result, "ok")

    def v2_runner_on_skipped(self, result: t.Any) -> None:
        """Note a task that was skipped."""
        self._write(result, "skipped")

    def v2_runner_on_failed(self, result: t.Any, ignore_errors: bool = False) -> None:
        """Note a task that failed."""
        self._write(result, "failed")

    def v2_runner_on_unreachable(self, result: t.Any) -> None:
        """Note a host that could not be reached."""
        self._write(result, "unreachable")
