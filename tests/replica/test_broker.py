"""The broker of the replica as processes: two connections to one directory."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection
from kombu.simple import SimpleQueue
from kombu.transport import filesystem

from tests.support.ansible_run import ROOT
from tests.support.waiting import wait_until

WRITING_SECONDS = 1.0


@pytest.fixture
def messages(tmp_path: Path) -> Path:
    """Where messages are until somebody takes them."""
    return tmp_path / "messages"


@pytest.fixture
def queues(tmp_path: Path, messages: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[SimpleQueue]]:
    """The same queue as two processes have it."""
    monkeypatch.syspath_prepend(str(ROOT / "replica/song_api/src"))
    control = tmp_path / "control"
    messages.mkdir()
    control.mkdir()
    options = {
        "data_folder_in": str(messages),
        "data_folder_out": str(messages),
        "control_folder": str(control),
        "polling_interval": 0.05,
    }
    made = [Connection(transport="songapi.broker:Transport", transport_options=options) for _ in range(2)]
    yield [connection.SimpleQueue("songs") for connection in made]
    for connection in made:
        connection.release()


def test_a_message_that_is_still_written_is_waited_for(
    queues: list[SimpleQueue], messages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader looks while the file is there and empty."""
    written, seen = filesystem.dumps, threading.Event()

    def slowly(payload: Any) -> Any:
        seen.wait()
        time.sleep(WRITING_SECONDS)
        return written(payload)

    monkeypatch.setattr(filesystem, "dumps", slowly)
    writer, reader = queues
    with ThreadPoolExecutor() as pool:
        sent = pool.submit(writer.put, {"song": 7})
        wait_until(lambda: [file.stat().st_size for file in messages.glob("*.msg")] == [0], "an empty file", pause=0.01)
        seen.set()
        assert reader.get(timeout=60).payload == {"song": 7}
        sent.result()
    assert list(messages.glob("*.msg")) == []
