"""What tasks of the playbooks register: a task that is skipped registers, too, and overwrites what was there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.ansible_run import ROOT

# Each is registered by every task of that name that comes before it is read again, or by none of them.
AGAIN = {
    "recover.yml": {
        "__fence_lock", "__fence_settled", "__fence_unlocked",  # for what another run has left, then for this one
        "__verify_catalog", "__verify_queries", "__verify_status",  # of the rehearsal's copy, then of the database
    },
    "rollback.yml": {
        "__fence_lock", "__fence_settled", "__fence_unlocked",
        "__rollback_plan",  # skipped the second time where there is nothing to do, and not read after that
    },
}  # fmt: skip


class Loader(yaml.SafeLoader):
    """Reads Ansible's own tags as nothing."""


Loader.add_multi_constructor("!", lambda _loader, _suffix, _node: None)


def load(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.load(path.read_text(), Loader) or []  # noqa: S506 (a SafeLoader)
    return found


def registered(tasks: list[dict[str, Any]], directory: Path) -> Iterator[str]:
    """What tasks register, with those that are imported: all of them are there, also where a condition skips them."""
    for task in tasks:
        for part in ("block", "rescue", "always"):
            yield from registered(task.get(part, []), directory)
        if "register" in task:
            yield task["register"]
        if file := task.get("ansible.builtin.import_tasks"):
            yield from registered(load(directory / file), directory)
        if role := task.get("ansible.builtin.import_role"):
            place = ROOT / "roles" / role["name"] / "tasks"
            yield from registered(load(place / f"{role.get('tasks_from', 'main')}.yml"), place)


@pytest.mark.parametrize(
    "path", [ROOT / "recover.yml", *sorted((ROOT / "playbooks").glob("*.yml"))], ids=lambda p: p.name
)
def test_what_is_registered_twice_is_known(path: Path) -> None:
    names = Counter(
        name
        for play in load(path)
        for part in ("pre_tasks", "tasks", "post_tasks")
        for name in registered(play.get(part) or [], path.parent)
    )
    assert {name for name, count in names.items() if count > 1} == AGAIN.get(path.name, set())
