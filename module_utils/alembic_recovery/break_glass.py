"""The page for emergencies: what state things are in, what is safe, and commands that need no Ansible.

It is written anew with every stage of a run. The commands on it are those that the keeper runs when the run is dead
(`keeper.py`), so they are not only written down.
"""

from __future__ import annotations

import shlex
import typing as t

Command = t.List[str]

_STATES: t.Mapping[str, str] = {
    "fencing": "The services are being stopped and the database is being closed. Nothing has been changed in it.",
    "fenced": "The services are stopped and the database is closed. Nothing has been changed in it.",
    "cloning": "A clone of the closed database is being made. Nothing has been changed in the database itself.",
    "cloned": "A clone of the closed database is there. Nothing has been changed in the database itself.",
    "migrating": "The clone is being migrated. Nothing has been changed in the database itself.",
    "migrated": "The clone has been migrated, and is being verified. Nothing has been changed in the database itself.",
    "swapping": "The names of the database and of the migrated clone are being exchanged: both or none have changed.",
    "swapped": "The application's database is the migrated one now. The services are still stopped.",
    "starting": "The application's database is the migrated one now. The services are being started.",
    "started": "The application's database is the migrated one, and the services run.",
    "taken_back": "The application's database is open again, as it was, and the services have been started.",
    "done": "The run has ended well.",
    "failed": "The run has ended, and said why.",
}
_IN_PLACE = "The database itself is being migrated (in place), under another name."
_COUNTED = "The services are stopped. What was written to the database is being counted, under another name: {0}."
_BEFORE = "Nothing has been stopped, closed or changed. The application runs as before."


def page(facts: t.Mapping[str, t.Any], directory: str) -> str:
    """The text of the page for the stage that a run is in.

    :param facts: the run's record; `commands` maps `open`, `start`, `swap_back` to lists of argument lists.
    :param directory: the directory of the run.
    """
    commands = facts.get("commands") or {}
    lines = [
        f"alembic-recovery: run {facts['run_id']} on database {facts['database']}, stack {facts['stack']}",
        f"Started by {facts.get('operator', 'nobody')} from {facts.get('controller', 'nowhere')}.",
        "",
        f"STAGE {facts['stage']} since {facts['stages'][-1]['at']}",
        _state(facts),
        "",
        *_advice(facts, commands),
        "",
        f"The record of the run: {directory}",
        "The backup: " + (", ".join(facts.get("backup") or []) or "not made yet"),
    ]
    return "\n".join(lines) + "\n"


def shown(commands: t.Iterable[Command]) -> list[str]:
    """Commands as they are typed into a shell.

    >>> shown([["docker", "start", "a b"]])
    ["    docker start 'a b'"]
    """
    return [f"    {' '.join(shlex.quote(word) for word in argv)}" for argv in commands]


def _state(facts: t.Mapping[str, t.Any]) -> str:
    stage = str(facts["stage"])
    if facts.get("in_place") and stage in ("migrating", "migrated"):
        return _IN_PLACE
    if facts.get("aside") and stage == "fenced":
        return _COUNTED.format(facts["aside"])
    return _STATES.get(stage, _BEFORE)


def _advice(facts: t.Mapping[str, t.Any], commands: t.Mapping[str, t.Sequence[Command]]) -> list[str]:
    stage = str(facts["stage"])
    if stage not in _STATES:
        return ["Nothing has to be done. To begin again, run the same playbook again."]
    if stage in ("started", "taken_back", "done", "failed"):
        return ["Nothing has to be done.", *_going_back(facts, commands)]
    text = [
        "While a run is alive, leave it alone: it ends the outage by itself, and says what it found. Is it alive?",
        *shown([["pgrep", "-f", str(facts["run_id"])]]),
        "",
    ]
    if stage not in ("swapped", "starting"):
        text += [
            "If it is not, and the application is to run again as before (safe at any time; nothing is lost):",
            "1. Give the database its name back where that is needed, and open it:",
            *shown(commands.get("open", [])),
            "2. Start the services, in this order:",
        ]
    else:
        text += ["If it is not: start the services, in this order:"]
    text += shown(commands.get("start", []))
    if facts.get("needs_password"):
        text.append(
            "psql takes the password of the role from PGPASSWORD, or asks for it. The inventory has it (Ansible Vault)."
        )
    return [*text, *_going_back(facts, commands)]


def _going_back(facts: t.Mapping[str, t.Any], commands: t.Mapping[str, t.Sequence[Command]]) -> list[str]:
    """How to use the old database again, once there is one; not safe without a thought."""
    if not facts.get("old") or facts["stage"] in ("taken_back", "failed") or not commands.get("swap_back"):
        return []
    if facts.get("aside") and facts["stage"] in ("fenced", "swapping"):
        # Nothing has the application's name: it has to come back first.
        return []
    return [
        "",
        f"The database from before the swap is kept, closed, as {facts['old']}. What was written since is",
        "not in it (playbooks/rollback.yml counts and saves that first). To use it again all the same: stop the",
        "services, exchange the names, start the services:",
        *shown(commands.get("stop", [])),
        *shown(commands["swap_back"]),
        *shown(commands.get("start", [])),
    ]
