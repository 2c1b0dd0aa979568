"""Whose sessions may be ended: a table of who is in the database."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import pytest
from ansible.module_utils.alembic_recovery import fence


def session(application: str = "", user: str = "aiuser", address: str = "") -> fence.Session:
    return fence.Session(7, user, application, address, "idle", 3)


CASES = [
    ("ours", session("alembic-recovery:x:migrate"), fence.Known([]), True, False),
    ("a service by its address", session(address="172.18.0.4"), fence.Known(["172.18.0.4"]), True, False),
    ("another address", session(address="172.18.0.9"), fence.Known(["172.18.0.4"]), True, True),
    ("over the socket, services have addresses", session(), fence.Known(["172.18.0.4"]), False, True),
    ("no addresses, services run", session(), fence.Known(None), False, False),
    ("no addresses, services have stopped", session(), fence.Known(None), True, True),
    ("described", session("metabase", "reporting"), fence.Known(None, ["metabase/.*"]), True, False),
    ("described by its whole name", session("metabase2", "x"), fence.Known(None, ["metabase/.*"]), True, True),
]


@pytest.mark.parametrize(("seen", "known", "stopped", "strange"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_strangers(seen: fence.Session, known: fence.Known, stopped: bool, strange: bool) -> None:
    assert fence.strangers([seen], known, services_stopped=stopped) == ([seen] if strange else [])


def test_a_refusal_names_them_and_says_what_to_do() -> None:
    text = fence.refusal([session("psql", "anna", "10.0.0.1")], "aiproxy").message

    assert "process 7 (anna, psql, from 10.0.0.1, idle, for 3 s)" in text
    assert "-e recovery_unknown_clients=end" in text


PASSING, LOOKER = (session(application=name) for name in ("pg_isready", "metabase"))


@pytest.mark.parametrize(
    ("there", "named"),
    [
        pytest.param(lambda _at, _look: [], [], id="nobody"),
        pytest.param(lambda at, _look: [PASSING] if at < 0.1 else [], [], id="a health check"),
        pytest.param(lambda at, _look: [PASSING] if at < 0.9 else [], [], id="a slow health check"),
        pytest.param(lambda at, _look: [LOOKER, *([PASSING] if at < 0.1 else [])], ["metabase"], id="one who stays"),
        pytest.param(
            lambda _at, look: [dataclasses.replace(LOOKER, pid=look)], ["metabase"], id="another session at each look"
        ),
        pytest.param(lambda _at, look: [LOOKER] if look % 3 == 0 else [], ["metabase"], id="there again and again"),
    ],
)
def test_who_passes_is_no_stranger(
    monkeypatch: pytest.MonkeyPatch, there: Callable[[float, int], list[fence.Session]], named: list[str]
) -> None:
    clock, looks = Clock(), itertools.count()
    monkeypatch.setattr(fence, "time", clock)
    monkeypatch.setattr(fence, "sessions", lambda *_unused: there(clock.now, next(looks)))
    found = fence.strangers_who_stay(None, "aiproxy", fence.Known([]))  # type: ignore[arg-type]
    assert [one.application for one in found] == named
    assert clock.now <= 2.1


def test_a_first_look_that_takes_long_is_not_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(fence, "time", clock)

    def sessions(*_unused: object) -> list[fence.Session]:
        clock.sleep(3)
        return [LOOKER]

    monkeypatch.setattr(fence, "sessions", sessions)
    assert fence.strangers_who_stay(None, "aiproxy", fence.Known([])) == [LOOKER]  # type: ignore[arg-type]


class Clock:
    """Time goes by while somebody sleeps."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
