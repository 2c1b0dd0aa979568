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
    with (
        patch_module_args({**arguments, **options}),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        module.main()
    result: dict[str, Any] = json.loads(printed.getvalue())
    return result
