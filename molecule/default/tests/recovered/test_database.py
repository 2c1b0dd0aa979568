"""After the recovery, asked with psql in the database's container."""

from __future__ import annotations

import base64
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from replica import seed
from replica.application import BROKEN, HEAD
from replica.docker import DockerReplica
from tests.docker.observation import database as look
from tests.docker.observation import kept

CHANGED_COLUMNS = {"alembic_version.version_num", "lyric_parsing_rules.replacement"}


def ask(database: Host, statement: str, name: str = "aiproxy") -> str:
    answer: str = database.check_output("psql -X -U aiuser -d %s -v ON_ERROR_STOP=1 -Atc %s", name, statement)
    return answer


def test_version_is_the_head_of_the_code(database: Host) -> None:
    assert ask(database, "select version_num from alembic_version") == HEAD


def test_what_the_code_misses_is_there(database: Host) -> None:
    assert "song_sketches" in ask(database, "\\dt").split("|")
    column = (
        "select data_type, is_nullable from information_schema.columns where table_name = 'songs' and column_name = "
    )
    assert ask(database, f"{column} 'sketch_id'") == "uuid|YES"
    key = ask(database, "select pg_get_constraintdef(oid) from pg_constraint where conname like 'fk_songs_sketch_id%'")
    assert key == "FOREIGN KEY (sketch_id) REFERENCES song_sketches(id) ON DELETE SET NULL"
    indexes = "select relname, indisvalid from pg_index join pg_class on pg_class.oid = indexrelid where relname like "
    assert (
        ask(database, f"{indexes} 'ix_song%sketch%' order by 1") == "ix_song_sketches_workflow|t\nix_songs_sketch_id|t"
    )


def test_the_schema_has_lost_nothing_and_gained_what_the_revisions_make(
    before: dict[str, Any], now: dict[str, Any]
) -> None:
    lost = Counter(before["schema"]) - Counter(now["schema"])
    gained = Counter(now["schema"]) - Counter(before["schema"])

    assert not lost
    assert sum("song_sketches" in line or "sketch_id" in line for line in gained) >= 7
    assert now["globals"] == before["globals"]


def test_the_database_from_before_is_kept_closed_and_is_what_it_was(
    replica: DockerReplica, before: dict[str, Any], now: dict[str, Any]
) -> None:
    """Two runs, and only the one that migrated has kept one; nobody has written into it since."""
    (old,) = set(now["databases"]) - set(before["databases"])
    assert old.startswith("aiproxy_old_")
    assert len(now["databases"]) == len(before["databases"]) + 1
    was = kept(replica, old)
    for part in ("version", "rows", "content", "sequences", "schema", "writes"):
        assert was[part] == before[part], part


def test_all_other_data_is_identical(before: dict[str, Any], now: dict[str, Any]) -> None:
    """A checksum for each column of each table, apart from what the revisions change."""
    kept = {name: checksum for name, checksum in before["content"].items() if name not in CHANGED_COLUMNS}

    assert len(kept) > 20
    assert {name: now["content"][name] for name in kept} == kept
    assert now["content"].keys() - before["content"].keys() == {"songs.sketch_id"} | {
        name for name in now["content"] if name.startswith("song_sketches.")
    }
    assert now["rows"] == {**before["rows"], "song_sketches": 0}
    assert now["sequences"] == before["sequences"]


def decodes(text: str) -> bool:
    try:
        base64.b64decode(text).decode()
    except ValueError:
        return False
    return True


def test_every_replacement_is_encoded_by_the_rule_of_the_revision(database: Host) -> None:
    """What did not decode as Base64 is encoded now; all else is as it was made."""
    rows = json.loads(ask(database, "select json_agg(replacement order by id) from lyric_parsing_rules"))
    made = [seed.awkward(index) for index in range(len(rows))]
    expected = [
        text if text is None or decodes(text) else base64.b64encode(text.encode()).decode("ascii") for text in made
    ]

    assert len(rows) >= 10_000
    assert sum(text != first for text, first in zip(expected, made, strict=True)) > 5_000
    assert rows == expected


@pytest.fixture
def restored(database: Host, replica: DockerReplica, controller_directory: Path) -> Any:
    """The copy of the backup on this machine, restored into a database of its own."""
    (dump,) = controller_directory.rglob("*.dump")
    database.check_output("createdb -U aiuser -T template0 restored")
    try:
        replica.container("postgres").put_archive("/", archive(dump))
        database.check_output("pg_restore -U aiuser --exit-on-error --dbname restored /restored.dump")
        yield "restored"
    finally:
        database.run("rm -f /restored.dump")
        database.check_output("dropdb -U aiuser --force restored")


def archive(path: Path) -> bytes:
    import io
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        file.add(path, "restored.dump")
    return buffer.getvalue()


def test_the_backup_holds_what_was_there_before(replica: DockerReplica, restored: str, before: dict[str, Any]) -> None:
    seen = look(replica, restored)

    assert seen["version"] == [BROKEN]
    for part in ("rows", "content", "sequences", "schema"):
        assert seen[part] == before[part]
