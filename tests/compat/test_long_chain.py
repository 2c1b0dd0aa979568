"""A chain of 1,000 revisions: to read its status costs little more than Alembic's own command, or less."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible.module_utils.alembic_recovery import agent_client

from replica.postgres import EmbeddedPostgres
from tests.compat.report import Record
from tests.support.layout_app import ROLE, LayoutApp

LENGTH = 1000
ROUNDS = 5
LIMIT = 1.2


@pytest.fixture
def app(server: EmbeddedPostgres, tmp_path: Path) -> Iterator[LayoutApp]:
    """An application with a long history, half of which is applied as far as its version says."""
    server.create_database("long", ROLE)
    made = LayoutApp(tmp_path, server, "long")
    made.ini()
    made.env()
    made.chain(*(f"r{number:04}" for number in range(LENGTH)))
    made.call("stamp", f"r{LENGTH // 2:04}")
    yield made
    server.drop_database("long")


def ask_agent(app: LayoutApp) -> dict[str, object]:
    """Start the agent as the product does, in the application's directory; return its answer."""
    program = agent_client.assembled()
    request = agent_client.base_request({"alembic_config": "alembic.ini", "alembic_section": "alembic"})
    request.update(command="status", settings={"default_transaction_read_only": "on"})
    done = subprocess.run(
        [sys.executable, "-c", agent_client._BOOT, str(len(program.encode()))],
        input=program + json.dumps(request) + "\n",
        cwd=app.directory,
        env={**os.environ, "DATABASE_URL": app.url()},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return next(answer for answer in answers if answer["event"] == "status")


def cost(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds that something took, and the processor's seconds of its processes."""

    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    started, before = time.monotonic(), spent()
    work()
    return time.monotonic() - started, spent() - before


@pytest.mark.slow
def test_the_status_of_a_thousand_revisions_takes_little_longer_than_alembic_current(
    app: LayoutApp, tmp_path: Path, record: Record
) -> None:
    answer = ask_agent(app)
    assert isinstance(answer["revisions"], list)
    assert len(answer["revisions"]) == LENGTH
    assert "r0500" in app.call("current")

    agent, current = [], []
    for _ in range(ROUNDS):
        # By turns: whatever else the machine does meets both.
        agent.append(cost(lambda: ask_agent(app)))
        current.append(cost(lambda: app.call("current")))
    # The processor's time, for others may be at work here; and of each the best round.
    ours, theirs = min(one[1] for one in agent), min(one[1] for one in current)
    wall, theirs_wall = min(one[0] for one in agent), min(one[0] for one in current)
    whole = cost(app.status)[0]

    def play() -> None:
        done = app.play(tmp_path, "playbooks/status.yml")
        assert done.code == 0, done.text
        assert "r0500" in done.text

    played = cost(play)
    text = (
        f"A chain of {LENGTH:,} revisions, best of {ROUNDS} rounds: the agent's status {ours:.2f} s of the processor "
        f"({wall:.2f} s by the clock), `alembic current` {theirs:.2f} s ({theirs_wall:.2f} s): {ours / theirs:.2f} "
        f"times as much. The whole module `alembic_status`, with two looks of the test's own: {whole:.2f} s. "
        f"The whole of `playbooks/status.yml`: {played[1]:.2f} s of the processor, {played[0]:.2f} s by the clock."
    )
    record("figure", text)
    assert ours <= LIMIT * theirs, text
