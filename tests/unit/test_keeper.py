"""The keeper of a run's lock: when it takes a run for dead (its session and its deeds are in tests/integration)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.alembic_recovery import keeper, record


class Keeper(keeper.Keeper):
    """One without a server, whose run is alive at the looks that it is told."""

    def __init__(self, directory: Path, alive: list[bool]) -> None:
        stages = {"fenced": ["fenced"], "swapped": [], "ended": ["done"]}
        super().__init__({"directory": str(directory), "grace": 1, "environment": {}, **stages})
        self._looks = iter(alive)
        self.directory = directory

    def _run_is_alive(self) -> bool:
        return next(self._looks)

    def _ping(self, seen: Mapping[str, Any]) -> bool:
        """The run goes on to its end."""
        assert not (self.directory / record.ENDING).exists()
        note(self.directory, "done")
        return True

    def _end_sessions(self, seen: Mapping[str, Any]) -> None:
        pass

    def _live_oid(self, seen: Mapping[str, Any]) -> int:
        return 1


def note(directory: Path, stage: str) -> None:
    commands = {"open": [], "start": [["touch", str(directory / "started")]]}
    (directory / record.RECORD).write_text(json.dumps({"stage": stage, "live_oid": 1, "commands": commands}))


@pytest.mark.parametrize(
    ("alive", "ends_it"),
    [
        pytest.param([False, False], True, id="nobody is there"),
        pytest.param([False, True, False], False, id="a process of the run signs in at the last moment"),
    ],
)
def test_either_the_run_goes_on_or_its_outage_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alive: list[bool], *, ends_it: bool
) -> None:
    monkeypatch.setattr(keeper, "_LOOK_S", 0.0)
    note(tmp_path, "fenced")

    Keeper(tmp_path, alive).keep()

    assert (tmp_path / "started").exists() is ends_it
    assert (tmp_path / record.ENDING).exists() is ends_it
    assert (tmp_path / record.OUTCOME).exists() is ends_it
