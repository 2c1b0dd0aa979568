"""A module of library/, run in this process through Ansible's own reading of arguments."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
from typing import Any

from ansible.module_utils.testing import patch_module_args


def run_module(name: str, arguments: dict[str, Any], *, check: bool = False, diff: bool = False) -> dict[str, Any]:
    """Run `library/<name>.py` and return its result; a failed task has `failed: true`, as in a playbook."""
    module = importlib.import_module(name)
    printed = io.StringIO()
    options = {"_ansible_check_mode": check, "_ansible_diff": diff}
    # Warnings of all modules that this process has run are in each result, in a form that no module can be given; a
    # controller takes them out of what is registered.
    given = {key: _without_warnings(value) for key, value in arguments.items()}
    with (
        patch_module_args({**given, **options}),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        module.main()
    result: dict[str, Any] = json.loads(printed.getvalue())
    return result


def _without_warnings(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: item for key, item in value.items() if key not in ("warnings", "deprecations")}
