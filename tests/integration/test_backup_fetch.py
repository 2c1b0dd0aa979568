"""backup_fetch, in plays of its own: four steps, and files that are not what they should be."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.ansible_run import ROOT, run_playbook
from tests.support.evidence import files, mode

DUMP = bytes(range(256)) * 8192  # 2 MiB


class Play:
    """Runs backup_fetch several times in one play, on this machine as target."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.source = place / "target"
        self.target = place / "controller" / "demo" / "backups"
        self.source.mkdir()
        self.entries: list[dict[str, Any]] = []
        for name, content in (("db_1.dump", DUMP), ("db_1.globals.sql", b""), ("db_1.manifest.json", b'{"x": 1}')):
            path = self.source / name
            path.write_bytes(content)
            digest = hashlib.sha256(content).hexdigest()
            self.entries.append({"path": str(path), "sha256": digest, "size_bytes": len(content), "name": name})

    def run(self, *steps: dict[str, Any]) -> list[dict[str, Any]]:
        """Run the steps in one play: each has `check`, and may have other `files` or another `directory`.

        Between steps, `list` says what is in the directory then. Return the result of each, `seen` added.
        """
        tasks: list[dict[str, Any]] = []
        for number, step in enumerate(steps):
            tasks += [
                {
                    "name": f"Fetch {number}",
                    "backup_fetch": {
                        "files": step.get("files", self.entries),
                        "directory": str(step.get("directory", self.target)),
                    },
                    "check_mode": step.get("check", False),
                    "register": f"fetch_{number}",
                    "ignore_errors": True,
                },
                {
                    "name": f"List {number}",
                    "ansible.builtin.command": {"argv": ["find", str(self.place / "controller")]},
                    "register": f"list_{number}",
                    "failed_when": False,
                },
            ]
        numbers = range(len(steps))
        results = "{{ [" + ", ".join(f"[fetch_{n}, list_{n}.stdout_lines]" for n in numbers) + "] }}"
        answer = self.place / "answer.json"
        tasks.append({"name": "Answer", "ansible.builtin.copy": {"content": results, "dest": str(answer)}})
        play = [{"name": "Fetch", "hosts": "all", "gather_facts": False, "tasks": tasks}]
        for folder in ("action_plugins", "library", "module_utils"):
            if not (self.place / folder).exists():
                (self.place / folder).symlink_to(ROOT / folder)
        (self.place / "play.yml").write_text(yaml.safe_dump(play))
        inventory = {"all": {"hosts": {"target": {"ansible_connection": "local"}}}}
        variables = {"ansible_python_interpreter": "{{ ansible_playbook_python }}"}
        inventory["all"]["hosts"]["target"].update(variables)
        (self.place / "hosts.yml").write_text(yaml.safe_dump(inventory))
        done = run_playbook("play.yml", "-i", "hosts.yml", cwd=self.place)
        assert done.code == 0, done.text
        return [{**result, "seen": seen} for result, seen in json.loads(answer.read_text())]


@pytest.fixture
def play(tmp_path: Path) -> Play:
    return Play(tmp_path)


def test_check_real_check_real(play: Play) -> None:
    planned, done, checked, again = play.run({"check": True}, {}, {"check": True}, {})
    final = [str(play.target / entry["name"]) for entry in play.entries]
    assert (planned["changed"], planned["files"], planned["copied"]) == (True, final, final)
    assert planned["seen"] == [], "check mode has made something"
    assert (done["changed"], done["files"], done["copied"]) == (True, final, final)
    assert set(final) <= set(done["seen"])
    for same in (checked, again):
        assert (same["changed"], same["files"], same["copied"]) == (False, final, [])
        assert same["seen"] == done["seen"]
    for entry, path in zip(play.entries, map(Path, final), strict=True):
        assert path.read_bytes() == Path(entry["path"]).read_bytes()
        assert mode(path) == 0o600
    assert mode(play.target) == 0o700
    assert {path.name for path in play.target.iterdir()} == {entry["name"] for entry in play.entries}


def test_what_is_not_what_it_should_be(play: Play, tmp_path: Path) -> None:
    """Faults 8 and 9 on the way, and a place that is not private; nothing is left or overwritten by any of them."""
    dump, *rest = play.entries
    opened = tmp_path / "controller" / "open"
    opened.mkdir(parents=True)
    opened.chmod(0o755)
    taken = tmp_path / "controller" / "taken"
    taken.mkdir(mode=0o700)
    (taken / "db_1.dump").write_text("somebody else's")
    before = files(opened, taken)

    flipped, short, gone, into_open, over = play.run(
        {"files": [{**dump, "sha256": "0" * 64}]},
        {"files": [{**dump, "size_bytes": dump["size_bytes"] + 1}]},
        {"files": [{**dump, "path": dump["path"] + ".none"}]},
        {"directory": opened},
        {"directory": taken},
    )

    assert "its SHA-256 is not that of the file on the target" in flipped["msg"]
    assert f"{len(DUMP)} of {len(DUMP) + 1} bytes arrived" in short["msg"]
    assert "could not be copied" in gone["msg"]
    for failed in (flipped, short, gone):
        assert "in 3 attempts" in failed["msg"]
        assert f"It is still on the target: {dump['path']}" in failed["msg"]
    assert f"{opened} on the controller is open to others (mode 0755)" in into_open["msg"]
    assert f"chmod 0700 {opened}" in into_open["msg"]
    assert "is there already, and is another file; nothing is overwritten" in over["msg"]
    assert files(opened, taken) == before
    assert list(play.target.iterdir()) == []
    assert rest


def test_without_files_the_place_is_checked_and_nothing_made(play: Play, tmp_path: Path) -> None:
    """What a run asks before the dump, so that nobody waits for one that then cannot be copied."""
    opened = tmp_path / "controller" / "open"
    opened.mkdir(parents=True)
    opened.chmod(0o755)
    link = tmp_path / "controller" / "link"
    link.symlink_to(tmp_path / "nowhere")
    file = tmp_path / "controller" / "file"
    file.touch(0o600)
    before = files(tmp_path / "controller")
    asked = [
        {"files": [], "directory": place, "check": check} for check in (True, False) for place in (opened, link, file)
    ]

    planned, done, *refused = play.run({"files": [], "check": True}, {"files": []}, *asked)

    for accepted in (planned, done):
        assert (accepted["changed"], accepted["files"], accepted["copied"]) == (False, [], [])
    assert not play.target.exists()
    for result, place in zip(refused, [opened, link, file] * 2, strict=True):
        assert result["failed"]
        assert str(place) in result["msg"]
        assert ("open to others" if place == opened else "not a directory of one's own") in result["msg"]
    assert files(tmp_path / "controller") == before


def test_one_file_that_is_missing_is_copied_alone(play: Play) -> None:
    play.run({})
    (play.target / "db_1.globals.sql").unlink()
    before = files(play.target)
    (done,) = play.run({})
    assert done["copied"] == [str(play.target / "db_1.globals.sql")]
    kept = {path: seen for path, seen in before.items() if path != str(play.target)}
    assert kept.items() <= files(play.target).items()
