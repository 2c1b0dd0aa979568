#!/usr/bin/python
# Copyright: the alembic-recovery authors
# SPDX-License-Identifier: MIT
"""Record what models and catalog may differ in, so that what comes later is seen as drift."""

from __future__ import annotations

DOCUMENTATION = r"""
module: alembic_baseline
short_description: Record in what models and catalog may differ
description:
  - Writes what M(alembic_status) has seen of a database at head to a file on the target, one for each set of version
    rows and each code (models, C(env.py), versions of Alembic and SQLAlchemy). From then on M(alembic_status) reports
    other differences as drift.
  - Beside it, the hashes of the revisions that are applied, so that one that is edited later is noticed.
  - Files have mode C(0600) in a directory of mode C(0700), and no data of the application. Nothing is asked of the
    database.
version_added: 0.1.0
author: The alembic-recovery authors
options:
  directory:
    description: Where the baselines of the stack are on the target; made if it is missing.
    type: path
    required: true
  status:
    description: What M(alembic_status) has returned with O(alembic_status#module:compare_models).
    type: dict
    required: true
  accept:
    description:
      - A person has looked at it, and what is now is right. Without, what is recorded already stays as it is, so that
        what has drifted does not become the rule by itself.
    type: bool
    default: false
  applied:
    description: Revisions that have just been applied; whatever was recorded of their sources is replaced.
    type: list
    elements: str
    default: []
  run_id:
    description: The name of the run, kept in the file.
    type: str
    default: by-hand
attributes:
  check_mode:
    support: full
    description: Says what would be recorded; nothing is written.
  diff_mode:
    support: full
    description: The differences before and after, one in a line.
  idempotent:
    support: full
    description: What is recorded already is not written again.
seealso:
  - module: alembic_status
"""

EXAMPLES = r"""
- name: Compare models and catalog
  alembic_status:
    database: {runtime: docker, container: mac_ki_service-postgres-1, name: aiproxy, user: aiuser}
    application: {runtime: docker, container: mac_ki_service-aiproxysrv-1, workdir: /app}
    compare_models: true
  register: status

- name: Record that they may differ so
  alembic_baseline:
    directory: /var/lib/alembic-recovery/prod/baselines
    status: "{{ status }}"
    accept: true
"""

RETURN = r"""
baseline:
  description: The file of the baseline; empty where there is none (see RV(reason)).
  returned: always
  type: str
  sample: /var/lib/alembic-recovery/prod/baselines/baseline-0a1b2c3d4e5f6071.json
recorded:
  description: The differences that are in the baseline now (in check mode, would be), in words.
  returned: always
  type: list
  elements: str
  sample: ["not there: index ix_songs_status on songs (status)"]
files:
  description: The files that were (in check mode, would be) written.
  returned: always
  type: list
  elements: str
  sample: [/var/lib/alembic-recovery/prod/baselines/revisions.json]
reason:
  description: Why there is no baseline, if so.
  returned: always
  type: str
  sample: env.py gives Alembic no models (target_metadata)
"""

import typing as t

from ansible.module_utils.alembic_recovery import baseline
from ansible.module_utils.alembic_recovery.errors import RecoveryError, StackError
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS: dict[str, t.Any] = {
    "directory": {"type": "path", "required": True},
    "status": {"type": "dict", "required": True},
    "accept": {"type": "bool", "default": False},
    "applied": {"type": "list", "elements": "str", "default": []},
    "run_id": {"type": "str", "default": "by-hand"},
}


def execute(module: AnsibleModule) -> dict[str, t.Any]:
    """Decide what there is to record, and unless in check mode record it; the task's result."""
    params, seen = module.params, module.params["status"]
    if seen.get("verdict") not in ("AT_HEAD", "DRIFTED") or not seen.get("models"):
        raise StackError(
            f"A baseline is of a database at head whose models were compared. What was seen: verdict "
            f"{seen.get('verdict', 'none')}, models {'compared' if seen.get('models') else 'not compared'}. Nothing "
            "was recorded. Give it what alembic_status returned with compare_models: true."
        )
    if params["accept"] and seen["models"]["state"] == "failed":
        raise StackError(
            f"Models and catalog could not be compared: {seen['models']['reason']}. Nothing was recorded. Remove the "
            "cause, then record it again."
        )
    change = baseline.record(
        params["directory"],
        seen["current"],
        seen["models"],
        accept=params["accept"],
        applied=params["applied"],
        facts={"run_id": params["run_id"], "images": seen.get("images") or {}},
    )
    if not module.check_mode:
        change.write()
    return {
        "changed": bool(change.contents),
        "baseline": change.path,
        "recorded": list(change.after),
        "files": sorted(change.contents),
        "reason": seen["models"]["reason"] or "",
        "diff": {"before": lines(change.before), "after": lines(change.after)},
    }


def lines(words: t.Sequence[str]) -> str:
    """A text of a line each, for `--diff`."""
    return "".join(f"{word}\n" for word in words)


def main() -> None:
    """Run the module: options in, result or one clear failure out."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    try:
        result = execute(module)
    except RecoveryError as error:
        module.fail_json(msg=error.message, **error.details)
    except OSError as error:
        module.fail_json(msg=f"The baseline cannot be written: {error}. Nothing else was touched.")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
