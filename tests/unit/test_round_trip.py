"""What a downgrade is judged by: differences, to which revision they belong, and which ones are impossible."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.alembic_recovery import round_trip
from ansible.module_utils.alembic_recovery.errors import AgentError, StackError
from ansible.module_utils.alembic_recovery.round_trip import Difference

from tests.unit.test_revisions import known

RULES, SONGS = "public.rules", "public.songs"


def point(*, relations: str = "rules songs", **changes: Any) -> dict[str, Any]:
    """A state: `rules="a b"` are checksums of its columns id and text, `rules_rows` its rows."""
    content, counts = {}, {}
    for name in relations.split():
        sums = changes.get(name, "1 2").split()
        content[f"public.{name}"] = dict(zip(("id", "text"), sums, strict=True))
        counts[f"public.{name}"] = changes.get(f"{name}_rows", 5)
    version = {"public.alembic_version": {"version_num": changes.get("version", "v")}}
    structure = {"relations": [{"schema": "public", "name": name} for name in relations.split()]}
    return {"structure": structure, "fingerprint": "", "row_counts": counts, "content": {**content, **version}}


@pytest.mark.parametrize(
    ("recorded", "found", "expected"),
    [
        pytest.param(point(), point(), Difference(), id="the same"),
        pytest.param(point(version="a"), point(version="b"), Difference(), id="the version is judged elsewhere"),
        pytest.param(point(), point(rules="1 3"), Difference([(RULES, "text")]), id="a column"),
        pytest.param(
            point(rules_rows=7),
            point(rules="3 4"),
            Difference([(RULES, "id"), (RULES, "text")], {RULES: 2}),
            id="two rows fewer",
        ),
        pytest.param(point(), point(songs_rows=9), Difference([], {SONGS: -4}), id="rows more"),
        pytest.param(
            point(),
            point(relations="rules"),
            Difference(
                [], {}, {"relations": {"added": [], "removed": [json.dumps({"name": "songs", "schema": "public"})]}}
            ),
            id="a table that is gone is of the catalog alone",
        ),
    ],
)
def test_difference(recorded: Any, found: Any, expected: Difference) -> None:
    assert round_trip.difference(recorded, found, "alembic_version") == expected
    assert bool(round_trip.difference(recorded, found, "public.alembic_version")) is bool(expected)


@pytest.mark.parametrize(
    ("now", "above", "expected"),
    [
        pytest.param(Difference([(RULES, "id")]), Difference(), Difference([(RULES, "id")]), id="first seen here"),
        pytest.param(Difference([(RULES, "id")]), Difference([(RULES, "id")]), Difference(), id="seen above already"),
        pytest.param(Difference(), Difference([(RULES, "id")], {RULES: 1}), Difference(), id="healed on the way"),
        pytest.param(Difference([], {RULES: 5}), Difference([], {RULES: 3}), Difference([], {RULES: 2}), id="two more"),
        pytest.param(Difference([], {RULES: 3}), Difference([], {RULES: 3}), Difference(), id="the same rows"),
        pytest.param(
            Difference([], {}, {"indexes": {"added": ["a"], "removed": ["x", "y"]}, "enums": {"added": ["e"]}}),
            Difference([], {}, {"indexes": {"added": ["a"], "removed": ["x"]}, "enums": {"added": ["e"]}}),
            Difference([], {}, {"indexes": {"added": [], "removed": ["y"]}}),
            id="a part of the catalog",
        ),
    ],
)
def test_a_difference_belongs_to_the_first_downgrade_that_shows_it(
    now: Difference, above: Difference, expected: Difference
) -> None:
    assert round_trip.newly(now, above) == expected


@pytest.mark.parametrize(
    ("found", "verdict", "reason"),
    [
        pytest.param(Difference(), "lossless", "as they were before its upgrade", id="nothing"),
        pytest.param(
            Difference([(RULES, "text")]), "lossy", "bring back the contents of public.rules.text.", id="text"
        ),
        pytest.param(Difference([], {RULES: 2}), "lossy", "bring back the number of rows of public.rules.", id="rows"),
        pytest.param(
            Difference([], {}, {"indexes": {"added": [], "removed": ["x"]}}),
            "lossy",
            "the catalog (indexes).",
            id="index",
        ),
    ],
)
def test_judged(found: Difference, verdict: str, reason: str) -> None:
    judged = round_trip.judged("r1", found)
    assert (judged["revision"], judged["verdict"]) == ("r1", verdict)
    assert reason in judged["reason"]
    assert set(judged) == {"revision", "verdict", "reason", "columns", "rows", "catalog"}


GRAPH = known(a="", b="a", c="b")


def kinds(**found: str) -> Any:
    """The graph, with what the sources say of some downgrades."""
    return {name: {**facts, "downgrade": found.get(name, "present")} for name, facts in GRAPH.items()}


@pytest.mark.parametrize(
    ("kind", "below", "doable", "reason"),
    [
        pytest.param("present", point(), ["c", "b"], None, id="there is one"),
        pytest.param("empty", point(), ["c", "b"], None, id="nothing to undo"),
        pytest.param("empty", point(version="z"), ["c", "b"], None, id="nothing but the version"),
        pytest.param("empty", point(rules="1 9"), ["c"], "Its downgrade does nothing", id="contents to undo"),
        pytest.param("empty", point(relations="rules"), ["c"], "Its downgrade does nothing", id="a table to undo"),
        pytest.param("empty", point(rules_rows=1), ["c"], "Its downgrade does nothing", id="rows to undo"),
        pytest.param("raises", point(), ["c"], "Its downgrade raises", id="it raises"),
    ],
)
def test_what_the_source_shows_is_not_tried(kind: str, below: Any, doable: list[str], reason: str | None) -> None:
    points = {"c": point(), "b": point(), "a": below}
    steps, impossible = round_trip.doable(kinds(b=kind), ["c"], ["c", "b"], points, "alembic_version")
    assert steps == doable
    if reason is None:
        assert impossible is None
    else:
        assert impossible is not None
        assert (impossible["revision"], impossible["verdict"]) == ("b", "impossible")
        assert impossible["reason"].startswith(reason)


def test_a_file_that_does_not_know_the_way_is_refused() -> None:
    with pytest.raises(StackError, match="knows nothing of the database at a; it has: c, b"):
        round_trip.doable(kinds(), ["c"], ["c", "b"], {"c": point(), "b": point()}, "alembic_version")


@pytest.mark.parametrize(
    ("details", "impossible"),
    [
        pytest.param({"kind": "not_proved"}, True, id="it ends elsewhere"),
        pytest.param({"kind": "builtins.NotImplementedError"}, True, id="an error of Python"),
        pytest.param({"kind": "psycopg.errors.NotNullViolation", "sqlstate": "23502"}, True, id="an error of the data"),
        pytest.param({"kind": "psycopg.errors.LockNotAvailable", "sqlstate": "55P03"}, False, id="a lock"),
        pytest.param({"kind": "psycopg.errors.QueryCanceled", "sqlstate": "57014"}, False, id="a timeout"),
        pytest.param({"kind": "psycopg.errors.DiskFull", "sqlstate": "53100"}, False, id="no room"),
        pytest.param({"kind": "psycopg.OperationalError"}, False, id="no connection"),
        pytest.param({"kind": "x.agent_listen.RedirectError"}, False, id="a connection elsewhere"),
        pytest.param({"kind": "silence"}, False, id="silence"),
        pytest.param({"kind": "ended"}, False, id="killed"),
        pytest.param({}, False, id="a question of ours that failed"),
        pytest.param({"kind": "builtins.ValueError", "failed_revision": None}, False, id="before a revision"),
    ],
)
def test_which_failures_are_a_verdict_on_the_downgrade(details: dict[str, Any], impossible: bool) -> None:
    error = AgentError("All of it.", **{"failed_revision": "b", "reason": "It.", **details})
    found = round_trip.from_failure(error)
    assert (found is not None) is impossible
    if found is not None:
        assert (found["revision"], found["verdict"], found["reason"]) == ("b", "impossible", "It.")


@pytest.mark.parametrize("text", ["", "[]", '{"points"', "{}"])
def test_a_file_that_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "contents.json"
    with pytest.raises(StackError, match="is no file with contents"):
        round_trip.read(str(path))
    path.write_text(text)
    with pytest.raises(StackError, match="is no file with contents"):
        round_trip.read(str(path))
